"""Data on stdout: tables, names, JSON and YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["age", "duration", "number", "plain", "print_rows", "print_structured", "size", "write"]


def write(text: str) -> None:
    """One piece of data; the rest of the program may be interrupted right after it."""
    sys.stdout.write(text)


def plain(message: Message) -> dict[str, Any]:
    """The proto JSON mapping with proto field names; `8.0` is written `8`."""
    from google.protobuf import json_format

    from luthier.spec.convert import integral

    result: dict[str, Any] = integral(json_format.MessageToDict(message, preserving_proto_field_name=True))
    return result


def print_structured(form: str, data: Any) -> None:
    """JSON or YAML."""
    if form == "json":
        write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    else:
        import yaml

        write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def print_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with aligned columns; nothing for no rows."""
    # A cell never breaks its line: names and messages come from outside.
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    if not cells:
        return
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    for row in [list(header), *cells]:
        write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def number(value: float | None) -> str:
    """A measured number, short."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`4.2s`, `3m07s`, `2h05m`, `4d3h`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def age(then: Any, now: float) -> str:
    """Time since a Timestamp."""
    return duration(max(0.0, now - (then.seconds + then.nanos / 1e9))) if then.seconds else "-"


def size(count: int) -> str:
    """Bytes with a binary unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the loop returns")


def print_messages(form: str, items: Sequence[Mapping[str, Any]], *, single: bool = False) -> None:
    """One object, or `{items: […]}`."""
    print_structured(form, items[0] if single and len(items) == 1 else {"items": list(items)})
