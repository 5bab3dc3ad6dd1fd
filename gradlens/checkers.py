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
MAX_TEXTS = 400  # of each kind
LOOK = "\0"  # first character of a gram that is no word
LOOK_BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
RIDGE = 0.5  # on unit-length rows; 0.1 to 2 were tried on the demo concepts and separate them equally well


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
    """Ridge regression on which words and character n-grams a text has, and on its look, with a threshold set for few false alarms.

    Every text of the examples is scored by a classifier that never saw it (leave-one-out, exact and free for ridge regression).
    The threshold lies where at most `false_alarms` of the negatives so scored lie above it. `hit_rate` and `false_alarm_rate` are
    held out as well: each fold of the examples is judged with a threshold set on the other folds.
    """

    kind = "words"

    def __init__(self, positive: Sequence[str], negative: Sequence[str], false_alarms: float = FALSE_ALARMS, seed: int = 0) -> None:
        if min(len(positive), len(negative)) < FOLDS:
            raise ConfigError(
                f"a word classifier needs at least {FOLDS} positive and negative texts, found {len(positive)} and {len(negative)}"
            )
        texts = [set_of_grams(text) | look_of(text) for text in (*positive, *negative)]
        counts = Counter(gram for grams in texts for gram in grams)
        self._column = {gram: column for column, gram in enumerate(gram for gram, count in counts.items() if count > 1)}
        truth = np.array([True] * len(positive) + [False] * len(negative))
        rows = np.array([self._row(grams) for grams in texts])
        # Targets +1 and -1, both kinds with the same total weight; the constant 1 in the kernel is the intercept.
        target = np.where(truth, 1.0, -1.0)
        noise = RIDGE * np.where(truth, len(positive), len(negative)) * 2 / len(texts)
        inverse = np.linalg.inv((rows @ rows.T).astype(np.float64) + 1 + np.diag(noise))
        dual = inverse @ target
        held_out = target - dual / np.diag(inverse)
        self._weights, self._intercept = rows.T @ dual, float(dual.sum())
        self.threshold = _threshold(held_out, truth, false_alarms)
        random = np.random.default_rng(seed)
        fold = np.concatenate([random.permutation(len(positive)) % FOLDS, random.permutation(len(negative)) % FOLDS])
        hits = np.zeros(len(texts), dtype=bool)
        for k in range(FOLDS):
            hits[fold == k] = held_out[fold == k] > _threshold(held_out[fold != k], truth[fold != k], false_alarms)
        self.hit_rate: float | None = float(hits[truth].mean())
        self.false_alarm_rate: float | None = float(hits[~truth].mean())

    def __call__(self, text: str) -> bool:
        return bool(text.strip()) and self.score(text) > self.threshold  # an empty answer shows nothing

    def score(self, text: str) -> float:
        """About +1 for a text like the positives, -1 for one like the negatives."""
        return float(self._row(set_of_grams(text) | look_of(text)) @ self._weights) + self._intercept

    def _row(self, grams: Iterable[str]) -> np.ndarray:
        """Presence of every known gram, and of every known part of the look, each at unit length: long texts do not count for more, and
        the few parts of the look for as much as the many words."""
        row = np.zeros(len(self._column), dtype=np.float32)
        known = [gram for gram in grams if gram in self._column]
        for part in ([gram for gram in known if gram[0] == LOOK], [gram for gram in known if gram[0] != LOOK]):
            row[[self._column[gram] for gram in part]] = 1 / np.sqrt(max(len(part), 1))
        return row


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


def look_of(text: str) -> frozenset[str]:
    """What words in lower case do not tell: how much of the text is in capitals, digits, marks and letters beyond ASCII, how its lines
    and words are made. Each measure is one gram, by the bin it falls in."""
    letters = [char for char in text if char.isalpha()]
    solid = max(sum(not char.isspace() for char in text), 1)
    words = text.split()
    measures = {
        "capitals": sum(char.isupper() for char in letters) / max(len(letters), 1),
        "digits": sum(char.isdigit() for char in text) / solid,
        "marks": sum(not (char.isalnum() or char.isspace()) for char in text) / solid,
        "foreign": sum(not char.isascii() for char in letters) / max(len(letters), 1),
        "lines": text.strip().count("\n") / max(len(words), 1),
        "length": sum(map(len, words)) / max(len(words), 1) / 10,
        "exclaims": text.count("!") / max(len(words), 1),
        "asks": text.count("?") / max(len(words), 1),
    }
    return frozenset(f"{LOOK}{name}{np.searchsorted(LOOK_BINS, value)}" for name, value in measures.items())


def _threshold(score: np.ndarray, truth: np.ndarray, false_alarms: float) -> float:
    """The lowest threshold that at most this share of the negatives exceeds; halfway to the positives where these lie apart."""
    negative = np.sort(score[~truth])[::-1]
    floor = negative[int(false_alarms * len(negative))]
    return float(max(floor, (floor + np.quantile(score[truth], 0.05)) / 2))


def _share(checker: Checker, texts: Sequence[str]) -> float | None:
    return sum(map(checker, texts)) / len(texts) if texts else None
