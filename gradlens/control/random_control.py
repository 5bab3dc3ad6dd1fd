"""Random features in place of a concept's: the control that every claim about control needs. They fire about as often as those whose place
they take, and have about the same norm; without rates they are any. Features that themselves tell the concept's examples from others are
left out: a draw among them would be another choice of features for the concept, not a random one.

Shape suffixes: F d_sae, N features of the concept, B rows, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEAR = 10  # one is drawn from this many that are most alike
BINS = 256  # of the strengths that `SameShare` tallies
MEMORY = 0.9  # of the tally, from one micro-batch to the next: features fire otherwise as training goes on
RATIO = 1.25  # a feature that fires so many times as often on a concept's positives than on its negatives, or the reverse, tells of it


def contrast(positive_F: Tensor, negative_F: Tensor, tokens: tuple[int, int]) -> Tensor:
    """How many times as often each feature fires on one kind of text as on the other, `[F]`, 1 or more.

    From the tokens on which each fires, among so many of the positives and of the negatives; as if it fired on one token more, spread over
    both, so that a feature that never fires tells nothing.
    """
    positive_F, negative_F = (fired_F.double() / n + 1 / sum(tokens) for fired_F, n in zip((positive_F, negative_F), tokens, strict=True))
    return torch.maximum(positive_F, negative_F) / torch.minimum(positive_F, negative_F)


def barred(own_F: Tensor, contrast_F: Tensor | None, rate_F: Tensor | None, n: int = 0) -> Tensor:
    """Features that are not to be drawn, `bool[F]`: the concept's own, and those that tell its examples by `RATIO` or more.

    Where fewer than `2n` others would be left that fire, those that tell least are kept: a small dictionary has no features but such.
    """
    if contrast_F is None:
        return own_F
    contrast_F = contrast_F.cpu()
    others_F = ~own_F if rate_F is None else ~own_F & (rate_F.cpu() > 0)
    least = contrast_F[others_F].sort().values[: 2 * n]
    return own_F | (contrast_F >= RATIO) & (contrast_F > (least[-1] if len(least) else 0.0))


def matched_features(ids_N: Sequence[int], norm_F: Tensor, rate_F: Tensor | None, seed: int, barred_F: Tensor | None = None) -> list[int]:
    """As many other features, for each one of the `NEAR` most alike in firing rate and norm (both as logarithms); fewer where there are
    none left that fire. `rate_F`: share of tokens on which a feature fires; `barred_F`: features that are not to be drawn, by default
    those themselves."""
    generator = torch.Generator().manual_seed(seed)
    norm_F = norm_F.detach().double().cpu().clamp_min(1e-12).log()
    free_F = torch.ones(len(norm_F), dtype=torch.bool) if rate_F is None else rate_F.cpu() > 0
    size_F = torch.zeros_like(norm_F) if rate_F is None else rate_F.double().cpu().clamp_min(1e-6).log()
    free_F &= ~(among(ids_N, len(norm_F)) if barred_F is None else barred_F.cpu())
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


class SameShare:
    """Gates of random features that touch as large a share of the tokens as the rule in whose place they stand.

    Concept's features sit together in the rows that show it; as many unrelated ones lie everywhere, and by the same quorum would gate
    nearly nothing or nearly all. The share is that over many micro-batches, not of each: rows of like length go together, and one of
    unwanted rows alone would be gated whole by whatever features. Strengths are tallied in `BINS`, so nothing grows and nothing waits for
    an accelerator.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._tally = torch.zeros(BINS, dtype=torch.float64, device=device)  # counted tokens by strength
        self._own = torch.zeros((), dtype=torch.float64, device=device)  # gated by the concept's rule, of these
        self._owed = torch.zeros((), dtype=torch.float64, device=device)  # that it has gated more, of all so far

    def __call__(self, own_BS: Tensor, strength_BS: Tensor, counted_BS: Tensor, whole: bool = False) -> Tensor:
        """Gates `[B, S]`, 0 or 1, where `strength` (0 to 1) is largest, among equals at random (`whole`: rows). `own`: the other rule's."""
        bin_BS = (strength_BS * (BINS - 1)).round().long().clamp(0, BINS - 1)
        own = (own_BS * counted_BS).sum().double()
        self._tally.mul_(MEMORY).scatter_add_(0, bin_BS.flatten(), counted_BS.flatten().double())
        self._own.mul_(MEMORY).add_(own)
        above = self._tally.flip(0).cumsum(0).flip(0) - self._tally  # tokens of larger strength
        share = ((self._own + self._owed - above) / self._tally.clamp_min(1e-9)).clamp(0, 1)  # of a bin's tokens that are gated
        B, S = own_BS.shape
        pinned = own_BS.is_cuda  # from other memory the copy would wait for all that is queued on the device
        drawn_BS = torch.rand((B, 1 if whole else S), generator=self._generator, dtype=torch.float64, pin_memory=pinned)
        drawn_BS = drawn_BS.to(own_BS.device, non_blocking=pinned)
        gate_BS = ((drawn_BS < share[bin_BS]) & counted_BS).float()
        self._owed += own - gate_BS.sum().double()
        return gate_BS

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state(), "tally": self._tally, "own": self._own, "owed": self._owed}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])
        self._tally, self._own, self._owed = (state[name].to(self._tally.device, copy=True) for name in ("tally", "own", "owed"))


def among(ids_N: Sequence[int], d_sae: int) -> Tensor:
    """`bool[F]`, true for these features."""
    found_F = torch.zeros(d_sae, dtype=torch.bool)
    found_F[list(ids_N)] = True
    return found_F


def matched_weights(weights_F: Tensor, norm_F: Tensor, rate_F: Tensor | None, seed: int, contrast_F: Tensor | None = None) -> Tensor:
    """The same weights on other features, each on one of `matched_features`, the largest first; where there are not as many the smallest
    go. Weights above 0 are what speaks for the concept: these features are not drawn, and none that tells its examples (`contrast`)."""
    barred_F = barred(weights_F > 0, contrast_F, rate_F)
    ids_N = weights_F.abs().argsort(descending=True, stable=True)[: int(weights_F.count_nonzero())].tolist()
    drawn_N = matched_features(ids_N, norm_F, rate_F, seed, barred_F)
    mixed_F = torch.zeros_like(weights_F)
    mixed_F[drawn_N] = weights_F[ids_N[: len(drawn_N)]]
    return mixed_F
