"""The frozen dictionary: encoder, decoder, activation, and its health on live activations.

Shape suffixes: T tokens, D d_model, F d_sae, K active features per token.
Pure functions and one frozen dataclass; files and formats are in `formats.py`.
Encoders (pre = (x - b_dec if apply_b_dec_to_input else x) @ W_enc + b_enc), as in SAELens and dictionary_learning:
  relu       f = relu(pre)
  jumprelu   f = relu(pre) * (pre > threshold), strict
  topk       f = relu(the k largest pre of each token), others 0
  batchtopk  with a threshold as jumprelu; without one the k*T largest of relu(pre) over the batch
  gated      f = 1[z + b_gate > 0] * relu(z * exp(r_mag) + b_mag) with z = pre without b_enc
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gradlens.errors import InputError

Activation = Literal["relu", "jumprelu", "topk", "batchtopk", "gated"]
ACTIVATIONS: tuple[str, ...] = ("relu", "jumprelu", "topk", "batchtopk", "gated")


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Frozen dictionary at one hookpoint; rows of `W_dec` are in raw activation units."""

    W_enc: Tensor  # [D, F]
    b_enc: Tensor  # [F] (zeros for gated)
    W_dec: Tensor  # [F, D]
    b_dec: Tensor  # [D]
    activation: Activation = "relu"
    k: int | None = None  # active features per token: topk, batchtopk
    threshold: Tensor | None = None  # [F] jumprelu, batchtopk
    b_gate: Tensor | None = None  # [F] gated
    r_mag: Tensor | None = None  # [F] gated
    b_mag: Tensor | None = None  # [F] gated
    apply_b_dec_to_input: bool = True
    hookpoint: str = ""  # canonical name, e.g. "layers.15"; "" where the source does not say
    metadata: dict[str, Any] = field(default_factory=dict)  # origin, recipe, health; never used in mathematics

    def __post_init__(self) -> None:
        D, F = self.W_enc.shape
        expected = {"b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
        for name in ("threshold", "b_gate", "r_mag", "b_mag"):
            if getattr(self, name) is not None:
                expected[name] = (F,)
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise InputError(f"dictionary: {name} has shape {list(found)}, expected {list(shape)} (W_enc is [{D}, {F}])")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"dictionary: activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.activation == "topk" and not (self.k and 0 < self.k <= F):
            raise InputError(f"dictionary: topk needs 0 < k <= {F}, found k={self.k}")
        if self.activation == "jumprelu" and self.threshold is None:
            raise InputError("dictionary: jumprelu needs a threshold")
        if self.activation == "batchtopk" and self.threshold is None and not self.k:
            raise InputError("dictionary: batchtopk needs a threshold or k")
        if self.activation == "gated" and (self.b_gate is None or self.r_mag is None or self.b_mag is None):
            raise InputError("dictionary: gated needs b_gate, r_mag and b_mag")

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dictionary:
        """The same dictionary with every tensor moved and converted."""
        moved = {name: value.to(device=device, dtype=dtype) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def unit_directions(self, features: Tensor | None = None) -> Tensor:
        """Unit decoder rows `[F, D]` (or of the given features); a zero row stays zero."""
        rows = self.W_dec if features is None else self.W_dec[features]
        return rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)

    def preactivations(self, x_TD: Tensor, features: Tensor | None = None) -> Tensor:
        """Encoder output before the activation, `[T, F]`, or `[T, S]` for the given features."""
        if self.apply_b_dec_to_input:
            x_TD = x_TD - self.b_dec
        if features is None:
            return x_TD @ self.W_enc + self.b_enc
        return x_TD @ self.W_enc[:, features] + self.b_enc[features]

    def encode(self, x_TD: Tensor) -> Tensor:
        """`feature_acts[T, F]` >= 0 of activations `x[T, D]`. Eager: makes the whole [T, F]."""
        pre_TF = self.preactivations(x_TD)
        if self.activation == "relu":
            return pre_TF.relu()
        if self.activation == "gated":
            return ((pre_TF + self.b_gate) > 0) * (pre_TF * self.r_mag.exp() + self.b_mag).relu()
        if self.threshold is not None and self.activation != "topk":
            return pre_TF.relu() * (pre_TF > self.threshold)
        acts_TF = pre_TF.relu()
        if self.activation == "topk":
            val_TK, idx_TK = acts_TF.topk(self.k, dim=-1)
            return torch.zeros_like(acts_TF).scatter(-1, idx_TK, val_TK)
        flat = acts_TF.flatten()
        val, idx = flat.topk(min(self.k * acts_TF.shape[0], flat.numel()))
        return torch.zeros_like(flat).scatter(0, idx, val).view_as(acts_TF)

    def encode_active(self, x_TD: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
        """Active pairs `(idx[T, K], val[T, K])`: feature ids and activations, padded with id 0 and value 0.

        Equal to `encode` scattered to pairs; works in chunks of tokens, so that no [T, F] is kept.
        K is k for topk, else the largest number of active features of any token.
        """
        if x_TD.shape[0] == 0:
            return x_TD.new_zeros((0, 1), dtype=torch.long), x_TD.new_zeros((0, 1))
        if self.activation == "batchtopk" and self.threshold is None:
            chunk = x_TD.shape[0]  # the batch decides together
        parts = []
        for x in x_TD.split(chunk):
            acts = self.preactivations(x).relu() if self.activation == "topk" else self.encode(x)
            width = self.k if self.activation == "topk" else int((acts > 0).sum(-1).max().item())
            val, idx = acts.topk(max(width, 1), dim=-1)
            parts.append((idx.where(val > 0, 0), val))
        K = max(val.shape[1] for _, val in parts)
        pad = torch.nn.functional.pad
        return (
            torch.cat([pad(idx, (0, K - idx.shape[1])) for idx, _ in parts]),
            torch.cat([pad(val, (0, K - val.shape[1])) for _, val in parts]),
        )

    def decode(self, acts_TF: Tensor) -> Tensor:
        """Reconstruction `[T, D]` of `feature_acts[T, F]`."""
        return acts_TF @ self.W_dec + self.b_dec


@dataclass(frozen=True)
class Health:
    """How well a dictionary fits live activations."""

    fvu: float  # fraction of variance unexplained, sum ||x - x̂||² / sum ||x - mean x||²; NaN where there is no variance
    l0: float  # mean number of active features per token
    dead: float  # share of features that fired on no token
    tokens: int


def health(dictionary: Dictionary, x_TD: Tensor, chunk: int = 1024) -> Health:
    """FVU, L0 and dead fraction of a dictionary on activations `x[T, D]`."""
    fired = torch.zeros(dictionary.d_sae, dtype=torch.bool, device=x_TD.device)
    residual = l0 = 0.0
    for x in x_TD.split(chunk):
        acts = dictionary.encode(x)
        residual += (x - dictionary.decode(acts)).double().square().sum().item()
        l0 += (acts > 0).sum().item()
        fired |= (acts > 0).any(0)
    total = (x_TD - x_TD.mean(0)).double().square().sum().item()
    T = x_TD.shape[0]
    return Health(fvu=residual / total if total > 0 else math.nan, l0=l0 / max(T, 1), dead=1 - fired.double().mean().item(), tokens=T)
