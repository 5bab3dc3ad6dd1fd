"""What rises instead? A concept that a rule holds down may come back in features beside its own, or at a place where no rule acts.

Two kinds of neighbours: features whose decoder rows point the way of one of the concept's (`nearest`), and features that are active on the
tokens on which the concept's are (`coactive`). A rise counts as beyond chance when texts agree on it (Student's t), when as many features
that were as active before, drawn at random, do not rise as much, since training moves most features a little, and when neither do the
neighbours of other features: features that are active together move together, up or down (`rise`).
Shape suffixes: R texts, T tokens, F d_sae, N features of a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.readings.significance import MIN_TEXTS, student, student_tail
from gradlens.readings.uptake import Pairs

COUNT = 24  # neighbours of a kind at a hookpoint
ALARM = 0.01  # chance of a false alarm about one concept at one reading, over all that is looked at
MIN_RISE = 0.1  # of the activation that the concept's own features had together: a smaller rise is no displacement, however certain
LIKE = 32  # each drawn feature is one of so many whose activation before is nearest
DRAWS = 5000
NEAR = 3.0  # times as active or as little: sets that can be compared
OTHERS = 40  # features whose neighbours are looked at beside the concept's


@dataclass(frozen=True)
class Rise:
    """What a set of features did between two readings of the same texts."""

    features: int
    change: float  # of their mean activation on a token, of all together
    before: float  # that mean before
    chance_texts: float  # that texts would agree as much on a rise
    chance_features: float  # that other features would rise as much: drawn one by one, or neighbours of others; 1 for an empty set

    @property
    def chance(self) -> float:
        return max(self.chance_texts, self.chance_features)

    def alarming(self, held: float, tests: int) -> bool:
        """Beyond chance among so many `tests`, and `MIN_RISE` of `held`, what the features that a rule holds down had together before."""
        return self.chance * tests <= ALARM and self.change >= MIN_RISE * held


def nearest(dictionary: Dictionary, ids: Sequence[int], count: int = COUNT) -> list[int]:
    """The features whose directions have the largest cosine with that of any of `ids`, these left out; the nearest first."""
    best_F = torch.full((dictionary.d_sae,), -torch.inf, dtype=torch.float64)
    for unit_D in dictionary.unit_directions(torch.tensor(list(ids), device=dictionary.W_dec.device)):
        best_F = best_F.maximum(dictionary.along(unit_D).double().cpu())
    best_F[list(ids)] = -torch.inf
    found = best_F.nan_to_num(nan=-torch.inf).topk(min(count, dictionary.d_sae - len(set(ids))))
    return [int(i) for i, cosine in zip(found.indices, found.values, strict=True) if cosine > 0]


def coactive(pairs: Pairs, ids: Sequence[int], F: int, T: int, count: int = COUNT) -> list[int]:
    """The features whose being active goes most with that of any of `ids`, these left out: by correlation over tokens."""
    token_P, feature_P = pairs.token_P.long(), pairs.feature_P.long()
    own_F = torch.zeros(F, dtype=torch.bool)
    own_F[list(ids)] = True
    on_T = torch.zeros(T, dtype=torch.bool)
    on_T[token_P[own_F[feature_P]]] = True
    on = on_T.sum().double()
    each_F = torch.bincount(feature_P, minlength=F).double()
    both_F = torch.bincount(feature_P[on_T[token_P]], minlength=F).double()
    spread_F = (each_F * (T - each_F) * on * (T - on)).sqrt()
    phi_F = torch.where(spread_F > 0, (both_F * T - each_F * on) / spread_F.clamp_min(1e-30), 0.0)
    phi_F[own_F] = 0
    found = phi_F.topk(min(count, F))
    return [int(i) for i, phi in zip(found.indices, found.values, strict=True) if phi > 0]


def others(before_F: Tensor, own: Sequence[int], count: int = OTHERS, seed: int = 0) -> list[int]:
    """Features that were active before, about as much as those of `own`, which are left out: to see what their neighbours do."""
    alive_F = before_F > 0
    alive_F[list(own)] = False
    pool = alive_F.nonzero().flatten()
    if not len(pool):
        return []
    pool = pool[before_F[pool].argsort(stable=True)]
    generator = torch.Generator().manual_seed(seed)
    at = torch.searchsorted(before_F[pool].contiguous(), before_F[list(own)])[torch.randint(0, len(own), (count,), generator=generator)]
    near = at + torch.randint(-count, count + 1, (count,), generator=generator)
    return pool[near.clamp(0, len(pool) - 1)].tolist()


def rise(
    change_RF: Tensor,
    before_F: Tensor,
    ids: Sequence[int],
    aside: Sequence[int] = (),
    seed: int = 0,
    alike: Sequence[Sequence[int]] = (),
) -> Rise:
    """How a set of features rose: `change[R, F]` is each feature's mean activation on each text, now minus before, `before[F]` its mean
    before. Features of `aside` (the concept's own, say) and of the set are not drawn. `alike`: sets made in the same way of other
    features, whose rises (as shares of what they had) are taken to be normal. With fewer than `MIN_TEXTS` texts nothing is beyond
    chance."""
    if not ids:
        return Rise(0, 0.0, 0.0, 1.0, 1.0)
    change_RF, before_F, chosen_N = change_RF.double(), before_F.double(), torch.tensor(list(ids))
    mean_F = change_RF.mean(0)
    N, change, before = len(chosen_N), mean_F[chosen_N].sum().item(), before_F[chosen_N].sum().item()
    texts = student(change_RF[:, chosen_N].mean(1)) if len(change_RF) >= MIN_TEXTS else 1.0
    free_F = torch.ones(len(before_F), dtype=torch.bool)
    free_F[[*ids, *aside]] = False
    pool = free_F.nonzero().flatten()
    pool = pool[before_F[pool].argsort(stable=True)]
    if len(pool) < N:
        return Rise(N, change, before, texts, 1.0)
    width = min(LIKE, len(pool))
    first_N = (torch.searchsorted(before_F[pool].contiguous(), before_F[chosen_N]) - width // 2).clamp(0, len(pool) - width)
    generator = torch.Generator().manual_seed(seed)
    drawn_RN = first_N + torch.randint(0, width, (DRAWS, N), generator=generator)
    sums_R = mean_F[pool][drawn_RN].sum(1)
    larger = (sums_R >= change - 1e-12).sum().item()
    drawn = (larger + 1) / (DRAWS + 1)
    if not larger:  # beyond all of them: by their spread
        drawn = min(drawn, _beyond(change, sums_R))
    had = [(each, before_F[list(each)].sum().item()) for each in alike]
    had = [(each, size) for each, size in had if before / NEAR <= size <= before * NEAR]  # shares of next to nothing are of any size
    relative_N = torch.tensor([mean_F[list(each)].sum().item() / size for each, size in had if size > 0], dtype=torch.float64)
    together = _beyond(change / before, relative_N) if len(relative_N) >= MIN_TEXTS else 0.0
    return Rise(N, change, before, texts, max(drawn, together))


def _beyond(value: float, others_N: Tensor) -> float:
    """How often one more of such values would be as large, were they normal."""
    n = len(others_N)
    t = (value - others_N.mean().item()) / max(others_N.std().item() * (1 + 1 / n) ** 0.5, 1e-30)
    return student_tail(t, n) if t > 0 else 1.0
