"""Sources in, tokenised rows out: found, understood, tokenised once, and judged."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.spec.models import DataSource, DataSpec
from luthier.trainer_node.data.cache import CacheEntry, CacheWriter, open_or_build
from luthier.trainer_node.data.read import RawRow, SourceFile, read_rows, source_files
from luthier.trainer_node.data.rows import Rows, split_validation
from luthier.trainer_node.data.shape import Shaper, choose_shaper
from luthier.trainer_node.data.template import Template
from luthier.trainer_node.data.tokenise import BAD, Encoder, Tally, tokenise

__all__ = ["open_source", "prepare", "split_validation"]

_CODE_VERSION = "1"
"""Part of the cache key: raise it when the same input would give other tokens."""
_UPLOAD = re.compile(r"upload://([0-9a-f]{64})/")
_SETTLED_SECONDS = 2.0
"""A file changed less than this ago may change again with the same time stamp; its digest is not remembered."""


def prepare(
    sources: Sequence[DataSource],
    spec: DataSpec,
    max_length: int,
    inputs: Mapping[str, str | Path],
    tokenizer: Any,
    tokenizer_digest: str,
    cache_dir: str | Path,
    *,
    leader: bool,
    beat: Callable[[], None] = lambda: None,
    timeout_seconds: float = 600.0,
) -> Rows:
    """The rows of `sources`, tokenised once for everybody.

    `inputs` maps addresses to local paths. `tokenizer` is a transformers tokenizer, `tokenizer_digest` its content. The leader (rank 0)
    tokenises what the cache lacks, the others wait for it; `beat` is called all the while. The same call on the same content reads
    nothing but the cache. Raises `DataError` for missing or empty data, wrong columns, bad rows beyond what the specification allows,
    and data in which nothing is left to learn.
    """
    if not sources:
        raise DataError("the job names no data", where="data.sources", fix="add a source: data: {sources: [{uri: PATH}]}")
    template = Template(tokenizer, spec.system_prompt)
    cache = Path(cache_dir)
    entries = []
    for source in sources:
        files = open_source(source, inputs)
        key = _key(source, spec, files, max_length, template, tokenizer_digest, cache)
        build = _builder(source, spec, files, max_length, template, tokenizer)
        entry = open_or_build(cache, key, build, leader=leader, timeout_seconds=timeout_seconds, beat=beat, what=source.uri)
        entries.append(entry)
    _judge(entries, sources, spec)
    return Rows(entries, [source.weight for source in sources], tokenizer)


def open_source(source: DataSource, inputs: Mapping[str, str | Path]) -> list[SourceFile]:
    """The files of a source. Raises `DataError`."""
    path = inputs.get(source.uri)
    if path is None:
        raise DataError("the address was not resolved to a path on this node", where=source.uri, fix="check the address in data.sources")
    return source_files(source.uri, Path(path), source.format)


def columns_of(source: DataSource, spec: DataSpec) -> Mapping[str, str]:
    """The column map that holds for a source: its own, else the one of the whole data."""
    return source.columns or spec.columns


def raw_rows(source: DataSource, files: Sequence[SourceFile]) -> Iterator[RawRow]:
    """The raw rows of a source, at most `max_rows`."""
    rows: Iterator[RawRow] = itertools.chain.from_iterable(read_rows(file) for file in files)
    return itertools.islice(rows, source.max_rows) if source.max_rows else rows


def shaper_of(source: DataSource, spec: DataSpec, files: Sequence[SourceFile]) -> Shaper:
    """How the rows of a source are understood. Raises `DataError`, also when there is no row at all."""
    where = files[0].name
    first: list[Mapping[str, Any]] = []
    seen, problem = 0, ""
    for seen, raw in enumerate(raw_rows(source, files), start=1):
        if raw.values is not None:
            first.append(raw.values)
        if len(first) == 20 or seen == 1000:
            break
        problem = f"{raw.file}:{raw.line}: {raw.problem}"
    if seen == 0:
        raise DataError("the data is empty", where=where, fix="put at least one row into it")
    if not first:
        raise DataError(f"none of the first {seen} rows can be read; the last one: {problem}", where=where, fix="check the source's format")
    shaper = choose_shaper(first, shape=source.shape, columns=columns_of(source, spec), where=where)
    if spec.overlong == "split" and shaper.shape != "text":
        raise DataError(
            f"data.overlong is split, which cuts plain text only; these rows have shape {shaper.shape}",
            where=where,
            fix="set data.overlong to truncate_right, truncate_left or drop",
        )
    return shaper


def _builder(
    source: DataSource, spec: DataSpec, files: Sequence[SourceFile], max_length: int, template: Template, tokenizer: Any
) -> Callable[[CacheWriter], None]:
    def build(writer: CacheWriter) -> None:
        shaper = shaper_of(source, spec, files)
        tally, count = tokenise(
            raw_rows(source, files),
            shaper,
            template,
            Encoder(tokenizer, template),
            writer,
            max_length=max_length,
            overlong=spec.overlong,
            fail_on_bad_row=_fail if spec.on_bad_row == "fail" else None,
        )
        kinds = sorted({file.format for file in files})
        writer.finish(
            raw_rows=count,
            column_names=tuple(shaper.numbers),
            counts=tally.counts,
            offenders=tally.offenders,
            note=f"{files[0].name}{f' and {len(files) - 1} more files' if len(files) > 1 else ''}: {', '.join(kinds)}, {shaper.reason}",
        )

    return build


def _judge(entries: Sequence[CacheEntry], sources: Sequence[DataSource], spec: DataSpec) -> None:
    """Apply the policies to what the cache says; raises `DataError`."""
    total = sum(entry.meta.raw_rows for entry in entries)
    counts: dict[str, int] = {}
    offenders: list[str] = []
    for entry in entries:
        offenders += entry.meta.offenders
        for verdict, count in entry.meta.counts.items():
            counts[verdict] = counts.get(verdict, 0) + count
    bad = sum(counts.get(verdict, 0) for verdict in BAD)
    where = ", ".join(source.uri for source in sources[:3])
    summary = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    if bad and spec.on_bad_row == "fail":
        _fail(Tally(counts, offenders))
    if sum(entry.meta.rows for entry in entries) == 0:
        raise DataError(
            f"nothing is left to learn: {summary}. {_shown(offenders)}",
            where=where,
            fix="check that the rows have answers, and that training.max_length is longer than the prompts",
        )
    if bad > spec.bad_row_threshold * total:
        raise DataError(
            f"{bad} of {total} rows cannot be used ({summary}), more than data.bad_row_threshold {spec.bad_row_threshold:g} allows. "
            f"{_shown(offenders)}",
            where=where,
            fix="repair the rows, or raise data.bad_row_threshold",
        )
    too_long = counts.get("too_long", 0)
    if spec.overlong != "drop" and too_long > max(spec.bad_row_threshold * total, 1):
        raise DataError(
            f"{too_long} of {total} rows have a prompt that leaves no room for the answer, more than data.bad_row_threshold "
            f"{spec.bad_row_threshold:g} allows. {_shown(offenders)}",
            where=where,
            fix="raise training.max_length, set data.overlong to truncate_left, or to drop to leave such rows out",
        )


def _fail(tally: Tally) -> None:
    wrong = [offender for offender in tally.offenders if any(f": {verdict}" in offender for verdict in BAD)]
    first = wrong[0] if wrong else "the data"
    where, _, why = first.partition(": ")
    more = f" {_shown(wrong[1:])}" if len(wrong) > 1 else ""
    raise DataError(
        f"{why}; {tally.bad} row{'s' if tally.bad != 1 else ''} of those read so far cannot be used.{more}",
        where=where,
        fix="repair the row, or set data.on_bad_row: skip to leave such rows out",
    )


def _shown(offenders: Iterable[str]) -> str:
    listed = list(offenders)[:5]
    return f"First ones: {'; '.join(listed)}." if listed else ""


def _key(
    source: DataSource,
    spec: DataSpec,
    files: Sequence[SourceFile],
    max_length: int,
    template: Template,
    tokenizer_digest: str,
    cache: Path,
) -> str:
    """SHA-256 of everything that decides the tokens of a source."""
    uploaded = _UPLOAD.match(source.uri)
    digests = [uploaded.group(1)] if uploaded else [_file_digest(file.path, cache) for file in files]
    parts = {
        "code": _CODE_VERSION,
        "files": [[file.name, file.format] for file in files],
        "digests": digests,
        "tokenizer": tokenizer_digest,
        "template": template.digest,
        "shape": source.shape,
        "columns": dict(columns_of(source, spec)),
        "max_rows": source.max_rows,
        "max_length": max_length,
        "overlong": spec.overlong,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path, cache: Path) -> str:
    """SHA-256 of a file, remembered by its inode, size and time of change."""
    state = path.stat()
    identity = f"{path.resolve()}/{state.st_dev}/{state.st_ino}/{state.st_size}/{state.st_mtime_ns}"
    memo = cache / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    try:
        remembered = memo.read_text()
        if len(remembered) == 64:
            return remembered
    except OSError:
        pass  # not remembered yet
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - state.st_mtime > _SETTLED_SECONDS:
        memo.parent.mkdir(parents=True, exist_ok=True)
        draft = memo.with_name(f"{memo.name}.{time.monotonic_ns()}")
        draft.write_text(digest)
        draft.replace(memo)
    return digest
