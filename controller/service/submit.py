"""CreateJob: everything that is checked, then one transaction."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from luthier.controller.contents import ContentStore
from luthier.controller.service.convert import spec_bytes
from luthier.controller.service.names import check_job_id, check_request_id, generate_job_id, new_uid, wrong_field
from luthier.controller.store.api import Reader, Store, Transaction
from luthier.controller.store.records import JobRecord, JobState
from luthier.errors import Conflict, Exhausted, FieldViolation, JobNotFound, SpecError
from luthier.spec.address import Address, parse_address
from luthier.spec.convert import spec_from_proto
from luthier.spec.models import JobSpec
from luthier.spec.resolve import resolve
from luthier.spec.violations import nearest
from luthier.v1 import job_service_pb2

__all__ = ["Premises", "Submitter", "addresses", "check_display_name", "check_labels", "check_place", "pinned_dependencies"]

_NAME_TRIES = 8


@dataclass(frozen=True)
class Premises:
    """What the operator configured and a specification may name. None means that the set is not known here and not checked."""

    roots: Collection[str] | None = None
    queues: Callable[[], Collection[str]] | None = None
    secrets: Collection[str] = ()
    node_profiles: Collection[str] = ()
    allow_hf: bool = False
    max_active_jobs: int = 20_000
    """Unfinished jobs of one tenant."""
    inputs: Callable[[JobSpec], Sequence[FieldViolation]] | None = None
    """Looks at the files that addresses name; called in a worker thread."""


def addresses(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """(proto path, address) of every input that the specification names."""
    if spec.model is not None:
        yield "spec.model.uri", spec.model.uri
        if spec.model.tokenizer_uri:
            yield "spec.model.tokenizer_uri", spec.model.tokenizer_uri
        for role, uri in sorted(spec.model.roles.items()):
            yield f"spec.model.roles.{role}", uri
    for kind, sources in (("sources", spec.data.sources), ("validation", spec.data.validation)):
        for number, source in enumerate(sources):
            yield f"spec.data.{kind}[{number}].uri", source.uri


def check_labels(labels: dict[str, str]) -> list[FieldViolation]:
    """What is wrong with a job's labels."""
    found = []
    if len(labels) > 32:
        found.append(FieldViolation("job.labels", f"there are {len(labels)} labels", "give at most 32"))
    for key, value in sorted(labels.items()):
        if not 1 <= len(key) <= 63 or not key.isprintable():
            found.append(FieldViolation("job.labels", f"the key {key[:80]!r} cannot be used", "use 1 to 63 printable characters"))
        if len(value) > 63 or "\0" in value:
            found.append(FieldViolation(f"job.labels.{key[:63]}", f"the value has {len(value)} characters", "use at most 63, without NUL"))
    return found


def check_display_name(text: str) -> list[FieldViolation]:
    """What is wrong with a job's display name."""
    if len(text) > 128 or "\0" in text:
        return [FieldViolation("job.display_name", f"it has {len(text)} characters", "use at most 128, without NUL")]
    return []


def check_place(spec: JobSpec, premises: Premises) -> list[FieldViolation]:
    """Names in the specification that the operator has not configured."""
    found = []
    if premises.queues is not None and spec.scheduling.queue not in (queues := premises.queues()):
        found.append(
            FieldViolation("spec.scheduling.queue", f"there is no queue {spec.scheduling.queue!r}", nearest(spec.scheduling.queue, queues))
        )
    profile = spec.resources.node_profile
    if profile and profile not in premises.node_profiles:
        fix = nearest(profile, premises.node_profiles) if premises.node_profiles else "leave it out; the operator configured none"
        found.append(FieldViolation("spec.resources.node_profile", f"there is no node profile {profile!r}", fix))
    for number, ref in enumerate(spec.secret_refs):
        if ref.secret not in premises.secrets:
            fix = nearest(ref.secret, premises.secrets) if premises.secrets else "leave it out; the operator configured none"
            found.append(FieldViolation(f"spec.secret_refs[{number}].secret", f"there is no secret {ref.secret!r}", fix))
    return found


