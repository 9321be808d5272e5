"""From files to tokenised rows: verdicts, policies, reuse, splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from luthier.errors import DataError
from luthier.spec.models import DataSource, DataSpec
from luthier.trainer_node.data import prepare as prepare_module
from luthier.trainer_node.data.prepare import prepare
from luthier.trainer_node.data.rows import Rows, split_validation

Write = Callable[..., Path]
Prepare = Callable[..., Rows]

GOOD = [{"prompt": f"what is {n}?", "completion": f"it is {n}"} for n in range(20)]


@pytest.fixture
def prepared(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Prepare:
    """Tokenise files by path, as the leader, with the cache below the test's directory."""

    def call(*paths: Path | DataSource, max_length: int = 64, **options: Any) -> Rows:
        sources = [p if isinstance(p, DataSource) else DataSource(uri=f"root:{p.name}") for p in paths]
        inputs = {source.uri: tmp_path / source.uri.removeprefix("root:") for source in sources}
        spec = DataSpec(sources=tuple(sources), **options)
        return prepare(spec.sources, spec, max_length, inputs, tokenizer, "t", tmp_path / "cache", leader=True)

    return call


def texts(rows: Rows) -> list[tuple[str, str]]:
    """(prompt, answer) of every row."""
    return [rows.prompt_and_answer(index) for index in range(len(rows))]


