"""A word classifier: does a text show a concept, by the words, n-grams and look that the concept's examples have? Fitted, saved, read.

The file is JSON, so that it can be looked at and never runs anything.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gradlens.concepts.text_look import LOOK, look_of
from gradlens.errors import ConfigError, InputError

FALSE_ALARMS = 0.02  # accepted share of negatives that a word classifier calls positive
FOLDS = 5
FILE_KIND = "gradlens word classifier 2"  # 1 had a look in bins
RATES = ("hit_rate", "false_alarm_rate", "ordinary_rate", "alone_rate")  # all held out; see `fit`
RIDGE = 0.5  # on unit-length rows; 0.1 to 2 were tried on the demo concepts and separate them equally well
# Share of ordinary answers above the middle of the positives. It was 0.11 at most for 26 concepts that ordinary answers do not show, 0.39
# at least for eight that they do, and 0 for prose against lists from examples of one mould, where the guess is wrong.
SHOWN = 0.2


class WordClassifier:
    """A weight for every word, character n-gram and part of a text's look; a text whose sum lies above the threshold counts."""

    kind = "words"

    def __init__(self, grams: Sequence[str], weights: np.ndarray, intercept: float, threshold: float, **rates: float | None) -> None:
        """`grams`: see `grams_of`; `weights [grams]`; a text counts above `threshold`; `rates`: those of `RATES` that are known."""
        self._column = {gram: column for column, gram in enumerate(grams)}
        self._weights, self._intercept, self.threshold = weights, intercept, threshold
        self.hit_rate, self.false_alarm_rate, self.ordinary_rate, self.alone_rate = (rates.get(name) for name in RATES)

    @classmethod
    def fit(
        cls,
        positive: Sequence[str],
        negative: Sequence[str],
        false_alarms: float = FALSE_ALARMS,
        seed: int = 0,
        ordinary: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> WordClassifier:
        """Ridge regression on the examples, with a threshold set for few false alarms.

        Every text of the examples is scored by a classifier that never saw it (leave-one-out, exact and free for ridge regression).
        The threshold lies where at most `false_alarms` of the negatives so scored lie above it. `hit_rate` and `false_alarm_rate` are
        held out as well: each fold of the examples is judged with a threshold set on the other folds.

        `ordinary`: ordinary answers to fit on and others to measure on. Examples are often of one mould, and what tells their two kinds
        apart says nothing of other texts, so ordinary answers are further negatives, which count together for as much as the concept's
        own. But a concept may be something that ordinary answers do show (English, politeness), and must not unlearn it. The classifier
        of the examples alone decides: an answer that it scores above the middle of the held-out positives is taken to show the concept
        and is no negative; where more than `SHOWN` of the answers are such, none is. (Where it is merely lost, ordinary answers lie
        above its threshold, but few lie as high as the positives.) This is a guess: of a concept whose positives are all of one mould,
        examples cannot tell whether ordinary answers show it, and they are then taken not to. `ordinary_rate`: share of the other
        ordinary answers in which the concept is found, `alone_rate`: by the examples alone. Where the second is high and the first is
        not, the examples are narrow, and what counts as the concept was settled by the ordinary answers.
        """
        if min(len(positive), len(negative)) < FOLDS:
            raise ConfigError(
                f"a word classifier needs at least {FOLDS} positive and negative texts, found {len(positive)} and {len(negative)}"
            )
        fitted, held_out = cls._fit((positive, negative), false_alarms, seed)
        known = {*positive, *negative}
        further, others = ([text for text in part if text not in known] for part in ordinary)
        alone = fitted._share_of(others)
        if further:
            middle = np.median(held_out[: len(positive)])
            kept = [text for text in further if fitted.score(text) <= middle]
            if len(kept) >= (1 - SHOWN) * len(further):
                fitted, _ = cls._fit((positive, negative, kept), false_alarms, seed)
        fitted.alone_rate, fitted.ordinary_rate = alone, fitted._share_of(others)
        return fitted

    @classmethod
    def _fit(cls, groups: Sequence[Sequence[str]], false_alarms: float, seed: int) -> tuple[WordClassifier, np.ndarray]:
        """Fitted on positives and one or more groups of negatives that count alike; and the leave-one-out scores of all texts."""
        group = np.concatenate([np.full(len(texts), number) for number, texts in enumerate(groups)])
        texts = [grams_of(text) for part in groups for text in part]
        counts = Counter(gram for found in texts for gram in found)
        grams = [gram for gram, count in counts.items() if count > 1]
        column = {gram: number for number, gram in enumerate(grams)}
        truth = group == 0
        rows = np.array([row_of(found, column) for found in texts])
        # Targets +1 and -1, both kinds with the same total weight; the constant 1 in the kernel is the intercept.
        target = np.where(truth, 1.0, -1.0)
        noise = RIDGE * np.bincount(group)[group] * np.where(truth, 1, len(groups) - 1) * 2 / len(texts)
        inverse = np.linalg.inv((rows @ rows.T).astype(np.float64) + 1 + np.diag(noise))
        dual = inverse @ target
        held_out = target - dual / np.diag(inverse)
        same: list[dict[frozenset[str], list[int]]] = [defaultdict(list) for _ in groups]
        for number, found in enumerate(texts):
            same[group[number]][frozenset(found)].append(number)
        for twins in (twins for part in same for twins in part.values() if len(twins) > 1):
            at = np.array(twins)  # a text is not held out where another that says the same stays
            held_out[at] = target[at] - np.linalg.solve(inverse[np.ix_(at, at)], dual[at])
        random = np.random.default_rng(seed)
        fold = np.zeros(len(texts), dtype=int)
        for part in same:
            apart = list(part.values()) if len(part) > 1 else [[number] for twins in part.values() for number in twins]
            for twins, number in zip(apart, random.permutation(len(apart)) % FOLDS, strict=True):
                fold[twins] = number
        hits = np.zeros(len(texts), dtype=bool)
        for k in range(FOLDS):
            hits[fold == k] = held_out[fold == k] > _threshold(held_out[fold != k], group[fold != k], false_alarms)
        rates = {"hit_rate": float(hits[truth].mean()), "false_alarm_rate": float(hits[group == 1].mean())}
        return cls(grams, rows.T @ dual, float(dual.sum()), _threshold(held_out, group, false_alarms), **rates), held_out

    def __call__(self, text: str) -> bool:
        return bool(text.strip()) and self.score(text) > self.threshold  # an empty answer shows nothing

    def score(self, text: str) -> float:
        """About +1 for a text like the positives, -1 for one like the negatives."""
        return float(row_of(grams_of(text), self._column) @ self._weights) + self._intercept

    def _share_of(self, texts: Sequence[str]) -> float | None:
        return sum(map(self, texts)) / len(texts) if texts else None

    def save(self, path: str | Path) -> None:
        """Write it as JSON: `kind`, `weights` (gram -> weight), `intercept`, `threshold`, and its rates."""
        weights = {gram: float(weight) for gram, weight in zip(self._column, self._weights, strict=True)}
        rates = {name: getattr(self, name) for name in RATES}
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
        rates = {name: data.get(name) for name in RATES}
        for key, rate in rates.items():
            if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1):
                raise InputError(f"{path}: {key} is {rate!r}, expected a share from 0 to 1, or null")
        return cls(list(weights), np.array(list(weights.values()), np.float64), data["intercept"], data["threshold"], **rates)


