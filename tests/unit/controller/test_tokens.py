"""Tokens of nodes and of the loopback user."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from luthier.controller.tokens import NodeTokens, user_token
from luthier.errors import SpecError, Unauthenticated


def test_a_node_token_belongs_to_one_attempt(tmp_path: Path) -> None:
    """The token is the same after a restart, and worthless for another job or attempt."""
    tokens = NodeTokens.from_state_dir(tmp_path)
    token = tokens.issue("j1", 2)

    assert NodeTokens.from_state_dir(tmp_path).issue("j1", 2) == token
    tokens.check(token, "j1", 2)
    for uid, attempt, given in [("j1", 1, token), ("j2", 2, token), ("j1", 2, ""), ("j1", 2, token + "x"), ("j1\n2", 2, token)]:
        with pytest.raises(Unauthenticated):
            tokens.check(given, uid, attempt)


def test_secrets_are_files_of_their_owner(tmp_path: Path) -> None:
    """Key and user token are written once with mode 0600."""
    token = user_token(tmp_path / "token")
    NodeTokens.from_state_dir(tmp_path)

    assert user_token(tmp_path / "token") == token
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {"token": 0o600, "node.key": 0o600}
    assert len(token) >= 32


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The error names the file and the fix."""
    path = tmp_path / "token"
    user_token(path)
    path.chmod(0o644)

    with pytest.raises(SpecError, match="chmod 600"):
        user_token(path)
