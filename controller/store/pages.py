"""Keyset pages: the size rule, and opaque tokens bound to the list they came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from typing import Any

from luthier.errors import FieldViolation, SpecError

__all__ = ["DEFAULT_PAGE", "LARGEST_PAGE", "page_limit", "scope_of", "token_for", "token_key"]

DEFAULT_PAGE = 50
LARGEST_PAGE = 1000


def page_limit(page_size: int) -> int:
    """0: 50; above 1000: 1000; negative is refused with `SpecError`."""
    if page_size < 0:
        raise SpecError(
            f"page_size {page_size} is negative",
            violations=[FieldViolation("page_size", f"{page_size} is negative", "give 0 for the default (50) or 1 to 1000")],
            fix="give 0 for the default (50) or 1 to 1000",
        )
    return min(page_size or DEFAULT_PAGE, LARGEST_PAGE)


def scope_of(*parts: str) -> str:
    """What a token belongs to (list, tenant, filter, order), as a short hash."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def token_for(scope: str, key: list[Any]) -> str:
    """The token of the page after `key`, the last entry's place in the order."""
    return base64.urlsafe_b64encode(json.dumps([scope, key], separators=(",", ":")).encode()).decode().rstrip("=")


def _storable(part: Any) -> bool:
    """Whether a database takes it: a forged token must not become an internal error."""
    if isinstance(part, int):
        return -(2**63) <= part < 2**63
    return math.isfinite(part) if isinstance(part, float) else "\0" not in part


def token_key(token: str, scope: str, kinds: tuple[type, ...]) -> list[Any]:
    """The key of a token. Raises `SpecError` (INVALID_PAGE_TOKEN) for a token of another list, filter or order."""
    try:
        decoded = json.loads(base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4)))
    except (ValueError, binascii.Error, UnicodeError, RecursionError):
        decoded = None
    if isinstance(decoded, list) and len(decoded) == 2 and decoded[0] == scope:
        key = decoded[1]
        if isinstance(key, list) and tuple(type(part) for part in key) == kinds and all(map(_storable, key)):
            return key
    why = "it is not a token of this list with this filter and order"
    raise SpecError(
        f"page_token cannot be used: {why}",
        reason="INVALID_PAGE_TOKEN",
        violations=[FieldViolation("page_token", why, "start again without a token")],
        fix="start again without a token, and keep filter and order while paging",
    )
