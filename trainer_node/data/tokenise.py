"""Raw rows in, token ids with learned flags and a verdict per row out.

Pieces of a row are encoded one by one where the tokenizer allows it, so that a prompt has the very tokens that it has at inference, when
nothing follows it. Tokenizers that treat the beginning of a text in a special way (a prepended space) are encoded whole, and flags follow
from character offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from luthier.errors import DataError
from luthier.trainer_node.data.cache import CacheWriter
from luthier.trainer_node.data.read import RawRow
from luthier.trainer_node.data.shape import BadRow, Row, Shaper
from luthier.trainer_node.data.template import NothingToLearn, Piece, Template, TemplateError

__all__ = ["Encoder", "LengthPolicy", "Tally", "Verdict", "tokenise"]

Verdict = Literal["ok", "truncated", "too_long", "nothing_to_learn", "template_error", "malformed"]
LengthPolicy = Literal["auto", "truncate_right", "truncate_left", "drop", "split"]

BAD: tuple[Verdict, ...] = ("malformed", "template_error", "nothing_to_learn")
"""Verdicts that `on_bad_row` is about. Rows that are too long are left out by the length policy."""

_ROWS_AT_ONCE = 1024
_CHARACTERS_AT_ONCE = 1 << 21
_OFFENDERS_PER_VERDICT = 5

Flags = npt.NDArray[np.bool_]
Tokens = npt.NDArray[np.int32]


@dataclass
class Tally:
    """Rows by verdict, and the first offenders of each."""

    counts: dict[str, int] = field(default_factory=dict)
    offenders: list[str] = field(default_factory=list)
    _shown: dict[str, int] = field(default_factory=dict)

    def add(self, verdict: Verdict, raw: RawRow, why: str = "") -> None:
        """Count a row; offenders read `file:line: verdict: why`."""
        self.counts[verdict] = self.counts.get(verdict, 0) + 1
        if verdict != "ok" and self._shown.get(verdict, 0) < _OFFENDERS_PER_VERDICT:
            self._shown[verdict] = self._shown.get(verdict, 0) + 1
            self.offenders.append(f"{raw.file}:{raw.line}: {verdict}" + (f": {why}" if why else ""))

    @property
    def bad(self) -> int:
        """Rows that cannot be used."""
        return sum(self.counts.get(verdict, 0) for verdict in BAD)


class Encoder:
    """Token ids and learned flags of rows, many at once."""

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._fast = bool(getattr(tokenizer, "is_fast", False))
        self._by_piece = _splits_cleanly(tokenizer)
        if not self._by_piece and not self._fast:
            raise DataError(
                "the tokenizer has neither a fast implementation nor pieces that join cleanly, so answers cannot be told from prompts",
                fix="use a tokenizer with a tokenizer.json",
            )
        bare, full = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a", add_special_tokens=True)
        begins = tokenizer.bos_token_id is not None and full[:1] == [tokenizer.bos_token_id] and bare[:1] != full[:1]
        self._bos: list[int] = [tokenizer.bos_token_id] if begins else []
        self._eos: list[int] = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []

    def encode(self, rows: Sequence[tuple[list[Piece], bool]]) -> list[tuple[Tokens, Flags]]:
        """Rows as `Template.pieces` gives them -> (ids [T], learned [T]) each."""
        encoded = self._pieces(rows) if self._by_piece else self._offsets(rows)
        out: list[tuple[Tokens, Flags]] = []
        for (pieces, begun), (ids, learned) in zip(rows, encoded, strict=True):
            begin = [] if begun else self._bos
            end = [] if self._template.ends_itself(pieces) else self._eos
            out.append(
                (
                    np.array(begin + ids + end, dtype=np.int32),
                    np.array([False] * len(begin) + learned + [True] * len(end), dtype=np.bool_),
                )
            )
        return out

    def _pieces(self, rows: Sequence[tuple[list[Piece], bool]]) -> Iterable[tuple[list[int], list[bool]]]:
        flat = iter(self._call([piece.text for pieces, _ in rows for piece in pieces]))
        for pieces, _ in rows:
            ids: list[int] = []
            learned: list[bool] = []
            for piece in pieces:
                part = next(flat)
                ids += part
                learned += [piece.learned] * len(part)
            yield ids, learned

    def _offsets(self, rows: Sequence[tuple[list[Piece], bool]]) -> Iterable[tuple[list[int], list[bool]]]:
        texts = ["".join(piece.text for piece in pieces) for pieces, _ in rows]
        answer = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False)
        for (pieces, _), text, ids, offsets in zip(rows, texts, answer["input_ids"], answer["offset_mapping"], strict=True):
            answers = np.zeros(len(text) + 1, dtype=np.bool_)
            at = 0
            for piece in pieces:
                answers[at : at + len(piece.text)] = piece.learned
                at += len(piece.text)
            # A token across a border belongs to the answer: it cannot be produced without it.
            yield list(ids), [bool(answers[start:end].any()) for start, end in offsets]

    def _call(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return ids


def tokenise(
    raw_rows: Iterable[RawRow],
    shaper: Shaper,
    template: Template,
    encoder: Encoder,
    writer: CacheWriter,
    *,
    max_length: int,
    overlong: LengthPolicy,
    fail_on_bad_row: Callable[[Tally], None] | None,
) -> tuple[Tally, int]:
    """Tokenise every raw row into `writer`; returns the tally and the number of raw rows.

    `fail_on_bad_row` is called (and raises) after the first group of rows that holds a bad one; None leaves bad rows out.
    """
    tally = Tally()
    waiting: list[tuple[int, RawRow, Row, list[Piece], bool]] = []
    characters = 0

    def flush() -> None:
        encoded = encoder.encode([(pieces, begun) for _, _, _, pieces, begun in waiting])
        tokens: list[Tokens] = []
        flags: list[Flags] = []
        origins: list[int] = []
        columns: list[list[float]] = []
        for (number, raw, row, _, _), (ids, learned) in zip(waiting, encoded, strict=True):
            for part_ids, part_learned in _fitted(ids, learned, row, raw, tally, max_length, overlong):
                tokens.append(part_ids)
                flags.append(part_learned)
                origins.append(number)
                columns.append([row.columns[name] for name in shaper.numbers])
        writer.append(tokens, flags, origins, columns)
        waiting.clear()
        if tally.bad and fail_on_bad_row is not None:
            fail_on_bad_row(tally)

    count = 0
    for count, raw in enumerate(raw_rows, start=1):
        if raw.values is None:
            tally.add("malformed", raw, raw.problem)
        else:
            try:
                row = shaper(raw.values)
                pieces, begun = template.pieces(row)
            except BadRow as error:
                tally.add("malformed", raw, str(error))
            except TemplateError as error:
                tally.add("template_error", raw, str(error))
            except NothingToLearn as error:
                tally.add("nothing_to_learn", raw, str(error))
            else:
                waiting.append((count - 1, raw, row, pieces, begun))
                characters += sum(len(piece.text) for piece in pieces)
        if len(waiting) >= _ROWS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE or count % _ROWS_AT_ONCE == 0:
            flush()
            characters = 0
    flush()
    return tally, count


def _fitted(
    ids: Tokens, learned: Flags, row: Row, raw: RawRow, tally: Tally, max_length: int, overlong: LengthPolicy
) -> list[tuple[Tokens, Flags]]:
    """The row within `max_length`, as no, one or several rows, with its verdict counted."""
    if not learned[1:].any():
        tally.add("nothing_to_learn", raw, "no token of the answer is left")
        return []
    length = len(ids)
    if length <= max_length:
        tally.add("ok", raw)
        return [(ids, learned)]
    if overlong in ("auto", "split") and row.shape == "text":
        tally.add("ok", raw)
        cuts = range(0, length, max_length)
        parts = [(ids[cut : cut + max_length], learned[cut : cut + max_length]) for cut in cuts]
        return [(part, flags) for part, flags in parts if flags[1:].any()]
    if overlong in ("drop", "split"):
        tally.add("too_long", raw, f"{length} tokens, training.max_length is {max_length}")
        return []
    kept = slice(length - max_length, length) if overlong == "truncate_left" else slice(0, max_length)
    if not learned[kept][1:].any():
        prompt = int(np.argmax(learned))
        tally.add("too_long", raw, f"the prompt alone has {prompt} tokens, training.max_length is {max_length}")
        return []
    tally.add("truncated", raw, f"{length} tokens cut to {max_length}")
    return [(ids[kept], learned[kept])]


def _splits_cleanly(tokenizer: Any) -> bool:
    """Whether encoding pieces one by one gives the text back, so that pieces need not be encoded together."""
    probes = [("a:", "b"), ("x ", "yz"), ("q\n", "r s"), ("1", " 2")]

    def ids(text: str) -> list[int]:
        encoded: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return encoded

    def text(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return ids("") == [] and all(text(ids(left) + ids(right)) == left + right for left, right in probes)
