"""Concepts become features: `fit_concept` picks them by contrast from positive and negative examples, and scores them.

On one half of the examples features are picked one by one, so that the set fires on as many response tokens of positives and as few of
negatives as it can: each time the feature that adds most positive tokens less twice the negative ones (`choose_features`). Then the share
of active tokens around a token from which on a route rule gates it (`quorum`). How well the set tells the concept is measured on the other
half. Figures, and what was tried: docs/decisions.md.
Shape suffixes: T counted tokens, N chosen features, C candidates, F d_sae.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlens.concepts.concept_files import CheckerSpec, Concept, Detection, load_concepts, save_concept
from gradlens.errors import ConfigError
from gradlens.readings.ranking import auc

if TYPE_CHECKING:
    import torch

    from gradlens.data.rows import Example
    from gradlens.dictionaries.dictionary import Dictionary
    from gradlens.model.reading import Progress

__all__ = ["CheckerSpec", "Concept", "Detection", "auc", "choose_features", "fit_concept", "load_concepts", "save_concept"]

MIN_EXAMPLES = 8  # of each kind: half of them choose, half of them judge
MAX_TEXTS = 100  # of each kind that are read, so that fitting takes seconds, not minutes
CANDIDATES = 256  # features with the largest difference of firing rates that are looked at together
PRICE = 2.0  # a share of the negatives' tokens costs twice what the same share of the positives' tokens is worth
MIN_GAIN = 0.005  # share of positive tokens that the next feature must add, less the price: six of the usual thousand; fewer is noise
LEVELS = (0, 25, 50, 75, 90, 100)  # thresholds considered: percentiles of a feature's activations on negatives; the first is none
QUORUMS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
LEAK = 10.0  # a positive token that is not gated costs as much as ten negative ones that are: its loss is high, and it teaches the concept
GOOD_AUC = 0.9
DIRECTIONS = "directions"  # format of dictionaries that hold probes and other directions


def fit_concept(
    model: torch.nn.Module,
    tokenizer,
    dictionaries: dict[str, Dictionary],
    concept: Concept,
    n_features: int = 24,
    max_length: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
    refit: bool = False,
    max_texts: int = MAX_TEXTS,
) -> Concept:
    """The concept with `features`, held-out `detection` and what tells its texts (`row_detectors`) for every given hookpoint.

    Features that the concept brings are kept (and measured, where it has examples) unless `refit`. Every text is read once.
    Raises `ConfigError` for too few examples, contradictory ones, and feature ids that a dictionary does not have.
    """
    from gradlens.concepts.row_detector import fit_halves  # imports torch
    from gradlens.model.hookpoints import canonical

    dictionaries = {canonical(hook): dictionary for hook, dictionary in dictionaries.items()}
    given, open_hooks = _to_do(concept, {hook: dictionary.d_sae for hook, dictionary in dictionaries.items()}, refit)
    if not open_hooks:
        return concept
    dictionaries = {hook: dictionaries[hook] for hook in open_hooks}
    halves = split_examples(concept, tokenizer, max_length, seed, max_texts)
    chosen = {hook: given[hook] for hook in open_hooks if hook in given}
    thresholds = {hook: concept.thresholds[hook] for hook in given if hook in concept.thresholds}
    to_fit = {hook: dictionaries[hook] for hook in open_hooks if hook not in given}
    quorum = {hook: concept.quorum[hook] for hook in given if hook in concept.quorum}
    statistics = {}
    if to_fit:
        statistics = _read_choosing_half(model, to_fit, tokenizer, halves[0], progress)
        for hook, s in statistics.items():
            ids, levels = s.choose(n_features)
            if ids:
                chosen[hook], thresholds[hook], quorum[hook] = ids, levels, s.choose_quorum(ids, levels)
    features, detection, row_detectors = dict(concept.features), dict(concept.detection), dict(concept.row_detectors)
    # Probes were made for concepts of their own: they need not know this one, unlike a dictionary that is to hold everything.
    empty = [hook for hook in to_fit if hook not in chosen and (to_fit[hook].metadata.get("format") != DIRECTIONS or not chosen)]
    if empty:
        raise ConfigError(
            f"concept {concept.name}: no feature at {empty[0]} fires more often on positives than on negatives; other examples?"
        )
    dictionaries = {hook: dictionaries[hook] for hook in chosen}
    best = {hook: statistics[hook].best_of(ids) if hook in statistics else ids[0] for hook, ids in chosen.items()}
    judging = {hook: ChoosingHalf(dictionary.d_sae) for hook, dictionary in dictionaries.items()}
    for hook, readings in _read_judging_half(
        model, dictionaries, tokenizer, halves[1], chosen, thresholds, quorum, progress, judging
    ).items():
        features[hook] = chosen[hook]
        detection[hook] = _judge(readings, chosen[hook], best[hook], hook)
        if hook in statistics:  # features named by hand speak for themselves
            row_detectors.pop(hook, None)  # that of other features, or of another dictionary
            if (tells := fit_halves([statistics[hook], judging[hook]])) is not None:
                row_detectors[hook] = tells
    fitted = {"features": features, "thresholds": concept.thresholds | thresholds, "quorum": concept.quorum | quorum}
    return concept.model_copy(update=fitted | {"detection": detection, "row_detectors": row_detectors})


def check_concept(concept: Concept, sizes: Mapping[str, int]) -> None:
    """Raise `ConfigError` for what `fit_concept` would refuse, as far as files tell; `sizes`: canonical hookpoint -> features there."""
    _, open_hooks = _to_do(concept, sizes)
    if not open_hooks:
        return
    rows = {kind: concept.rows(kind) for kind in ("positive", "negative")}
    _check_apart(concept, rows)
    for kind, entries in rows.items():
        _check_enough(concept, kind, len(entries))


def _to_do(concept: Concept, sizes: Mapping[str, int], refit: bool = False) -> tuple[dict[str, list[int]], list[str]]:
    """The features that the concept brings, by hookpoint, and the hookpoints at which some are to be fitted or measured."""
    given = {} if refit else {hook: ids for hook, ids in concept.features.items() if hook in sizes and ids}
    for hook, ids in given.items():
        wrong = [i for i in ids if not 0 <= i < sizes[hook]]
        if wrong:
            raise ConfigError(f"concept {concept.name}: features.{hook}: {wrong[0]} is not one of 0..{sizes[hook] - 1}")
    for hook, tells in ({} if refit else concept.row_detectors).items():
        if hook in given and (wrong := [i for i in tells.features if not 0 <= i < sizes[hook]]):
            raise ConfigError(f"concept {concept.name}: row_detectors.{hook}: {wrong[0]} is not one of 0..{sizes[hook] - 1}")
    # A feature named by hand stays as it is; only what is missing is fitted or measured.
    enough = all(len(concept.rows(kind)) >= MIN_EXAMPLES for kind in ("positive", "negative"))
    open_hooks = [hook for hook in sizes if hook not in given or hook not in concept.detection]
    if not open_hooks or (given and not enough):
        return given, []
    if not concept.positive or not concept.negative:
        raise ConfigError(
            f"concept {concept.name}: it has features for {', '.join(concept.features) or 'no hookpoint'}, the dictionaries are for "
            f"{', '.join(sizes)}, and it has no examples to fit features on; add either"
        )
    return given, open_hooks


def _check_apart(concept: Concept, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    both = {json.dumps(row, sort_keys=True) for row in rows["positive"]} & {json.dumps(row, sort_keys=True) for row in rows["negative"]}
    if both:
        raise ConfigError(f"concept {concept.name}: {len(both)} examples are both positive and negative, for instance {min(both)[:80]}")


def _check_enough(concept: Concept, kind: str, usable: int) -> None:
    if usable < MIN_EXAMPLES:
        raise ConfigError(
            f"concept {concept.name}: {kind}: {usable} usable examples, at least {MIN_EXAMPLES} are needed to fit features "
            "(half choose them, half judge them); add examples, or give features"
        )


def split_examples(
    concept: Concept, tokenizer, max_length: int, seed: int = 0, max_texts: int = MAX_TEXTS
) -> tuple[list[tuple[Example, bool]], list[tuple[Example, bool]]]:
    """Tokenised `(example, is positive)` in two halves, seeded; each half has its share of positives and of negatives."""
    from gradlens.data.rows import tokenize

    rows = {kind: concept.examples(kind, tokenizer) for kind in ("positive", "negative")}
    _check_apart(concept, rows)
    random = np.random.default_rng(seed)
    halves: tuple[list, list] = ([], [])
    for kind, entries in rows.items():
        order = random.permutation(len(entries))[:max_texts]
        examples = [tokenize(entries[i], tokenizer, max_length, row_id=int(i), source=kind) for i in order]
        examples = [example for example in examples if any(label != -100 for label in example.labels[1:])]
        _check_enough(concept, kind, len(examples))
        for index, example in enumerate(examples):
            halves[index % 2].append((example, kind == "positive"))
    return halves


def choose_features(
    positive_TC: np.ndarray, negative_TC: np.ndarray, n: int, price: float = PRICE, min_gain: float = MIN_GAIN
) -> tuple[list[int], list[float]]:
    """Columns and thresholds, best first, of at most n features that together mark positive tokens and leave negative ones alone.

    From activations `[tokens, candidates]` of both kinds. Greedy cover: each time the feature and threshold that newly marks the largest
    share of positive tokens, less `price` times the share of negative ones; it ends where that is under `min_gain`. So a feature that
    fires wherever another does already adds nothing, and one that fires on many negatives is not taken for its few positives.
    """
    C = negative_TC.shape[1]
    levels_LC = np.zeros((len(LEVELS), C), dtype=np.float32)
    for column in range(C):
        fired = negative_TC[:, column][negative_TC[:, column] > 0]
        levels_LC[1:, column] = np.percentile(fired, LEVELS[1:]) if len(fired) else 0
    acts = {True: positive_TC, False: negative_TC}
    marks = {kind: np.concatenate([acts[kind] > level for level in levels_LC], axis=1).astype(np.float32) for kind in acts}
    unmarked = {kind: np.ones(len(mark), dtype=np.float32) for kind, mark in marks.items()}
    columns: list[int] = []
    thresholds: list[float] = []
    while len(columns) < min(n, C):
        gain = {kind: (unmarked[kind] @ mark) / max(len(mark), 1) for kind, mark in marks.items()}
        score = gain[True] - price * gain[False]
        score[np.isin(np.arange(len(score)) % C, columns)] = -np.inf
        best = int(score.argmax())
        if score[best] < min_gain:
            break
        level, column = divmod(best, C)
        columns.append(column)
        thresholds.append(float(levels_LC[level, column]))
        for kind, mark in marks.items():
            unmarked[kind] *= 1 - mark[:, best]
    return columns, thresholds


class ChoosingHalf:
    """Of the choosing half at one hookpoint: where each feature fires, and each text's mean activation, both as sparse pairs."""

    def __init__(self, d_sae: int) -> None:
        self.fired = {kind: np.zeros(d_sae) for kind in (True, False)}
        self.tokens = {True: 0, False: 0}
        self.pairs: dict[bool, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {True: [], False: []}  # token, feature, activation
        self.means: list[tuple[bool, np.ndarray, np.ndarray]] = []
        self.texts: dict[bool, list[int]] = {True: [], False: []}  # counted tokens of each text

    def add(self, positive: bool, idx_TK: torch.Tensor, val_TK: torch.Tensor) -> None:
        """The counted tokens of one text, by their active pairs."""
        idx_TK, val_TK, T = idx_TK.cpu().numpy(), val_TK.float().cpu().numpy(), len(idx_TK)
        token, slot = np.nonzero(val_TK)
        feature, value = idx_TK[token, slot], val_TK[token, slot]
        np.add.at(self.fired[positive], feature, 1)
        self.pairs[positive].append((token + self.tokens[positive], feature, value))
        self.tokens[positive] += T
        self.texts[positive].append(T)
        features, column = np.unique(feature, return_inverse=True)
        self.means.append((positive, features, np.bincount(column, weights=value, minlength=len(features)) / max(T, 1)))

    def rates(self) -> dict[bool, np.ndarray]:
        """Share of tokens on which each feature fires, of positives and of negatives."""
        return {kind: self.fired[kind] / max(self.tokens[kind], 1) for kind in (True, False)}

    def candidates(self, n: int = CANDIDATES) -> np.ndarray:
        """The features with the largest difference of firing rates."""
        rates = self.rates()
        return np.argsort(rates[False] - rates[True], kind="stable")[:n]

    def choose(self, n: int) -> tuple[list[int], list[float]]:
        """`choose_features` among the features with the largest difference of firing rates: ids and thresholds."""
        rates, candidates = self.rates(), self.candidates(max(CANDIDATES, n))
        columns, thresholds = choose_features(self.activations(True, candidates), self.activations(False, candidates), n)
        if not columns and rates[True][candidates[0]] > rates[False][candidates[0]]:
            columns, thresholds = [0], [0.0]  # nothing is worth its price; the detection scores say how poor the best one is
        return [int(candidates[column]) for column in columns], thresholds

    def choose_quorum(self, ids: Sequence[int], thresholds: Sequence[float]) -> float:
        """The share of active tokens around a token at which a route rule gates it: the one with the least leaks and false alarms."""
        share = self.gated(ids, thresholds, QUORUMS)
        cost = LEAK * (1 - share[True]) + share[False]
        return QUORUMS[int(len(QUORUMS) - 1 - cost[::-1].argmin())]  # of equals the highest

    def gated(self, ids: Sequence[int], thresholds: Sequence[float], quorums: Sequence[float]) -> dict[bool, np.ndarray]:
        """The share of tokens that a route rule would gate at each quorum, of positives and of negatives."""
        import torch

        from gradlens.control.edits import expresses

        share: dict[bool, np.ndarray] = {}
        for kind in (True, False):
            fires = torch.from_numpy((self.activations(kind, np.asarray(ids)) > np.asarray(thresholds, dtype=np.float32)).any(1))
            gated = np.zeros(len(quorums))
            for fires_S in fires.split(self.texts[kind]):
                # Counted tokens are the whole row here, led by a position that predicts the first of them.
                active_1S = torch.cat([torch.zeros(1, dtype=torch.bool), fires_S])[None]
                counted_1S = torch.arange(active_1S.shape[1])[None] > 0
                gated += [int(expresses(active_1S, counted_1S, quorum=quorum)[0, :-1].sum()) for quorum in quorums]
            share[kind] = gated / max(self.tokens[kind], 1)
        return share

    def activations(self, positive: bool, features: np.ndarray) -> np.ndarray:
        """Of some features at every token of a kind, `[T, C]`."""
        column_F = np.full(len(self.fired[True]), -1)
        column_F[features] = np.arange(len(features))
        acts_TC = np.zeros((self.tokens[positive], len(features)), dtype=np.float32)
        for token, feature, value in self.pairs[positive]:
            kept = column_F[feature] >= 0
            acts_TC[token[kept], column_F[feature[kept]]] = value[kept]
        return acts_TC

    def text_means(self, positive: bool, features: np.ndarray) -> np.ndarray:
        """Mean activation of some features (which hold all that fire) over the counted tokens of each text of a kind, `[R, C]`."""
        rows = [(fired, values) for kind, fired, values in self.means if kind == positive]
        found_RC = np.zeros((len(rows), len(features)), dtype=np.float32)
        for row_C, (fired, values) in zip(found_RC, rows, strict=True):
            row_C[np.searchsorted(features, fired)] = values
        return found_RC

    def best_of(self, ids: Sequence[int]) -> int:
        """The feature with the best AUC over texts."""
        columns: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for positive, features, values in self.means:
            at = np.searchsorted(features, ids).clip(max=max(len(features) - 1, 0))
            columns[positive].append(np.where(features[at] == ids, values[at], 0) if len(features) else np.zeros(len(ids)))
        positive, negative = np.array(columns[True]), np.array(columns[False])
        return int(ids[max(range(len(ids)), key=lambda n: auc(positive[:, n], negative[:, n]))])


def _read_choosing_half(model, dictionaries, tokenizer, half, progress) -> dict[str, ChoosingHalf]:
    from gradlens.dictionaries.encoding import encode_active
    from gradlens.model.reading import pad_id_of, read_texts

    statistics = {hook: ChoosingHalf(dictionary.d_sae) for hook, dictionary in dictionaries.items()}
    examples = [example for example, _ in half]
    for i, h in read_texts(model, dictionaries, examples, pad_id_of(tokenizer), progress=progress):
        positive = half[i][1]
        counted = counted_tokens(examples[i])
        for hook, dictionary in dictionaries.items():
            statistics[hook].add(positive, *encode_active(dictionary, h[hook][counted].to(dictionary.W_enc.device, dictionary.work_dtype)))
    return statistics


def _read_judging_half(
    model, dictionaries, tokenizer, half, chosen, thresholds, quorum, progress, statistics: dict[str, ChoosingHalf]
) -> dict[str, list[dict[str, Any]]]:
    """Per hookpoint and text: mean activation of each chosen feature `[N]`, tokens, fired tokens, gated loss tokens. All features go into
    `statistics`."""
    import torch

    from gradlens.control.edits import expresses
    from gradlens.control.rules import QUORUM
    from gradlens.dictionaries.encoding import encode_active
    from gradlens.model.reading import pad_id_of, read_texts

    readings: dict[str, list[dict[str, Any]]] = {hook: [] for hook in dictionaries}
    examples = [example for example, _ in half]
    for i, h in read_texts(model, dictionaries, examples, pad_id_of(tokenizer), progress=progress):
        counted = counted_tokens(examples[i])
        for hook, dictionary in dictionaries.items():
            ids = torch.tensor(chosen[hook], device=dictionary.W_enc.device)
            idx_TK, val_TK = encode_active(dictionary, h[hook][counted].to(dictionary.W_enc.device, dictionary.work_dtype))
            statistics[hook].add(half[i][1], idx_TK, val_TK)
            acts_TN = torch.where(idx_TK[:, :, None] == ids, val_TK[:, :, None], 0).sum(1).float().cpu()
            above_N = torch.tensor(thresholds.get(hook, [0.0] * len(ids)), dtype=torch.float32)
            fires_1S, counted_1S = torch.zeros(2, 1, len(examples[i].labels), dtype=torch.bool)
            counted_1S[0, counted] = True
            fires_1S[0, counted] = (acts_TN > above_N).any(-1)
            targets = torch.tensor(counted) - 1  # the loss of token t is that of position t - 1
            readings[hook].append(
                {
                    "positive": half[i][1],
                    "mean": acts_TN.mean(0).numpy(),
                    "tokens": len(counted),
                    "fired": int(fires_1S.sum()),
                    "gated": int(expresses(fires_1S, counted_1S, quorum=quorum.get(hook, QUORUM))[0, targets].sum()),
                }
            )
    return readings


def counted_tokens(example: Example) -> list[int]:
    """Positions of the tokens that the loss counts; the first token never is one."""
    return [t for t, label in enumerate(example.labels) if label != -100 and t > 0]


def _judge(readings: list[dict[str, Any]], ids: list[int], best: int, hook: str) -> Detection:
    kinds = {kind: [reading for reading in readings if reading["positive"] is kind] for kind in (True, False)}

    def share(kind: bool, key: str) -> float:
        return sum(reading[key] for reading in kinds[kind]) / max(sum(reading["tokens"] for reading in kinds[kind]), 1)

    def separation(score) -> float:
        return auc([score(r["mean"]) for r in kinds[True]], [score(r["mean"]) for r in kinds[False]])

    column = ids.index(best)
    set_auc, best_auc = separation(lambda mean: mean.sum()), separation(lambda mean: mean[column])
    warning = ""
    if max(set_auc, best_auc) < GOOD_AUC:
        warning = (
            f"the dictionary at {hook} does not separate the concept: held-out AUC {set_auc:.2f}, that of its best feature {best_auc:.2f}, "
            f"expected at least {GOOD_AUC}"
        )
    elif set_auc < GOOD_AUC:
        warning = (
            f"the features at {hook} together tell the concept less well (held-out AUC {set_auc:.2f}) than the best of them alone "
            f"({best}: {best_auc:.2f}): sums over them are of other things too"
        )
    elif share(False, "gated") > share(True, "gated") / 2:
        warning = (
            f"the features at {hook} also fire on negatives: a route rule would gate {share(False, 'gated'):.0%} of their tokens "
            f"(positives {share(True, 'gated'):.0%})"
        )
    return Detection(
        auc=round(set_auc, 4),
        best_feature=best,
        best_auc=round(best_auc, 4),
        rate_positive=round(share(True, "fired"), 4),
        rate_negative=round(share(False, "fired"), 4),
        gate_rate_positive=round(share(True, "gated"), 4),
        gate_rate_negative=round(share(False, "gated"), 4),
        texts_positive=len(kinds[True]),
        texts_negative=len(kinds[False]),
        warning=warning,
    )
