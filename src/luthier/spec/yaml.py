"""Job specifications in YAML: documents of one pipeline, with the line of every field.

A document holds `name`, `display_name`, `labels` and the parts of `luthier.v1.JobSpec`, flat or below `spec:`. Shorthands:
`model: ADDRESS`, `method: NAME` (likewise objective and adapter), `data: FILE` or a list, a source as plain text, `nodes: 2`,
durations as `90`, `30s`, `5m`, `1h30m`, enums as their lower-case words. A local path is uploaded, relative to the YAML file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from luthier.errors import FieldViolation, SpecError
from luthier.spec import marks
from luthier.spec.address import JOB_ID, is_local_path, parse_address
from luthier.spec.convert import spec_from_proto
from luthier.spec.fill import Builder, expand, is_map, show
from luthier.spec.marks import LocatedViolation, Marked
from luthier.spec.violations import nearest
from luthier.v1 import job_pb2, spec_pb2

__all__ = ["Document", "load_file", "load_text", "load_value"]


@dataclass
class Document:
    """One job of a pipeline, ready for CreateJob once its local paths are uploaded."""

    job: job_pb2.Job
    """Display name, labels and spec; local paths still stand in its addresses."""
    job_id: str = ""
    uploads: dict[str, Path] = field(default_factory=dict)
    """Field path (`spec.data.sources[0].uri`) -> absolute local path."""
    lines: dict[str, int] = field(default_factory=dict)
    """Field path -> line, from 1."""
    file: str = ""
    line: int = 0

    def where(self, path: str) -> str:
        """`file:line` of a field, or of the nearest field around it; empty without a file."""
        if not self.file:
            return ""
        path = path.removeprefix("job.")
        while path:
            if path in self.lines:
                return f"{self.file}:{self.lines[path]}" if self.lines[path] else "--set"
            path = re.sub(r"(\[\d+\]|\.?[^.\[\]]+)$", "", path)
        return f"{self.file}:{self.line}" if self.line else self.file

    def locate(self, violations: Iterable[FieldViolation]) -> list[LocatedViolation]:
        """Violations, for example the server's, with their place in the file."""
        return [LocatedViolation(v.field, v.description, v.fix, where=self.where(v.field)) for v in violations]

    def set_uri(self, path: str, uri: str) -> None:
        """Replace the address at a field path of `uploads`."""
        parts = re.findall(r"[^.\[\]]+", path)[1:]
        target: Any = self.job.spec
        for part in parts[:-1]:
            target = target[int(part)] if part.isdigit() else getattr(target, part)
        if isinstance(target, Message):
            setattr(target, parts[-1], uri)
        else:
            target[parts[-1]] = uri


# --- documents -------------------------------------------------------------------------------------------------------

_OWN = ("name", "display_name", "labels")


def _homes(key: str) -> str:
    """A fix for a key that belongs one level deeper; empty when it belongs nowhere."""
    parts: Any = spec_pb2.JobSpec.DESCRIPTOR.fields
    homes = [p.name for p in parts if p.message_type is not None and not is_map(p) and key in p.message_type.fields_by_name]
    return f"write it under {' or '.join(homes)}" if homes else ""


def _document(item: Marked, file: str, base_dir: Path, overrides: Sequence[tuple[str, Marked]]) -> tuple[Document, list[FieldViolation]]:
    builder = Builder(file)
    document = Document(job_pb2.Job(), file=file, line=item.line)
    if item.mapping is None:
        builder.refuse("", item.line, f"{show(item)} is not a job", "write fields such as `name:`, `method:` and `data:`")
        return document, builder.found
    fields: Any = spec_pb2.JobSpec.DESCRIPTOR.fields_by_name
    top, nested = dict(item.mapping), item.mapping.get("spec")
    if nested is not None:
        if nested.mapping is None:
            builder.refuse("spec", nested.line, f"{show(nested)} is not a mapping", "write the parts of the job below spec")
            return document, builder.found
        for key in [k for k in top if k in fields]:
            builder.refuse(key, item.key_lines.get(key, 0), "stands beside spec", f"move {key} below spec, or remove the key spec")
            del top[key]
        parts = nested
    else:
        parts = Marked({k: v for k, v in top.items() if k in fields}, item.line, key_lines=item.key_lines)
    for key in top:
        if key not in fields and key not in (*_OWN, "spec"):
            fix = _homes(key)
            builder.unknown("", item.key_lines.get(key, 0), key, [*_OWN, *fields], fix)
    expanded = expand(parts, spec_pb2.JobSpec.DESCRIPTOR)
    for path, value in overrides:
        expanded = _override(expanded, path, value)
    builder.message(document.job.spec, expand(expanded, spec_pb2.JobSpec.DESCRIPTOR), "spec")
    _own_fields(document, top, item, builder)
    document.lines = builder.lines
    if not builder.found:
        _check_ranges(document, builder)
    _local_paths(document, base_dir, builder)
    return document, builder.found


