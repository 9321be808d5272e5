"""`luthier methods`, `version`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from luthier.cli import exits, messages
from luthier.cli.command import connection_arguments, output_arguments

if TYPE_CHECKING:
    from luthier.v1 import method_service_pb2

_SLOTS = ("method", "objective", "adapter", "recipe")


def arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """`methods [ID] [--slot S]`, `version`."""
    if verb == "methods":
        parser.add_argument("id", nargs="?", metavar="ID", help="method, objective, adapter or recipe to show in full")
        parser.add_argument("--slot", choices=_SLOTS, default="", help="only this kind")
    output_arguments(parser, ("table", "wide", "json", "yaml", "name") if verb == "methods" else ("table", "json", "yaml"))
    connection_arguments(parser)


def run(verb: str, arguments: argparse.Namespace) -> int:
    """One of the two verbs."""
    return _version(arguments) if verb == "version" else _methods(arguments)


# --- methods ---------------------------------------------------------------------------------------------------------


def _methods(arguments: argparse.Namespace) -> int:
    from luthier.cli import output
    from luthier.cli.session import connect
    from luthier.errors import NotFound
    from luthier.spec.violations import nearest

    with connect(arguments) as client:
        found = list(client.methods.list(slot=arguments.slot))
        if arguments.id is not None:
            known = [m.name.rpartition("/")[2] for m in found]
            if arguments.id not in known:
                raise NotFound(f"there is no method, objective or adapter {arguments.id!r}", fix=nearest(arguments.id, known))
            found = [m for m in found if m.name.rpartition("/")[2] == arguments.id]
            if len(found) == 1:
                found = [client.methods.get(arguments.id)]
    if arguments.output in ("json", "yaml"):
        output.print_messages(arguments.output, [output.plain(m) for m in found], single=arguments.id is not None)
    elif arguments.output == "name" or arguments.quiet:
        for m in found:
            output.write(f"{m.name.rpartition('/')[2]}\n")
    elif arguments.id is not None:
        for m in found:
            output.write(detail(m))
    else:
        wide = arguments.output == "wide"
        rows = [[m.name.rpartition("/")[2], m.slot, m.version, m.summary, *([m.paper] if wide else [])] for m in found]
        output.print_rows(["ID", "SLOT", "VERSION", "SUMMARY", *(["PAPER"] if wide else [])], rows)
        messages.hint("`luthier methods ID` shows parameters and an example", quiet=arguments.quiet)
    return exits.OK


def _type_of(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " | ".join(_type_of(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _bounds(schema: dict[str, Any]) -> str:
    for part in (schema, *schema.get("anyOf", ())):
        low = f"[{part['minimum']:g}" if "minimum" in part else f"({part['exclusiveMinimum']:g}" if "exclusiveMinimum" in part else ""
        high = f"{part['maximum']:g}]" if "maximum" in part else f"{part['exclusiveMaximum']:g})" if "exclusiveMaximum" in part else ""
        if low or high:
            return f"{low or '(-inf'}, {high or 'inf)'}"
    return ""


def detail(method: method_service_pb2.MethodInfo) -> str:
    """Everything about one plugin: paper, parameters with type, range and default, needs, example."""
    from luthier.spec.convert import struct_to_plain

    lines = [f"{method.name.rpartition('/')[2]}  ({method.slot}, version {method.version})", f"  {method.summary}"]
    if method.paper:
        lines.append(f"  {method.paper}")
    if method.resolves_to:
        lines.append("  stands for: " + ", ".join(f"{slot} {method.resolves_to[slot]}" for slot in sorted(method.resolves_to)))
    properties: dict[str, Any] = struct_to_plain(method.parameters).get("properties", {})
    lines += ["", "Parameters" if properties else "Parameters: none"]
    for name in sorted(properties):
        schema = properties[name]
        default = json.dumps(schema["default"]) if "default" in schema else "required"
        bounds = _bounds(schema)
        lines.append(f"  {name}: {_type_of(schema)}{f', in {bounds}' if bounds else ''}, default {default}")
        if schema.get("description"):
            lines.append(f"      {schema['description']}")
    needs = {name: value for name, value in struct_to_plain(method.needs).items() if value not in (None, [], {}, "")}
    if needs:
        lines += ["", "Needs", *(f"  {name}: {json.dumps(needs[name])}" for name in sorted(needs))]
    if method.example:
        lines += ["", "Example", *(f"  {line}" for line in method.example.rstrip().splitlines())]
    return "\n".join(lines) + "\n"


# --- version ---------------------------------------------------------------------------------------------------------


def _server_version(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the controller's `/version` says; the reason where it cannot be asked."""
    import urllib.request
    from pathlib import Path

    from luthier.client.connection import default_state_dir

    home = Path(arguments.state_dir).expanduser() if arguments.state_dir else default_state_dir()
    try:
        address = str(json.loads((home / "endpoint.json").read_text())["http_address"])
        # A proxy for the outer world must not see what is asked of this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}/version", timeout=2) as answer:
            data = json.loads(answer.read(65536))
        return data if isinstance(data, dict) else {"version": str(data)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _version(arguments: argparse.Namespace) -> int:
    from luthier import __version__
    from luthier.cli import output

    server = _server_version(arguments)
    if arguments.output in ("json", "yaml"):
        output.print_structured(arguments.output, {"client": __version__, "server": server.get("version")})
        return exits.OK
    output.write(f"luthier {__version__}\n")
    if server:
        output.write(f"server  {server.get('version', 'unknown')}\n")
    else:
        messages.hint("no controller answers on this machine; start one with `luthier up`", quiet=arguments.quiet)
    return exits.OK
