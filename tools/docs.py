"""Tables of docs/ that come from code.

    python tools/docs.py            write them (what `make docs` does)
    python tools/docs.py --check    fail when a page is not what would be written

A page is written by hand around blocks between `<!-- generated: NAME -->` and `<!-- end -->`; only those are replaced.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are made safe."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]) + "\n"


# --- the contract -----------------------------------------------------------------------------------------------------


def _commented(text: str, pattern: str) -> list[tuple[re.Match[str], str]]:
    """Every line that matches `pattern`, with the comment lines above it as one text."""
    found: list[tuple[re.Match[str], str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("//"):
            comment.append(stripped[2:].strip())
            continue
        if match := re.match(pattern, stripped):
            found.append((match, " ".join(comment)))
        comment = []
    return found


def _enum(file: str, name: str) -> list[tuple[str, str]]:
    """(value, comment) of an enum of the contract, the unspecified one left out."""
    text = (ROOT / "proto/luthier/v1" / file).read_text()
    body = re.search(rf"enum {name} \{{\n(.*?)\n\s*\}}", text, re.DOTALL)
    assert body is not None, f"{file} has no enum {name}"
    return [(m[1], c) for m, c in _commented(body[1], r"([A-Z_0-9]+) = \d+;") if not m[1].endswith("_UNSPECIFIED")]


def rpcs() -> str:
    """RPCs by service."""
    parts: list[str] = []
    for path in sorted((ROOT / "proto/luthier/v1").glob("*_service.proto")):
        text = path.read_text()
        ((service, about),) = _commented(text, r"service (\w+) \{")
        rows = [
            (f"`{m[1]}`", "stream" if "stream " in m[0] else "", comment)
            for m, comment in _commented(text, r"rpc (\w+)\(.*?\) returns \(.*?\)")
        ]
        parts.append(f"### {service[1]}\n\n{about}\n\n{_table(('RPC', '', 'what it does'), rows)}")
    return "\n".join(parts)


def reasons() -> str:
    """Reasons of errors with their gRPC code."""
    rows = []
    for value, comment in _enum("errors.proto", "ErrorReason"):
        meaning, _, code = comment.rstrip(".").rpartition(". ")
        rows.append((f"`{value.removeprefix('ERROR_REASON_')}`", f"`{code}`", meaning + "."))
    return _table(("reason", "code", "meaning"), rows)


# --- the controller ---------------------------------------------------------------------------------------------------


def states() -> str:
    """States with their meaning."""
    states_module = importlib.import_module("luthier.controller.store.states")
    rows = [(f"`{name}`", text, f"`{states_module.DEFAULT_CAUSE[name]}`") for name, text in _enum("job.proto", "State")]
    return _table(("state", "meaning", "a second in it is charged to"), rows)


def transitions() -> str:
    """Every legal change of state."""
    edges = importlib.import_module("luthier.controller.store.states").EDGES
    return _table(("from", "to", "written by", "when"), [(f"`{e.source}`", f"`{e.target}`", ", ".join(e.by), e.when) for e in edges])


def diagram() -> str:
    """The same as a picture."""
    edges = importlib.import_module("luthier.controller.store.states").EDGES
    lines = [f"  {e.source} --> {e.target}" for e in edges if e.target != "FAILED"]
    return "```mermaid\nstateDiagram-v2\n  [*] --> QUEUED\n" + "\n".join(lines) + "\n```\n"


def causes() -> str:
    """What wall time is charged to."""
    return _table(("cause", "what the time went to"), [(f"`{name}`", text) for name, text in _enum("job.proto", "Cause")])


def end_causes() -> str:
    """Why attempts and generations end."""
    return _table(("cause", "meaning"), [(f"`{n.removeprefix('END_CAUSE_')}`", text) for n, text in _enum("job.proto", "EndCause")])


def _documented(body: Sequence[ast.stmt]) -> dict[str, str]:
    """The string under each assignment."""
    docs: dict[str, str] = {}
    for statement, after in itertools.pairwise(body):
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        docs.update({target.id: str(after.value.value) for target in targets if isinstance(target, ast.Name)})
    return docs


def _field_docs(cls: type) -> dict[str, str]:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    return _documented(node.body)


def _module_docs(module: ModuleType) -> dict[str, str]:
    return _documented(ast.parse(inspect.getsource(module)).body)


def settings() -> str:
    """Settings of the controller with the reason for each default."""
    cls: Any = importlib.import_module("luthier.controller.config").ControllerConfig
    docs = _field_docs(cls)
    rows = []
    for field in fields(cls):
        default = f"`{field.default}`" if field.default is not MISSING and field.default != "" else ""
        rows.append((f"`{field.name}`", default, docs[field.name]))
    return _table(("setting", "default", "meaning and reason"), rows)


# --- the command line -------------------------------------------------------------------------------------------------


def verbs() -> str:
    """Verbs with one line each."""
    command = importlib.import_module("luthier.cli.command")
    return _table(("verb", "what it does"), [(f"`{verb}`", summary) for verb, (_, summary, _) in command.VERBS.items()])


def _argument(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest)
    return ", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else "")


def usages() -> str:
    """Options of every verb, as its `--help` says, without the ones that all verbs share."""
    command = importlib.import_module("luthier.cli.command")
    shared = argparse.ArgumentParser(add_help=True)
    command.connection_arguments(shared)
    command.output_arguments(shared)
    common = {action.dest for action in shared._actions}
    parts: list[str] = []
    for verb, (module, _, _) in command.VERBS.items():
        parser = argparse.ArgumentParser(prog=f"luthier {verb}")
        importlib.import_module(f"luthier.cli.{module}").arguments(verb, parser)
        rows = [
            (f"`{_argument(a)}`", a.help or "")
            for a in parser._actions
            if a.dest not in (common if verb != "up" else {"help"}) and a.help != argparse.SUPPRESS
        ]
        table = _table(("argument", "meaning"), rows).rstrip() if rows else "No arguments of its own."
        parts.append(f"### luthier {verb}\n\n{table}\n")
    return "\n".join(parts)


def exit_codes() -> str:
    """Exit codes of the command."""
    exits = importlib.import_module("luthier.cli.exits")
    values = {name: value for name, value in vars(exits).items() if name.isupper()}
    texts = _module_docs(exits)
    return _table(("code", "meaning"), [(str(value), texts[name]) for name, value in sorted(values.items(), key=lambda item: item[1])])


# --- metrics ----------------------------------------------------------------------------------------------------------


def controller_metrics() -> str:
    """Metrics on the controller's endpoint."""
    metrics = importlib.import_module("luthier.controller.metrics").ControllerMetrics()
    rows = []
    for collector in vars(metrics).values():
        if not hasattr(collector, "describe") or isinstance(collector, type(metrics.registry)):
            continue
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((f"`{name}`", family.type, ", ".join(f"`{label}`" for label in collector._labelnames), family.documentation))
    return _table(("metric", "type", "labels", "help"), sorted(rows))