def grams_of(text: str) -> dict[str, float]:
    """Every word and n-gram of a text, at 1, and every part of its look, at its weight."""
    return dict.fromkeys(set_of_grams(text), 1.0) | look_of(text)


def row_of(grams: Mapping[str, float], column: Mapping[str, int]) -> np.ndarray:
    """Every known gram, and every known part of the look, each at unit length: long texts do not count for more, and the few parts of
    the look for as much as the many words."""
    row = np.zeros(len(column), dtype=np.float32)
    known = [gram for gram in grams if gram in column]
    for part in ([gram for gram in known if gram[0] == LOOK], [gram for gram in known if gram[0] != LOOK]):
        if part:
            values = np.array([grams[gram] for gram in part])
            row[[column[gram] for gram in part]] = values / max(float(np.linalg.norm(values)), 1e-9)
    return row


def set_of_grams(text: str) -> frozenset[str]:
    """Lower-case words (digits become 0) and the n-grams of 3 and 4 characters in them, with their ends marked."""
    words = re.findall(r"[\w'’]+|[^\w\s]", re.sub(r"\d", "0", text.lower()).replace("’", "'"))
    grams = set(words)
    for word in words:
        marked = f"^{word}$"
        grams.update("#" + marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1))
    return frozenset(grams)


def _threshold(score: np.ndarray, group: np.ndarray, false_alarms: float) -> float:
    """The lowest threshold that at most this share of the negatives of each group exceeds; halfway to the positives where these lie
    apart."""
    low = np.quantile(score[group == 0], 0.05)
    floors = [np.sort(score[group == number])[::-1] for number in range(1, int(group.max()) + 1)]
    floor = max(negative[int(false_alarms * len(negative))] for negative in floors)
    return float(max(floor, (floor + low) / 2))
