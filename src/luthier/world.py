"""A small generated world to learn from: invented people, towns and crafts, and texts about them.

`python -m luthier.world --seed S --out DIR` writes five files into DIR:

* `pretrain.jsonl`: plain sentences ({"text"}); every fact is told in several phrasings.
* `pretrain_questions.jsonl`: questions about the facts, with answers in sentences ({"prompt", "completion"}).
* `pretrain_validation.jsonl`: questions that were left out of the training files; their facts are told there in other words.
* `tune_train.jsonl`, `tune_validation.jsonl`: a *new task*, cards: two facts about one person in a form that occurs nowhere in the
  pretraining text. People of the validation file have no card in the training file, so a right card shows that the model combines
  what it knows with the form it was taught, and not that it learned cards by heart.

The same seed gives the same bytes on every machine and every Python version: the only random source is `random.Random(seed).random()`,
whose sequence Python guarantees. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["FILES", "Person", "World", "main", "make_world", "write_world"]

FILES = ("pretrain.jsonl", "pretrain_questions.jsonl", "pretrain_validation.jsonl", "tune_train.jsonl", "tune_validation.jsonl")

NUM_PEOPLE = 60
NUM_HELD_OUT = 20
"""People whose cards are kept for validation."""
NUM_TOWNS = 12
CARDS_PER_PERSON = 12
CARDS_PER_HELD_OUT_PERSON = 5
HELD_OUT_QUESTION = 0.04
"""Fraction of the questions that goes to the validation file of pretraining."""

_ONSETS = ("b", "br", "d", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "tr", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("l", "n", "r", "s", "th", "x", "m", "d")
_TOWN_ENDS = ("ford", "bury", "mouth", "wick", "dale", "stead")

_VALUES: Mapping[str, Sequence[str]] = {
    "craft": ("weaver", "baker", "potter", "cooper", "smith", "tailor", "miller", "carver", "glazier", "dyer", "printer", "mason"),
    "colour": ("red", "green", "blue", "yellow", "violet", "orange", "brown", "white", "black", "grey"),
    "pet": ("cat", "dog", "goat", "owl", "hare", "crow", "pony", "toad", "fox", "duck"),
    "instrument": ("flute", "fiddle", "harp", "drum", "lute", "horn", "viol", "organ", "bell", "pipe"),
}
_TOOLS = ("loom", "oven", "wheel", "adze", "anvil", "needle", "stone", "knife", "lamp", "vat", "press", "chisel")
_GOODS = ("cloth", "bread", "jars", "casks", "nails", "coats", "flour", "spoons", "panes", "silk", "books", "walls")
_RIVERS = ("Alder", "Brook", "Cold", "Deer", "Elm", "Fern")
_DISHES = ("plums", "cheese", "honey", "eels", "pies", "nuts", "soup", "cakes")

# Attribute -> (statements, questions with answers). {n} is the person, {v} the value.
_PHRASES: Mapping[str, tuple[Sequence[str], Sequence[tuple[str, str]]]] = {
    "town": (
        ("{n} lives in {v}.", "The town of {n} is {v}.", "The home of {n} stands in {v}."),
        (("Where does {n} live?", "{n} lives in {v}."), ("What is the town of {n}?", "The town of {n} is {v}.")),
    ),
    "craft": (
        ("{n} works as a {v}.", "The craft of {n} is {v}.", "By trade {n} is a {v}."),
        (("What does {n} work as?", "{n} works as a {v}."), ("What is the craft of {n}?", "The craft of {n} is {v}.")),
    ),
    "colour": (
        ("{n} likes {v} best.", "The colour of {n} is {v}.", "All that {n} wears is {v}."),
        (("What does {n} like best?", "{n} likes {v} best."), ("What is the colour of {n}?", "The colour of {n} is {v}.")),
    ),
    "pet": (
        ("{n} keeps a {v}.", "The pet of {n} is a {v}.", "At home {n} has a {v}."),
        (("What does {n} keep?", "{n} keeps a {v}."), ("What is the pet of {n}?", "The pet of {n} is a {v}.")),
    ),
    "instrument": (
        ("{n} plays the {v}.", "The instrument of {n} is the {v}.", "In the evening {n} plays the {v}."),
        (("What does {n} play?", "{n} plays the {v}."), ("What is the instrument of {n}?", "The instrument of {n} is the {v}.")),
    ),
}
ATTRIBUTES = tuple(_PHRASES)
_CLAUSES: Mapping[str, str] = {
    "town": "lives in {v}",
    "craft": "works as a {v}",
    "colour": "likes {v} best",
    "pet": "keeps a {v}",
    "instrument": "plays the {v}",
}


_Item = TypeVar("_Item")


class _Dice:
    """Choices made from `random.Random.random` alone, the one sequence that Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, bound: int) -> int:
        return int(self._random.random() * bound)

    def pick(self, values: Sequence[str]) -> str:
        return values[self.below(len(values))]

    def shuffled(self, values: Sequence[_Item]) -> list[_Item]:
        result = list(values)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result


