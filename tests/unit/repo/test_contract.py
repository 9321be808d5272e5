"""The contract in proto/: generated code, style, and the promise not to break clients."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.api import field_behavior_pb2, resource_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor

from luthier.v1 import (
    artifact_service_pb2,
    errors_pb2,
    job_pb2,
    job_service_pb2,
    method_service_pb2,
    node_service_pb2,
    queue_service_pb2,
    spec_pb2,
)

ROOT = Path(__file__).parents[3]
FILES: list[FileDescriptor] = [
    module.DESCRIPTOR
    for module in (
        artifact_service_pb2,
        errors_pb2,
        job_pb2,
        job_service_pb2,
        method_service_pb2,
        node_service_pb2,
        queue_service_pb2,
        spec_pb2,
    )
]


def _tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "tools" / "proto.py", *arguments], capture_output=True, text=True, check=False)


def _messages(file: FileDescriptor) -> Iterator[Descriptor]:
    waiting = list(file.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        if not message.GetOptions().map_entry:
            yield message
            waiting.extend(message.nested_types)


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A copy of proto/ that a test may change."""
    return Path(shutil.copytree(ROOT / "proto", tmp_path / "proto"))


def test_this_module_names_every_proto_file() -> None:
    """Every file of the contract is covered by the tests here."""
    assert sorted(f"luthier/v1/{p.name}" for p in (ROOT / "proto/luthier/v1").glob("*.proto")) == sorted(f.name for f in FILES)


def test_generated_code_is_what_the_sources_say() -> None:
    """Regenerating src/luthier/v1 changes nothing."""
    done = _tool("drift")

    assert (0, "") == (done.returncode, done.stderr)


def test_the_contract_is_lint_clean() -> None:
    """buf lint finds nothing."""
    done = _tool("lint")

    assert (0, "") == (done.returncode, done.stderr)


def test_lint_finds_a_missing_comment(changed: Path) -> None:
    """A field without a comment is a finding: comments are the documentation."""
    file = changed / "luthier/v1/job.proto"
    file.write_text(file.read_text().replace("  // Owner, from the caller's identity.\n", ""))

    done = _tool("lint", "--source", str(changed))

    assert 1 == done.returncode
    assert 'Field "tenant" should have a non-empty comment' in done.stderr


def test_nothing_breaks_clients_of_the_last_release() -> None:
    """buf breaking finds nothing against the committed image."""
    done = _tool("breaking")

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        pytest.param("  string tenant = 3 [(google.api.field_behavior) = OUTPUT_ONLY];\n", "", '"tenant" on message "Job"', id="removed"),
        pytest.param("string tenant = 3", "string tenant = 103", '"tenant" on message "Job"', id="renumbered"),
        pytest.param("int32 attempt = 12", "int64 attempt = 12", 'Field "12" with name "attempt" on message "Job"', id="retyped"),
    ],
)
def test_a_breaking_change_is_refused(changed: Path, old: str, new: str, finding: str) -> None:
    """A field that clients may use can be neither removed nor renumbered nor retyped."""
    file = changed / "luthier/v1/job.proto"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))

    done = _tool("breaking", "--source", str(changed))

    assert 1 == done.returncode
    assert finding in done.stderr


def test_every_element_has_a_comment(tmp_path: Path) -> None:
    """Files, services, RPCs, messages, fields, oneofs, enums and enum values are documented."""
    out = tmp_path / "image.binpb"
    include = [f"-I{ROOT / 'proto'}", f"-I{Path(field_behavior_pb2.__file__).parents[2]}"]
    sources = sorted(str(p) for p in (ROOT / "proto/luthier/v1").glob("*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *include, "--include_source_info", f"--descriptor_set_out={out}", *sources], check=True
    )
    image = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    missing: list[str] = []
    for file in image.file:
        documented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
        wanted: dict[tuple[int, ...], str] = {(12,): "syntax"}

        def message(found: descriptor_pb2.DescriptorProto, path: tuple[int, ...], name: str, wanted: dict[tuple[int, ...], str]) -> None:
            if found.options.map_entry:
                return
            wanted[path] = name
            wanted.update({(*path, 2, i): f"{name}.{field.name}" for i, field in enumerate(found.field)})
            wanted.update({(*path, 8, i): f"{name}.{o.name}" for i, o in enumerate(found.oneof_decl) if not o.name.startswith("_")})
            for i, choice in enumerate(found.enum_type):
                enum(choice, (*path, 4, i), f"{name}.{choice.name}", wanted)
            for i, nested in enumerate(found.nested_type):
                message(nested, (*path, 3, i), f"{name}.{nested.name}", wanted)

        def enum(found: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], name: str, wanted: dict[tuple[int, ...], str]) -> None:
            wanted[path] = name
            wanted.update({(*path, 2, i): f"{name}.{value.name}" for i, value in enumerate(found.value)})

        for i, top in enumerate(file.message_type):
            message(top, (4, i), top.name, wanted)
        for i, choice in enumerate(file.enum_type):
            enum(choice, (5, i), choice.name, wanted)
        for i, service in enumerate(file.service):
            wanted[(6, i)] = service.name
            wanted.update({(6, i, 2, j): f"{service.name}.{rpc.name}" for j, rpc in enumerate(service.method)})
        missing += [f"{file.name}: {name}" for path, name in wanted.items() if path not in documented]

    assert [] == missing


def test_every_field_that_a_caller_may_set_or_that_a_resource_has_declares_its_behaviour() -> None:
    """google.api.field_behavior is on all fields of requests, of resources and of every message inside them (AIP-203)."""
    messages = {message.full_name: message for file in FILES for message in _messages(file)}
    node_only = {m.full_name for m in _messages(node_service_pb2.DESCRIPTOR)}  # what AttachRequest carries is between our own processes
    reached = {name for name, m in messages.items() if name.endswith("Request") or m.GetOptions().HasExtension(resource_pb2.resource)}
    waiting = list(reached - node_only)
    while waiting:
        for field in messages[waiting.pop()].fields:
            inner = field.message_type
            if inner is not None and inner.full_name in messages and inner.full_name not in reached:
                reached.add(inner.full_name)
                waiting.append(inner.full_name)
    missing = [
        field.full_name
        for name in sorted(reached)
        for field in messages[name].fields
        if not field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    ]

    assert [] == missing


def test_enums_outside_messages_carry_their_name_as_prefix() -> None:
    """Values of a file-level enum share the package's scope, so each starts with the enum's name (nested ones need not, AIP-126)."""
    bare = [
        value.name
        for file in FILES
        for enum in file.enum_types_by_name.values()
        for value in enum.values
        if not value.name.startswith("".join(f"_{c}" if c.isupper() else c for c in enum.name).lstrip("_").upper() + "_")
    ]

    assert [] == bare


def test_every_enum_starts_with_unspecified() -> None:
    """Zero means that nothing was said."""
    enums = [enum for file in FILES for enum in file.enum_types_by_name.values()]
    enums += [enum for file in FILES for message in _messages(file) for enum in message.enum_types]

    assert [] == [e.full_name for e in enums if e.values[0].number != 0 or not e.values[0].name.endswith("_UNSPECIFIED")]