def _check_doors(parsed: list[tuple[str, Address]], spec: JobSpec, premises: Premises) -> None:
    """Raise FORBIDDEN_URI for addresses through doors that the operator keeps shut."""
    found = []
    everything = [*parsed, *([("spec.output.uri", parse_address(spec.output.uri))] if spec.output.uri else [])]
    for field, address in everything:
        if address.kind == "hf" and not premises.allow_hf:
            found.append(FieldViolation(field, f"{address} is not allowed here", "download the model and give its local path to the CLI"))
        if address.kind == "root" and premises.roots is not None and address.name not in premises.roots:
            roots = premises.roots
            fix = (
                nearest(address.name, roots)
                if roots
                else "upload the file: give its local path to the CLI; the operator configured no roots"
            )
            found.append(FieldViolation(field, f"{address}: there is no root {address.name!r} here", fix))
    if found:
        raise _together("FORBIDDEN_URI", found)


def _together(reason: str, found: list[FieldViolation]) -> SpecError:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return SpecError(f"{found[0].field}: {found[0].description}{more}", reason=reason, violations=found, fix=found[0].fix)


def pinned_dependencies(reader: Reader, tenant: str, parsed: list[tuple[str, Address]]) -> tuple[dict[str, str], ...]:
    """The jobs that `job://` addresses name, by uid. Raises `SpecError` (UNKNOWN_DEPENDENCY) when one does not exist."""
    found: list[FieldViolation] = []
    needed: dict[tuple[str, str], dict[str, str]] = {}
    for field, address in parsed:
        if address.kind != "job":
            continue
        job = reader.job_named(tenant, address.name)
        if job is None:
            fix = "submit that job first, or check its name with `luthier get`"
            found.append(FieldViolation(field, f"there is no job {address.name!r}", fix))
            continue
        needed[address.name, address.path] = {"job": job.name, "uid": job.uid, "artifact": address.path, "digest": "", "path": ""}
    if found:
        raise _together("UNKNOWN_DEPENDENCY", found)
    return tuple(needed.values())


@dataclass(frozen=True)
class _Draft:
    """A checked request, ready to be stored."""

    tenant: str
    job_id: str
    request_id: str
    body_hash: str
    display_name: str
    labels: dict[str, str]
    spec: JobSpec
    parsed: list[tuple[str, Address]]


