"""Values on the command line: counts, and times such as `90`, `30s`, `5m`, `1h30m`.

Kept apart from `luthier.spec`, which would load pydantic to parse a flag.
"""

from __future__ import annotations

import argparse
import re

__all__ = ["positive", "seconds", "whole"]

_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def seconds(text: str) -> float:
    """A time in seconds."""
    match = _TIME.fullmatch(text)
    if match is None or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write seconds, or for example 30s, 5m, 1h30m")
    return sum(float(value) * unit for value, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True) if value)


def whole(text: str) -> int:
    """A count from 0."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def positive(text: str) -> int:
    """A count from 1."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)
