"""Order and admission: which waiting jobs get nodes now, and why the others wait. Pure.

* Gang: all nodes of a job or none. A job takes the largest number of nodes within its range that fits.
* Order: priority, then the tenant with the smallest share of the queue in use, then the time of entry.
* Reserve: once the first job in order does not fit, nothing behind it takes the kind of slot that it waits for. So small jobs
  never starve a large one. A job that could never fit reserves nothing.
* A slot is held until its node is observed gone, whatever became of the job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Admission", "Decision", "Demand", "Held", "Slots", "Wait", "Waiting", "admit", "choose_device"]

Reason = Literal["DEPENDENCY", "CAPACITY", "QUOTA", "RETRYING", "PREEMPTED", "SUSPENDED"]


@dataclass(frozen=True)
class Slots:
    """Ranks on CPU, and accelerators."""

    cpu: int = 0
    accelerators: int = 0

    def __add__(self, other: Slots) -> Slots:
        return Slots(self.cpu + other.cpu, self.accelerators + other.accelerators)

    def __sub__(self, other: Slots) -> Slots:
        return Slots(self.cpu - other.cpu, self.accelerators - other.accelerators)

    def holds(self, other: Slots) -> bool:
        """Whether `other` fits into this."""
        return other.cpu <= self.cpu and other.accelerators <= self.accelerators

    def __str__(self) -> str:
        parts = [f"{self.cpu} CPU slot{'s' * (self.cpu != 1)}"] * bool(self.cpu)
        parts += [f"{self.accelerators} accelerator{'s' * (self.accelerators != 1)}"] * bool(self.accelerators)
        return " and ".join(parts) or "no slots"


@dataclass(frozen=True)
class Demand:
    """One waiting job: what it needs and since when it waits."""

    uid: str
    tenant: str
    queue: str
    priority: int
    since: float
    min_nodes: int
    max_nodes: int
    processes: int
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    blocked: Reason | None = None
    """Something other than slots that it waits for."""
    blocked_message: str = ""
    retry_at: float | None = None
    retry_reason: Reason = "RETRYING"
    """What it waits for until `retry_at`."""


@dataclass(frozen=True)
class Held:
    """Slots that a launched or admitted job still holds."""

    uid: str
    tenant: str
    queue: str
    slots: Slots
    end_estimate: float | None = None
    """When they are expected to be free; None when nothing is known."""


@dataclass(frozen=True)
class Admission:
    """A job that starts now."""

    uid: str
    num_nodes: int
    device: Literal["cpu", "cuda"]
    slots: Slots
    note: str = ""
    """Said in an event when the device is not the one that "auto" would have liked."""


@dataclass(frozen=True)
class Wait:
    """Why a job waits. `message` does not change while the reason stays, so that it is written once."""

    reason: Reason
    message: str
    position: int = 0
    """Place among the jobs that wait for slots of the queue, from 1; 0: does not wait for slots."""
    estimated_start: float | None = None
    retry_at: float | None = None


@dataclass(frozen=True)
class Decision:
    """What follows for all waiting jobs."""

    admitted: tuple[Admission, ...]
    waiting: Mapping[str, Wait]
    wake_at: float | None = None
    """When a back-off ends."""


Waiting = Mapping[str, Wait]


def choose_device(demand: Demand, nodes: int, capacity: Slots) -> tuple[Literal["cpu", "cuda"], str]:
    """The device of a job on `nodes` nodes, and what to tell the user about it. Decided by what the queue has in total, so that a
    busy moment never moves a job from GPUs to CPUs."""
    ranks = nodes * demand.processes
    if demand.accelerator != "auto":
        return demand.accelerator, ""
    if capacity.accelerators >= ranks:
        return "cuda", ""
    if capacity.accelerators:
        return "cpu", f"{ranks} ranks and {capacity.accelerators} accelerators: training on CPU with gloo"
    return "cpu", "no accelerator on this machine: training on CPU with gloo"


def _slots(demand: Demand, nodes: int, capacity: Slots) -> tuple[Slots, Literal["cpu", "cuda"], str]:
    device, note = choose_device(demand, nodes, capacity)
    ranks = nodes * demand.processes
    return (Slots(accelerators=ranks) if device == "cuda" else Slots(cpu=ranks)), device, note


def _fitting(demand: Demand, free: Slots, capacity: Slots) -> Admission | None:
    """The largest number of nodes that fits into `free`."""
    for nodes in range(demand.max_nodes, demand.min_nodes - 1, -1):
        slots, device, note = _slots(demand, nodes, capacity)
        if free.holds(slots):
            return Admission(demand.uid, nodes, device, slots, note)
    return None


def _share(used: Slots, capacity: Slots) -> float:
    """Dominant share: the larger of the two fractions in use."""
    return max(
        used.cpu / capacity.cpu if capacity.cpu else 0.0, used.accelerators / capacity.accelerators if capacity.accelerators else 0.0
    )


def admit(waiting: Iterable[Demand], held: Sequence[Held], capacities: Mapping[str, Slots], now: float) -> Decision:
    """Decide about every waiting job of every queue."""
    admitted: list[Admission] = []
    waits: dict[str, Wait] = {}
    wake_at: float | None = None
    by_queue: dict[str, list[Demand]] = {}
    for demand in waiting:
        if demand.blocked is not None:
            waits[demand.uid] = Wait(demand.blocked, demand.blocked_message)
        elif demand.retry_at is not None and demand.retry_at > now:
            message = demand.blocked_message or "waits before the next attempt"
            waits[demand.uid] = Wait(demand.retry_reason, message, retry_at=demand.retry_at)
            wake_at = demand.retry_at if wake_at is None else min(wake_at, demand.retry_at)
        elif demand.queue not in capacities:
            names = ", ".join(sorted(capacities))
            waits[demand.uid] = Wait("CAPACITY", f"there is no queue {demand.queue!r}; this controller has {names}")
        else:
            by_queue.setdefault(demand.queue, []).append(demand)
    for queue, demands in by_queue.items():
        granted, left = _admit_queue(demands, [h for h in held if h.queue == queue], capacities[queue], now)
        admitted += granted
        waits |= left
    return Decision(tuple(admitted), waits, wake_at)


def _admit_queue(demands: list[Demand], held: Sequence[Held], capacity: Slots, now: float) -> tuple[list[Admission], dict[str, Wait]]:
    used: dict[str, Slots] = {}
    free = capacity
    for holder in held:
        used[holder.tenant] = used.get(holder.tenant, Slots()) + holder.slots
        free = free - holder.slots
    # Lines of one tenant and priority, in order of entry; a line's head is the only one that can be next.
    lines: dict[tuple[int, str], list[Demand]] = {}
    for demand in sorted(demands, key=lambda d: (d.since, d.uid), reverse=True):
        lines.setdefault((-demand.priority, demand.tenant), []).append(demand)
    granted: list[Admission] = []
    waits: dict[str, Wait] = {}
    forecast = _Forecast(held, free, now)
    position = 0
    while lines:
        key = min(lines, key=lambda k: (k[0], _share(used.get(k[1], Slots()), capacity), lines[k][-1].since, k[1]))
        demand = lines[key].pop()
        if not lines[key]:
            del lines[key]
        smallest, _, _ = _slots(demand, demand.min_nodes, capacity)
        if not capacity.holds(smallest):
            has = f"needs {smallest}, the queue has {capacity if capacity != Slots() else 'none'}"
            waits[demand.uid] = Wait("CAPACITY", f"{has}: ask for fewer nodes, or start the controller with more (--slots)")
            continue
        # After a job that waits, `free` has nothing left of the kind that it waits for: that is the reserve.
        admission = _fitting(demand, free, capacity)
        if admission is not None:
            granted.append(admission)
            free = free - admission.slots
            forecast.take(admission.slots)
            used[demand.tenant] = used.get(demand.tenant, Slots()) + admission.slots
            continue
        position += 1
        estimate = forecast.reserve(smallest)
        waits[demand.uid] = Wait("CAPACITY", f"needs {smallest}, the queue has {capacity}; others use them", position, estimate)
        # Counted as used, so that a tenant's second waiting job does not stand before another tenant's first.
        used[demand.tenant] = used.get(demand.tenant, Slots()) + smallest
        free = replace(free, cpu=0) if smallest.cpu > 0 else free
        free = replace(free, accelerators=0) if smallest.accelerators > 0 else free
    return granted, waits


class _Forecast:
    """When slots become free, as far as running jobs say so. Jobs that start later hold their slots for an unknown time."""

    def __init__(self, held: Sequence[Held], free: Slots, now: float) -> None:
        self._free = free
        self._now = now
        self._ends = sorted(((max(h.end_estimate, now), h.slots) for h in held if h.end_estimate is not None), key=lambda e: e[0])
        self._known = True

    def take(self, slots: Slots) -> None:
        self._free = self._free - slots

    def reserve(self, slots: Slots) -> float | None:
        """When `slots` are free, taking them from then on; None when nothing is known."""
        if not self._known:
            return None
        time = self._now
        while not self._free.holds(slots):
            if not self._ends:
                self._known = False  # whoever stands behind starts later still
                return None
            time, freed = self._ends.pop(0)
            self._free = self._free + freed
        self._now = time
        self._free = self._free - slots
        return time
