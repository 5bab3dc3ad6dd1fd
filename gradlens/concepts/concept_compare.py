"""Which separates a concept better on texts that chose nothing: features of a dictionary, a probe on raw activations, or something simpler?

One half of the examples chooses and fits, the other judges; every text is read once a half. AUC over texts (mean of a text's readings)
and over tokens (those of positive texts against those of negative ones), with intervals from texts drawn again with replacement.
Shape suffixes: T tokens, D d_model, K active features, X texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradlens.concepts.fitting import MAX_TEXTS, ChoosingHalf, Concept, counted_tokens, split_examples
from gradlens.dictionaries.directions import Directions
from gradlens.dictionaries.encoding import encode_active
from gradlens.dictionaries.probing import KINDS, auc_draws, draw_texts, fit_direction, logistic_probe
from gradlens.model.hookpoints import place
from gradlens.readings.ranking import auc

if TYPE_CHECKING:
    from gradlens.data.rows import Example
    from gradlens.dictionaries.dictionary import Dictionary
    from gradlens.model.reading import Progress

DRAWS = 1000
NAMES = {
    "best feature": "the one feature that tells the tokens of the choosing half best",
    "feature set": "the features that `concepts fit` would choose, summed",
    "feature probe": "logistic regression on those features",
    "probe": "logistic regression on the raw activation",
    "mean": "difference of the means of both kinds",
    "pca": "the principal component that tells the tokens of the choosing half best",
}


@dataclass
class Half:
    """Counted tokens of one half at one place."""

    x_TD: Tensor  # float32, CPU
    text_T: np.ndarray
    yes_X: np.ndarray  # bool, of each text

    @property
    def yes_T(self) -> np.ndarray:
        return self.yes_X[self.text_T]

    def texts(self) -> list[Tensor]:
        """Tokens of each text."""
        return list(self.x_TD.split(np.bincount(self.text_T, minlength=len(self.yes_X)).tolist()))


@dataclass
class Method:
    """A way to read the concept: a number for every token of the judging half."""

    hookpoint: str  # with the dictionary's name there, if it is of a dictionary
    name: str
    directions: int
    scores_T: np.ndarray
    features: list[int]
    fitted: Directions | None = None


def compare(
    model: torch.nn.Module,
    tokenizer: Any,
    dictionaries: Mapping[str, Dictionary],
    concept: Concept,
    n_features: int = 24,
    max_length: int = 256,
    seed: int = 0,
    max_texts: int = MAX_TEXTS,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], list[Directions]]:
    """Rows `{hookpoint, method, directions, features, auc_texts, auc_tokens, minus_probe}` (AUCs as [value, low, high] at 95%), and the
    directions that were fitted, in the order of their rows. `minus_probe`: AUC over tokens less that of the probe at the same place.
    """
    halves = split_examples(concept, tokenizer, max_length, seed, max_texts)
    places = list(dict.fromkeys(place(name) for name in dictionaries))
    read = list(dict.fromkeys([*places, *(at for name, dictionary in dictionaries.items() for at in dictionary.read_at(place(name)))]))
    choosing, judging = (read_half(model, tokenizer, read, half, progress) for half in halves)
    rows, fitted = [], []
    for at in places:
        methods = [method_of(kind, at, concept, choosing[at], judging[at]) for kind in KINDS]
        for name, dictionary in dictionaries.items():
            if place(name) == at:
                methods += _of_dictionary(name, dictionary, *(_read_by(dictionary, name, half) for half in (choosing, judging)), n_features)
        times_RX = draw_texts(judging[at].yes_X, draws, seed)
        by_tokens = {id(method): _draws(method, judging[at], times_RX, texts=False) for method in methods}
        probe = by_tokens[id(methods[0])]
        for method in methods:
            row = {
                "hookpoint": method.hookpoint, "method": method.name, "directions": method.directions, "features": method.features,
                "auc_texts": _interval(_draws(method, judging[at], times_RX, texts=True)),
                "auc_tokens": _interval(by_tokens[id(method)]),
                "minus_probe": None if method is methods[0] else _interval(by_tokens[id(method)] - probe),
            }  # fmt: skip
            rows.append(row)
            if method.fitted is not None:
                method.fitted.facts.update({"auc_texts": row["auc_texts"], "auc_tokens": row["auc_tokens"]})
                fitted.append(method.fitted)
    return rows, fitted


def fit_directions(
    model: torch.nn.Module,
    tokenizer: Any,
    hookpoint: str,
    concept: Concept,
    kind: str,
    max_length: int = 256,
    seed: int = 0,
    max_texts: int = MAX_TEXTS,
    progress: Progress | None = None,
) -> Directions:
    """One direction of a kind of `probing.KINDS`, with its held-out scores in `facts`."""
    halves, at = split_examples(concept, tokenizer, max_length, seed, max_texts), place(hookpoint)
    choosing, judging = (read_half(model, tokenizer, [at], half, progress)[at] for half in halves)
    method, times_RX = method_of(kind, at, concept, choosing, judging), draw_texts(judging.yes_X, DRAWS, seed)
    for texts, name in ((True, "auc_texts"), (False, "auc_tokens")):
        method.fitted.facts[name] = _interval(_draws(method, judging, times_RX, texts))
    return method.fitted


def read_half(
    model: torch.nn.Module, tokenizer: Any, places: Sequence[str], half: list[tuple[Example, bool]], progress: Progress | None = None
) -> dict[str, Half]:
    """The activations of every counted token, `{place: Half}`."""
    from gradlens.model.reading import pad_id_of, read_texts

    examples, parts = [example for example, _ in half], {at: {} for at in places}
    for i, h in read_texts(model, places, examples, pad_id_of(tokenizer), progress=progress):
        for at in places:
            parts[at][i] = h[at][counted_tokens(examples[i])].float().cpu()
    text_T = np.concatenate([np.full(len(counted_tokens(example)), i) for i, example in enumerate(examples)])
    yes_X = np.array([positive for _, positive in half])
    return {at: Half(torch.cat([found[i] for i in range(len(examples))]), text_T, yes_X) for at, found in parts.items()}


def method_of(kind: str, at: str, concept: Concept, choosing: Half, judging: Half) -> Method:
    """A direction fitted on one half and read on the other."""
    w_D, b = fit_direction(kind, choosing.x_TD, torch.from_numpy(choosing.yes_T), torch.from_numpy(choosing.text_T))
    facts = {"kind": kind, "concept": concept.name, "texts": len(choosing.yes_X), "held_out_texts": len(judging.yes_X)}
    fitted = Directions(w_D.float()[None], b.float()[None], labels=(f"{concept.name} ({kind})",), hook=at, facts=facts)
    fitted.facts.update(_gates(fitted.dictionary(), choosing, judging))
    return Method(at, kind, 1, (judging.x_TD.double() @ w_D + b).numpy(), [], fitted)


def _gates(dictionary: Dictionary, choosing: Half, judging: Half) -> dict[str, Any]:
    """How a route rule would use a direction: `threshold` and `quorum` from the half that chose, `gates` on the other (share of tokens of
    positives, of negatives). Empty where it says yes as often to negatives."""
    chosen, judged = ChoosingHalf(1), ChoosingHalf(1)
    for statistics, half in ((chosen, choosing), (judged, judging)):
        for x_SD, yes in zip(half.texts(), half.yes_X, strict=True):
            statistics.add(bool(yes), *_encode(dictionary, x_SD))
    ids, levels = chosen.choose(1)
    if not ids:
        return {}
    quorum = chosen.choose_quorum(ids, levels)
    share = judged.gated(ids, levels, [quorum])
    return {"threshold": levels[0], "quorum": quorum, "gates": [round(float(share[kind][0]), 4) for kind in (True, False)]}


def _read_by(dictionary: Dictionary, name: str, half: dict[str, Half]) -> Half:
    """What a dictionary encodes: the activation at its place, or where a transcoder reads."""
    parts = [half[at] for at in dictionary.read_at(place(name))]
    return Half(torch.cat([part.x_TD for part in parts], -1), parts[0].text_T, parts[0].yes_X)


def _of_dictionary(name: str, dictionary: Dictionary, choosing: Half, judging: Half, n: int) -> list[Method]:
    half = ChoosingHalf(dictionary.d_sae)
    for x_SD, yes in zip(choosing.texts(), choosing.yes_X, strict=True):
        half.add(bool(yes), *_encode(dictionary, x_SD))
    (ids, _), candidates = half.choose(n), half.candidates()
    found = [auc(yes, no) for yes, no in zip(half.activations(True, candidates).T, half.activations(False, candidates).T, strict=True)]
    best = int(candidates[int(np.argmax(found))])
    wanted = [best, *ids]
    acts_TN = torch.cat([_of_features(dictionary, x_SD, wanted) for x_SD in judging.texts()]).double()
    methods = [Method(name, "best feature", 1, acts_TN[:, 0].numpy(), [best])]
    if len(ids) > 1:
        methods.append(Method(name, "feature set", len(ids), acts_TN[:, 1:].sum(-1).numpy(), ids))
        fit_TN = torch.cat([_of_features(dictionary, x_SD, ids) for x_SD in choosing.texts()]).double()
        w_N, b = logistic_probe(fit_TN, torch.from_numpy(choosing.yes_T), 1e-3)
        methods.append(Method(name, "feature probe", len(ids), (acts_TN[:, 1:] @ w_N + b).numpy(), ids))
    return methods


def _encode(dictionary: Dictionary, x_SD: Tensor) -> tuple[Tensor, Tensor]:
    return encode_active(dictionary, x_SD.to(dictionary.W_enc.device, dictionary.work_dtype))


def _of_features(dictionary: Dictionary, x_SD: Tensor, ids: Sequence[int]) -> Tensor:
    """Activations of some features, `[S, N]`."""
    idx_SK, val_SK = (part.cpu() for part in _encode(dictionary, x_SD))
    return torch.stack([torch.where(idx_SK == i, val_SK, 0).sum(-1) for i in ids], -1).float()


def _draws(method: Method, judging: Half, times_RX: np.ndarray, texts: bool) -> np.ndarray:
    if not texts:
        return auc_draws(method.scores_T, judging.yes_T, judging.text_T, times_RX)
    X = len(judging.yes_X)
    means_X = np.bincount(judging.text_T, weights=method.scores_T, minlength=X) / np.bincount(judging.text_T, minlength=X)
    return auc_draws(means_X, judging.yes_X, np.arange(X), times_RX)


def _interval(values_R: np.ndarray) -> list[float]:
    """`[value, low, high]`: of the sample itself, and the middle 95% of the draws."""
    low, high = np.percentile(values_R[1:], [2.5, 97.5]) if len(values_R) > 1 else (values_R[0], values_R[0])
    return [round(float(value), 4) for value in (values_R[0], low, high)]
