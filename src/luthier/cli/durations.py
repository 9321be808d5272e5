"""Times on the command line: `90`, `30s`, `5m`, `1h30m`."""

from __future__ import annotations

import argparse
import re

__all__ = ["parse"]

_FORM = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse(text: str) -> float:
    """Seconds. Raises ArgumentTypeError; kept apart from `luthier.spec`, which would load pydantic to parse a flag."""
    match = _FORM.fullmatch(text)
    if match is None or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write seconds, or for example 30s, 5m, 1h30m")
    return sum(float(value) * unit for value, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True) if value)
