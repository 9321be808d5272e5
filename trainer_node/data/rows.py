"""Tokenised rows of several sources as one sequence, and views onto it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.trainer_node.data.api import VerdictReport
from luthier.trainer_node.data.cache import CacheEntry
from luthier.trainer_node.data.order import permutation

__all__ = ["Rows", "held_out", "split_validation"]

IGNORED = -100
_OFFENDERS = 20

Integers = npt.NDArray[np.int64]


class Rows:
    """Rows of cache entries (`TokenisedRows`). Views share the entries' memory maps."""

    def __init__(
        self,
        entries: Sequence[CacheEntry],
        weights: Sequence[float],
        tokenizer: Any,
        *,
        entry_of: Integers | None = None,
        local: Integers | None = None,
        digest: str = "",
    ) -> None:
        self._entries = tuple(entries)
        self._source_weights = tuple(weights)
        self._tokenizer = tokenizer
        if entry_of is None or local is None:
            sizes = [entry.meta.rows for entry in entries]
            entry_of = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
            local = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]) if sizes else np.empty(0, dtype=np.int64)
        self._entry_of, self._local = entry_of, local
        self._digest = digest or hashlib.sha256("/".join(entry.key for entry in entries).encode()).hexdigest()
        names = [set(entry.meta.column_names) for entry in entries]
        self._column_names = sorted(set.intersection(*names)) if names else []
        self._lengths = self._gather([entry.lengths for entry in entries])
        self._learned: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self._local)

    @property
    def digest(self) -> str:
        """Content key of what the rows are made from, and of the view."""
        return self._digest

    @property
    def verdicts(self) -> VerdictReport:
        """Verdicts of the whole sources, also in a view."""
        counts: dict[str, int] = {}
        offenders: list[str] = []
        for entry in self._entries:
            offenders += entry.meta.offenders
            for verdict, count in entry.meta.counts.items():
                counts[verdict] = counts.get(verdict, 0) + count
        return VerdictReport(counts, tuple(offenders[:_OFFENDERS]))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was detected in each source, for the report."""
        return tuple(entry.meta.note for entry in self._entries)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32 [N], tokens per row."""
        return self._lengths

    @property
    def learned(self) -> npt.NDArray[np.int32]:
        """int32 [N], learned tokens per row (those with a predecessor)."""
        if self._learned is None:
            counts = []
            for entry in self._entries:
                # A running sum over all tokens; the first token of a row has no predecessor and is taken out again.
                running = np.concatenate([[0], np.cumsum(entry.learned, dtype=np.int64)])
                firsts = np.asarray(entry.learned[entry.starts[:-1]], dtype=np.int64)
                counts.append((running[entry.starts[1:]] - running[entry.starts[:-1]] - firsts).astype(np.int32))
            self._learned = self._gather(counts)
        return self._learned

    @property
    def weights(self) -> npt.NDArray[np.float64] | None:
        """float64 [N], expected draws of each row per epoch; None when every row is drawn once."""
        if all(weight == 1.0 for weight in self._source_weights):
            return None
        return np.asarray(self._source_weights, dtype=np.float64)[self._entry_of]

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """(input_ids int32 [T], labels int32 [T] with -100 where nothing is learned)."""
        ids, learned = self._slices(index)
        return ids, np.where(learned, ids, IGNORED).astype(np.int32)

    def prompt_ids(self, index: int) -> npt.NDArray[np.int32]:
        """Token ids before the last learned span, int32 [P]: what an answer is sampled from."""
        ids, learned = self._slices(index)
        return ids[: _last_span(learned)[0]]

    def prompt_and_answer(self, index: int) -> tuple[str, str]:
        """Prompt text up to the last learned span, special tokens included, and that span's text without them."""
        ids, learned = self._slices(index)
        start, end = _last_span(learned)
        prompt = self._tokenizer.decode(ids[:start].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        answer = self._tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(prompt), str(answer)

    def columns(self, index: int) -> Mapping[str, float]:
        """Numbers beside the tokens, by name; those that every source has."""
        if not self._column_names:
            return {}
        entry = self._entries[self._entry_of[index]]
        values = entry.columns[self._local[index]]
        by_name = dict(zip(entry.meta.column_names, values.tolist(), strict=True))
        return {name: by_name[name] for name in self._column_names}

    def view(self, selected: npt.NDArray[np.integer], name: str) -> Rows:
        """Some of the rows, by number, in that order; `name` and the selection become part of the digest."""
        chosen = np.asarray(selected, dtype=np.int64)
        digest = hashlib.sha256(f"{self._digest}/{name}/".encode() + chosen.tobytes()).hexdigest()
        return Rows(
            self._entries, self._source_weights, self._tokenizer, entry_of=self._entry_of[chosen], local=self._local[chosen], digest=digest
        )

    def held_out(self, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
        """bool [N]: rows of the held-out part, see `held_out`. Parts of one document stay together."""
        chosen = np.zeros(len(self), dtype=np.bool_)
        for number, entry in enumerate(self._entries):
            mine = self._entry_of == number
            chosen[mine] = held_out(entry.meta.raw_rows, fraction, seed, number)[entry.origins[self._local[mine]]]
        return chosen

    def _gather(self, per_entry: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
        out = np.empty(len(self._local), dtype=np.int32)
        for number, values in enumerate(per_entry):
            mine = self._entry_of == number
            out[mine] = values[self._local[mine]]
        return out

    def _slices(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        entry = self._entries[self._entry_of[index]]
        local = self._local[index]
        start, end = entry.starts[local], entry.starts[local + 1]
        return np.asarray(entry.tokens[start:end], dtype=np.int32), np.asarray(entry.learned[start:end], dtype=np.bool_)


def held_out(count: int, fraction: float, seed: int, source: int) -> npt.NDArray[np.bool_]:
    """bool [count]: which rows of source number `source` are held out; round(fraction * count) of them, at least one, never all."""
    chosen = np.zeros(count, dtype=np.bool_)
    if fraction > 0 and count > 1:
        number = min(max(round(fraction * count), 1), count - 1)
        chosen[permutation(count, seed, "held-out", source)[:number]] = True
    return chosen


def split_validation(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """(training, validation): disjoint views, the same for the same rows, fraction and seed, whatever was left out as bad."""
    chosen = rows.held_out(fraction, seed)
    name = f"{fraction}/{seed}"
    return rows.view(np.flatnonzero(~chosen), f"train/{name}"), rows.view(np.flatnonzero(chosen), f"validation/{name}")


def _last_span(learned: npt.NDArray[np.bool_]) -> tuple[int, int]:
    places = np.flatnonzero(learned)
    if len(places) == 0:
        return len(learned), len(learned)
    end = int(places[-1]) + 1
    before = np.flatnonzero(~learned[:end])
    return (int(before[-1]) + 1 if len(before) else 0), end