@dataclass(frozen=True)
class Person:
    """One invented person: a name and a value for each of `ATTRIBUTES`."""

    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class World:
    """Everything there is: people, towns (name -> river, dish) and crafts (name -> tool, goods); and the texts by file name."""

    people: Sequence[Person]
    towns: Mapping[str, tuple[str, str]]
    crafts: Mapping[str, tuple[str, str]]
    held_out: frozenset[str]
    """Names of the people whose cards are kept for validation."""
    rows: Mapping[str, Sequence[Mapping[str, str]]]
    """File name -> rows."""

    @property
    def num_facts(self) -> int:
        """Facts told in the pretraining text."""
        return len(self.people) * len(ATTRIBUTES) + 2 * len(self.towns) + 2 * len(self.crafts)


def _names(dice: _Dice, count: int, town: bool, taken: set[str]) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        start = dice.pick(_ONSETS) + dice.pick(_VOWELS) + dice.pick(_CODAS)
        end = dice.pick(_TOWN_ENDS) if town else dice.pick(_VOWELS) + dice.pick(("", "n", "r", "s"))
        name = (start + end).capitalize()
        if name[:3] not in taken:  # names stay easy to tell apart, for readers and for a tiny model
            taken.add(name[:3])
            names.append(name)
    return names


def card(person: Person, first: str, second: str) -> dict[str, str]:
    """One row of the new task."""
    return {
        "prompt": f"Write a card for {person.name}: {first} and {second}.",
        "completion": f"{person.name}: {first} {person.facts[first]}, {second} {person.facts[second]}.",
    }