class Submitter:
    """Creates jobs. The same request id with the same body is the same job, for ever."""

    def __init__(self, store: Store, contents: ContentStore, premises: Premises, rng: random.Random) -> None:
        self._store = store
        self._contents = contents
        self._premises = premises
        self._rng = rng

    async def create(self, tenant: str, request: job_service_pb2.CreateJobRequest) -> JobRecord:
        """The created job, or the one that this request created before. With `validate_only` nothing is stored."""
        body_hash = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        if request.request_id:
            check_request_id(request.request_id)
        try:
            draft = self._check(tenant, request, body_hash)
            await self._check_files(draft)
        except SpecError:
            # A retry must find its job even where what it named is gone meanwhile.
            if request.request_id and not request.validate_only:
                earlier = await self._store.read(lambda reader: _earlier(reader, tenant, request.request_id, body_hash))
                if earlier is not None:
                    return earlier
            raise
        if request.validate_only:
            return await self._store.read(lambda reader: self._preview(reader, draft))
        return await self._store.transact(lambda tx: self._insert(tx, draft))

    async def _check_files(self, draft: _Draft) -> None:
        """Raise `SpecError` for uploads and files that are not there."""
        await self._check_contents(draft.parsed)
        if self._premises.inputs is not None:
            found = list(await asyncio.to_thread(self._premises.inputs, draft.spec))
            if found:
                raise _together("INVALID_FIELD", found)

    def _check(self, tenant: str, request: job_service_pb2.CreateJobRequest, body_hash: str) -> _Draft:
        if not request.HasField("job"):
            raise wrong_field("job", "it is missing", "send the job to create")
        if request.job_id:
            check_job_id(request.job_id)
        labels = dict(request.job.labels)
        found = check_labels(labels) + check_display_name(request.job.display_name)
        try:
            spec = resolve(spec_from_proto(request.job.spec))
        except SpecError as error:
            if not found:
                raise
            found += error.violations
            raise _together(error.reason, found) from error
        found += check_place(spec, self._premises)
        if found:
            raise _together("INVALID_FIELD", found)
        parsed = [(field, parse_address(uri, field)) for field, uri in addresses(spec)]
        _check_doors(parsed, spec, self._premises)
        return _Draft(tenant, request.job_id, request.request_id, body_hash, request.job.display_name, labels, spec, parsed)

    async def _check_contents(self, parsed: list[tuple[str, Address]]) -> None:
        """Raise CONTENT_MISSING for uploads that are not there."""
        uploads = [(field, address) for field, address in parsed if address.kind == "upload"]
        if not uploads:
            return
        missing = await asyncio.to_thread(
            lambda: [(field, a, gone) for field, a in uploads if (gone := self._contents.missing(a.name, tree=not a.path))]
        )
        if missing:
            fix = "submit with `luthier submit` or Client.jobs.submit, which upload what is missing"
            found = [FieldViolation(f, f"{a}: {len(gone)} of its contents were not uploaded", fix) for f, a, gone in missing]
            error = _together("CONTENT_MISSING", found)
            error.metadata["digest"] = missing[0][2][0]
            raise error

    def _insert(self, tx: Transaction, draft: _Draft) -> JobRecord:
        if draft.request_id:
            earlier = _earlier(tx, draft.tenant, draft.request_id, draft.body_hash)
            if earlier is not None:
                return earlier
        active = tx.count_active(draft.tenant)
        if active >= self._premises.max_active_jobs:
            raise Exhausted(
                f"{active} jobs of this tenant are waiting or running, which is the most",
                reason="QUOTA_EXCEEDED",
                retry_seconds=60.0,
                fix="wait until some end, or cancel what is not needed",
                metadata={"limit": str(self._premises.max_active_jobs)},
            )
        job = self._record(tx, draft, new_uid(self._rng))
        return tx.insert_job(job, request_id=draft.request_id, body_hash=draft.body_hash)

    def _preview(self, reader: Reader, draft: _Draft) -> JobRecord:
        if draft.job_id and reader.job_named(draft.tenant, draft.job_id) is not None:
            raise Conflict(
                f"the name {draft.job_id!r} is taken by another job",
                fix=f"choose another name, leave it out to get one, or delete the old job (`luthier delete {draft.job_id}`)",
                metadata={"job": draft.job_id},
            )
        return self._record(reader, draft, "")

    def _record(self, reader: Reader, draft: _Draft, uid: str) -> JobRecord:
        spec = draft.spec
        dependencies = pinned_dependencies(reader, draft.tenant, draft.parsed)
        pending = [d["job"] for d in dependencies if (needed := reader.job(d["uid"])) is None or needed.state != JobState.SUCCEEDED]
        return JobRecord(
            uid=uid,
            tenant=draft.tenant,
            name=draft.job_id or self._free_name(reader, draft.tenant, spec.method.name),
            display_name=draft.display_name,
            labels=draft.labels,
            spec=spec.model_dump(mode="json"),
            spec_wire=spec_bytes(spec),
            method=spec.method.name,
            queue=spec.scheduling.queue,
            priority=spec.scheduling.priority,
            dependencies=dependencies,
            waiting_reason="DEPENDENCY" if pending else "",
            waiting_message=f"waits for {', '.join(pending)}" if pending else "",
        )

    def _free_name(self, reader: Reader, tenant: str, method: str) -> str:
        for _ in range(_NAME_TRIES):
            name = generate_job_id(method, self._rng)
            if reader.job_named(tenant, name) is None:
                return name
        raise Conflict("no free name was found", fix="give the job a name of its own")


def _earlier(reader: Reader, tenant: str, request_id: str, body_hash: str) -> JobRecord | None:
    """The job that this request created. Raises `Conflict` when the id came with another body."""
    known = reader.find_request(tenant, request_id)
    if known is None:
        return None
    if known[0] != body_hash:
        raise Conflict(
            f"request_id {request_id} was used for another body",
            reason="REQUEST_ID_REUSED",
            fix="use a new UUID4 for every new job; repeat one only with the same body",
            metadata={"request_id": request_id},
        )
    job = reader.job(known[1])
    if job is None:
        raise JobNotFound(
            "the job that this request created was deleted since",
            fix="use a new request_id to create it again",
            metadata={"uid": known[1], "request_id": request_id},
        )
    return job
