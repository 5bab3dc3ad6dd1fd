"""Directions from examples: a linear probe, a difference of means, a principal component. Pure functions of activations and labels.

All are read as r = x·w + b, above zero where the concept is; both kinds count the same, however many tokens each has.
Shape suffixes: T tokens, D d_model.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradlens.readings.ranking import auc

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # penalties tried: half their product with ||w||², w of standardised activations
COMPONENTS = 16  # principal components looked at
KINDS = ("probe", "mean", "pca")


def fit_direction(kind: str, x_TD: Tensor, yes_T: Tensor, text_T: Tensor) -> tuple[Tensor, Tensor]:
    """`(w[D], b)` of a kind from tokens, whether each is of a positive text, and the number of its text. float64."""
    x_TD = x_TD.double()
    if kind == "probe":
        return logistic_probe(x_TD, yes_T, choose_ridge(x_TD, yes_T, text_T))
    return mean_difference(x_TD, yes_T) if kind == "mean" else principal_component(x_TD, yes_T)


def logistic_probe(x_TD: Tensor, yes_T: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Logistic regression on standardised activations, given for raw ones: w, b of least mean loss + ridge/2 ||w||²."""
    weight_T = _balanced(yes_T)
    mean_D = weight_T @ x_TD
    scale_D = (weight_T @ (x_TD - mean_D).square()).sqrt().clamp_min(1e-12)
    z_TD, y_T = (x_TD - mean_D) / scale_D, yes_T.double()
    w_D, b = torch.zeros(x_TD.shape[1], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    parameters = [w_D.requires_grad_(), b.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        each_T = torch.nn.functional.binary_cross_entropy_with_logits(z_TD @ w_D + b, y_T, reduction="none")
        value = weight_T @ each_T + ridge / 2 * w_D.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    w_D = w_D.detach() / scale_D
    return w_D, b.detach() - w_D @ mean_D


def choose_ridge(x_TD: Tensor, yes_T: Tensor, text_T: Tensor) -> float:
    """The penalty with the best AUC over the tokens of every fourth text, fitted on the others; of equals the largest."""
    texts = text_T.unique()
    aside = torch.isin(text_T, texts[::4])
    if not all(part.any() for part in (yes_T[aside], ~yes_T[aside], yes_T[~aside], ~yes_T[~aside])):
        return RIDGES[2]
    found = []
    for ridge in RIDGES:
        w_D, b = logistic_probe(x_TD[~aside], yes_T[~aside], ridge)
        found.append((auc(*_both(x_TD[aside] @ w_D + b, yes_T[aside])), ridge))
    return max(found)[1]


def mean_difference(x_TD: Tensor, yes_T: Tensor) -> tuple[Tensor, Tensor]:
    """The difference m of the two means as w = m / ||m||², b so that they are read as +1/2 and -1/2."""
    return _between(x_TD[yes_T].mean(0) - x_TD[~yes_T].mean(0), x_TD, yes_T)


def principal_component(x_TD: Tensor, yes_T: Tensor) -> tuple[Tensor, Tensor]:
    """Of the first principal components the one that tells the tokens apart best, on the side of the positives."""
    weight_T = _balanced(yes_T)
    centred_TD = x_TD - weight_T @ x_TD
    _, vectors_DD = torch.linalg.eigh((centred_TD * weight_T[:, None]).T @ centred_TD)
    components_KD = vectors_DD.T.flip(0)[:COMPONENTS]
    found = [auc(*_both(centred_TD @ component_D, yes_T)) for component_D in components_KD]
    best = max(range(len(found)), key=lambda k: abs(found[k] - 0.5))
    return _between(components_KD[best] * (1 if found[best] >= 0.5 else -1), x_TD, yes_T)


def _between(direction_D: Tensor, x_TD: Tensor, yes_T: Tensor) -> tuple[Tensor, Tensor]:
    """A direction, scaled and moved so that the means of both kinds are read as +1/2 and -1/2."""
    first, second = x_TD[yes_T].mean(0) @ direction_D, x_TD[~yes_T].mean(0) @ direction_D
    gap = (first - second).abs().clamp_min(1e-12)
    return direction_D / gap, -(first + second) / 2 / gap


def _balanced(yes_T: Tensor) -> Tensor:
    """Weights that add up to one, half of it for each kind."""
    yes = yes_T.double()
    return yes / (2 * yes.sum()) + (1 - yes) / (2 * (1 - yes).sum())


def _both(scores_T: Tensor, yes_T: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return scores_T[yes_T].numpy(), scores_T[~yes_T].numpy()


def auc_draws(scores_N: np.ndarray, yes_N: np.ndarray, text_N: np.ndarray, draws_RX: np.ndarray) -> np.ndarray:
    """The AUC of scores once for every draw, `[R]`: `draws[R, X]` says how often each text counts. Ties count half."""
    order = np.argsort(scores_N, kind="stable")
    starts = np.flatnonzero(np.diff(scores_N[order], prepend=np.nan) != 0)
    found = []
    for part in np.array_split(draws_RX, max(1, draws_RX.shape[0] * len(scores_N) // 2**22)):
        weight_RN = part[:, text_N[order]].astype(np.float64)
        yes_RG, no_RG = (np.add.reduceat(weight_RN * kind, starts, axis=1) for kind in (yes_N[order], ~yes_N[order]))
        below_RG = no_RG.cumsum(1) - no_RG / 2
        found.append((yes_RG * below_RG).sum(1) / (yes_RG.sum(1) * no_RG.sum(1)))
    return np.concatenate(found)


def draw_texts(yes_X: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """How often each text counts in each of `draws` samples with replacement, both kinds as often as there are; the first row is the
    sample itself. `[1 + draws, X]`."""
    random, rows = np.random.default_rng(seed), [np.ones(len(yes_X))]
    for _ in range(draws):
        picked = [random.choice(np.flatnonzero(yes_X == kind), size=int((yes_X == kind).sum())) for kind in (True, False)]
        rows.append(np.bincount(np.concatenate(picked), minlength=len(yes_X)))
    return np.stack(rows)