def test_completions_are_learned_and_prompts_are_not(prepared: Prepare, write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    """Labels are the tokens of answer and end, -100 elsewhere; prompts have the tokens that they have alone."""
    rows = prepared(write("a.jsonl", [{"prompt": "two plus two?", "completion": "four."}]))
    ids, labels = rows.row(0)
    prompt = tokenizer.encode("two plus two?\n", add_special_tokens=False)
    answer = [*tokenizer.encode("four.", add_special_tokens=False), tokenizer.eos_token_id]

    assert ([*prompt, *answer], [-100] * len(prompt) + answer) == (ids.tolist(), labels.tolist())
    assert (len(ids), len(answer)) == (int(rows.lengths[0]), int(rows.learned[0]))
    assert ("two plus two?\n", "four.") == rows.prompt_and_answer(0)
    assert prompt == rows.prompt_ids(0).tolist()


def test_text_rows_are_learned_whole(prepared: Prepare, write: Write) -> None:
    """All but the first token, which has no predecessor."""
    rows = prepared(write("a.txt", "the lazy dog\n\nthe quick fox\n"))

    assert [("", "the lazy dog"), ("", "the quick fox")] == texts(rows)
    assert (rows.lengths - 1).tolist() == rows.learned.tolist()


def test_a_tokenizer_that_begins_sequences_does_so_once(prepared: Prepare, write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    """The beginning-of-sequence token comes from the tokenizer's habit or from the chat template, never from both."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    try:
        plain = prepared(write("a.jsonl", GOOD[:1]))
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}assistant{% endif %}"
        )
        chat = prepared(write("b.jsonl", GOOD[:1]))
    finally:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])

    for rows in (plain, chat):
        ids = rows.row(0)[0].tolist()
        assert (tokenizer.bos_token_id, 1) == (ids[0], ids.count(tokenizer.bos_token_id))
        assert tokenizer.eos_token_id == ids[-1]


def test_tokenizers_that_prepend_spaces_are_encoded_whole(write: Write, tmp_path: Path) -> None:
    """Where pieces would not join cleanly, flags follow from character offsets."""
    words = ["\u2581what", "\u2581is", "\u2581it", "\u2581one", "?", "\n", "\u2581", "it", "is", "<unk>", "</s>"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Split("\n", "isolated")])
    backend.decoder = decoders.Metaspace()
    odd = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    path = write("a.jsonl", [{"prompt": "what is\n", "completion": "it is one"}])
    source = DataSource(uri="root:a.jsonl")

    rows = prepare([source], DataSpec(sources=(source,)), 64, {source.uri: path}, odd, "odd", tmp_path / "cache", leader=True)
    ids, labels = rows.row(0)

    assert ["\u2581what", "\u2581is", "\n", "it", "\u2581is", "\u2581one", "</s>"] == [words[i] for i in ids]
    assert [False, False, False, True, True, True, True] == (labels != -100).tolist()


def test_bad_rows_fail_with_file_and_line_by_default(prepared: Prepare, write: Write) -> None:
    """The first one is the error's place, the others are listed, and the way out is named."""
    with pytest.raises(DataError) as caught:
        prepared(write("a.jsonl", '{"prompt": "a", "completion": "b"}\nnonsense\n{"prompt": "a", "completion": ""}\n'))

    assert "a.jsonl:2" == caught.value.where
    assert caught.value.message.startswith("malformed: not JSON")
    assert "2 rows" in caught.value.message
    assert "a.jsonl:3: nothing_to_learn: the completion is empty" in caught.value.message
    assert "on_bad_row: skip" in caught.value.fix


def test_skipped_rows_are_counted_with_the_first_offenders(prepared: Prepare, write: Write) -> None:
    """Every row has a verdict; offenders name file, line and reason."""
    lines = [
        '{"prompt": "a", "completion": "b"}',
        "nonsense",
        '{"prompt": "a", "completion": ""}',
        '{"prompt": "a", "completion": null}',
        '{"prompt": "a", "completion": "' + "x " * 99 + '"}',
    ]
    rows = prepared(write("a.jsonl", "\n".join(lines)), on_bad_row="skip", bad_row_threshold=0.8)

    assert {"ok": 1, "malformed": 2, "nothing_to_learn": 1, "truncated": 1} == dict(rows.verdicts.counts)
    assert [
        "a.jsonl:2: malformed: not JSON",
        "a.jsonl:3: nothing_to_learn: the completion is empty",
        "a.jsonl:4: malformed: column 'completion' is null",
    ] == sorted(offender.split(": Expecting")[0] for offender in rows.verdicts.offenders)[:3]
    assert "a.jsonl:5: truncated: " in rows.verdicts.offenders[-1]


def test_too_many_bad_rows_fail_although_skipping(prepared: Prepare, write: Write) -> None:
    """The threshold is a fraction of all rows."""
    path = write("a.jsonl", "".join('{"prompt": "a", "completion": "b"}\n' for _ in range(8)) + "x\ny\n")

    assert 8 == len(prepared(path, on_bad_row="skip", bad_row_threshold=0.2))
    with pytest.raises(DataError, match="2 of 10 rows cannot be used .* more than data.bad_row_threshold 0.1"):
        prepared(path, on_bad_row="skip", bad_row_threshold=0.1)


def test_a_cached_verdict_is_judged_by_the_policy_of_the_job(prepared: Prepare, write: Write) -> None:
    """Rows that one job skipped still fail the next one."""
    path = write("a.jsonl", "".join('{"prompt": "a", "completion": "b"}\n' for _ in range(20)) + "x\n")
    prepared(path, on_bad_row="skip")

    with pytest.raises(DataError, match="malformed") as caught:
        prepared(path)
    assert "a.jsonl:21" == caught.value.where


def test_nothing_left_to_learn_is_an_error(prepared: Prepare, write: Write) -> None:
    """Not a loss of zero."""
    path = write("a.jsonl", [{"prompt": "very " * 40, "completion": "x"} for _ in range(3)])

    with pytest.raises(DataError, match="nothing is left to learn: 3 too_long") as caught:
        prepared(path, max_length=16)
    assert "training.max_length" in caught.value.fix


@pytest.mark.parametrize(("overlong", "kept"), [("truncate_right", ("12 ", "AB CD")), ("truncate_left", ("", "F GH IJ"))])
def test_long_rows_are_cut_on_the_named_side(prepared: Prepare, write: Write, overlong: str, kept: tuple[str, str]) -> None:
    """Right keeps the beginning, left keeps the answer with its end."""
    rows = prepared(write("a.jsonl", [{"prompt": "12 ", "completion": "AB CD EF GH IJ"}]), max_length=8, overlong=overlong)

    assert ({"truncated": 1}, 8, kept) == (dict(rows.verdicts.counts), int(rows.lengths[0]), rows.prompt_and_answer(0))


def test_long_rows_are_left_out_on_request(prepared: Prepare, write: Write) -> None:
    """Drop counts them as too long and is no error."""
    path = write("a.jsonl", [*GOOD[:3], {"prompt": "x", "completion": "Z" * 200}])
    rows = prepared(path, overlong="drop")

    assert (3, {"ok": 3, "too_long": 1}) == (len(rows), dict(rows.verdicts.counts))
    assert "a.jsonl:4: too_long" in rows.verdicts.offenders[0]


def test_prompts_without_room_for_an_answer_are_not_lost_quietly(prepared: Prepare, write: Write) -> None:
    """A few are counted, many end the job with the ways out."""
    few = [*GOOD, {"prompt": "Z" * 99, "completion": "x"}]
    many = [*GOOD, *[{"prompt": "Z" * 99, "completion": "x"}] * 10]

    assert {"ok": 20, "too_long": 1} == dict(prepared(write("few.jsonl", few)).verdicts.counts)
    with pytest.raises(DataError, match="10 of 30 rows have a prompt that leaves no room") as caught:
        prepared(write("many.jsonl", many))
    assert "truncate_left" in caught.value.fix
    assert 30 == len(prepared(write("many.jsonl", many), overlong="truncate_left"))


@pytest.mark.parametrize("overlong", ["auto", "split"])
def test_long_documents_are_split_without_losing_a_token(
    prepared: Prepare, write: Write, tokenizer: PreTrainedTokenizerFast, overlong: str
) -> None:
    """The parts in order are the document."""
    text = "the quick brown fox jumps over the lazy dog " * 5
    rows = prepared(write("a.txt", text), max_length=16, overlong=overlong)
    together = np.concatenate([rows.row(index)[0] for index in range(len(rows))]).tolist()

    assert [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] == together
    with pytest.raises(DataError, match="cuts plain text only; these rows have shape prompt_completion"):
        prepared(write("a.jsonl", GOOD), overlong="split")


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", "prompt,completion\n"), ("a.txt", "")]
)
def test_empty_data_is_an_error(prepared: Prepare, write: Write, name: str, content: str) -> None:
    """In every format, with the file's name."""
    with pytest.raises(DataError, match="the data is empty") as caught:
        prepared(write(name, content))
    assert name == caught.value.where


def test_missing_and_unresolved_data_are_errors(prepared: Prepare, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A file that is not there, an address nobody resolved, and no source at all."""
    with pytest.raises(DataError, match="no such file"):
        prepared(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="names no data"):
        prepared()
    source = DataSource(uri="root:x")
    with pytest.raises(DataError, match="not resolved"):
        prepare([source], DataSpec(sources=(source,)), 64, {}, tokenizer, "t", tmp_path, leader=True)


def test_a_second_run_tokenises_nothing(prepared: Prepare, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same content is read from the cache, also after the file was written again."""
    first = prepared(write("a.jsonl", GOOD))
    write("a.jsonl", GOOD)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(prepare_module, "tokenise", never)
    second = prepared(Path("a.jsonl"))

    assert (first.digest, texts(first)) == (second.digest, texts(second))


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 32},
        {"overlong": "drop"},
        {"system_prompt": "s"},
        {"columns": {"prompt": "completion", "completion": "prompt"}},
        {"sources": [DataSource(uri="root:a.jsonl", max_rows=3)]},
        {"sources": [DataSource(uri="root:a.jsonl", shape="prompt_completion")]},
        {"content": [*GOOD, GOOD[0]]},
        {"template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
    ],
    ids=["length", "policy", "system", "columns", "max-rows", "shape", "content", "template"],
)
def test_what_changes_the_tokens_changes_the_key(
    prepared: Prepare, write: Write, tokenizer: PreTrainedTokenizerFast, change: dict[str, Any]
) -> None:
    """Length, policy, prompt, columns, number of rows, shape, content and template are parts of the key."""
    before = prepared(write("a.jsonl", GOOD)).digest
    options = dict(change)
    write("a.jsonl", options.pop("content", GOOD))
    tokenizer.chat_template = options.pop("template", None)
    sources: Sequence[Any] = options.pop("sources", [Path("a.jsonl")])

    assert before != prepared(*sources, **options).digest


