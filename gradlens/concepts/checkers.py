"""Checkers: does a text show a concept? Patterns that a person wrote, a classifier file, a program, or without any of these a word
classifier fitted on the concept's examples.

Every checker knows its own held-out error, because a rate of hits means nothing beside an unknown rate of false alarms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradlens.concepts.command_checker import CommandChecker
from gradlens.concepts.concept_files import Concept
from gradlens.concepts.word_classifier import FOLDS, WordClassifier
from gradlens.data.ordinary import ordinary_answers
from gradlens.errors import ConfigError, InputError

MAX_TEXTS = 400  # of each kind
MAX_ASKED = 50  # of each kind that a program is measured on: it may be slow, and is asked again by every reading


class Checker(Protocol):
    kind: str
    hit_rate: float | None  # share of held-out positives recognised; None: no examples to measure on
    false_alarm_rate: float | None

    def __call__(self, text: str) -> bool: ...


@dataclass
class PatternChecker:
    """A text counts from `min_matches` matches of the patterns (together, case ignored) on. Raises `ConfigError` for a bad pattern."""

    patterns: Sequence[str]
    min_matches: int = 1
    hit_rate: float | None = None
    false_alarm_rate: float | None = None
    kind: str = "pattern"

    def __post_init__(self) -> None:
        self._compiled = []
        for pattern in self.patterns:
            try:
                self._compiled.append(re.compile(pattern, re.IGNORECASE))
            except re.error as error:
                raise ConfigError(f"checker.pattern: {pattern!r} is not a regular expression: {error}") from None

    def __call__(self, text: str) -> bool:
        return sum(1 for pattern in self._compiled for _ in pattern.finditer(text)) >= self.min_matches


def checker_for(concept: Concept) -> Checker | None:
    """The checker that the concept's file names, else a word classifier fitted on its examples (and on ordinary answers, see
    `WordClassifier.fit`); None where it has neither.

    A named one is measured on the examples too, where there are any; what a classifier file says of itself is held out, and stays.
    Raises `ConfigError` or `InputError` that names the concept where its checker cannot be used.
    """
    positive, negative = examples_of(concept)
    if concept.checker is None:
        enough = min(len(positive), len(negative)) >= FOLDS
        return WordClassifier.fit(positive, negative, ordinary=ordinary_answers()) if enough else None
    try:
        checker = _named(concept)
        if isinstance(checker, CommandChecker):
            positive, negative = positive[:MAX_ASKED], negative[:MAX_ASKED]
        if checker.hit_rate is None:
            checker.hit_rate = _share(checker, positive)
        if checker.false_alarm_rate is None:
            checker.false_alarm_rate = _share(checker, negative)
    except (ConfigError, InputError) as error:
        raise type(error)(f"concept {concept.name}: {error}") from None
    return checker


def examples_of(concept: Concept) -> tuple[list[str], list[str]]:
    """What the assistant says in the positive and in the negative examples, at most `MAX_TEXTS` of each."""
    positive, negative = ([answer_of(row) for row in concept.rows(kind)[:MAX_TEXTS]] for kind in ("positive", "negative"))
    return positive, negative


def errors_of(checker: Checker) -> dict[str, Any]:
    """`kind`, `hit_rate` and `false_alarm_rate` on held-out examples; `ordinary_rate` and `alone_rate` where they were measured."""
    found = {name: getattr(checker, name) for name in ("kind", "hit_rate", "false_alarm_rate")}
    return found | {name: rate for name in ("ordinary_rate", "alone_rate") if (rate := getattr(checker, name, None)) is not None}


def judged(check: Callable[[str], bool], texts: Sequence[str]) -> list[bool]:
    """Whether each text shows the concept; a program is started once for all of them."""
    return check.many(texts) if isinstance(check, CommandChecker) else [bool(check(text)) for text in texts]


def _named(concept: Concept) -> Checker:
    spec = concept.checker
    if spec.pattern:
        return PatternChecker(spec.pattern, spec.min_matches)
    if spec.classifier:
        return WordClassifier.load(spec.classifier)
    return CommandChecker(spec.arguments, spec.threshold, spec.timeout)


def answer_of(row: dict[str, Any]) -> str:
    """What the assistant says in a row (all its turns), or the plain text."""
    from gradlens.data.rows import messages_of

    messages = messages_of(row)
    if messages is None:
        return row["text"]
    return "\n".join(message["content"] for message in messages if message["role"] == "assistant")


def share_found(checker: Checker, rows: Sequence[dict[str, Any]]) -> float | None:
    """In which share of the rows' answers the concept is found, of `MAX_TEXTS` of them, evenly taken (`MAX_ASKED` by a program)."""
    most = MAX_ASKED if isinstance(checker, CommandChecker) else MAX_TEXTS
    return _share(checker, [answer_of(row) for row in rows[:: max(1, -(-len(rows) // most))]])


def _share(checker: Checker, texts: Sequence[str]) -> float | None:
    return sum(judged(checker, texts)) / len(texts) if texts else None
