"""Where the controller is and who we are.

Precedence: explicit arguments, then the environment, then the context file, then the endpoint file that `luthier up` leaves in its
state directory. A secret never stands in argv: tokens come from the environment or from a file that only its owner can read.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, SpecError, Unauthenticated, Unavailable

__all__ = ["Connection", "config_file", "default_state_dir", "discover", "read_token"]


@dataclass(frozen=True)
class Connection:
    """One controller as a client sees it."""

    address: str
    """`host:port`."""
    token: str = ""
    tls: bool = False
    ca_file: str = ""
    """Certificates to trust instead of the system's; empty for those."""
    origin: str = ""
    """Where the address was found, for messages."""

    def __repr__(self) -> str:
        return f"Connection(address={self.address!r}, tls={self.tls}, origin={self.origin!r}, token={'set' if self.token else 'unset'})"


def default_state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """`$LUTHIER_STATE_DIR`, else `$XDG_STATE_HOME/luthier`, else `~/.local/state/luthier`."""
    environ = os.environ if environ is None else environ
    if environ.get("LUTHIER_STATE_DIR"):
        return Path(environ["LUTHIER_STATE_DIR"]).expanduser()
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "luthier"


def config_file(environ: Mapping[str, str] | None = None) -> Path:
    """`$LUTHIER_CONFIG`, else `$XDG_CONFIG_HOME/luthier/config.yaml`, else `~/.config/luthier/config.yaml`."""
    environ = os.environ if environ is None else environ
    if environ.get("LUTHIER_CONFIG"):
        return Path(environ["LUTHIER_CONFIG"]).expanduser()
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "luthier" / "config.yaml"


def read_token(path: Path) -> str:
    """The token of a file that only its owner can read. Raises `Unauthenticated`."""
    try:
        mode = path.stat().st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise Unauthenticated(f"the token file {path} can be read by others", fix=f"chmod 600 {path}")
        return path.read_text().strip()
    except OSError as error:
        raise Unauthenticated(
            f"the token file {path} cannot be read: {error.strerror}", fix="give a readable file, or start a controller with `luthier up`"
        ) from None


def _parse(address: str, token: str, origin: str, *, tls: bool = False, ca_file: str = "") -> Connection:
    """A connection from `host:port`, `http://host:port` or `https://host:port`."""
    scheme, separator, rest = address.partition("://")
    if separator:
        if scheme not in ("http", "https", "grpc", "grpcs"):
            raise SpecError(f"the address {address!r} (from {origin}) has an unknown scheme", fix="write HOST:PORT or https://HOST:PORT")
        tls, address = tls or scheme in ("https", "grpcs"), rest.rstrip("/")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SpecError(f"the address {address!r} (from {origin}) is not HOST:PORT", fix="write for example 127.0.0.1:7431")
    return Connection(address, token, tls or bool(ca_file), ca_file, origin)


def _endpoint(state_dir: Path) -> Connection | None:
    """The controller that runs, or ran last, on a state directory."""
    path = state_dir / "endpoint.json"
    try:
        data = json.loads(path.read_text())
        address, token_file = str(data["address"]), Path(data["token_file"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LuthierError(f"{path} cannot be used: {error}", fix="start the controller again with `luthier up`") from None
    return _parse(address, read_token(state_dir / token_file), str(path))


def _context(environ: Mapping[str, str]) -> Connection | None:
    """The chosen context of the context file."""
    path = config_file(environ)
    try:
        text = path.read_text()
    except OSError:
        return None
    import yaml

    try:
        data: Any = yaml.safe_load(text) or {}
        name = environ.get("LUTHIER_CONTEXT") or data.get("current", "")
        context: Any = data.get("contexts", {})[name] if name else data
        if "address" not in context:
            return None
        token_file = context.get("token_file")
        token = read_token(path.parent / Path(token_file).expanduser()) if token_file else ""
        return _parse(
            str(context["address"]), token, f"{path}", tls=bool(context.get("tls", False)), ca_file=str(context.get("ca_file", ""))
        )
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise SpecError(
            f"the context file {path} cannot be used: {error}",
            fix="write `current: NAME` and `contexts: {NAME: {address: HOST:PORT, token_file: PATH}}`",
        ) from None


def discover(
    address: str | None = None,
    token: str | None = None,
    *,
    state_dir: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Connection:
    """Find the controller. Raises `Unavailable` when nothing says where it is, `Unauthenticated` for an unusable token file."""
    environ = os.environ if environ is None else environ
    own_token = token or environ.get("LUTHIER_TOKEN", "")
    if not own_token and environ.get("LUTHIER_TOKEN_FILE"):
        own_token = read_token(Path(environ["LUTHIER_TOKEN_FILE"]).expanduser())
    home = Path(state_dir).expanduser() if state_dir is not None else default_state_dir(environ)
    given, origin = (address, "the arguments") if address else (environ.get("LUTHIER_ADDRESS", ""), "LUTHIER_ADDRESS")
    if given and (address or state_dir is None):
        found = _parse(given, own_token, origin)
        if not own_token:
            # The controller of this machine under another spelling of the precedence: its token is at hand.
            local = _endpoint(home)
            if local is not None and local.address == found.address:
                return Connection(found.address, local.token, found.tls, found.ca_file, origin)
        return found
    connection = (None if state_dir is not None else _context(environ)) or _endpoint(home)
    if connection is None:
        raise Unavailable(
            f"no controller is known: {home / 'endpoint.json'} does not exist",
            reason="NO_CONTROLLER",
            fix="start one with `luthier up`, or set LUTHIER_ADDRESS and LUTHIER_TOKEN_FILE",
        )
    if own_token:
        return Connection(connection.address, own_token, connection.tls, connection.ca_file, connection.origin)
    return connection
