"""Readers: every format, every kind of damage, file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.errors import DataError
from luthier.trainer_node.data import read
from luthier.trainer_node.data.read import RawRow, read_rows, source_files

Write = Callable[..., Path]


def rows_of(path: Path, address: str = "", format: str = "auto") -> list[RawRow]:
    """All rows behind a path."""
    return [row for file in source_files(address or f"root:{path.name}", path, format) for row in read_rows(file)]


def places(rows: list[RawRow]) -> list[tuple[str, int, Any]]:
    """(file, line, values or problem) of each row."""
    return [(row.file, row.line, row.problem or row.values) for row in rows]


def test_jsonl_rows_carry_file_and_line(write: Write) -> None:
    """Blank lines are no rows, but they count as lines."""
    path = write("a.jsonl", '{"a": 1}\n\n{"a": 2}\n')

    assert [("a.jsonl", 1, {"a": 1}), ("a.jsonl", 3, {"a": 2})] == places(rows_of(path))


def test_bom_crlf_and_a_missing_last_newline_are_no_content(write: Write) -> None:
    """Files from other systems read the same."""
    path = write("a.jsonl", b'\xef\xbb\xbf{"a": "x"}\r\n{"a": "y"}')

    assert [{"a": "x"}, {"a": "y"}] == [row.values for row in rows_of(path)]


def test_a_bad_jsonl_line_costs_one_row(write: Write) -> None:
    """Broken JSON, other JSON than an object, and bytes that are not UTF-8 each name their line."""
    path = write("a.jsonl", b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n7\n{"a": 2}\n')

    rows = rows_of(path)

    assert [(1, True), (2, False), (3, False), (4, False), (5, False), (6, True)] == [(r.line, r.values is not None) for r in rows]
    assert "not JSON" in rows[1].problem
    assert "the row is a list, not a JSON object" == rows[2].problem
    assert "not UTF-8 at byte 8 of the line" == rows[3].problem
    assert "the row is a number, not a JSON object" == rows[4].problem


def test_a_json_array_is_read_in_pieces(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements come out whole and with their line wherever the pieces are cut, also through characters of several bytes."""
    values = [{"n": number, "text": "ä€😀" * number, "list": [1, {"x": 2}]} for number in range(20)]
    path = write("a.json", json.dumps(values, indent=1, ensure_ascii=False))
    whole = places(rows_of(path))

    for size in (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr(read, "_PIECE", size)
        assert whole == places(rows_of(path))
    assert values == [row[2] for row in whole]
    assert '"n": 3' in path.read_text().splitlines()[whole[3][1]]


def test_json_objects_one_after_another_are_rows(write: Write) -> None:
    """A .json file with one object per line, or printed over several lines, is no array but still rows."""
    assert [{"a": 1}, {"a": 2}] == [r.values for r in rows_of(write("lines.json", '{"a": 1}\n{"a": 2}\n'))]
    assert [{"a": 1}, {"a": 2}] == [r.values for r in rows_of(write("pretty.json", '{\n "a": 1\n}\n{\n "a": 2\n}\n'))]


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('[{"a": 1},\n{"a": }]', 2, "Expecting value"),
        ('[{"a": 1}\n{"a": 2}]', 2, "expected ',' or ']'"),
        ('[{"a": 1},\n{"a": 2}', 2, "the array is not closed"),
        ('[{"a": 1},\n{"a": ', 2, "Expecting value"),
        ('[{"a": 1}]\n x', 2, "after the end of the array"),
    ],
)
def test_a_broken_json_array_ends_with_its_line(write: Write, text: str, line: int, why: str) -> None:
    """Nothing after the damage can be trusted, so the job hears of it instead of losing rows."""
    with pytest.raises(DataError, match="the rest of the file cannot be read") as caught:
        rows_of(write("a.json", text))

    assert f"a.json:{line}" == caught.value.where
    assert why in caught.value.message
    assert "JSONL" in caught.value.fix


def test_csv_rows_with_quotes_newlines_and_damage(write: Write) -> None:
    """A field may span lines; a wrong number of fields and bad bytes cost one row."""
    path = write("a.csv", b'\xef\xbb\xbfq,a\r\none,1\r\n"two\r\nlines",2\r\nthree\r\nfour,\xff\r\n\r\nsix,6\r\n')

    assert [
        ("a.csv", 2, {"q": "one", "a": "1"}),
        ("a.csv", 3, {"q": "two\r\nlines", "a": "2"}),
        ("a.csv", 5, "1 fields, the header has 2"),
        ("a.csv", 6, "not UTF-8"),
        ("a.csv", 8, {"q": "six", "a": "6"}),
    ] == places(rows_of(path))


