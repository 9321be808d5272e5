"""The rows that phases read: splits of the job's data and row artifacts, tokenised for the model at hand, prepared once each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.methods.api import Artifact, DataRef
from luthier.spec.models import DataSource
from luthier.trainer_node.artifacts import Artifacts
from luthier.trainer_node.context import RankContext
from luthier.trainer_node.data.prepare import prepare, split_validation
from luthier.trainer_node.data.rows import Rows
from luthier.trainer_node.network import load_tokenizer, tokenizer_digest

__all__ = ["RowSource"]


class RowSource:
    """Tokenised rows by reference and tokenizer."""

    def __init__(self, context: RankContext, inputs: Mapping[str, str], artifacts: Artifacts) -> None:
        self._context = context
        self._inputs = inputs
        self._artifacts = artifacts
        self._tokenizers: dict[Path, tuple[Any, str]] = {}
        self._rows: dict[tuple[str, str], Rows] = {}
        self.verdicts: dict[str, int] = {}
        """Verdicts of the training rows, for the result."""

    def tokenizer(self, directory: Path) -> Any:
        """The tokenizer of a directory."""
        return self._tokenizer(directory)[0]

    def rows(self, ref: DataRef, tokenizer_directory: Path) -> Rows:
        """The rows. Rank 0 tokenises what the cache lacks while the others wait. Raises `DataError`."""
        _, digest = self._tokenizer(tokenizer_directory)
        key = (ref.artifact.digest if ref.artifact else ref.split, digest)
        if key not in self._rows:
            self._prepare(ref, key, tokenizer_directory)
        return self._rows[key]

    def _tokenizer(self, directory: Path) -> tuple[Any, str]:
        if directory not in self._tokenizers:
            self._tokenizers[directory] = (load_tokenizer(directory), tokenizer_digest(directory))
        return self._tokenizers[directory]

    def _prepare(self, ref: DataRef, key: tuple[str, str], directory: Path) -> None:
        data, digest = self._context.spec.data, key[1]
        if ref.artifact is not None:
            self._rows[key] = self._tokenised((_artifact_source(ref.artifact),), directory, ref.artifact)
        elif ref.split == "validation" and data.validation:
            self._rows[key] = self._tokenised(data.validation, directory)
        elif ref.split not in ("train", "validation"):
            raise DataError(f"there is no split {ref.split!r}", fix="use train or validation")
        elif ref.split == "validation" and data.validation_fraction == 0:
            raise DataError("the job holds out no rows", where="data", fix="set data.validation or data.validation_fraction")
        else:
            rows = self._tokenised(data.sources, directory)
            self._report(rows)
            if data.validation_fraction > 0 and not data.validation:
                train, validation = split_validation(rows, data.validation_fraction, self._context.spec.training.seed)
                self._rows["train", digest], self._rows["validation", digest] = train, validation
            else:
                self._rows[key] = rows

    def _tokenised(self, sources: tuple[DataSource, ...], directory: Path, artifact: Artifact | None = None) -> Rows:
        context = self._context
        launch = context.launch
        tokenizer, digest = self._tokenizer(directory)
        inputs = dict(self._inputs)
        if artifact is not None:
            inputs[sources[0].uri] = str(self._artifacts.path(artifact))
        leader = context.group.rank == 0
        return prepare(
            sources, context.spec.data, context.spec.training.max_length, inputs, tokenizer, digest,
            launch.node.cache_dir or launch.node.prefix / "cache", leader=leader,
            beat=lambda: context.channel.beat("setup" if leader else "waiting", 0),
        )  # fmt: skip

    def _report(self, rows: Rows) -> None:
        verdicts = rows.verdicts
        self.verdicts = {name: int(count) for name, count in verdicts.counts.items()}
        if self._context.group.rank == 0:
            self._context.channel.fact("verdicts", {"counts": self.verdicts, "offenders": list(verdicts.offenders)})
            for note in rows.notes:
                print(f"data: {note}")


def _artifact_source(artifact: Artifact) -> DataSource:
    return DataSource(uri=f"artifact:{artifact.name}")
