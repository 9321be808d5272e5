"""ArtifactService over real gRPC: uploads by digest, outputs of jobs."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from luthier.controller.store.records import ArtifactRecord
from luthier.v1 import artifact_service_pb2

pb = artifact_service_pb2
pytestmark = pytest.mark.asyncio
Header = pb.UploadContentRequest.Header


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def messages(header: Header, blocks: Iterable[bytes]) -> AsyncIterator[pb.UploadContentRequest]:
    yield pb.UploadContentRequest(header=header)
    for block in blocks:
        yield pb.UploadContentRequest(data=block)


async def upload(stub: Any, data: bytes, *, offset: int = 0, until: int | None = None, block: int = 10_000) -> Any:
    """Send a content from `offset` to `until`."""
    part = data[offset:until]
    header = Header(digest=digest_of(data), size_bytes=len(data), offset=offset)
    return await stub.UploadContent(messages(header, [part[n : n + block] for n in range(0, len(part), block)]))


async def stat(stub: Any, *digests: str) -> list[tuple[bool, int]]:
    answer = await stub.StatContents(pb.StatContentsRequest(digests=digests))
    assert list(digests) == [c.digest for c in answer.contents]
    return [(c.present, c.received_bytes) for c in answer.contents]


async def test_an_upload_is_verified_and_kept(api: Any) -> None:
    """The content lies under its digest, cannot be written, and a second upload is answered without its bytes."""
    stub, data = api.artifacts(), b"hello world" * 5000
    answer = await upload(stub, data)
    path: Path = api.contents.path(digest_of(data))
    again = await upload(stub, data, until=0)
    empty = await upload(stub, b"")

    assert (digest_of(data), len(data)) == (answer.digest, answer.size_bytes) == (again.digest, again.size_bytes)
    assert data == path.read_bytes()
    assert api.root / "uploads" / digest_of(data)[:2] / digest_of(data) == path
    assert 0o444 == path.stat().st_mode & 0o777
    assert [(True, 0), (True, 0), (False, 0)] == await stat(stub, digest_of(data), empty.digest, "0" * 64)


async def test_an_upload_resumes(api: Any, refusal: Any) -> None:
    """What came before a break is kept and told; the rest completes it; a gap is refused with the place to continue."""
    stub, data = api.artifacts(), bytes(range(256)) * 500
    broken = await refusal(upload(stub, data, until=50_000))
    kept = await stat(stub, digest_of(data))
    gap = await refusal(upload(stub, data, offset=60_000))
    overlapping = await refusal(upload(stub, data, offset=40_000, until=70_000))
    resumed_at = await stat(stub, digest_of(data))
    answer = await upload(stub, data, offset=70_000)

    assert ("INVALID_ARGUMENT", "continue at 50000") == (broken.code, broken.metadata["fix"])
    assert [(False, 50_000)] == kept
    assert (["header.offset"], True) == (gap.fields, "50000" in gap.metadata["fix"])
    assert "continue at 70000" == overlapping.metadata["fix"]
    assert [(False, 70_000)] == resumed_at
    assert len(data) == answer.size_bytes
    assert data == api.contents.path(digest_of(data)).read_bytes()


async def test_wrong_bytes_are_dropped(api: Any, refusal: Any) -> None:
    """DIGEST_MISMATCH, nothing published, nothing left to resume; too many bytes are refused, too."""
    stub, digest = api.artifacts(), digest_of(b"right")
    wrong = await refusal(stub.UploadContent(messages(Header(digest=digest, size_bytes=5), [b"wrong"])))
    state = await stat(stub, digest)
    more = await refusal(stub.UploadContent(messages(Header(digest=digest, size_bytes=5), [b"right, and more"])))
    halves = [b"ri"], [b"gXt"]
    await refusal(stub.UploadContent(messages(Header(digest=digest, size_bytes=5), halves[0])))
    resumed = await refusal(stub.UploadContent(messages(Header(digest=digest, size_bytes=5, offset=2), halves[1])))

    assert ("INVALID_ARGUMENT", "DIGEST_MISMATCH") == (wrong.code, wrong.reason) == (resumed.code, resumed.reason)
    assert (digest, digest_of(b"wrong")) == (wrong.metadata["expected"], wrong.metadata["actual"])
    assert [(False, 0)] == state == await stat(stub, digest)
    assert ["data"] == more.fields


async def test_two_uploads_of_one_content(api: Any) -> None:
    """At the same time: both succeed, one content."""
    stub, data = api.artifacts(), b"same" * 100_000
    first, second = await asyncio.gather(upload(stub, data), upload(stub, data))

    assert first == second
    assert data == api.contents.path(digest_of(data)).read_bytes()


async def test_malformed_uploads(api: Any, refusal: Any) -> None:
    """Header missing, twice, with a wrong digest or size; blocks that are too large; too many digests."""
    stub, good = api.artifacts(), Header(digest="0" * 64, size_bytes=5)

    async def without_header() -> AsyncIterator[pb.UploadContentRequest]:
        yield pb.UploadContentRequest(data=b"x")

    async def twice() -> AsyncIterator[pb.UploadContentRequest]:
        yield pb.UploadContentRequest(header=good)
        yield pb.UploadContentRequest(header=good)

    for call, field in (
        (stub.UploadContent(without_header()), "header"),
        (stub.UploadContent(twice()), "header"),
        (stub.UploadContent(messages(Header(digest="../etc/passwd", size_bytes=5), [])), "header.digest"),
        (stub.UploadContent(messages(Header(digest="A" * 64, size_bytes=5), [])), "header.digest"),
        (stub.UploadContent(messages(Header(digest="0" * 64, size_bytes=-1), [])), "header.size_bytes"),
        (stub.UploadContent(messages(Header(digest="0" * 64, size_bytes=2**60), [])), "header.size_bytes"),
        (stub.UploadContent(messages(Header(digest="0" * 64, size_bytes=2**21), [b"x" * (2**20 + 1)])), "data"),
        (stub.StatContents(pb.StatContentsRequest(digests=["0" * 64, "x"])), "digests[1]"),
        (stub.StatContents(pb.StatContentsRequest(digests=["0" * 64] * 1001)), "digests"),
    ):
        failure = await refusal(call)
        assert ("INVALID_ARGUMENT", [field]) == (failure.code, failure.fields)


async def test_an_uploaded_directory_is_an_input(api: Any, make_request: Any, refusal: Any) -> None:
    """A job may name a directory once its manifest and all its files are there."""
    stub, files = api.artifacts(), {"a.jsonl": b"1", "sub/b.jsonl": b"2"}
    manifest = json.dumps({"files": {name: digest_of(data) for name, data in files.items()}}).encode()
    request = make_request("tree")
    request.job.spec.data.sources[0].uri = f"upload://{digest_of(manifest)}/"
    missing = await refusal(api.jobs().CreateJob(request))
    await upload(stub, manifest)
    await upload(stub, b"1")
    partial = await refusal(api.jobs().CreateJob(request))
    await upload(stub, b"2")

    assert ["CONTENT_MISSING"] * 2 == [missing.reason, partial.reason]
    assert digest_of(b"2") == partial.metadata["digest"]
    assert "jobs/tree" == (await api.jobs().CreateJob(request)).name
    tree = api.contents.materialise_tree(digest_of(manifest))
    assert files == {p.relative_to(tree).as_posix(): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


# --- outputs ---------------------------------------------------------------------------------------------------------


async def finished(api: Any, make_request: Any) -> str:
    """A job with two artifacts: one with a manifest, one without; returns its uid."""
    job = await api.jobs().CreateJob(make_request("a"))
    prefix: Path = api.root / "store" / "tenant-a" / job.uid
    output, report = prefix / "output" / "a1g1" / "model", prefix / "phases" / "a1g1" / "report"
    (output / "tokenizer").mkdir(parents=True)
    report.mkdir(parents=True)
    contents = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 10_000, "tokenizer/t.json": b"[]"}
    for name, data in contents.items():
        (output / name).write_bytes(data)
    entries = [{"path": n, "size": len(d), "sha256": digest_of(d)} for n, d in contents.items()]
    (output / "manifest.json").write_text(json.dumps({"files": entries}))
    (output / "secret").symlink_to("/etc/passwd")
    (report / "report.txt").write_text("fine")

    def write(tx: Any) -> None:
        tx.put_artifact(ArtifactRecord(job_uid=job.uid, name="result", kind="model", digest="d", path="output/a1g1/model", size_bytes=9))
        tx.put_artifact(ArtifactRecord(job_uid=job.uid, name="report", kind="report", digest="e", path="phases/a1g1/report"))

    await api.store.transact(write)
    return str(job.uid)


async def download(stub: Any, name: str, path: str, offset: int = 0) -> bytes:
    data, at = b"", offset
    async for chunk in stub.DownloadArtifact(pb.DownloadArtifactRequest(name=name, path=path, offset=offset)):
        assert at == chunk.offset
        assert len(chunk.data) <= 1024 * 1024
        data, at = data + chunk.data, at + len(chunk.data)
    return data


async def test_artifacts_are_listed_with_their_files(api: Any, make_request: Any) -> None:
    """Files, sizes and digests from the manifest, or from the disk where there is none; page by page."""
    uid = await finished(api, make_request)
    stub = api.artifacts()
    first = await stub.ListArtifacts(pb.ListArtifactsRequest(parent="jobs/a", page_size=1))
    second = await stub.ListArtifacts(pb.ListArtifactsRequest(parent="jobs/a", page_size=1, page_token=first.next_page_token))
    report, result = first.artifacts[0], second.artifacts[0]

    assert ("jobs/a/artifacts/report", "jobs/a/artifacts/result", "") == (report.name, result.name, second.next_page_token)
    assert [("report.txt", 4, digest_of(b"fine"))] == [(f.path, f.size_bytes, f.digest) for f in report.files]
    assert ["config.json", "model.safetensors", "tokenizer/t.json"] == [f.path for f in result.files]
    assert str(api.root / "store" / "tenant-a" / uid / "output" / "a1g1" / "model") == result.local_path


async def test_files_download_whole_or_from_an_offset(api: Any, make_request: Any) -> None:
    """Chunks of at most 1 MiB with offsets; an offset behind the end is empty."""
    await finished(api, make_request)
    stub, data = api.artifacts(), bytes(range(256)) * 10_000

    assert data == await download(stub, "jobs/a/artifacts/result", "model.safetensors")
    assert data[1_234_567:] == await download(stub, "jobs/a/artifacts/result", "model.safetensors", 1_234_567)
    assert b"[]" == await download(stub, "jobs/a/artifacts/result", "tokenizer/t.json")
    assert b"" == await download(stub, "jobs/a/artifacts/result", "config.json", 99)


@pytest.mark.parametrize("path", ["../report/report.txt", "/etc/passwd", "tokenizer/../config.json", "", "a\\b", "tokenizer//t.json", "."])
async def test_paths_outside_are_refused(api: Any, make_request: Any, refusal: Any, path: str) -> None:
    """What is not a plain relative path is a wrong field."""
    await finished(api, make_request)
    failure = await refusal(download(api.artifacts(), "jobs/a/artifacts/result", path))

    assert ("INVALID_ARGUMENT", ["path"]) == (failure.code, failure.fields)


@pytest.mark.parametrize("path", ["secret", "nothing", "tokenizer", "tokenizer/none", "config.json/x"])
async def test_what_is_no_file_is_not_found(api: Any, make_request: Any, refusal: Any, path: str) -> None:
    """Links, folders and names that are not there; the error names the files."""
    await finished(api, make_request)
    failure = await refusal(download(api.artifacts(), "jobs/a/artifacts/result", path))

    assert ("NOT_FOUND", "NOT_FOUND") == (failure.code, failure.reason)
    assert "config.json" in failure.metadata["fix"]


async def test_unknown_artifacts(api: Any, make_request: Any, refusal: Any) -> None:
    """An unknown artifact tells which there are; an unknown job and another tenant's are NOT_FOUND; malformed names are violations."""
    await finished(api, make_request)
    stub = api.artifacts()
    unknown = await refusal(download(stub, "jobs/a/artifacts/model", "x"))
    foreign = await refusal(download(api.artifacts("secret-b"), "jobs/a/artifacts/result", "config.json"))
    malformed = await refusal(download(stub, "jobs/a", "x"))

    assert ("NOT_FOUND", "it has: report, result") == (unknown.code, unknown.metadata["fix"])
    assert "JOB_NOT_FOUND" == foreign.reason
    assert ["name"] == malformed.fields
