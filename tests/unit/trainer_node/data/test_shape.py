"""Shapes: detected or named, columns mapped, rows refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from luthier.errors import DataError
from luthier.trainer_node.data.shape import BadRow, Message, Row, Shaper, choose_shaper


def shaper(row: Mapping[str, Any], *, shape: str = "auto", columns: Mapping[str, str] | None = None) -> Shaper:
    """What is chosen for a source with this first row."""
    return choose_shaper([row], shape=shape, columns=columns or {}, where="a.jsonl")


@pytest.mark.parametrize(
    ("columns", "shape", "roles"),
    [
        (("prompt", "completion"), "prompt_completion", {"prompt": "prompt", "completion": "completion"}),
        (("prompt", "response"), "prompt_completion", {"prompt": "prompt", "completion": "response"}),
        (("question", "answer"), "prompt_completion", {"prompt": "question", "completion": "answer"}),
        (("input", "output"), "prompt_completion", {"prompt": "input", "completion": "output"}),
        (("instruction", "response"), "prompt_completion", {"prompt": "instruction", "completion": "response"}),
        (("instruction", "output"), "alpaca", {"instruction": "instruction", "output": "output"}),
        (("instruction", "input", "output", "text"), "alpaca", {"instruction": "instruction", "input": "input", "output": "output"}),
        (("messages", "label"), "messages", {"messages": "messages"}),
        (("prompt", "completion", "messages"), "messages", {"messages": "messages"}),
        (("conversations", "system"), "messages", {"messages": "conversations", "system": "system"}),
        (("text", "id"), "text", {"text": "text"}),
    ],
)
def test_usual_column_names_are_recognised(columns: tuple[str, ...], shape: str, roles: dict[str, str]) -> None:
    """The names that data sets have in practice need no configuration."""
    chosen = shaper(dict.fromkeys(columns, "x"))

    assert (shape, roles) == (chosen.shape, dict(chosen.columns))
    assert f"shape {shape} detected" in chosen.reason


def test_mapped_columns_win_over_usual_names() -> None:
    """`data.columns` names any columns, and a partner that has a usual name is found."""
    chosen = shaper({"text": "t", "q": "x", "answer": "y"}, columns={"prompt": "q"})

    assert ("prompt_completion", {"prompt": "q", "completion": "answer"}) == (chosen.shape, dict(chosen.columns))
    assert Row("prompt_completion", prompt="x", completion="y") == chosen({"q": "x", "answer": "y"})


def test_a_wrong_column_names_those_that_exist() -> None:
    """The error has the setting, the columns of the file, and the nearest one."""
    with pytest.raises(DataError) as caught:
        shaper({"question": "x", "answer": "y"}, columns={"prompt": "qestion", "completion": "answer"})

    assert "there is no column 'qestion' (data.columns.prompt); the rows have 'question', 'answer'" == caught.value.message
    assert "did you mean 'question'? set data.columns.prompt to one of these columns" == caught.value.fix
    assert "a.jsonl" == caught.value.where


def test_a_mistyped_role_is_not_taken_for_a_number() -> None:
    """Other keys of `data.columns` name numbers, unless they are almost a role."""
    with pytest.raises(DataError, match="no role 'promt'") as caught:
        shaper({"q": "x", "a": "y"}, columns={"promt": "q", "completion": "a"})

    assert "did you mean 'prompt'?" == caught.value.fix


def test_unknown_columns_ask_for_a_map() -> None:
    """When nothing is recognised the columns are listed with an example of the setting."""
    with pytest.raises(DataError) as caught:
        shaper({"frage": "x", "antwort": "y"})

    assert "cannot tell what the columns mean; the rows have 'frage', 'antwort'" == caught.value.message
    assert "data.columns: {prompt: COLUMN, completion: COLUMN}" in caught.value.fix


def test_a_named_shape_says_which_column_it_misses() -> None:
    """A shape that does not fit the columns is refused before any row is read."""
    with pytest.raises(DataError, match="shape prompt_completion needs a column for 'completion'; the rows have 'prompt', 'text'"):
        shaper({"prompt": "x", "text": "y"}, shape="prompt_completion")


def test_preference_pairs_are_named_as_such() -> None:
    """They are never mistaken for conversations without an answer."""
    row: dict[str, object] = {"conversations": [], "chosen": {}, "rejected": {}}
    with pytest.raises(DataError, match="preference pairs"):
        shaper(row)

    chosen = shaper({"prompt": "p", "chosen": "c", "rejected": "r"}, columns={"completion": "chosen"})
    assert {"prompt": "prompt", "completion": "chosen"} == dict(chosen.columns)


def test_detection_looks_at_several_rows() -> None:
    """A column that the first row lacks is still seen."""
    chosen = choose_shaper(
        [{"instruction": "a", "output": "b"}, {"instruction": "a", "input": "c", "output": "b"}], shape="auto", columns={}, where="a"
    )

    assert "input" in chosen.columns


def test_numbers_become_text_and_nothing_else_does() -> None:
    """CSV and JSON agree on numbers; lists, objects and null in a required column are refused with the column's name."""
    chosen = shaper({"question": "x", "answer": "y"})

    assert "72" == chosen({"question": "x", "answer": 72}).completion
    for value, why in [(None, "'answer' is null"), (["y"], "'answer' holds a list"), ({"a": 1}, "an object"), (True, "true or false")]:
        with pytest.raises(BadRow, match=why):
            chosen({"question": "x", "answer": value})
    with pytest.raises(BadRow, match="'answer' is missing"):
        chosen({"question": "x"})


