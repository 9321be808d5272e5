"""Tokens of nodes and of the loopback user.

A node token is an HMAC over (job uid, attempt) with a key in the state directory, so that it is the same after a restart of the
controller and needs no row; it is worthless as soon as the attempt is closed. The user token is a random file of mode 0600.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import stat
from hashlib import sha256
from pathlib import Path

from luthier.errors import SpecError, Unauthenticated

__all__ = ["NodeTokens", "read_secret_file", "user_token"]

_PREFIX = "ln1."


def read_secret_file(path: Path, make: bytes) -> bytes:
    """The bytes of `path`, written as `make` when it does not exist. Refuses a file that others can read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "wb") as file:
            file.write(make)
            file.flush()
            os.fsync(file.fileno())
    mode = path.stat().st_mode
    if stat.S_IMODE(mode) & 0o077:
        raise SpecError(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o})", fix=f"chmod 600 {path}")
    content = path.read_bytes()
    if len(content) < 16:
        raise SpecError(f"{path} is too short for a secret", fix=f"remove {path}; the controller makes a new one")
    return content


def user_token(path: Path) -> str:
    """The token that lets the owner of the state directory in; made on first use."""
    return read_secret_file(path, secrets.token_urlsafe(32).encode()).decode().strip()


class NodeTokens:
    """Makes and checks the tokens of attempts."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def from_state_dir(cls, state_dir: Path) -> NodeTokens:
        """With the key of the state directory, made on first use."""
        return cls(read_secret_file(state_dir / "node.key", secrets.token_bytes(32)))

    def issue(self, job_uid: str, attempt: int) -> str:
        """The token of an attempt; always the same one."""
        digest = hmac.new(self._key, f"{job_uid}\n{attempt}".encode(), sha256).digest()
        return _PREFIX + base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def check(self, token: str, job_uid: str, attempt: int) -> None:
        """Raise `Unauthenticated` unless `token` is the attempt's; takes the same time for every wrong token."""
        if not hmac.compare_digest(token.encode(), self.issue(job_uid, attempt).encode()):
            raise Unauthenticated("the token is not the one of this attempt", metadata={"job_uid": job_uid, "attempt": str(attempt)})
