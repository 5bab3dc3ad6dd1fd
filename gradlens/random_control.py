"""Random features in place of a concept's: the control that every claim about control needs. They fire about as often as those whose place
they take, and have about the same norm; without rates they are any.

Shape suffixes: F d_sae, N features of the concept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEAR = 10  # one is drawn from this many that are most alike
BIN = 32  # weights change places among as many features of like rate


def matched_features(ids_N: Sequence[int], norm_F: Tensor, rate_F: Tensor | None, seed: int) -> list[int]:
    """As many other features, for each one of the `NEAR` most alike in firing rate and norm (both as logarithms); fewer where there are
    none left that fire. `rate_F`: share of tokens on which a feature fires."""
    generator = torch.Generator().manual_seed(seed)
    norm_F = norm_F.detach().double().cpu().clamp_min(1e-12).log()
    free_F = torch.ones(len(norm_F), dtype=torch.bool) if rate_F is None else rate_F.cpu() > 0
    size_F = torch.zeros_like(norm_F) if rate_F is None else rate_F.double().cpu().clamp_min(1e-6).log()
    free_F[list(ids_N)] = False
    found: list[int] = []
    for feature in ids_N:
        candidates = free_F.nonzero().flatten()
        if not len(candidates):
            break
        if rate_F is not None:
            unlike = (size_F[candidates] - size_F[feature]).abs() + (norm_F[candidates] - norm_F[feature]).abs()
            candidates = candidates[unlike.argsort()[:NEAR]]
        drawn = int(candidates[int(torch.randint(len(candidates), (), generator=generator))])
        free_F[drawn] = False
        found.append(drawn)
    return found


def levels_like(
    levels_N: Sequence[float] | None, ids_N: Sequence[int], drawn_N: Sequence[int], size_F: Tensor | None
) -> list[float] | None:
    """Thresholds of drawn features: those of the features whose place they take, in units of either's mean activation where it fires
    (`size[F]`, nan where it is not known). Without thresholds, or sizes, every activation counts."""
    if levels_N is None or size_F is None:
        return None
    ratio_N = (size_F[list(drawn_N)] / size_F[list(ids_N)]).double().nan_to_num(1.0, 1.0, 1.0).tolist()
    return [level * ratio for level, ratio in zip(levels_N, ratio_N, strict=True)]


def matched_weights(weights_F: Tensor, rate_F: Tensor | None, seed: int) -> Tensor:
    """The same weights on other features: each changes places within `BIN` features that fire about as often."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(len(weights_F)) if rate_F is None else rate_F.cpu().argsort(stable=True)
    if rate_F is not None:
        order = order[rate_F.cpu()[order] > 0]
    else:
        order = order[torch.randperm(len(order), generator=generator)]
    mixed_F = weights_F.clone()
    for part in order.split(BIN):
        mixed_F[part] = weights_F[part[torch.randperm(len(part), generator=generator)]]
    return mixed_F
