"""Where the client finds its controller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.client.connection import discover
from luthier.errors import LuthierError, SpecError, Unauthenticated, Unavailable


def endpoint(state_dir: Path, address: str = "127.0.0.1:1111", token: str = "of-endpoint") -> Path:
    """A state directory as `luthier up` leaves it."""
    state_dir.mkdir(parents=True, exist_ok=True)
    token_file = state_dir / "token"
    token_file.write_text(token + "\n")
    token_file.chmod(0o600)
    data = {"address": address, "http_address": "127.0.0.1:2", "token_file": str(token_file), "pid": 1}
    (state_dir / "endpoint.json").write_text(json.dumps(data))
    return state_dir


def context(home: Path, address: str = "127.0.0.1:2222") -> dict[str, str]:
    """An environment with a context file."""
    folder = home / "luthier"
    folder.mkdir(parents=True)
    (folder / "token").write_text("of-context")
    (folder / "token").chmod(0o600)
    (folder / "config.yaml").write_text(
        f"current: a\ncontexts:\n  a: {{address: '{address}', token_file: token}}\n  b: {{address: 'b:1'}}\n"
    )
    return {"XDG_CONFIG_HOME": str(home)}


def test_precedence(tmp_path: Path) -> None:
    """Arguments win over the environment, that over the context file, that over the endpoint file."""
    state = {"LUTHIER_STATE_DIR": str(endpoint(tmp_path / "state"))}
    file = context(tmp_path / "config")
    env = {"LUTHIER_ADDRESS": "127.0.0.1:3333", "LUTHIER_TOKEN": "of-environment"}

    found = [
        discover(environ=state),
        discover(environ={**state, **file}),
        discover(environ={**state, **file, **env}),
        discover("127.0.0.1:4444", "given", environ={**state, **file, **env}),
    ]

    assert [
        ("127.0.0.1:1111", "of-endpoint"),
        ("127.0.0.1:2222", "of-context"),
        ("127.0.0.1:3333", "of-environment"),
        ("127.0.0.1:4444", "given"),
    ] == [(c.address, c.token) for c in found]


def test_a_state_directory_as_argument_wins_over_the_environment(tmp_path: Path) -> None:
    """`--state-dir` names one controller, whatever the environment says."""
    env = {**context(tmp_path / "config"), "LUTHIER_ADDRESS": "127.0.0.1:3333"}

    assert "127.0.0.1:1111" == discover(state_dir=endpoint(tmp_path / "s"), environ=env).address


def test_the_token_of_the_same_controller_is_at_hand(tmp_path: Path) -> None:
    """An address without a token takes the local controller's token when it is that controller, and no other's."""
    state = {"LUTHIER_STATE_DIR": str(endpoint(tmp_path / "state"))}

    assert ("of-endpoint", "") == (
        discover("127.0.0.1:1111", environ=state).token,
        discover("127.0.0.1:9999", environ=state).token,
    )


def test_a_context_is_chosen_by_name(tmp_path: Path) -> None:
    """LUTHIER_CONTEXT chooses among the contexts."""
    assert "b:1" == discover(environ={**context(tmp_path), "LUTHIER_CONTEXT": "b"}).address


def test_https_means_tls() -> None:
    """The scheme of an address switches TLS on."""
    found = discover("https://host.example:443", "t", environ={})

    assert ("host.example:443", True) == (found.address, found.tls)


def test_nothing_known_says_how_to_start(tmp_path: Path) -> None:
    """Without any hint the error names the file looked for and the command."""
    with pytest.raises(Unavailable, match=r"endpoint\.json does not exist") as caught:
        discover(environ={"LUTHIER_STATE_DIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)})

    assert "luthier up" in caught.value.fix


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A token file must have mode 0600."""
    state = endpoint(tmp_path / "state")
    (state / "token").chmod(0o644)

    with pytest.raises(Unauthenticated) as caught:
        discover(state_dir=state, environ={})

    assert f"chmod 600 {state / 'token'}" == caught.value.fix


@pytest.mark.parametrize("address", ["host", ":1", "host:", "host:0", "host:99999", "ftp://h:1"])
def test_malformed_addresses_are_refused(address: str) -> None:
    """What is not HOST:PORT is told with its origin."""
    with pytest.raises(SpecError, match="the arguments"):
        discover(address, "t", environ={})


def test_a_broken_endpoint_file_is_told(tmp_path: Path) -> None:
    """A torn endpoint file is an error with a fix, not a traceback."""
    (tmp_path / "endpoint.json").write_text("{")

    with pytest.raises(LuthierError, match="cannot be used"):
        discover(state_dir=tmp_path, environ={})


def test_the_token_is_never_shown() -> None:
    """The representation of a connection tells whether there is a token, not which."""
    assert "canary" not in repr(discover("h:1", "canary", environ={}))
