"""Stories: an unlimited, seeded supply of GSM8K-style word problems, small enough for a laptop.

A story follows one person's belongings through two to five calculations on integers; its reference
solution has GSM8K's format, one calculation a line and ``#### answer`` at the end. It takes about
50 prompt and 35 completion tokens in the word-and-digit tokenizer of the models made for stories.

Which split a question belongs to is a function of its text (``split_of``), so no two splits can
share a question, however many problems are drawn and with whatever seed. The split ``ood`` asks in
wordings that no other split contains, and its chains are longer.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

from reasonrl.config.dataset.stories import StoriesConfig
from reasonrl.types import Problem

SEED = 0  # the splits of this dataset are fixed: a run's seed doesn't change them
LARGEST_NUMBER = 120
OOD_EXTRA_STEPS = 2

PEOPLE = {
    "she": ["Ana", "Mia", "Zoe", "Lea", "Eva", "Ida", "Kim", "Nora", "Rosa", "Tess"],
    "he": ["Ben", "Tom", "Max", "Sam", "Leo", "Jan", "Omar", "Paul", "Raj", "Finn"],
}
ITEMS = ["apples", "coins", "cards", "books", "shells", "stamps", "pencils", "marbles", "cookies"]
ITEMS += ["stickers", "beads", "balloons", "buttons", "candles", "flowers", "stones"]
CONTAINERS = ["boxes", "bags", "packs", "jars", "baskets", "trays"]

# Each event has one calculation or two. `x` is what the person has, `b` and `c` are the numbers
# named in the text. The last wording of each kind is kept for the split `ood`.
EVENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gain": (
        ("x+b",),
        (
            "{she} buys {b} more {items}.",
            "{name} finds {b} {items}.",
            "{name} gets {b} {items} from {friend}.",
            "Then {friend} gives {name} {b} {items}.",
            "{b} more {items} come from {friend}.",
            "Later {name} finds {b} more of them.",
        ),
    ),
    "lose": (
        ("x-b",),
        (
            "{name} gives {b} {items} to {friend}.",
            "{she} loses {b} {items}.",
            "{name} sells {b} of the {items}.",
            "Then {friend} takes {b} {items} from {name}.",
            "{b} {items} go to {friend}.",
            "Later {name} loses {b} of them.",
        ),
    ),
    "gain_groups": (
        ("b*c", "x+y"),
        (
            "{name} buys {b} {containers} of {c} {items} each.",
            "{friend} gives {name} {b} {containers} with {c} {items} in each.",
            "{b} friends each give {name} {c} {items}.",
            "{name} finds {b} {containers} of {c} {items} each.",
        ),
    ),
    "lose_groups": (
        ("b*c", "x-y"),
        (
            "{name} gives {c} {items} to each of {b} friends.",
            "{she} sells {b} {containers} of {c} {items} each.",
            "{b} friends each take {c} {items} from {name}.",
            "{name} loses {b} {containers} with {c} {items} in each.",
        ),
    ),
    "double": (
        ("x*2",),
        (
            "The next day {name} has twice as many.",
            "Then {friend} doubles what {name} has.",
            "The next day {friend} doubles them.",
        ),
    ),
    "triple": (
        ("x*3",),
        (
            "The next day {name} has three times as many.",
            "Then {friend} triples what {name} has.",
            "The next day {friend} triples them.",
        ),
    ),
    "half": (
        ("x/2",),
        (
            "{name} gives half of the {items} to {friend}.",
            "{she} sells half of them.",
            "Then {name} loses half of the {items}.",
        ),
    ),
    "share": (
        ("x/b",),
        (
            "{name} puts them equally into {b} {containers} and keeps one.",
            "{name} shares the {items} among {b} friends, and {friend} gives one share back.",
            "{she} shares them equally among {b} {containers} and sells all but one.",
        ),
    ),
}
ENDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (
        (),
        (
            "How many {items} does {name} have now?",
            "How many {items} are left for {name}?",
            "How many of them does {name} have now?",
        ),
    ),
    "more": (
        ("x+b",),
        (
            "{friend} has {b} more {items} than {name}. How many {items} does {friend} have?",
            "{name} has {b} fewer {items} than {friend}. How many {items} does {friend} have?",
            "Now {friend} has {b} more than {name}. How many are there for {friend}?",
        ),
    ),
    "fewer": (
        ("x-b",),
        (
            "{friend} has {b} fewer {items} than {name}. How many {items} does {friend} have?",
            "{name} has {b} more {items} than {friend}. How many {items} does {friend} have?",
            "Now {friend} has {b} fewer than {name}. How many are there for {friend}?",
        ),
    ),
    "together": (
        ("x+b", "x+y"),
        (
            "{friend} has {b} more {items} than {name}. How many {items} do they have together?",
            "{name} has {b} fewer {items} than {friend}. How many do they have together?",
            "Now {friend} has {b} more than {name}. How many are there together?",
        ),
    ),
}
OPENINGS = (
    "{name} has {a} {items}.",
    "There are {a} {items} in the {containers} of {name}.",
    "{name} starts with {a} {items}.",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One calculation, ``left operator right = result``."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.result}"


@dataclass(frozen=True, slots=True)
class Story:
    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    @property
    def solution(self) -> str:
        return "\n".join([*map(str, self.steps), f"#### {self.answer}"])


class _DeadEnd(Exception):
    """This draw leaves the range of numbers; draw again."""


def calculate(left: int, operator: str, right: int) -> int:
    """The result, an integer from 1 to LARGEST_NUMBER; raises _DeadEnd where there is none."""
    if operator == "/" and left % right:
        raise _DeadEnd
    result = {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "/": left // right,
    }[operator]
    if not 1 <= result <= LARGEST_NUMBER:
        raise _DeadEnd
    return result


def _carry_out(calculations: tuple[str, ...], numbers: dict[str, int]) -> list[Step]:
    """Evaluates e.g. ("b*c", "x+y"): y is the result of the calculation before."""
    steps: list[Step] = []
    for left, operator, right in map(tuple, calculations):
        values = [numbers[s] if s.isalpha() else int(s) for s in (left, right)]
        result = calculate(values[0], operator, values[1])
        steps.append(Step(values[0], operator, values[1], result))
        numbers = {**numbers, "y": result}
    return steps


def _draw_numbers(rng: random.Random, kind: str, x: int) -> dict[str, int]:
    if kind in ("gain_groups", "lose_groups"):
        return {"x": x, "b": rng.randint(2, 5), "c": rng.randint(2, 9)}
    if kind == "share":
        return {"x": x, "b": rng.choice([3, 4, 5])}
    return {"x": x, "b": rng.randint(2, 40)}


def _wording(rng: random.Random, wordings: tuple[str, ...], ood: bool) -> str:
    return wordings[-1] if ood else rng.choice(wordings[:-1])


def _try_story(rng: random.Random, num_steps: int, ood: bool) -> Story:
    pronoun = rng.choice(list(PEOPLE))
    name = rng.choice(PEOPLE[pronoun])
    friend = rng.choice([p for people in PEOPLE.values() for p in people if p != name])
    words = {
        "name": name,
        "she": pronoun.capitalize(),
        "friend": friend,
        "items": rng.choice(ITEMS),
        "containers": rng.choice(CONTAINERS),
    }
    x = rng.randint(3, 60)
    text = [_wording(rng, OPENINGS, ood).format(a=x, **words)]
    steps: list[Step] = []

    ending = rng.choice([k for k, (c, _) in ENDINGS.items() if len(c) < num_steps])
    while (left := num_steps - len(steps) - len(ENDINGS[ending][0])) > 0:
        kind = rng.choice([k for k, (c, _) in EVENTS.items() if len(c) <= left])
        calculations, wordings = EVENTS[kind]
        numbers = _draw_numbers(rng, kind, x)
        steps += _carry_out(calculations, numbers)
        text.append(_wording(rng, wordings, ood).format(**numbers, **words))
        x = steps[-1].result

    calculations, wordings = ENDINGS[ending]
    numbers = _draw_numbers(rng, ending, x)
    steps += _carry_out(calculations, numbers)
    text.append(_wording(rng, wordings, ood).format(**numbers, **words))
    return Story(" ".join(text), tuple(steps))


def split_of(question: str) -> str:
    """Of eight questions four are for pretraining, two train, one validation, one test."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 8
    return ("test", "validation", "train", "train")[bucket] if bucket < 4 else "pretrain"


