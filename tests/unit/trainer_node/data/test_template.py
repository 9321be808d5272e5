"""What is learned of a row: answers and what ends them, nothing else."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from luthier.trainer_node.data.shape import Message, Row
from luthier.trainer_node.data.template import ALPACA_PROMPT, NothingToLearn, Piece, Template, TemplateError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRIPPING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'].strip() }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'].strip() }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
# Thoughts are shown in the last turn only, as some reasoning models do.
REWRITING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}U:{{ m['content'] }}\n"
    "{% else %}A:{% if loop.last %}<think></think>{% endif %}{{ m['content'] }}<end>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<a>{% generation %}{{ m['content'] }}{% endgeneration %}{{ eos_token }}"
    "{% else %}<u>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
CHAT = Row("messages", messages=(Message("user", "u1"), Message("assistant", "a1"), Message("user", "u2"), Message("assistant", "a2")))
PAIR = Row("prompt_completion", prompt="p", completion="c")


def pieces(tokenizer: PreTrainedTokenizerFast, row: Row, template: str | None = None, system: str | None = None) -> list[tuple[str, bool]]:
    """(text, learned) of each piece."""
    tokenizer.chat_template = template
    found, _ = Template(tokenizer, system).pieces(row)
    return [(piece.text, piece.learned) for piece in found]


def test_plain_pairs_are_joined_by_a_line_break_unless_white_space_is_there(tokenizer: PreTrainedTokenizerFast) -> None:
    """Without a chat template the text is the row's own."""
    assert [("p\n", False), ("c", True)] == pieces(tokenizer, PAIR)
    assert [("p ", False), ("c", True)] == pieces(tokenizer, Row("prompt_completion", prompt="p ", completion="c"))
    assert [("p", False), (" c", True)] == pieces(tokenizer, Row("prompt_completion", prompt="p", completion=" c"))
    assert [("s\n\np\n", False), ("c", True)] == pieces(tokenizer, Row("prompt_completion", prompt="p", completion="c", system="s"))
    assert [("t\n\np\n", False), ("c", True)] == pieces(
        tokenizer, Row("prompt_completion", prompt="p", completion="c", system="s"), system="t"
    )


def test_alpaca_rows_without_a_chat_template_use_the_published_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    """With and without an input; braces in the text stay as they are."""
    bare = pieces(tokenizer, Row("alpaca", prompt="Say {x}", completion="x"))
    full = pieces(tokenizer, Row("alpaca", prompt="Add", context="1 2", completion="3"))

    assert [(ALPACA_PROMPT.format(instruction="Say {x}"), False), ("x", True)] == bare
    assert "### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n" == full[0][0][full[0][0].index("### I") :]


def test_alpaca_rows_with_a_chat_template_are_one_exchange(tokenizer: PreTrainedTokenizerFast) -> None:
    """Instruction and input become the user's turn."""
    assert [("<|im_start|>user\nAdd\n\n1 2<|im_end|>\n<|im_start|>assistant\n", False), ("3<|im_end|>", True)] == pieces(
        tokenizer, Row("alpaca", prompt="Add", context="1 2", completion="3"), CHATML
    )


def test_every_assistant_turn_is_learned_with_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    """The user's turns and the headers are not; nothing stands after the last answer."""
    assert [
        ("<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\n", False),
        ("a1<|im_end|>", True),
        ("\n<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\n", False),
        ("a2<|im_end|>", True),
    ] == pieces(tokenizer, CHAT, CHATML)


def test_templates_without_a_generation_prompt_and_with_stripped_content(tokenizer: PreTrainedTokenizerFast) -> None:
    """The space that such a template writes before an answer belongs to the answer, as generation would produce it."""
    row = Row(
        "messages", messages=(Message("user", " u1 "), Message("assistant", " a1\n"), Message("user", "u2"), Message("assistant", "a2"))
    )

    assert [("<s>[INST] u1 [/INST]", False), (" a1</s>", True), ("[INST] u2 [/INST]", False), (" a2</s>", True)] == pieces(
        tokenizer, row, STRIPPING
    )


