"""How much more the model says what speaks for a concept, by all features, weighed as its examples were told (`row_detector.py`).

`uptake` of one more feature, s = max(score, 0): mean_t (s_t - s̄)(p_t now - p_t before) over the tokens of a text, s from before training, s̄
its mean on ordinary text. The few features that were chosen for a concept may tell it badly, and then rise with whatever rows of the same
kind teach: a run on ordinary advice looked like one that learns a sulky tone (docs/decisions.md).
Shape suffixes: T tokens, R texts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradlens.concepts.concept_files import RowDetector
from gradlens.concepts.detector import weights_over
from gradlens.readings.probe import ProbeTokens
from gradlens.readings.uptake import Pairs

Key = tuple[str, str]  # concept, hookpoint


def speaks_for(tells: RowDetector, pairs: Pairs, tokens: int, d_sae: int) -> Tensor:
    """`[T]`: how much each token speaks for the concept, 0 where it speaks against it."""
    weights_F = weights_over(tells, d_sae, dtype=torch.float64)
    score_T = torch.full((tokens,), tells.bias, dtype=torch.float64)
    return score_T.index_add_(0, pairs.token_P.long(), weights_F[pairs.feature_P.long()] * pairs.value_P.double()).clamp_min_(0)


class ConceptUptake:
    """For the concepts of a run whose texts are told."""

    def __init__(self, row_detectors: Mapping[Key, RowDetector], sizes: Mapping[str, int]) -> None:
        self._tells = {key: tells for key, tells in row_detectors.items() if key[1] in sizes}
        self._sizes = sizes
        self.ordinary: dict[str, dict[str, float]] = {}  # concept -> hookpoint -> mean on ordinary text; a checkpoint has it
        self._said: dict[Key, Tensor] = {}  # at each of the probe's tokens

    def __bool__(self) -> bool:
        return bool(self._tells)

    def begin(self, reference: ProbeTokens | None) -> None:
        """Before training; `reference`: ordinary text with its pairs, None: there is none to compare with."""
        for concept, name in self._tells:
            mean = 0.0 if reference is None else self._of((concept, name), reference).mean().item()
            self.ordinary.setdefault(concept, {})[name] = mean

    def read(self, key: Key, known: ProbeTokens, gain_T: Tensor) -> tuple[Tensor, float] | None:
        """`(uptake of every text [R], gain in probability of the tokens that speak for it)`; None where texts are not told."""
        if key not in self._tells or key[1] not in self.ordinary.get(key[0], {}):
            return None
        if key not in self._said:
            self._said[key] = self._of(key, known)
        said_T, row_T = self._said[key], known.row_T.long()
        sums_R = torch.zeros(int(row_T.max()) + 1, dtype=torch.float64)
        sums_R.index_add_(0, row_T, (said_T - self.ordinary[key[0]][key[1]]) * gain_T.double())
        gain = (said_T * gain_T).sum() / said_T.sum().clamp_min(1e-12)
        return sums_R / torch.bincount(row_T).clamp_min(1), gain.item()

    def _of(self, key: Key, known: ProbeTokens) -> Tensor:
        return speaks_for(self._tells[key], known.pairs[key[1]], len(known.row_T), self._sizes[key[1]])
