"""Rows as text in pieces, each learned or not.

Only answers are learned: the completion, every assistant turn of a conversation with what ends it, or the whole of a plain text. A
tokenizer's chat template is rendered by transformers' own sandboxed engine. Without one:

* prompt and completion are joined by a line break, unless white space already stands between them; a system prompt comes first, with an
  empty line after it;
* Alpaca rows use the prompt that was published with the data set (`ALPACA_PROMPT`);
* conversations use `DEFAULT_CHAT_TEMPLATE`.

The end-of-sequence token closes every row and is learned.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.trainer_node.data.shape import Message, Row

__all__ = ["ALPACA_PROMPT", "DEFAULT_CHAT_TEMPLATE", "NothingToLearn", "Piece", "Template", "TemplateError", "Tokenizer"]

ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
    "{% else %}{{ 'Assistant: ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_VERSION = "1"
"""Part of the cache key: raise it when the text of any row changes."""


class Tokenizer(Protocol):
    """What a template needs of a transformers tokenizer."""

    @property
    def chat_template(self) -> Any: ...
    @property
    def special_tokens_map(self) -> Mapping[str, Any]: ...


class TemplateError(Exception):
    """The chat template refuses the row or does not show its answer."""


class NothingToLearn(Exception):
    """The row has no answer; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text; learned pieces are what the model is to produce."""

    text: str
    learned: bool


class Template:
    """Renders rows for one tokenizer. `system_prompt` replaces the rows' own."""

    def __init__(self, tokenizer: Tokenizer, system_prompt: str | None = None) -> None:
        chosen = tokenizer.chat_template
        if isinstance(chosen, Mapping):
            chosen = chosen.get("default") or next(iter(chosen.values()), None)
        self._own: str | None = chosen if isinstance(chosen, str) and chosen else None
        self._system_prompt = system_prompt
        self._special: dict[str, Any] = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        self._special.setdefault("bos_token", "")
        self._special.setdefault("eos_token", "")
        self._eos = str(self._special["eos_token"])

    @property
    def digest(self) -> str:
        """SHA-256 of everything here that decides the text of a row."""
        parts = [_VERSION, self._own or DEFAULT_CHAT_TEMPLATE, repr(self._system_prompt), repr(sorted(self._special.items()))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return self._own is not None

    def pieces(self, row: Row) -> tuple[list[Piece], bool]:
        """The row's text in order, and whether the template already wrote what begins a sequence.

        The end-of-sequence token is not part of the text, unless the template puts it there. Raises `TemplateError` or `NothingToLearn`.
        """
        if row.shape == "text":
            if not row.text.strip():
                raise NothingToLearn("the text is empty")
            return [Piece(row.text, True)], False
        if row.shape == "messages":
            return self._chat(self._with_system(row.messages)), self._own is not None
        if not row.completion.strip():
            raise NothingToLearn("the completion is empty")
        system = row.system if self._system_prompt is None else self._system_prompt
        if self._own is not None:
            turns = [Message("system", system)] if system else []
            return self._chat([*turns, Message("user", row.question()), Message("assistant", row.completion)]), True
        prompt = self._alpaca(row) if row.shape == "alpaca" else _joined(row.prompt, row.completion)
        if system:
            prompt = f"{system}\n\n{prompt}"
        return [Piece(prompt, False), Piece(row.completion, True)], False

    def ends_itself(self, pieces: Sequence[Piece]) -> bool:
        """Whether the last piece already ends with the end-of-sequence token."""
        return bool(self._eos) and bool(pieces) and pieces[-1].text.endswith(self._eos)

    def _alpaca(self, row: Row) -> str:
        if row.context:
            return ALPACA_PROMPT_WITH_INPUT.format(instruction=row.prompt, input=row.context)
        return ALPACA_PROMPT.format(instruction=row.prompt)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self._system_prompt is None:
            return list(messages)
        rest = [message for message in messages if message.role != "system"]
        return [Message("system", self._system_prompt), *rest] if self._system_prompt else rest

    def _chat(self, messages: Sequence[Message]) -> list[Piece]:
        answers = [number for number, m in enumerate(messages) if m.role == "assistant" and m.content.strip()]
        if not answers:
            raise NothingToLearn("no assistant turn has any text")
        source = self._own or DEFAULT_CHAT_TEMPLATE
        spans = self._marked_spans(messages) if _GENERATION.search(source) else self._found_spans(messages, answers)
        full, places = spans
        if not places:
            raise TemplateError("the chat template shows no assistant turn")
        pieces: list[Piece] = []
        at = 0
        for start, end in places:
            if start > at:
                pieces.append(Piece(full[at:start], False))
            pieces.append(Piece(full[start:end], True))
            at = end
        return pieces

    def _marked_spans(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Templates that mark their answers themselves."""
        full, marked = self._call(messages, track=True)
        # What stops generation is learned too, also where the template leaves it out of its mark.
        closing = len(self._eos)
        return full, [(start, end + closing if full.startswith(self._eos, end) else end) for start, end in marked if end > start]

    def _found_spans(self, messages: Sequence[Message], answers: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """An answer begins where the prompt for it ends, and ends with what the template writes after a last turn."""
        full = self._render(messages)
        places: list[tuple[int, int]] = []
        cursor = 0
        for number in answers:
            content = messages[number].content.strip()
            before = self._render(messages[:number], prompt=True) if number else ""
            exact = number > 0 and full.startswith(before)
            start = len(before) if exact else _agreement(full, before)
            at = full.find(content, max(start, cursor))
            if at < 0:
                raise TemplateError(f"the chat template does not show message {number + 1} (assistant) as it is")
            upto = full if number == len(messages) - 1 else self._render(messages[: number + 1])
            closing = upto[upto.rfind(content) + len(content) :].rstrip()
            end = at + len(content)
            if closing and full.startswith(closing, end):
                end += len(closing)
            # A template that rewrites earlier turns leaves no exact border; then the answer alone is learned.
            places.append((start if exact and start >= cursor else at, end))
            cursor = end
        return full, places

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        return self._call(messages, prompt=prompt)[0]

    def _call(self, messages: Sequence[Message], *, prompt: bool = False, track: bool = False) -> tuple[str, list[tuple[int, int]]]:
        # Imported here: transformers is heavy, and plain rows do not need it.
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered: Any = render_jinja_template(
                [conversation],
                chat_template=self._own or DEFAULT_CHAT_TEMPLATE,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=track,
                **self._special,
            )
        except Exception as error:  # a template is foreign code and may raise anything
            raise TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
        texts, marked = rendered
        spans = [(int(start), int(end)) for start, end in marked[0]] if track else []
        return str(texts[0]), spans


def _agreement(left: str, right: str) -> int:
    """Number of characters that two texts begin with in common."""
    return next((number for number, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _joined(prompt: str, completion: str) -> str:
    if not prompt or prompt[-1].isspace() or completion[0].isspace():
        return prompt
    return f"{prompt}\n"