def _own_fields(document: Document, top: Mapping[str, Marked], item: Marked, builder: Builder) -> None:
    for key in _OWN:
        value = top.get(key)
        if value is None:
            continue
        line = item.key_lines.get(key, value.line)
        builder.lines["job_id" if key == "name" else key] = line
        if key == "labels":
            builder.map(document.job.labels, value, "labels")
        elif value.mapping is not None or value.items is not None or value.value is None:
            builder.refuse(key, line, f"{show(value)} is not text", "give one value")
        elif key == "display_name":
            document.job.display_name = value.text
        elif not JOB_ID.fullmatch(value.text):
            builder.refuse(
                "job_id",
                line,
                f"{value.text!r} is not a job name",
                "use at most 63 lower-case letters, digits and '-', starting with a letter",
            )
        else:
            document.job_id = value.text


def _check_ranges(document: Document, builder: Builder) -> None:
    """What the server would refuse for its range, before anything is uploaded. Plugins are the server's to know."""
    try:
        spec_from_proto(document.job.spec)
    except SpecError as error:
        builder.found += document.locate(error.violations)


def _addresses(spec: spec_pb2.JobSpec) -> list[tuple[str, str]]:
    """(field path, text) of every address that may be a local path."""
    found = []
    if spec.HasField("model"):
        found.append(("spec.model.uri", spec.model.uri))
        found.append(("spec.model.tokenizer_uri", spec.model.tokenizer_uri))
        found += [(f"spec.model.roles.{role}", spec.model.roles[role]) for role in sorted(spec.model.roles)]
    for name in ("sources", "validation"):
        found += [(f"spec.data.{name}[{i}].uri", source.uri) for i, source in enumerate(getattr(spec.data, name))]
    return [(path, text) for path, text in found if text]


def _local_paths(document: Document, base_dir: Path, builder: Builder) -> None:
    for path, text in _addresses(document.job.spec):
        where = document.where(path)
        if not is_local_path(text):
            try:
                parse_address(text, path)
            except SpecError as error:
                builder.found += [LocatedViolation(v.field, v.description, v.fix, where=where) for v in error.violations]
            continue
        local = (base_dir / Path(text).expanduser()).resolve()
        if not local.exists():
            siblings = [p.name for p in local.parent.iterdir()] if local.parent.is_dir() else []
            near = nearest(local.name, siblings)
            fix = near if near.startswith("did") else "correct the path; it is relative to the YAML file"
            builder.found.append(LocatedViolation(path, f"there is no file or directory {local}", fix, where=where))
        elif path.startswith("spec.model") and not local.is_dir():
            builder.found.append(
                LocatedViolation(path, f"{local} is not a directory", "name the directory that holds config.json", where=where)
            )
        else:
            document.uploads[path] = local


def _override(item: Marked, path: str, value: Marked) -> Marked:
    """The tree with the value at a dotted path replaced; missing mappings on the way are made."""
    key, _, rest = path.partition(".")
    mapping = dict(item.mapping or {})
    if rest:
        inner = mapping.get(key, Marked({}, value.line))
        mapping[key] = _override(inner if inner.mapping is not None else Marked({}, value.line), rest, value)
    else:
        mapping[key] = value
        rivals = ("epochs", "steps", "tokens")
        if key in rivals:  # a new budget replaces the old one instead of contradicting it
            mapping = {k: v for k, v in mapping.items() if k == key or k not in rivals}
    return Marked(mapping, item.line, key_lines=item.key_lines)


