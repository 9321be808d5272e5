"""What ranks agree on at every boundary: counts, control word, cadence, and saves that are done, in one integer all-reduce."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.errors import MethodError
from luthier.trainer_node.context import NONE, SAVE, SAVE_AND_LEAVE, STOP, ControlWord, Group, RankChannel

__all__ = ["Agreed", "Control"]


@dataclass(frozen=True)
class Agreed:
    """Sums over all ranks, and the largest control word."""

    word: ControlWord
    counts: Mapping[str, int]
    flags: Mapping[str, int]


class Control:
    """Collects the agent's word until a boundary where all ranks look at it together."""

    def __init__(self, channel: RankChannel, group: Group) -> None:
        self._channel = channel
        self._group = group
        self._pending: ControlWord = NONE

    def agree(self, counts: Mapping[str, int], flags: Mapping[str, int]) -> Agreed:
        """Sum `counts` and `flags` over the ranks and take the largest word; the same names everywhere. Collective."""
        self._look()
        names = sorted(counts)
        words = [int(self._pending == word) for word in (SAVE, SAVE_AND_LEAVE, STOP)]
        # Names differ between ranks when an objective looks at what is in the batch; lengths would differ then, and the sums be nonsense.
        shape = _checksum(names)
        sums = self._group.sum_ints([shape, *words, *flags.values(), *(counts[name] for name in names)])
        if sums[0] != shape * self._group.world_size:
            raise MethodError(f"the objective names its counts differently on different ranks, here {', '.join(names)}", where="counts")
        word: ControlWord = STOP if sums[3] else SAVE_AND_LEAVE if sums[2] else SAVE if sums[1] else NONE
        self._pending = NONE
        rest = sums[4:]
        return Agreed(word, dict(zip(names, rest[len(flags) :], strict=True)), dict(zip(flags, rest, strict=False)))

    def leave_asked(self) -> bool:
        """Whether any rank is asked to leave; the word stays for the next `agree`. Collective; for boundaries of shards."""
        self._look()
        return self._group.max_ints([self._pending])[0] >= SAVE_AND_LEAVE

    def must_leave(self) -> bool:
        """Whether some node is about to be ended, so that training on is no option. Collective."""
        return self._group.max_ints([int(self._channel.grace() is not None)])[0] == 1

    def _look(self) -> None:
        word = self._channel.control()
        if word > self._pending:
            self._pending = word


def _checksum(names: list[str]) -> int:
    """A small number that differs when the names do."""
    return sum((index + 1) * ord(letter) for index, letter in enumerate("\n".join(names))) % 1_000_003 + 1