def test_sources_of_several_kinds_are_one_sequence(prepared: Prepare, write: Write) -> None:
    """Rows of all sources in order, verdicts added up, what was detected kept for the report."""
    write("c.txt", "the dog\nthe fox\n")
    half = DataSource(uri="root:c.txt", weight=0.5)
    rows = prepared(write("a.jsonl", GOOD[:2]), write("b.csv", "question,answer\nwhat?,that\n"), half)

    assert ["it is 0", "it is 1", "that", "the dog", "the fox"] == [answer for _, answer in texts(rows)]
    assert {"ok": 5} == dict(rows.verdicts.counts)
    assert rows.weights is not None
    assert [1.0, 1.0, 1.0, 0.5, 0.5] == rows.weights.tolist()
    assert "b.csv: csv, shape prompt_completion detected: prompt from 'question', completion from 'answer'" == rows.notes[1]


def test_columns_per_source_win_over_the_common_ones(prepared: Prepare, write: Write) -> None:
    """`data.columns` is for sources that do not name their own."""
    write("a.jsonl", [{"x": "1", "y": "2"}])
    write("b.jsonl", [{"u": "3", "v": "4"}])
    rows = prepared(
        DataSource(uri="root:a.jsonl"),
        DataSource(uri="root:b.jsonl", columns={"prompt": "u", "completion": "v"}),
        columns={"prompt": "x", "completion": "y"},
    )

    assert [("1\n", "2"), ("3\n", "4")] == texts(rows)


