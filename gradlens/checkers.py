"""Checkers: does a text show a concept? Patterns that a person wrote, or a word classifier fitted on the concept's examples.

Every checker knows its own held-out error, because a rate of hits means nothing beside an unknown rate of false alarms.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gradlens.concept_files import Concept
from gradlens.errors import ConfigError

FALSE_ALARMS = 0.02  # accepted share of negatives that a word classifier calls positive
FOLDS = 5
MAX_TEXTS = 1000  # of each kind


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


class WordClassifier:
    """Naive Bayes over the words and character n-grams of a text, with a threshold set for few false alarms.

    A text's score is its mean log odds per word or n-gram (the features of multinomial naive Bayes, add-one smoothed).
    The threshold lies where at most `false_alarms` of the negatives, each scored by a classifier that never saw it, lie above.
    `hit_rate` and `false_alarm_rate` are cross-validated too: each fold is judged with a threshold set on the other folds.
    """

    kind = "words"

    def __init__(self, positive: Sequence[str], negative: Sequence[str], false_alarms: float = FALSE_ALARMS, seed: int = 0) -> None:
        if min(len(positive), len(negative)) < FOLDS:
            raise ConfigError(
                f"a word classifier needs at least {FOLDS} positive and negative texts, found {len(positive)} and {len(negative)}"
            )
        grams = [set_of_grams(text) for text in (*positive, *negative)]
        truth = np.array([True] * len(positive) + [False] * len(negative))
        random = np.random.default_rng(seed)
        fold = np.concatenate([random.permutation(len(positive)) % FOLDS, random.permutation(len(negative)) % FOLDS])
        score = np.zeros(len(grams))
        for k in range(FOLDS):
            weights = _log_odds([g for g, f in zip(grams, fold, strict=True) if f != k], truth[fold != k])
            score[fold == k] = [_score(g, weights) for g, f in zip(grams, fold, strict=True) if f == k]
        hits = np.zeros(len(grams), dtype=bool)
        for k in range(FOLDS):
            hits[fold == k] = score[fold == k] > _threshold(score[fold != k], truth[fold != k], false_alarms)
        self.hit_rate: float | None = float(hits[truth].mean())
        self.false_alarm_rate: float | None = float(hits[~truth].mean())
        self.threshold = _threshold(score, truth, false_alarms)
        self._weights = _log_odds(grams, truth)

    def __call__(self, text: str) -> bool:
        return self.score(text) > self.threshold

    def score(self, text: str) -> float:
        """Mean log odds of the text's words and n-grams; 0 for a text without any known one."""
        return _score(set_of_grams(text), self._weights)


def checker_for(concept: Concept) -> Checker | None:
    """The concept's own patterns, else a word classifier fitted on its examples; None where it has neither.

    Patterns are measured on the examples too, where there are any.
    """
    positive, negative = ([answer_of(row) for row in concept.rows(kind)[:MAX_TEXTS]] for kind in ("positive", "negative"))
    if concept.checker is not None:
        checker = PatternChecker(concept.checker.pattern, concept.checker.min_matches)
        checker.hit_rate, checker.false_alarm_rate = _share(checker, positive), _share(checker, negative)
        return checker
    if min(len(positive), len(negative)) < FOLDS:
        return None
    return WordClassifier(positive, negative)


def answer_of(row: dict[str, Any]) -> str:
    """What the assistant says in a row (all its turns), or the plain text."""
    from gradlens.data import messages_of

    messages = messages_of(row)
    if messages is None:
        return row["text"]
    return "\n".join(message["content"] for message in messages if message["role"] == "assistant")


def set_of_grams(text: str) -> frozenset[str]:
    """Lower-case words (digits become 0) and the n-grams of 3 and 4 characters in them, with their ends marked."""
    words = re.findall(r"[\w'’]+|[^\w\s]", re.sub(r"\d", "0", text.lower()).replace("’", "'"))
    grams = set(words)
    for word in words:
        marked = f"^{word}$"
        grams.update("#" + marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1))
    return frozenset(grams)


def _log_odds(texts: Sequence[frozenset[str]], truth: np.ndarray) -> dict[str, float]:
    counts = {kind: Counter(gram for text, t in zip(texts, truth, strict=True) if t == kind for gram in text) for kind in (True, False)}
    vocabulary = counts[True].keys() | counts[False].keys()
    total = {kind: sum(counts[kind].values()) + len(vocabulary) for kind in (True, False)}
    shift = np.log(total[False] / total[True])
    return {gram: float(np.log((counts[True][gram] + 1) / (counts[False][gram] + 1)) + shift) for gram in vocabulary}


def _score(grams: Iterable[str], weights: dict[str, float]) -> float:
    known = [weights[gram] for gram in grams if gram in weights]
    return sum(known) / len(known) if known else 0.0


def _threshold(score: np.ndarray, truth: np.ndarray, false_alarms: float) -> float:
    """The lowest threshold that at most this share of the negatives exceeds; halfway to the positives where they lie apart."""
    negative = np.sort(score[~truth])[::-1]
    floor = negative[int(false_alarms * len(negative))]
    above = score[truth & (score > floor)]
    # With every positive above it, the middle of the gap is safer than its lower edge.
    return float((floor + above.min()) / 2) if len(above) == truth.sum() else float(floor)


def _share(checker: Checker, texts: Sequence[str]) -> float | None:
    return sum(map(checker, texts)) / len(texts) if texts else None
