"""Resource names: parsing them, and making readable ones."""

from __future__ import annotations

import random
import re
import uuid

from luthier.errors import FieldViolation, SpecError
from luthier.spec.address import JOB_ID

__all__ = ["artifact_of", "check_job_id", "check_request_id", "generate_job_id", "job_of", "last_segment", "new_uid"]

_ADJECTIVES = """amber ancient autumn bold brisk bright calm clear clever cosy crisp deep early fair fine fond gentle golden grand happy
hollow keen kind light lively lucid merry mild misty neat noble olive pale patient plain proud quick quiet rapid ripe rosy round royal
ruby sage silent silver smooth snowy soft solid spruce steady still sunny swift tender tidy upright vivid warm wise""".split()
_NOUNS = """alder ash balance bass beech bow bridge button cedar cello chord cherry clamp coda curl ebony elm fiddle fig finger fret
gamba grain guitar harp hazel hornbeam lark larch lute maple mandolin neck note oak octave pear peg pine plum poplar psaltery purfling
rebec reed resin rib rosette rosin rowan saddle scroll spruce string sycamore tone tune varnish viol viola violin walnut willow
yew zither""".split()


def wrong_field(field: str, what: str, fix: str) -> SpecError:
    """An error about one field of a request."""
    return SpecError(f"{field}: {what}", violations=[FieldViolation(field, what, fix)], fix=fix)


def last_segment(name: str, collection: str, field: str) -> str:
    """`jobs/x` -> `x`. Raises `SpecError` for anything else."""
    head, slash, rest = name.partition("/")
    if head != collection or not slash or not rest or "/" in rest or len(rest) > 128 or not rest.isprintable():
        raise wrong_field(field, f"{name[:150]!r} is not of the form {collection}/NAME", f"write {collection}/NAME")
    return rest


def job_of(name: str, field: str = "name") -> str:
    """The job id of `jobs/{job}`."""
    return last_segment(name, "jobs", field)


_ARTIFACT_NAME = re.compile(r"jobs/([^/]{1,128})/artifacts/([A-Za-z0-9][A-Za-z0-9._-]{0,127})")


def artifact_of(name: str, field: str = "name") -> tuple[str, str]:
    """Job id and artifact of `jobs/{job}/artifacts/{artifact}`."""
    match = _ARTIFACT_NAME.fullmatch(name)
    if match is None:
        form = "jobs/JOB/artifacts/ARTIFACT"
        raise wrong_field(field, f"{name[:200]!r} is not of the form {form}", f"write {form}; the job's result is …/artifacts/result")
    return match[1], match[2]


def check_job_id(job_id: str) -> None:
    """Raises `SpecError` for an id that cannot be a job's name."""
    if not JOB_ID.fullmatch(job_id):
        fix = "use lower-case letters, digits and hyphens, begin with a letter, at most 63 characters, for example tune-alpaca-2"
        raise wrong_field("job_id", f"{job_id[:80]!r} is not a job name", fix)


def check_request_id(request_id: str) -> None:
    """Raises `SpecError` unless the id is a UUID4 in its usual form."""
    try:
        known = uuid.UUID(request_id)
    except ValueError:
        known = None
    if known is None or known.version != 4 or str(known) != request_id.lower():
        raise wrong_field("request_id", f"{request_id[:80]!r} is not a UUID4", "make one with uuid.uuid4(), or leave it out")


def generate_job_id(method: str, rng: random.Random) -> str:
    """A readable name such as `sft-quiet-maple-3f2a`; one of 300 million per method, so a retry after a clash is rare."""
    stem = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")[:24] or "job"
    if not stem[0].isalpha():
        stem = f"job-{stem}"
    return f"{stem}-{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}-{rng.getrandbits(16):04x}"


def new_uid(rng: random.Random) -> str:
    """A uid: 20 hex digits behind a letter, fit for paths, process and Kubernetes object names."""
    return f"j{rng.getrandbits(80):020x}"