def test_numbers_beside_the_text_are_kept(prepared: Prepare, write: Write) -> None:
    """A key of `data.columns` that is no role becomes a column of the rows."""
    rows = prepared(write("a.jsonl", [{"q": "a", "a": "b", "kind": 3}]), columns={"prompt": "q", "completion": "a", "task_type": "kind"})

    assert {"task_type": 3.0} == rows.columns(0)


def test_max_rows_takes_the_first_ones(prepared: Prepare, write: Write) -> None:
    """Rows after them are not even looked at."""
    write("a.jsonl", '{"prompt": "a", "completion": "b"}\n' * 3 + "nonsense\n")

    assert 3 == len(prepared(DataSource(uri="root:a.jsonl", max_rows=3)))


def test_validation_rows_are_disjoint_and_stay(prepared: Prepare, write: Write) -> None:
    """Of every source its share; the same rows for the same seed; bad rows elsewhere move nothing."""
    rows = prepared(write("a.jsonl", GOOD), write("b.jsonl", [{"prompt": "z", "completion": str(n)} for n in range(10)]))
    train, validation = split_validation(rows, 0.2, seed=7)
    again = split_validation(rows, 0.2, seed=7)
    held = texts(validation)

    assert (24, 6) == (len(train), len(validation))
    assert 4 == sum(prompt != "z\n" for prompt, _ in held)
    assert sorted(texts(rows)) == sorted([*texts(train), *held])
    assert [train.digest, validation.digest] == [view.digest for view in again]
    assert train.digest != split_validation(rows, 0.2, seed=8)[0].digest
    assert len({rows.digest, train.digest, validation.digest}) == 3


def test_a_held_out_part_is_never_empty_and_never_all(prepared: Prepare, write: Write) -> None:
    """Two rows and a small fraction still give one row to each side."""
    train, validation = split_validation(prepared(write("a.jsonl", GOOD[:2])), 0.01, seed=0)

    assert (1, 1) == (len(train), len(validation))


def test_parts_of_a_document_are_held_out_together(prepared: Prepare, write: Write) -> None:
    """Otherwise the held-out loss would be measured on documents that were learned."""
    documents = [f"{chr(97 + n)} " * 40 for n in range(10)]
    train, validation = split_validation(prepared(write("a.txt", "\n".join(documents)), max_length=16, overlong="split"), 0.3, seed=1)
    learned = {answer.strip()[:1] for _, answer in texts(train)} - {""}
    held = {answer.strip()[:1] for _, answer in texts(validation)} - {""}

    assert (7, 3, set()) == (len(learned), len(held), learned & held)
