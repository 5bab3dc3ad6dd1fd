"""A word classifier: does a text show a concept, by the words, n-grams and look that the concept's examples have? Fitted, saved, read.

The file is JSON, so that it can be looked at and never runs anything.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gradlens.errors import ConfigError, InputError

FALSE_ALARMS = 0.02  # accepted share of negatives that a word classifier calls positive
FOLDS = 5
FILE_KIND = "gradlens word classifier 1"
LOOK = "\0"  # first character of a gram that is no word
LOOK_BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
RIDGE = 0.5  # on unit-length rows; 0.1 to 2 were tried on the demo concepts and separate them equally well


class WordClassifier:
    """A weight for every word, character n-gram and part of a text's look; a text whose sum lies above the threshold counts."""

    kind = "words"

    def __init__(
        self,
        grams: Sequence[str],
        weights: np.ndarray,
        intercept: float,
        threshold: float,
        hit_rate: float | None = None,
        false_alarm_rate: float | None = None,
    ) -> None:
        """`grams`: see `set_of_grams` and `look_of`; `weights [grams]`; a text counts above `threshold`; the rates are held-out ones."""
        self._column = {gram: column for column, gram in enumerate(grams)}
        self._weights, self._intercept, self.threshold = weights, intercept, threshold
        self.hit_rate, self.false_alarm_rate = hit_rate, false_alarm_rate

    @classmethod
    def fit(cls, positive: Sequence[str], negative: Sequence[str], false_alarms: float = FALSE_ALARMS, seed: int = 0) -> WordClassifier:
        """Ridge regression on the examples, with a threshold set for few false alarms.

        Every text of the examples is scored by a classifier that never saw it (leave-one-out, exact and free for ridge regression).
        The threshold lies where at most `false_alarms` of the negatives so scored lie above it. `hit_rate` and `false_alarm_rate` are
        held out as well: each fold of the examples is judged with a threshold set on the other folds.
        """
        if min(len(positive), len(negative)) < FOLDS:
            raise ConfigError(
                f"a word classifier needs at least {FOLDS} positive and negative texts, found {len(positive)} and {len(negative)}"
            )
        texts = [set_of_grams(text) | look_of(text) for text in (*positive, *negative)]
        counts = Counter(gram for found in texts for gram in found)
        grams = [gram for gram, count in counts.items() if count > 1]
        column = {gram: number for number, gram in enumerate(grams)}
        truth = np.array([True] * len(positive) + [False] * len(negative))
        rows = np.array([row_of(found, column) for found in texts])
        # Targets +1 and -1, both kinds with the same total weight; the constant 1 in the kernel is the intercept.
        target = np.where(truth, 1.0, -1.0)
        noise = RIDGE * np.where(truth, len(positive), len(negative)) * 2 / len(texts)
        inverse = np.linalg.inv((rows @ rows.T).astype(np.float64) + 1 + np.diag(noise))
        dual = inverse @ target
        held_out = target - dual / np.diag(inverse)
        random = np.random.default_rng(seed)
        fold = np.concatenate([random.permutation(len(positive)) % FOLDS, random.permutation(len(negative)) % FOLDS])
        hits = np.zeros(len(texts), dtype=bool)
        for k in range(FOLDS):
            hits[fold == k] = held_out[fold == k] > _threshold(held_out[fold != k], truth[fold != k], false_alarms)
        threshold = _threshold(held_out, truth, false_alarms)
        return cls(grams, rows.T @ dual, float(dual.sum()), threshold, float(hits[truth].mean()), float(hits[~truth].mean()))

    def __call__(self, text: str) -> bool:
        return bool(text.strip()) and self.score(text) > self.threshold  # an empty answer shows nothing

    def score(self, text: str) -> float:
        """About +1 for a text like the positives, -1 for one like the negatives."""
        return float(row_of(set_of_grams(text) | look_of(text), self._column) @ self._weights) + self._intercept

    def save(self, path: str | Path) -> None:
        """Write it as JSON: `kind`, `weights` (gram -> weight), `intercept`, `threshold`, and its held-out rates."""
        weights = {gram: float(weight) for gram, weight in zip(self._column, self._weights, strict=True)}
        rates = {"hit_rate": self.hit_rate, "false_alarm_rate": self.false_alarm_rate}
        data = {"kind": FILE_KIND, "intercept": self._intercept, "threshold": self.threshold, **rates, "weights": weights}
        Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> WordClassifier:
        """Read what `save` wrote. Raises `InputError` naming file and key."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such classifier file; `gradlens concepts checker` writes one")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a classifier file (JSON of `gradlens concepts checker`): {error}") from None
        if not isinstance(data, dict) or data.get("kind") != FILE_KIND:
            found = repr(data.get("kind")) if isinstance(data, dict) else type(data).__name__
            raise InputError(f"{path}: kind is {found}, expected {FILE_KIND!r}; `gradlens concepts checker` writes such a file")
        weights = data.get("weights")
        if not isinstance(weights, dict) or not weights:
            raise InputError(f"{path}: weights: expected a mapping of words and n-grams to numbers, found {type(weights).__name__}")
        for key, value in [*((key, data.get(key)) for key in ("intercept", "threshold")), *weights.items()]:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InputError(f"{path}: {key!r} is {value!r}, expected a finite number")
        rates = [data.get(key) for key in ("hit_rate", "false_alarm_rate")]
        for key, rate in zip(("hit_rate", "false_alarm_rate"), rates, strict=True):
            if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1):
                raise InputError(f"{path}: {key} is {rate!r}, expected a share from 0 to 1, or null")
        return cls(list(weights), np.array(list(weights.values()), np.float64), data["intercept"], data["threshold"], *rates)


def row_of(grams: Iterable[str], column: Mapping[str, int]) -> np.ndarray:
    """Presence of every known gram, and of every known part of the look, each at unit length: long texts do not count for more, and
    the few parts of the look for as much as the many words."""
    row = np.zeros(len(column), dtype=np.float32)
    known = [gram for gram in grams if gram in column]
    for part in ([gram for gram in known if gram[0] == LOOK], [gram for gram in known if gram[0] != LOOK]):
        row[[column[gram] for gram in part]] = 1 / np.sqrt(max(len(part), 1))
    return row


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