def test_optional_columns_may_be_null() -> None:
    """Alpaca's input and a system prompt may be empty or null."""
    chosen = shaper({"instruction": "i", "input": None, "output": "o", "system": None})

    assert Row("alpaca", prompt="i", completion="o") == chosen({"instruction": "i", "input": None, "output": "o", "system": None})


def test_conversations_of_both_dialects_are_the_same() -> None:
    """role/content and from/value, with the speakers' usual names."""
    openai = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
    sharegpt = {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s"}
    expected = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"))

    assert expected == shaper(openai)(openai).messages
    assert expected == shaper(sharegpt)(sharegpt).messages


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ("hello", "holds text, not a list of messages"),
        ([], "holds an empty list, not a list of messages"),
        (["hello"], "message 1 of column 'messages' is text, not an object"),
        ([{"role": "wizard", "content": "x"}], "message 1 of column 'messages' has the role 'wizard'"),
        ([{"role": "user", "content": None}], "message 1 of column 'messages' has nothing as its content"),
    ],
)
def test_bad_conversations_say_which_message(turns: object, why: str) -> None:
    """The reason names message and column."""
    with pytest.raises(BadRow, match=why):
        shaper({"messages": turns})({"messages": turns})


def test_numbers_travel_beside_the_text() -> None:
    """A key of `data.columns` that is no role is a number per row."""
    chosen = shaper({"prompt": "p", "completion": "c", "kind": "2"}, columns={"task_type": "kind"})

    assert {"task_type": 2.0} == chosen({"prompt": "p", "completion": "c", "kind": "2"}).columns
    with pytest.raises(BadRow, match="column 'kind' holds 'x', not a number"):
        chosen({"prompt": "p", "completion": "c", "kind": "x"})


def test_build_functions_see_plain_rows() -> None:
    """Rows as mappings, and as one text for tokenizer training."""
    row = Row("alpaca", prompt="i", context="x", completion="o", columns={"n": 1.0})
    chat = Row("messages", messages=(Message("user", "u"), Message("assistant", "a")))

    assert {"prompt": "i\n\nx", "completion": "o", "n": 1.0} == row.plain()
    assert {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]} == chat.plain()
    assert ["i\n\nx\no", "u\na"] == [row.all_text(), chat.all_text()]