def _parse_overrides(overrides: Sequence[str]) -> list[tuple[str, str, Marked]]:
    """(document name or "", path, value) of `[NAME:]key.path=value` texts."""
    result = []
    for text in overrides:
        key, equals, value = text.partition("=")
        name, colon, path = key.partition(":")
        if not colon:
            name, path = "", key
        path = path.removeprefix("spec.")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", path):
            raise SpecError(
                f"--set {text!r} is not KEY=VALUE", fix="write for example --set training.steps=10, or --set tune:training.steps=10"
            )
        documents = marks.compose(value, f"--set {path}")
        parsed = documents[0] if documents else Marked("", text="")
        result.append((name, path, _without_lines(parsed)))
    return result


def _without_lines(item: Marked) -> Marked:
    """Values from the command line have no line in the file."""
    if item.mapping is not None:
        return Marked({key: _without_lines(value) for key, value in item.mapping.items()})
    if item.items is not None:
        return Marked([_without_lines(value) for value in item.items])
    return Marked(item.value, 0, item.text)


def _line_of(violation: FieldViolation) -> int:
    line = violation.where.rpartition(":")[2] if isinstance(violation, LocatedViolation) else ""
    return int(line) if line.isdigit() else 0


def _documents(items: Sequence[Marked], file: str, base_dir: Path, overrides: Sequence[str]) -> list[Document]:
    if not items:
        raise SpecError("there is no job in it", where=file, fix="write at least a `method:` and its `data:`")
    parsed = _parse_overrides(overrides)
    names = [str(item.mapping["name"].value) if item.mapping and "name" in item.mapping else "" for item in items]
    for name, path, _ in parsed:
        if name and name not in names:
            raise SpecError(f"--set {name}:{path}: no document has the name {name!r}", where=file, fix=nearest(name, filter(None, names)))
    result: list[Document] = []
    found: list[FieldViolation] = []
    for item, own in zip(items, names, strict=True):
        document, violations = _document(item, file, base_dir, [(path, value) for name, path, value in parsed if name in ("", own)])
        twin = next((d for d in result if d.job_id and d.job_id == document.job_id), None)
        if twin is not None:
            where = document.where("job_id")
            violations.append(
                LocatedViolation("job_id", f"the name {document.job_id!r} stands twice in this file", "rename one", where=where)
            )
        found += sorted(violations, key=_line_of)
        result.append(document)
    if found:
        first = found[0]
        where = first.where if isinstance(first, LocatedViolation) else ""
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise SpecError(f"{first.field}: {first.description}{more}".removeprefix(": "), where=where, fix=first.fix, violations=found)
    return result


def load_text(text: str, *, file: str = "", base_dir: str | Path = ".", overrides: Sequence[str] = ()) -> list[Document]:
    """The documents of a YAML text. Local paths are relative to `base_dir`. Raises `SpecError` with all violations and their lines."""
    return _documents(marks.compose(text, file or "<text>"), file or "<text>", Path(base_dir), overrides)


def load_file(path: str | Path, *, overrides: Sequence[str] = ()) -> list[Document]:
    """The documents of a YAML file; local paths are relative to it. Raises `SpecError`."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        raise SpecError(f"there is no file {path}", fix=near if near.startswith("did") else "give the path of a YAML file") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}", fix="give a readable YAML file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError("is not UTF-8 text", where=f"{path}:{line}", fix="save the file as UTF-8") from None
    return load_text(text, file=str(path), base_dir=path.parent, overrides=overrides)


def load_value(value: Mapping[str, Any], *, base_dir: str | Path = ".", overrides: Sequence[str] = ()) -> list[Document]:
    """One document from a mapping of the same form."""
    return _documents([marks.mark(value)], "", Path(base_dir), overrides)