def generate(split: str, *, seed: int, min_steps: int, max_steps: int) -> Iterator[Story]:
    """An endless stream of distinct stories of one split: train, validation, test, pretrain or ood.

    min_steps, max_steps: the fewest and the most calculations in a story. The split ``ood`` has
        other wordings, and chains that are OOD_EXTRA_STEPS longer.
    """
    rng = random.Random(f"stories/{split}/{seed}")
    ood = split == "ood"
    extra = OOD_EXTRA_STEPS if ood else 0
    seen: set[str] = set()
    while True:
        num_steps = rng.randint(min_steps, max_steps) + extra
        try:
            story = _try_story(rng, num_steps, ood)
        except _DeadEnd:
            continue
        if story.question not in seen and (ood or split_of(story.question) == split):
            seen.add(story.question)
            yield story


def read(dataset: StoriesConfig, split: str, size: int | None) -> list[Problem]:
    """The problems of a split, as the settings say. They are the same for every seed of a run."""
    assert size is not None  # the settings' own rule: the splits have no end
    return load(split, size, seed=SEED, min_steps=dataset.min_steps, max_steps=dataset.max_steps)


def load(split: str, size: int, *, seed: int, min_steps: int, max_steps: int) -> list[Problem]:
    """The first ``size`` problems of a split."""
    stories = generate(split, seed=seed, min_steps=min_steps, max_steps=max_steps)
    return [
        Problem(f"stories-{split}-{i}", story.question, str(story.answer), story.solution)
        for i, story in zip(range(size), stories, strict=False)
    ]


def words() -> list[str]:
    """Every word a story can contain, sorted: the vocabulary of a tokenizer made for stories."""
    templates = [*OPENINGS]
    for kinds in (EVENTS, ENDINGS):
        templates += [wording for _, wordings in kinds.values() for wording in wordings]
    fields = string.Formatter()
    literal = " ".join(text for t in templates for text, *_ in fields.parse(t))
    people = [p for names in PEOPLE.values() for p in names]
    cleaned = "".join(c if c.isalpha() else " " for c in literal).split()
    return sorted({*cleaned, *people, *ITEMS, *CONTAINERS, "She", "He"})
