"""Which tokens of a text express a concept, told from texts alone: positives have such tokens and others, negatives have none.

A linear score on feature activations, `Σ_i w_i f_i + b`, above 0 where a token expresses the concept. Which tokens of the positives do is
not known, so it is found together with the weights: logistic regression of "expresses" on the activations, begun with the features that
hardly fire on negatives and on few tokens of the positives, repeated with the labels that it gives to the positives' tokens itself
(negatives stay negative). So features of the context ("this is a pirate's text"), which fire on its plain words as well, are outweighed.
This is learning from positive and unlabelled data (Elkan and Noto 2008) in its self-training form. Turns of phrase that several positives
have and no negative has are labelled from the beginning to the end: a phrase of common words ("Are you serious?") has no feature that
begins with it.

Shape suffixes: T tokens, F d_sae, N features of the detector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gradlens.concepts.concept_files import Detector, RowDetector

SEED_RATE = 0.1  # features that fire on a larger share of the positives' tokens may be features of the context
SEED_RATIO = 8.0  # and they fire that much more often on positives than on negatives
SEED_TOKENS = 3  # and on that many tokens of the positives at least
ROUNDS = 6
RIDGE = 1e-3  # on weights of activations in units of their maximum
SURE = (0.2, 0.5)  # a token expresses the concept from a probability on that lies between these: as low as
FALSE = 0.005  # this share of the negatives' tokens allows; a token missed teaches the concept, one too many costs a word
PHRASE, TEXTS = 2, 3  # tokens of a turn of phrase, and positives that have it at least
SIZE = 512  # features kept, those with the largest weights


def weights_over(
    detector: Detector | RowDetector, d_sae: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """The detector's weights as a vector over all features, 0 for those that do not count."""
    vector = torch.zeros(d_sae, device=device, dtype=dtype)
    vector[torch.tensor(detector.features, dtype=torch.int64, device=device)] = torch.tensor(detector.weights, device=device, dtype=dtype)
    return vector


def score(idx_TK: Tensor, val_TK: Tensor, weights_F: Tensor, bias: float) -> Tensor:
    """`[T]`: above 0 where a token expresses the concept. Active pairs as of `encode_active`."""
    return (val_TK * weights_F[idx_TK]).sum(-1) + bias


def turns_of_phrase(positive: Sequence[Sequence[int]], negative: Sequence[Sequence[int]], never: Collection[int] = ()) -> np.ndarray:
    """Tokens that stand in runs of `PHRASE` tokens which `TEXTS` positives have at least and no negative has, `bool[T]` over the positives
    one after another. `never`: tokens that belong to none, such as the end of a text."""
    having: Counter[tuple[int, ...]] = Counter()
    for text in {tuple(text) for text in positive}:
        having.update(set(_runs(text)))
    known = {run for text in negative for run in _runs(text)}
    own = {run for run, texts in having.items() if texts >= TEXTS and run not in known and not set(run) & set(never)}
    marked = []
    for text in positive:
        mine = np.zeros(len(text), dtype=bool)
        for at, run in enumerate(_runs(text)):
            if run in own:
                mine[at : at + PHRASE] = True
        marked.append(mine)
    return np.concatenate(marked) if marked else np.zeros(0, dtype=bool)


def _runs(text: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(text[at : at + PHRASE]) for at in range(len(text) - PHRASE + 1)]


def fit_detector(
    positive_TC: np.ndarray,
    negative_TC: np.ndarray | Sequence[np.ndarray],
    features: np.ndarray,
    phrases_T: np.ndarray | None = None,
) -> Detector | None:
    """From activations of some features (`features[C]`: their ids) at all counted tokens of the positives and of the negatives; None where
    no feature tells them apart. Negatives of several kinds may be given one by one: `FALSE` then holds of each. `phrases_T`: tokens of the
    positives that are known to express it. Costs seconds: `ROUNDS` logistic regressions."""
    kinds = [torch.from_numpy(part) for part in ([negative_TC] if isinstance(negative_TC, np.ndarray) else negative_TC)]
    P, N = torch.from_numpy(positive_TC), torch.cat(kinds)
    if not len(P) or not len(N) or not len(features):
        return None
    scale_C = torch.maximum(P.amax(0), N.amax(0)).clamp_min(1e-6)
    P, N = P / scale_C, N / scale_C
    rates = [(part > 0).float().mean(0) for part in (P, N)]
    seeds_C = (rates[0] < SEED_RATE) & (rates[0] > SEED_RATIO * rates[1]) & (rates[0] * len(P) >= SEED_TOKENS)
    known_T = torch.zeros(len(P), dtype=torch.bool) if phrases_T is None else torch.from_numpy(phrases_T)
    if not seeds_C.any() and not known_T.any():
        return None
    expressed_T = (((P > 0) & seeds_C).any(1) | known_T).float()
    X, nothing = torch.cat([P, N]), N.new_zeros(len(N))
    weights_C, bias = X.new_zeros(len(features)), X.new_zeros(1)
    for _ in range(ROUNDS):
        weights_C, bias = _regress(X, torch.cat([expressed_T, nothing]), weights_C, bias)
        expressed_T = ((P @ weights_C + bias > 0) | known_T).float()
    kept_N = weights_C.abs().topk(min(SIZE, len(features))).indices
    weights_N, bias = _regress(X[:, kept_N], torch.cat([expressed_T, nothing]), weights_C[kept_N], bias)
    low, high = (float(np.log(sure / (1 - sure))) for sure in SURE)
    scores = (N[:, kept_N] @ weights_N + bias).split([len(part) for part in kinds])
    least = min(max(low, *(score.quantile(1 - FALSE).item() for score in scores if len(score))), high)
    return Detector(
        features=features[kept_N.numpy()].tolist(),
        weights=[float(f"{weight:.4g}") for weight in (weights_N / scale_C[kept_N]).tolist()],
        bias=round(bias.item() - least, 4),
    )


def _regress(X_TN: Tensor, y_T: Tensor, weights_N: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge logistic regression, begun from the given weights."""
    w, b = weights_N.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([w, b], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(X_TN @ w + b, y_T) + RIDGE * w.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return w.detach(), b.detach()
