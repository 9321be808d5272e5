"""Who calls: bearer tokens to principals. The tenant comes from the identity, never from a request."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Authenticator", "Principal", "StaticTokens"]


@dataclass(frozen=True)
class Principal:
    """An authenticated caller."""

    tenant: str
    name: str


class Authenticator(Protocol):
    """Knows principals by token."""

    def authenticate(self, token: str) -> Principal | None:
        """None for a token that is not known."""
        ...


class StaticTokens:
    """Tokens fixed at start: the laptop's one token, or an operator's file. Only their hashes are kept."""

    def __init__(self, tokens: Mapping[str, Principal]) -> None:
        self._principals = [(hashlib.sha256(token.encode()).digest(), principal) for token, principal in tokens.items()]

    def authenticate(self, token: str) -> Principal | None:
        given = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, principal in self._principals:
            # Every entry is compared, and in constant time: the duration tells nothing.
            if hmac.compare_digest(known, given):
                found = principal
        return found