def _other_facts(
    towns: Mapping[str, tuple[str, str]], crafts: Mapping[str, tuple[str, str]]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    statements: list[dict[str, str]] = []
    questions: list[dict[str, str]] = []
    for town, (river, dish) in towns.items():
        statements += [{"text": t} for t in (f"{town} lies on the river {river}.", f"The river {river} runs by {town}.")]
        statements += [{"text": t} for t in (f"{town} is known for its {dish}.", f"People go to {town} for the {dish}.")]
        questions.append({"prompt": f"What is the river of {town}?", "completion": f"{town} lies on the river {river}."})
        questions.append({"prompt": f"What is {town} known for?", "completion": f"{town} is known for its {dish}."})
    for river in _RIVERS:
        banks = [town for town in towns if towns[town][0] == river]
        if banks:
            statements.append({"text": f"Towns on the river {river}: {', '.join(banks)}."})
    for dish in _DISHES:
        kitchens = [town for town in towns if towns[town][1] == dish]
        if kitchens:
            statements.append({"text": f"Towns known for {dish}: {', '.join(kitchens)}."})
    for craft, (tool, goods) in crafts.items():
        statements.append({"text": f"Things of a {craft}: {tool}, {goods}."})
        statements += [{"text": t} for t in (f"A {craft} needs a {tool}.", f"The {tool} belongs to the {craft}.")]
        statements += [{"text": t} for t in (f"A {craft} makes {goods}.", f"The {goods} come from the {craft}.")]
        questions.append({"prompt": f"What does a {craft} need?", "completion": f"A {craft} needs a {tool}."})
        questions.append({"prompt": f"What does a {craft} make?", "completion": f"A {craft} makes {goods}."})
    return statements, questions


def make_world(seed: int) -> World:
    """The world of `seed`, with all its texts."""
    dice = _Dice(seed)
    taken: set[str] = set()
    town_names = _names(dice, NUM_TOWNS, True, taken)
    people = [
        Person(name, {"town": dice.pick(town_names), **{kind: dice.pick(values) for kind, values in _VALUES.items()}})
        for name in _names(dice, NUM_PEOPLE, False, taken)
    ]
    towns = {town: (dice.pick(_RIVERS), dice.pick(_DISHES)) for town in town_names}
    crafts = {craft: (_TOOLS[i], _GOODS[i]) for i, craft in enumerate(_VALUES["craft"])}

    statements, questions = _other_facts(towns, crafts)
    held_out_questions: list[dict[str, str]] = []
    pairs = [(a, b) for a in ATTRIBUTES for b in ATTRIBUTES if a != b]
    for person in people:
        for kind, (told, asked) in _PHRASES.items():
            filled = {"n": person.name, "v": person.facts[kind]}
            statements += [{"text": t.format(**filled)} for t in told]
            rows = [{"prompt": q.format(**filled), "completion": a.format(**filled)} for q, a in asked]
            if dice.below(1000) < 1000 * HELD_OUT_QUESTION * len(rows):
                held_out_questions.append(rows.pop(dice.below(len(rows))))
            questions += rows
        for first, second in dice.shuffled(pairs)[:6]:
            told_first = _CLAUSES[first].format(v=person.facts[first])
            told_second = _CLAUSES[second].format(v=person.facts[second])
            answer = f"{person.name} {told_first} and {told_second}."
            questions.append({"prompt": f"Tell me the {first} and the {second} of {person.name}.", "completion": answer})

    held_out = frozenset(p.name for p in dice.shuffled(people)[:NUM_HELD_OUT])
    tune_train: list[dict[str, str]] = []
    tune_validation: list[dict[str, str]] = []
    for person in people:
        kept = person.name in held_out
        for first, second in dice.shuffled(pairs)[: CARDS_PER_HELD_OUT_PERSON if kept else CARDS_PER_PERSON]:
            (tune_validation if kept else tune_train).append(card(person, first, second))
    rows_by_file = {
        "pretrain.jsonl": dice.shuffled(statements),
        "pretrain_questions.jsonl": dice.shuffled(questions),
        "pretrain_validation.jsonl": dice.shuffled(held_out_questions),
        "tune_train.jsonl": dice.shuffled(tune_train),
        "tune_validation.jsonl": dice.shuffled(tune_validation),
    }
    return World(people, towns, crafts, held_out, rows_by_file)


def write_world(seed: int, directory: Path) -> World:
    """Write the files of `FILES` for `seed` into `directory` (made if missing) and return the world."""
    world = make_world(seed)
    directory.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        text = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in world.rows[name])
        (directory / name).write_text(text, encoding="ascii", newline="\n")
    return world


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m luthier.world", description="Write the generated world's files.")
    parser.add_argument("--seed", type=int, default=0, help="which world (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="directory for the files")
    options = parser.parse_args(argv)
    try:
        world = write_world(options.seed, options.out)
    except OSError as error:
        print(f"error: cannot write {options.out}: {error.strerror}. Fix: name a directory that you may write.", file=sys.stderr)
        return 1
    counts = f"{len(world.people)} people, {len(world.towns)} towns and {len(world.crafts)} crafts"
    print(f"{world.num_facts} facts about {counts} in {options.out}")
    for name in FILES:
        print(f"  {name}: {len(world.rows[name])} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