def test_an_open_quote_does_not_swallow_rows_silently(write: Write) -> None:
    """A quote that is never closed is a bad row."""
    rows = rows_of(write("a.csv", 'q,a\none,1\n"two,2\nthree,3\n'))

    assert [(2, True), (3, False)] == [(r.line, r.values is not None) for r in rows]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv_delimiters_are_found_in_the_header(write: Write, delimiter: str) -> None:
    """Comma, tab and semicolon are told apart."""
    rows = rows_of(write("a.csv", f"q{delimiter}a\nx{delimiter}y\n"))

    assert [{"q": "x", "a": "y"}] == [r.values for r in rows]


def test_text_is_one_document_per_line(write: Write) -> None:
    """Empty lines are no documents; inner spaces stay."""
    path = write("a.txt", b"one  \r\n\n  two\n\xff\n")

    assert [("a.txt", 1, {"text": "one  "}), ("a.txt", 3, {"text": "  two"}), ("a.txt", 4, "not UTF-8 at byte 1 of the line")] == places(
        rows_of(path)
    )


def test_parquet_rows_count_from_one(tmp_path: Path) -> None:
    """Nested values come out as Python values."""
    values = [{"prompt": "a", "tags": ["x"]}, {"prompt": "b", "tags": []}]
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")

    assert [("a.parquet", 1, values[0]), ("a.parquet", 2, values[1])] == places(rows_of(tmp_path / "a.parquet"))


def test_a_broken_parquet_file_is_a_data_error(write: Write) -> None:
    """A torn file is named, without a traceback of Arrow."""
    with pytest.raises(DataError, match="not readable as Parquet"):
        rows_of(write("a.parquet", b"PAR1 torn"))


def test_an_uploaded_file_is_known_by_its_name(tmp_path: Path) -> None:
    """The content store has no suffixes: name and format come from the address."""
    path = tmp_path / ("0" * 64)
    path.write_text("q,a\nx,y\n")

    rows = rows_of(path, address=f"upload://{'0' * 64}/mine.csv")

    assert [("mine.csv", 2, {"q": "x", "a": "y"})] == places(rows)


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a", '{"a": 1}\n{"a": 2}\n', "jsonl"),
        ("a", ' [{"a": 1}]', "json"),
        ("a", '{\n"a": 1}', "json"),
        ("a", "plain words\n", "text"),
        ("a.jsonl", '[{"a": 1}]', "json"),
        ("a.NDJSON", '{"a": 1}', "jsonl"),
        ("a.tsv", "a\tb\n", "csv"),
    ],
)
def test_formats_are_detected_from_name_then_content(write: Write, name: str, content: str, format: str) -> None:
    """A name without a suffix is decided by the first bytes."""
    [file] = source_files(name, write(name, content))

    assert format == file.format


def test_compressed_and_binary_files_are_refused_with_the_reason(write: Write) -> None:
    """The message says what the file is instead of failing in a parser."""
    with pytest.raises(DataError, match="compressed \\(gzip\\)"):
        rows_of(write("a.jsonl.gz", b"\x1f\x8b\x08\0"))
    with pytest.raises(DataError, match="binary"):
        rows_of(write("a.bin", b"\x01\0\0\0"))


def test_a_directory_is_its_data_files_in_order(write: Write, tmp_path: Path) -> None:
    """Files that describe the data are not data; names are relative to the directory."""
    write("set/b.jsonl", '{"a": 2}\n')
    write("set/a/x.jsonl", '{"a": 1}\n')
    write("set/README.md", "# about\n")
    write("set/dataset_info.json", "{}")
    write("set/.cache/y.jsonl", '{"a": 3}\n')

    assert [("a/x.jsonl", 1, {"a": 1}), ("b.jsonl", 1, {"a": 2})] == places(rows_of(tmp_path / "set"))


def test_missing_files_and_empty_directories_are_data_errors(tmp_path: Path) -> None:
    """Both name the address that the user gave."""
    with pytest.raises(DataError, match="no such file") as missing:
        rows_of(tmp_path / "none.jsonl", address="root:none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files") as empty:
        rows_of(tmp_path / "empty", address="root:empty")

    assert ["root:none.jsonl", "root:empty"] == [missing.value.where, empty.value.where]
