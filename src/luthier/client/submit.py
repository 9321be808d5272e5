"""A pipeline on its way to the server: documents, their names, and the local files that they need."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from luthier.client.transfer import Upload, plan_upload
from luthier.errors import FieldViolation, SpecError
from luthier.spec.address import JOB_ID
from luthier.spec.convert import spec_from_proto, spec_to_proto
from luthier.spec.marks import LocatedViolation
from luthier.spec.models import JobSpec
from luthier.spec.resolve import resolve
from luthier.spec.yaml import Document, load_file, load_text, load_value
from luthier.v1 import job_pb2, spec_pb2

__all__ = ["Pipeline", "Source"]

Source = str | Path | Mapping[str, Any] | JobSpec | spec_pb2.JobSpec | job_pb2.Job | Sequence[Any]
"""What can be submitted: the path of a YAML file, YAML text, a mapping, a specification, or a list of these."""


def _from_proto(job: job_pb2.Job) -> Document:
    """A document without lines; its addresses must be ones the server knows."""
    copy = job_pb2.Job()
    copy.CopyFrom(job)
    name = copy.name.removeprefix("jobs/")
    copy.ClearField("name")
    return Document(copy, job_id=name)


def _load(source: Any, base_dir: str | Path, overrides: Sequence[str]) -> list[Document]:
    if isinstance(source, Path):
        return load_file(source, overrides=overrides)
    if isinstance(source, str):
        if "\n" not in source and Path(source).suffix in (".yaml", ".yml"):
            return load_file(source, overrides=overrides)
        return load_text(source, base_dir=base_dir, overrides=overrides)
    if isinstance(source, Mapping):
        return load_value(source, base_dir=base_dir, overrides=overrides)
    if isinstance(source, JobSpec):
        return [_from_proto(job_pb2.Job(spec=spec_to_proto(source)))]
    if isinstance(source, spec_pb2.JobSpec):
        return [_from_proto(job_pb2.Job(spec=source))]
    if isinstance(source, job_pb2.Job):
        return [_from_proto(source)]
    if isinstance(source, Sequence):
        return [document for part in source for document in _load(part, base_dir, overrides)]
    raise SpecError(f"a {type(source).__name__} is not a job", fix="give a YAML path or text, a mapping or a JobSpec")


class Pipeline:
    """Documents that are submitted together; a later one may start from an earlier one's result."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents
        self.uploads: list[Upload] = []
        self._planned = False

    @classmethod
    def load(cls, source: Source, *, base_dir: str | Path = ".", overrides: Sequence[str] = ()) -> Pipeline:
        """Read and check documents. Raises `SpecError` with all violations and their lines."""
        return cls(_load(source, base_dir, overrides))

    def rename_only(self, name: str) -> None:
        """Give the only document another name."""
        if len(self.documents) != 1:
            raise SpecError(f"--name {name} for {len(self.documents)} documents", fix="use --suffix, which is appended to every name")
        if not JOB_ID.fullmatch(name):
            raise SpecError(f"{name!r} is not a job name", fix="use at most 63 lower-case letters, digits and '-', starting with a letter")
        self.documents[0].job_id = name

    def append_suffix(self, suffix: str) -> None:
        """Append `-suffix` to every name; addresses of jobs of this pipeline follow."""
        names = {d.job_id: f"{d.job_id}-{suffix}" for d in self.documents if d.job_id}
        for old, new in names.items():
            if not JOB_ID.fullmatch(new):
                raise SpecError(
                    f"{old!r} with the suffix is {new!r}, not a job name", fix="use a short suffix of lower-case letters and digits"
                )
        for document in self.documents:
            document.job_id = names.get(document.job_id, document.job_id)
            spec = document.job.spec
            holders: list[tuple[Any, str]] = []
            if spec.HasField("model"):
                holders += [(spec.model, "uri"), (spec.model, "tokenizer_uri")]
                for role in spec.model.roles:
                    spec.model.roles[role] = _renamed(spec.model.roles[role], names)
            holders += [(source, "uri") for source in (*spec.data.sources, *spec.data.validation)]
            for holder, field in holders:
                setattr(holder, field, _renamed(getattr(holder, field), names))

    def plan_uploads(self) -> None:
        """Hash the local paths and put their `upload://` addresses into the documents. Reads files: run it in a thread."""
        if self._planned:
            return
        known: dict[Path, Upload] = {}
        for document in self.documents:
            for path, local in document.uploads.items():
                if local not in known:
                    try:
                        known[local] = plan_upload(local)
                    except SpecError as error:
                        violation = FieldViolation(path, error.message, error.fix)
                        raise self.error(document.locate([violation])) from None
                document.set_uri(path, known[local].uri)
        self.uploads = list(known.values())
        self._planned = True

    def remaining(self, document: Document, error: SpecError) -> list[FieldViolation] | None:
        """The violations that will not go away by uploading and by creating the earlier documents; None when none was named."""
        if not error.violations:
            return None
        index = self.documents.index(document)
        earlier = {d.job_id for d in self.documents[:index] if d.job_id}
        return [v for v in error.violations if not self._will_exist(self._text_at(document, v.field), earlier)]

    def _will_exist(self, uri: str, earlier: set[str]) -> bool:
        match = re.fullmatch(r"job://([^/]+)(/.*)?", uri)
        return (match is not None and match[1] in earlier) or any(upload.uri == uri for upload in self.uploads)

    def resolved(self, document: Document) -> job_pb2.Job:
        """The job as the server would store it, filled in here: for a document that only waits for uploads or earlier jobs."""
        job = job_pb2.Job()
        job.CopyFrom(document.job)
        job.name = f"jobs/{document.job_id}" if document.job_id else ""
        try:
            job.spec.CopyFrom(spec_to_proto(resolve(spec_from_proto(document.job.spec))))
        except SpecError:
            return job  # a plugin that only the server has: as it was written
        return job

    @staticmethod
    def _text_at(document: Document, field: str) -> str:
        target: Any = document.job
        for part in re.findall(r"[^.\[\]]+", field.removeprefix("job.")):
            try:
                target = target[int(part)] if part.isdigit() else target[part] if isinstance(target, Mapping) else getattr(target, part)
            except (AttributeError, KeyError, IndexError, TypeError):
                return ""
        return target if isinstance(target, str) else ""

    def error(self, found: Sequence[LocatedViolation], cause: SpecError | None = None) -> SpecError:
        """One error for violations of several documents."""
        if not found:
            assert cause is not None
            return cause
        first = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return SpecError(
            f"{first.field}: {first.description}{more}".removeprefix(": "),
            where=first.where,
            fix=first.fix,
            violations=cast(Sequence[FieldViolation], found),
            reason=cause.reason if cause is not None else "",
        )


def _renamed(uri: str, names: Mapping[str, str]) -> str:
    match = re.fullmatch(r"job://([^/]+)(/.*)?", uri)
    if match is None or match[1] not in names:
        return uri
    return f"job://{names[match[1]]}{match[2] or ''}"
