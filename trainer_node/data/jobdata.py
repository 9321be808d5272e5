"""The job's rows without a tokenizer: what Build functions read (`methods.api.JobData`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.methods.api import Artifact, DataRef
from luthier.spec.models import DataSource, DataSpec
from luthier.trainer_node.data.prepare import open_source, raw_rows, shaper_of
from luthier.trainer_node.data.rows import held_out
from luthier.trainer_node.data.shape import BadRow, Row

__all__ = ["SourceRows"]


class SourceRows:
    """Rows of the job's sources and of row artifacts, streamed.

    Splits are the ones that `split_validation` makes of the same sources. Bad rows end the iteration with a `DataError` that names file
    and line, or are left out, as `data.on_bad_row` says (they are counted when the rows are tokenised).
    """

    def __init__(
        self,
        spec: DataSpec,
        inputs: Mapping[str, str | Path],
        seed: int,
        artifact_path: Callable[[Artifact], Path] | None = None,
    ) -> None:
        self._spec = spec
        self._inputs = inputs
        self._seed = seed
        self._artifact_path = artifact_path

    def texts(self, ref: DataRef) -> Iterator[str]:
        """Plain text of every row, for tokenizer training."""
        for row in self._shaped(ref):
            text = row.all_text()
            if text:
                yield text

    def rows(self, ref: DataRef) -> Iterator[Mapping[str, Any]]:
        """{"prompt", "completion"}, {"messages"} or {"text"} of every row, plus columns."""
        for row in self._shaped(ref):
            yield row.plain()

    def _shaped(self, ref: DataRef) -> Iterator[Row]:
        if ref.artifact is not None:
            if self._artifact_path is None:
                raise DataError(f"artifact {ref.artifact.name!r} cannot be read here", where=ref.artifact.path)
            address = f"artifact:{ref.artifact.name}"
            inputs = {address: self._artifact_path(ref.artifact)}
            yield from self._of_source(DataSource(uri=address), inputs, None, 0)
            return
        if ref.split not in ("train", "validation"):
            raise DataError(f"there is no split {ref.split!r}", fix="use train or validation")
        sources: Sequence[DataSource] = self._spec.sources
        wanted: bool | None = None
        if self._spec.validation:
            sources = self._spec.validation if ref.split == "validation" else self._spec.sources
        elif self._spec.validation_fraction > 0:
            wanted = ref.split == "validation"
        elif ref.split == "validation":
            raise DataError("the job holds out no rows", where="data", fix="set data.validation or data.validation_fraction")
        for number, source in enumerate(sources):
            yield from self._of_source(source, self._inputs, wanted, number)

    def _of_source(self, source: DataSource, inputs: Mapping[str, str | Path], wanted: bool | None, number: int) -> Iterator[Row]:
        files = open_source(source, inputs)
        shaper = shaper_of(source, self._spec, files)
        held = None
        if wanted is not None:
            count = sum(1 for _ in raw_rows(source, files))
            held = held_out(count, self._spec.validation_fraction, self._seed, number)
        for place, raw in enumerate(raw_rows(source, files)):
            if held is not None and bool(held[place]) is not wanted:
                continue
            try:
                if raw.values is None:
                    raise BadRow(raw.problem)
                yield shaper(raw.values)
            except BadRow as error:
                if self._spec.on_bad_row == "fail":
                    raise DataError(
                        f"malformed: {error}",
                        where=f"{raw.file}:{raw.line}",
                        fix="repair the row, or set data.on_bad_row: skip to leave such rows out",
                    ) from error