def trainer_metrics() -> str:
    """Metrics on a node's endpoint."""
    catalogue = importlib.import_module("luthier.trainer_node.metrics").CATALOGUE
    rows = [(f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in catalogue]
    return _table(("metric", "type", "labels", "help"), sorted(rows))


# --- methods ----------------------------------------------------------------------------------------------------------


def _type_of(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{v}`" for v in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        return " or ".join(_type_of(s) for s in schema["anyOf"])
    if schema.get("type") == "array":
        return "list"
    return str(schema.get("type", ""))


def _range_of(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " ".join(text for s in schema["anyOf"] if (text := _range_of(s)))
    low = f"[{schema['minimum']}" if "minimum" in schema else f"({schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else ""
    high = f"{schema['maximum']}]" if "maximum" in schema else f"{schema['exclusiveMaximum']})" if "exclusiveMaximum" in schema else ""
    return f"{low or '(…'}, {high or '…)'}" if low or high else ""


def plugins() -> str:
    """Every built-in plugin: what it is, its parameters, what it needs, an example."""
    registry = importlib.import_module("luthier.methods.registry")
    order = {"method": 0, "objective": 1, "adapter": 2, "recipe": 3}
    parts: list[str] = []
    for spec in sorted(registry.all_specs().values(), key=lambda s: (order[s.slot], s.name)):
        lines = [f"### {spec.slot} `{spec.name}`", "", f"Version {spec.version}. {spec.summary}"]
        if spec.paper:
            lines += ["", f"Paper: {spec.paper}."]
        if spec.learning_rate is not None:
            lines += ["", f"Default peak learning rate: {spec.learning_rate:g}."]
        properties = spec.params.model_json_schema().get("properties", {})
        rows = [
            (
                f"`{name}`",
                _type_of(s),
                f"`{json.dumps(s['default'])}`" if "default" in s else "required",
                _range_of(s),
                s.get("unit", ""),
                s.get("description", ""),
            )
            for name, s in properties.items()
        ]
        table = _table(("parameter", "type", "default", "range", "unit", "meaning"), rows).rstrip() if rows else "No parameters."
        lines += ["", table]
        if spec.example:
            lines += ["", "```yaml", spec.example.rstrip(), "```"]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


GENERATORS: dict[str, Callable[[], str]] = {
    "rpcs": rpcs,
    "reasons": reasons,
    "states": states,
    "transitions": transitions,
    "diagram": diagram,
    "causes": causes,
    "end-causes": end_causes,
    "settings": settings,
    "verbs": verbs,
    "usages": usages,
    "exit-codes": exit_codes,
    "controller-metrics": controller_metrics,
    "trainer-metrics": trainer_metrics,
    "plugins": plugins,
}


def render(text: str) -> str:
    """The page with every block as code says now. Raises `KeyError` for a block that nothing generates."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{GENERATORS[m[2]]()}\n{m[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page would change")
    check: bool = parser.parse_args().check
    stale: list[str] = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text()
        fresh = render(text)
        if fresh != text:
            stale.append(f"docs/{page.name}")
            if not check:
                page.write_text(fresh)
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}", file=sys.stderr)
        if check:
            print("Fix: run `make docs` and commit the result", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