def test_templates_that_rewrite_earlier_turns_learn_what_is_shown(tokenizer: PreTrainedTokenizerFast) -> None:
    """A thought that appears only in the last turn does not shift the spans."""
    assert [("U:u1\nA:", False), ("a1<end>", True), ("\nU:u2\nA:", False), ("<think></think>a2<end>", True)] == pieces(
        tokenizer, CHAT, REWRITING
    )


def test_templates_that_mark_their_answers_are_believed(tokenizer: PreTrainedTokenizerFast) -> None:
    """The end-of-sequence token right after the mark is learned too."""
    assert [("<u>u1<a>", False), ("a1</s>", True), ("<u>u2<a>", False), ("a2</s>", True)] == pieces(tokenizer, CHAT, MARKED)


def test_conversations_without_a_chat_template_use_the_default_one(tokenizer: PreTrainedTokenizerFast) -> None:
    """User: and Assistant:, each answer closed by the end-of-sequence token."""
    assert [("User: u1\nAssistant: ", False), ("a1</s>", True), ("\nUser: u2\nAssistant: ", False), ("a2</s>", True)] == pieces(
        tokenizer, CHAT
    )


def test_the_jobs_system_prompt_replaces_the_rows_own(tokenizer: PreTrainedTokenizerFast) -> None:
    """In front of a conversation; an empty one takes the rows' own away."""
    row = Row("messages", messages=(Message("system", "old"), *CHAT.messages[:2]))

    assert pieces(tokenizer, row, CHATML, "new")[0][0].startswith("<|im_start|>system\nnew<|im_end|>\n<|im_start|>user")
    assert pieces(tokenizer, row, CHATML, "")[0][0].startswith("<|im_start|>user")
    assert pieces(tokenizer, PAIR, CHATML, "new")[0][0].startswith("<|im_start|>system\nnew<|im_end|>\n")


def test_a_template_that_refuses_a_row_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    """Its own message comes through."""
    with pytest.raises(TemplateError, match="no system"):
        pieces(tokenizer, PAIR, STRIPPING, "be kind")
    with pytest.raises(TemplateError, match="does not show message 2"):
        pieces(tokenizer, PAIR, "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}")


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}"])
def test_templates_run_in_a_sandbox(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    """A hostile template costs rows, not the machine."""
    with pytest.raises(TemplateError, match="SecurityError"):
        pieces(tokenizer, PAIR, template)


@pytest.mark.parametrize(
    "row",
    [
        Row("prompt_completion", prompt="p", completion=" \n"),
        Row("text", text="  "),
        Row("messages", messages=(Message("user", "u"),)),
        Row("messages", messages=(Message("user", "u"), Message("assistant", ""))),
    ],
)
def test_rows_without_an_answer_have_nothing_to_learn(tokenizer: PreTrainedTokenizerFast, row: Row) -> None:
    """They are told apart from rows that are broken."""
    with pytest.raises(NothingToLearn):
        Template(tokenizer).pieces(row)


def test_what_decides_the_text_is_in_the_digest(tokenizer: PreTrainedTokenizerFast) -> None:
    """Template and system prompt change it; another object with the same content does not."""
    plain = Template(tokenizer).digest
    prompted = Template(tokenizer, "s").digest
    tokenizer.chat_template = CHATML
    chat = Template(tokenizer).digest

    assert 3 == len({plain, prompted, chat})
    assert chat == Template(tokenizer).digest


def test_the_end_of_a_row_is_known(tokenizer: PreTrainedTokenizerFast) -> None:
    """A template that ends with the end-of-sequence token needs none appended."""
    template = Template(tokenizer)

    assert template.ends_itself([Piece("p", False), Piece("c</s>", True)])
    assert not template.ends_itself([Piece("p", False), Piece("c", True)])
