"""What did this run learn? Features whose `uptake` is beyond chance, gathered into clusters that express the same tokens, in words.

No concept is named in advance. Features of all hookpoints are compared by where they are active on the probe set: a feature of the word
and one of its context belong together when they are active in the same places. A cluster's words are those that its features mark and
that the model learned to say, weighed against how often ordinary text has them.
Shape suffixes: T tokens of the probe set, N features compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gradlens.model.spelling import spelled_together

COMPARED = 160  # features over all hookpoints that are compared with each other
AROUND = 8  # tokens on each side over which an activation is spread before comparing
ALIKE = 0.25  # mean cosine from which two clusters are one
CLUSTERS = 5
WORDS, FEATURES = 8, 12  # kept of each cluster


@dataclass(frozen=True, eq=False)
class Mover:
    """A feature that was learned."""

    hookpoint: str
    feature: int
    uptake: float
    share: float  # of all uptake beyond chance at its hookpoint
    acts_T: np.ndarray  # its activation at every token of the probe set


@dataclass
class Cluster:
    """Features that express the same tokens, and what the run made of those."""

    share: float  # of what was learned: mean over hookpoints of the share of uptake
    features: list[tuple[str, int]]  # hookpoint and id, those with the largest share first
    count: int  # features in all
    words: list[str]  # that it marks, most telling first
    probability: tuple[float, float]  # of its tokens, before training and now
    passage: str  # where on the probe set it is strongest; its tokens in [brackets]
    labels: list[str] = field(default_factory=list)
    own: dict[str, Any] = field(default_factory=dict)  # in the model's own answers: before, now, of, said
    members: frozenset[tuple[str, int]] = frozenset()  # all of its features

    def as_dict(self) -> dict[str, Any]:
        """Plain data for an event, without `members`, which may be many."""
        return {key: value for key, value in asdict(self).items() if key != "members"}


def cluster(movers: Sequence[Mover], row_T: np.ndarray) -> list[list[Mover]]:
    """Groups of movers, the largest share first: average linkage on the cosine of activations spread over `AROUND` tokens of a text."""
    movers = sorted(movers, key=lambda mover: -mover.share)[:COMPARED]
    if not movers:
        return []
    spread_NT = _profiles(np.stack([mover.acts_T for mover in movers]), row_T)
    sums = spread_NT @ spread_NT.T  # between clusters: sums of cosines
    size = np.ones(len(movers))
    members = [[index] for index in range(len(movers))]
    alive = np.ones(len(movers), dtype=bool)
    while alive.sum() > 1:
        mean = np.where(alive[:, None] & alive[None], sums / (size[:, None] * size[None]), -np.inf)
        np.fill_diagonal(mean, -np.inf)
        a, b = divmod(int(mean.argmax()), len(movers))
        if mean[a, b] < ALIKE:
            break
        sums[a] += sums[b]
        sums[:, a] += sums[:, b]
        size[a] += size[b]
        alive[b] = False
        members[a] += members[b]
    groups = [[movers[index] for index in sorted(members[a])] for a in np.flatnonzero(alive)]
    return sorted(groups, key=lambda group: -sum(mover.share for mover in group))


def likeness(acts_NT: np.ndarray, others_MT: np.ndarray, row_T: np.ndarray) -> float:
    """Mean cosine between the places of some features and those of others, as clusters are joined by: from `ALIKE` on they are one."""
    return float((_profiles(acts_NT, row_T) @ _profiles(others_MT, row_T).T).mean())


def _profiles(acts_NT: np.ndarray, row_T: np.ndarray) -> np.ndarray:
    """Where features are active: spread over neighbouring tokens, about their mean, of length 1."""
    spread_NT = np.stack([_spread(acts_T, row_T) for acts_T in acts_NT])
    spread_NT -= spread_NT.mean(1, keepdims=True)
    return spread_NT / np.maximum(np.linalg.norm(spread_NT, axis=1, keepdims=True), 1e-12)


def _spread(acts_T: np.ndarray, row_T: np.ndarray) -> np.ndarray:
    """Mean over the tokens of the same text at most `AROUND` away."""
    out_T = np.zeros(len(acts_T))
    count_T = np.zeros(len(acts_T))
    for shift in range(-AROUND, AROUND + 1):
        left = max(0, len(acts_T) - abs(shift))  # none of fewer tokens than that
        to = slice(max(0, shift), max(0, shift) + left)
        of = slice(max(0, -shift), max(0, -shift) + left)
        same = row_T[to] == row_T[of]
        out_T[to] += acts_T[of] * same
        count_T[to] += same
    return out_T / count_T


def describe(
    group: Sequence[Mover],
    hookpoints: int,
    tokens: Sequence[str],  # of the probe set, one by one as text
    row_T: np.ndarray,
    before_T: np.ndarray,  # probability of each token before training
    now_T: np.ndarray,
    ordinary: Mapping[str, float],  # word -> share of the words of ordinary text
) -> Cluster:
    """A cluster in words and figures."""
    weight_T = sum(mover.share * mover.acts_T / max(mover.acts_T.max(), 1e-12) for mover in group)
    weight_T = weight_T / max(weight_T.max(), 1e-12)
    learned_T = weight_T * np.maximum(now_T - before_T, 0)
    by_feature = sorted(group, key=lambda mover: -mover.share)
    marked_T = weight_T >= 0.5 * np.quantile(weight_T[weight_T > 0], 0.9)
    return Cluster(
        share=sum(mover.share for mover in group) / hookpoints,
        features=[(mover.hookpoint, mover.feature) for mover in by_feature[:FEATURES]],
        count=len(group),
        words=telling_words(tokens, row_T, learned_T, ordinary),
        probability=(float(before_T[marked_T].mean()), float(now_T[marked_T].mean())),
        passage=passage(tokens, row_T, learned_T * marked_T, marked_T),
        members=frozenset((mover.hookpoint, mover.feature) for mover in group),
    )


def words_of(tokens: Sequence[str], row_T: np.ndarray) -> list[tuple[str, int, int]]:
    """Whole words with their first and last token: a new one begins at a space, a line break, a mark or another text."""
    found: list[tuple[str, int, int]] = []
    for index, token in enumerate(tokens):
        text = token.strip()
        if not token and found and found[-1][2] == index - 1 and row_T[index] == row_T[index - 1]:
            found[-1] = (*found[-1][:2], index)  # the rest of a character, whose text its first token has
            continue
        starts = index == 0 or row_T[index] != row_T[index - 1] or token[:1].isspace() or not spelled_together(text[:1])
        joins = not starts and found and found[-1][2] == index - 1 and spelled_together(found[-1][0][-1:])
        if joins:
            found[-1] = (found[-1][0] + text, found[-1][1], index)
        elif text:
            found.append((text, index, index))
    return found


def word_shares(tokens: Sequence[str], row_T: np.ndarray) -> dict[str, float]:
    """How often each word is in a text: its share of all words."""
    found = words_of(tokens, row_T)
    counts: dict[str, float] = defaultdict(float)
    for word, _, _ in found:
        counts[word] += 1 / len(found)
    return dict(counts)


def telling_words(
    tokens: Sequence[str], row_T: np.ndarray, weight_T: np.ndarray, ordinary: Mapping[str, float], limit: int = WORDS
) -> list[str]:
    """The words with most of the weight, against how often ordinary text has them: w·log(w / expected) (Dunning's keyness)."""
    weights: dict[str, float] = defaultdict(float)
    for word, first, last in words_of(tokens, row_T):
        weights[word] += float(weight_T[first : last + 1].sum())
    total = sum(weights.values())
    if total <= 0:
        return []
    floor = 1e-3  # a word that ordinary text has less often than this is as telling as one that it has not
    scores = {word: w / total * np.log(w / total / (ordinary.get(word, 0.0) + floor)) for word, w in weights.items() if w > 0}
    ranked = sorted((word for word in scores if scores[word] > 0), key=lambda word: -scores[word])
    return ranked[:limit]


def passage(tokens: Sequence[str], row_T: np.ndarray, weight_T: np.ndarray, marked_T: np.ndarray, length: int = 24) -> str:
    """The stretch of a text with most weight, its marked tokens in brackets (neighbours in one pair)."""
    best, first, last = -1.0, 0, 0
    for row in np.unique(row_T):
        mine = np.flatnonzero(row_T == row)
        width = min(length, len(mine))
        sums = np.convolve(weight_T[mine], np.ones(width), "valid")
        if sums.max() > best:
            best, first = float(sums.max()), int(mine[sums.argmax()])
            last = first + width
    parts, inside = [], False
    for index in range(first, last):
        if tokens[index].strip() and bool(marked_T[index]) != inside:  # a line break by itself shows nothing in brackets
            lead = len(tokens[index]) - len(tokens[index].lstrip())
            parts.append(("]" if inside else "") + tokens[index][:lead] + ("" if inside else "[") + tokens[index][lead:])
            inside = not inside
        else:
            parts.append(tokens[index])
    return "".join(parts).strip() + ("]" if inside else "")
