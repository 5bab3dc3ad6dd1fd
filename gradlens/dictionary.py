"""The frozen dictionary: encoder, decoder, activation. What it does to many tokens, fast, is in `encoding.py`.

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

import functools
from dataclasses import dataclass, field, fields, replace
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
    def work_dtype(self) -> torch.dtype:
        """The precision that is computed in: the weights', at least float32. Large dictionaries are kept in half precision."""
        return torch.promote_types(self.W_dec.dtype, torch.float32)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dictionary:
        """The same dictionary with every tensor moved and converted."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return replace(self, **{name: value.to(device=device, dtype=dtype) for name, value in values.items() if isinstance(value, Tensor)})

    @functools.cached_property
    def norms(self) -> Tensor:
        """`||d_i||`, `[F]` in `work_dtype`, at least the smallest positive number."""
        norms_F = torch.cat([rows.to(self.work_dtype).norm(dim=-1) for rows in self._row_blocks()])
        return norms_F.clamp_min(torch.finfo(self.work_dtype).tiny)

    @functools.cached_property
    def gram(self) -> Tensor:
        """`<d̂_i, d̂_j>`, `[F, F]`: for small dictionaries only."""
        units = self.unit_directions()
        return units @ units.T

    def along(self, v_D: Tensor) -> Tensor:
        """`<v, d̂_i>` of every feature, `[F]`, without a copy of the directions."""
        dots = [rows.to(v_D.dtype) @ v_D for rows in self._row_blocks()]
        return torch.cat(dots) / self.norms.to(v_D.dtype)

    def _row_blocks(self) -> tuple[Tensor, ...]:
        return self.W_dec.split(max(1, 2**21 // self.d_in))  # 16 MB in float64

    def unit_directions(self, features: Tensor | None = None) -> Tensor:
        """Unit decoder rows `[F, D]` (or of the given features) in `work_dtype`; a zero row stays zero."""
        rows = (self.W_dec if features is None else self.W_dec[features]).to(self.work_dtype)
        return rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)

    def preactivations(self, x_TD: Tensor, features: Tensor | None = None) -> Tensor:
        """Encoder output before the activation, `[T, F]`, or `[T, S]` for the given features."""
        if self.apply_b_dec_to_input:
            x_TD = x_TD - self.b_dec
        W_enc, b_enc = (self.W_enc, self.b_enc) if features is None else (self.W_enc[:, features], self.b_enc[features])
        return x_TD @ W_enc.to(x_TD.dtype) + b_enc

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

    def decode(self, acts_TF: Tensor) -> Tensor:
        """Reconstruction `[T, D]` of `feature_acts[T, F]`."""
        return acts_TF @ self.W_dec.to(acts_TF.dtype) + self.b_dec
