"""Streaming readers: files in, raw rows with file and line out.

JSONL, JSON arrays (parsed a piece at a time), Parquet, CSV and plain text (one document per line). A row that cannot be parsed comes out
with its `problem`; a file that cannot be read on from some place is a `DataError`, so that no rows vanish.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, cast

from luthier.errors import DataError

__all__ = ["FileFormat", "RawRow", "SourceFile", "detect_format", "read_rows", "source_files"]

FileFormat = Literal["jsonl", "json", "parquet", "csv", "text"]

_BY_SUFFIX: dict[str, FileFormat] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".pq": "parquet",
    ".csv": "csv", ".tsv": "csv", ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
_SUFFIXES = ", ".join(sorted(_BY_SUFFIX))
_NOT_DATA = frozenset({"manifest.json", "dataset_info.json", "dataset_infos.json", "readme.md", "license.txt", "license.md"})
_COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
_LARGEST_ROW = 1 << 28  # give up on an element that is still not complete after this many characters
_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20  # characters of a JSON array held at a time; one larger element doubles it


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in the file. `values` is None when it could not be parsed, for the reason in `problem`.

    `line` counts from 1: the line of text formats, the row of Parquet.
    """

    file: str
    line: int
    values: Mapping[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: the name that users know it by, where it lies, and its format."""

    name: str
    path: Path
    format: FileFormat


def source_files(address: str, path: Path, format: str = "auto") -> list[SourceFile]:
    """The data files behind a source: one file, or those of a directory in the order of their names.

    `address` gives the name (an uploaded file lies under its digest); `format` is "auto" or a `FileFormat`.
    Raises `DataError` when nothing usable is there.
    """
    shown = address.rstrip("/").rpartition("/")[2] or address
    shown = shown.rpartition(":")[2] or shown
    if not path.exists():
        raise DataError("there is no such file or directory", where=address, fix="check the address in data.sources")
    if path.is_file():
        return [SourceFile(shown, path, _resolve_format(shown, path, format))]
    found = sorted(p for p in path.rglob("*") if p.is_file() and _is_data(p.relative_to(path), format))
    if not found:
        raise DataError(
            f"the directory holds no data files (looked for {_SUFFIXES})", where=address, fix="name a file, or set the source's format"
        )
    names = [p.relative_to(path).as_posix() for p in found]
    return [SourceFile(name, p, _resolve_format(name, p, format)) for name, p in zip(names, found, strict=True)]


def detect_format(name: str, path: Path) -> FileFormat:
    """The format of a file by its name, then by its first bytes. Raises `DataError` for compressed and binary files."""
    with path.open("rb") as file:
        head = file.read(4096)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(f"the file is compressed ({kind})", where=name, fix="unpack it first, or convert it to Parquet")
    if head.startswith(b"PAR1"):
        return "parquet"
    by_name = _BY_SUFFIX.get(Path(name).suffix.lower())
    first = head.removeprefix(_BOM).lstrip()[:1]
    if by_name == "jsonl" and first == b"[":
        return "json"
    if by_name is not None:
        return by_name
    if b"\0" in head:
        raise DataError("the file is binary and in no format that is known", where=name, fix="use JSONL, JSON, Parquet, CSV or text")
    if first in (b"{", b"["):
        return "jsonl" if first == b"{" and _is_object(head.removeprefix(_BOM).lstrip().split(b"\n", 1)[0]) else "json"
    return "text"


def read_rows(file: SourceFile) -> Iterator[RawRow]:
    """The rows of a file in order. Raises `DataError` when the file breaks off."""
    try:
        if file.format == "parquet":
            yield from _parquet(file)
            return
        with file.path.open("rb") as stream:
            if stream.read(3) != _BOM:
                stream.seek(0)
            yield from _READERS[file.format](file.name, stream)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=file.name, fix="check the file and its permissions") from error


def _is_data(relative: Path, format: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in relative.parts)
    if hidden or relative.name.lower() in _NOT_DATA:
        return False
    return format != "auto" or relative.suffix.lower() in _BY_SUFFIX


def _resolve_format(name: str, path: Path, format: str) -> FileFormat:
    for known in _BY_SUFFIX.values():
        if known == format:
            return known
    return detect_format(name, path)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _decoded(line: bytes) -> tuple[str, str]:
    """(text, problem): one of them is empty."""
    try:
        return line.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 at byte {error.start + 1} of the line"


def _type_name(value: object) -> str:
    return {list: "a list", str: "a string", bool: "true or false", type(None): "null", dict: "an object"}.get(type(value), "a number")


def _as_row(name: str, line: int, value: object) -> RawRow:
    if isinstance(value, dict):
        return RawRow(name, line, value)
    return RawRow(name, line, None, f"the row is {_type_name(value)}, not a JSON object")


def _jsonl(name: str, stream: BinaryIO) -> Iterator[RawRow]:
    for number, raw in enumerate(stream, start=1):
        text, problem = _decoded(raw)
        if problem:
            yield RawRow(name, number, None, problem)
            continue
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield RawRow(name, number, None, f"not JSON: {error}")
            continue
        yield _as_row(name, number, value)


class _JsonPieces:
    """A window onto the text of a JSON file that knows its line number."""

    def __init__(self, name: str, stream: BinaryIO) -> None:
        import codecs

        self._name = name
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1

    def _more(self, wanted: int) -> None:
        """Drop what was read and append at least one piece; sets `_ended` at the end of the file."""
        piece = self._stream.read(wanted)
        try:
            text = self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError:
            self.broken(f"not UTF-8 after line {self.line + self._text.count(chr(10), self._at)}")
        self._text = self._text[self._at :] + text
        self._at = 0
        self._ended = not piece

    def broken(self, why: str, line: int | None = None) -> NoReturn:
        raise DataError(
            f"not JSON: {why}; the rest of the file cannot be read",
            where=f"{self._name}:{line or self.line}",
            fix="repair the file there, or write one JSON object per line (JSONL), where a bad line costs one row",
        )

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self.line += self._text[self._at] == "\n"
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more(_PIECE)

    def skip(self) -> None:
        """Pass the character that `peek` showed."""
        self._at += 1

    def value(self) -> object:
        """The next JSON value."""
        wanted = _PIECE
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except RecursionError:
                self.broken("nested too deeply")
            except json.JSONDecodeError as error:
                if self._ended or wanted > _LARGEST_ROW:
                    self.broken(error.msg, self.line + self._text.count("\n", self._at, error.pos))
                self._more(wanted)
                wanted *= 2
                continue
            # A number at the end of the window may go on in the next piece.
            if end == len(self._text) and not self._ended:
                self._more(wanted)
                continue
            self.line += self._text.count("\n", self._at, end)
            self._at = end
            return cast("object", value)


def _json_values(name: str, stream: BinaryIO) -> Iterator[RawRow]:
    """The elements of an array, or the objects of a file that has several one after another."""
    pieces = _JsonPieces(name, stream)
    if pieces.peek() != "[":
        while pieces.peek():
            line = pieces.line
            yield _as_row(name, line, pieces.value())
        return
    pieces.skip()
    if pieces.peek() != "]":
        while True:
            pieces.peek()
            line = pieces.line
            yield _as_row(name, line, pieces.value())
            following = pieces.peek()
            if following == "]":
                break
            if following != ",":
                pieces.broken(f"expected ',' or ']' after a row, found {following!r}" if following else "the array is not closed")
            pieces.skip()
    pieces.skip()
    if trailing := pieces.peek():
        pieces.broken(f"{trailing!r} after the end of the array")


def _csv(name: str, stream: BinaryIO) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)
    # Bytes that are not UTF-8 travel as lone surrogates, so that one bad row does not end the file.
    lines = (line.decode("utf-8", errors="surrogateescape") for line in stream)
    header_line = next(lines, "")
    delimiter = max(",\t;", key=header_line.count)
    header = next(csv.reader([header_line], delimiter=delimiter, strict=True), [])
    header = [column.strip() for column in header]
    if not any(header):
        return
    if len(set(header)) != len(header):
        raise DataError("two columns of the header have the same name", where=f"{name}:1", fix="rename one of them")
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = rows.line_num + 2  # the header was line 1
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield RawRow(name, start, None, f"not CSV: {error}")
            continue
        if not fields:
            continue
        if len(fields) != len(header):
            yield RawRow(name, start, None, f"{len(fields)} fields, the header has {len(header)}")
        elif any("\udc80" <= character <= "\udcff" for field in fields for character in field):
            yield RawRow(name, start, None, "not UTF-8")
        else:
            yield RawRow(name, start, dict(zip(header, fields, strict=True)))


def _text(name: str, stream: BinaryIO) -> Iterator[RawRow]:
    for number, raw in enumerate(stream, start=1):
        text, problem = _decoded(raw.rstrip(b"\r\n"))
        if problem:
            yield RawRow(name, number, None, problem)
        elif text.strip():
            yield RawRow(name, number, {"text": text})


def _parquet(file: SourceFile) -> Iterator[RawRow]:
    # Imported here: only Parquet pays for it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file.path) as table:
            for batch in table.iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(file.name, number, values)
    except pa.ArrowException as error:
        raise DataError(
            f"not readable as Parquet: {str(error).splitlines()[0]}", where=f"{file.name}:{number + 1}", fix="write the file again"
        ) from error


_READERS = {"jsonl": _jsonl, "json": _json_values, "csv": _csv, "text": _text}
