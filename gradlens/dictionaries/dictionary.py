"""The frozen dictionary: encoder, decoder, activation. What it does to many tokens, fast, is in `encoding.py`.

Shape suffixes: T tokens, D d_model, O width of what is decoded (D unless it is a transcoder), F d_sae, K active features per token.
Pure functions and one frozen dataclass; files and formats are in `formats/`.
Encoders (pre = (x - b_dec if apply_b_dec_to_input else x) @ W_enc + b_enc), as in SAELens and dictionary_learning:
  relu       f = relu(pre)
  jumprelu   f = relu(pre) * (pre > threshold), strict
  topk       f = relu(the k largest pre of each token), others 0
  batchtopk  with a threshold as jumprelu; without one the k*T largest of relu(pre) over the batch
  gated      f = 1[z + b_gate > 0] * relu(z * exp(r_mag) + b_mag) with z = pre without b_enc
  groupmax   f = the largest relu(pre) of each of k groups of F/k features that follow each other, others 0
Then f * act_scale, where there is one: the unit in which the choice was made was not that of the activations.
A transcoder reads `hook_in` and its features act at `hookpoint`: x̂ = f @ W_dec + b_dec + x @ W_skipᵀ is compared with the tensor there.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gradlens.errors import InputError
from gradlens.model.hookpoints import layer_of

Activation = Literal["relu", "jumprelu", "topk", "batchtopk", "gated", "groupmax"]
ACTIVATIONS: tuple[str, ...] = ("relu", "jumprelu", "topk", "batchtopk", "gated", "groupmax")
InputNorm = Literal["none", "layer_norm", "unit_rms"]
INPUT_NORMS: tuple[str, ...] = ("none", "layer_norm", "unit_rms")
NORM_EPS = 1e-5  # added to the standard deviation by `layer_norm`, as OpenAI's and SAELens's dictionaries do


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Frozen dictionary at one hookpoint; rows of `W_dec` are in raw activation units (with an `input_norm`: times `row_scale`)."""

    W_enc: Tensor  # [D, F]
    b_enc: Tensor  # [F] (zeros for gated)
    W_dec: Tensor  # [F, O]
    b_dec: Tensor  # [O]
    activation: Activation = "relu"
    k: int | None = None  # active features per token: topk, batchtopk, groupmax
    threshold: Tensor | None = None  # [F] jumprelu, batchtopk
    b_gate: Tensor | None = None  # [F] gated
    r_mag: Tensor | None = None  # [F] gated
    b_mag: Tensor | None = None  # [F] gated
    apply_b_dec_to_input: bool = True
    hookpoint: str = ""  # where features act: canonical name, e.g. "layers.15"; "" where the source does not say
    act_scale: Tensor | None = None  # [F] > 0, see above
    W_skip: Tensor | None = None  # [O, D]
    input_norm: InputNorm = "none"  # of each token before it is encoded, undone after it is decoded
    hook_in: tuple[str, ...] = ()  # of a transcoder: where it reads ("" if that is not known); several: their tensors side by side
    metadata: dict[str, Any] = field(default_factory=dict)  # origin, recipe, health; never used in mathematics

    def __post_init__(self) -> None:
        if self.W_enc.dim() != 2 or self.W_dec.dim() != 2:
            raise InputError(f"dictionary: W_enc has shape {list(self.W_enc.shape)}, W_dec {list(self.W_dec.shape)}; expected matrices")
        D, F = self.W_enc.shape
        O = self.W_dec.shape[1] if self.hook_in else D
        expected = {"W_dec": (F, O), "b_enc": (F,), "b_dec": (O,)}
        for name in ("threshold", "b_gate", "r_mag", "b_mag", "act_scale", "W_skip"):
            if getattr(self, name) is not None:
                expected[name] = (O, D) if name == "W_skip" else (F,)
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise InputError(f"dictionary: {name} has shape {list(found)}, expected {list(shape)} (W_enc is [{D}, {F}])")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"dictionary: activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.activation in ("topk", "groupmax") and not (self.k and 0 < self.k <= F):
            raise InputError(f"dictionary: {self.activation} needs 0 < k <= {F}, found k={self.k}")
        if self.activation == "groupmax" and F % self.k:
            raise InputError(f"dictionary: groupmax needs groups of the same size, found {F} features and k={self.k}")
        if self.activation == "jumprelu" and self.threshold is None:
            raise InputError("dictionary: jumprelu needs a threshold")
        if self.activation == "batchtopk" and self.threshold is None and not self.k:
            raise InputError("dictionary: batchtopk needs a threshold or k")
        if self.activation == "gated" and (self.b_gate is None or self.r_mag is None or self.b_mag is None):
            raise InputError("dictionary: gated needs b_gate, r_mag and b_mag")
        if self.input_norm not in INPUT_NORMS:
            raise InputError(f"dictionary: input_norm {self.input_norm!r} is not one of {', '.join(INPUT_NORMS)}")
        if O != D and self.apply_b_dec_to_input:
            raise InputError(f"dictionary: b_dec of width {O} cannot be taken from inputs of width {D}: apply_b_dec_to_input must be false")
        if self.input_norm != "none" and (self.hook_in or self.W_skip is not None):
            raise InputError(f"dictionary: input_norm {self.input_norm} is known for autoencoders only, this is a transcoder")

    @property
    def work_dtype(self) -> torch.dtype:
        """The precision that is computed in: the weights', at least float32. Large dictionaries are kept in half precision."""
        return torch.promote_types(self.W_dec.dtype, torch.float32)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of the vectors at `hookpoint`: those of `W_dec`."""
        return self.W_dec.shape[1]

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
        """`<d̂_i, d̂_j>`, `[F, F]`: for small dictionaries only. Multiplied in float64: TF32, where a loop allows it, is wrong by 1e-3."""
        units = self.unit_directions()
        exact = units.double()
        return torch.cat([(rows @ exact.T).to(units.dtype) for rows in exact.split(512)])

    def along(self, v_D: Tensor) -> Tensor:
        """`<v, d̂_i>` of every feature, `[F]`, without a copy of the directions."""
        dots = [rows.to(v_D.dtype) @ v_D for rows in self._row_blocks()]
        return torch.cat(dots) / self.norms.to(v_D.dtype)

    def _row_blocks(self) -> tuple[Tensor, ...]:
        return self.W_dec.split(max(1, 2**21 // self.d_out))  # 16 MB in float64

    def unit_directions(self, features: Tensor | None = None) -> Tensor:
        """Unit decoder rows `[F, D]` (or of the given features) in `work_dtype`; a zero row stays zero."""
        rows = (self.W_dec if features is None else self.W_dec[features]).to(self.work_dtype)
        return rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)

    def read_at(self, hookpoint: str) -> tuple[str, ...]:
        """The hookpoints whose tensors, side by side, are encoded where the features act at `hookpoint`: that one itself, or of a
        transcoder `hook_in`, moved by as many blocks as `hookpoint` is away from the dictionary's own."""
        if not self.hook_in:
            return (hookpoint,)
        if "" in self.hook_in:
            raise InputError(
                f"dictionary at {hookpoint}: it reads {len(self.hook_in)} place{'s' * (len(self.hook_in) > 1)} that its files do not name; "
                "say where: dataclasses.replace(dictionary, hook_in=('layers.3.mlp.in',))"
            )
        here, own = layer_of(hookpoint), layer_of(self.hookpoint)
        if here is None or own is None or here == own:
            return self.hook_in
        return tuple(re.sub(r"^layers\.(\d+)", lambda found: f"layers.{int(found[1]) + here - own}", name) for name in self.hook_in)

    def normalised(self, x_TD: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`(z[T, D], scale[T, 1], shift[T, 1])` with x = z * scale + shift up to `NORM_EPS`; without an `input_norm` `(x, None, None)`."""
        if self.input_norm == "none":
            return x_TD, None, None
        if self.input_norm == "unit_rms":
            scale_T1 = x_TD.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return x_TD / scale_T1, scale_T1, torch.zeros_like(scale_T1)
        shift_T1 = x_TD.mean(-1, keepdim=True)
        scale_T1 = x_TD.std(-1, keepdim=True)
        return (x_TD - shift_T1) / (scale_T1 + NORM_EPS), scale_T1, shift_T1

    def row_scale(self, x_TD: Tensor) -> Tensor | None:
        """`[T, 1]`: by how much each token scales the rows of `W_dec`; None where it does not."""
        return self.normalised(x_TD)[1]

    def encoder_input(self, x_TD: Tensor) -> Tensor:
        """What `W_enc` is multiplied with, `[T, D]`."""
        x_TD = self.normalised(x_TD)[0]
        return x_TD - self.b_dec.to(x_TD.dtype) if self.apply_b_dec_to_input else x_TD

    @functools.cached_property
    def folded_bias(self) -> Tensor:
        """`b_enc` with what `b_dec` takes from the input, `[F]` in `work_dtype`: for products with an input that is left as it is."""
        if not self.apply_b_dec_to_input:
            return self.b_enc
        taken = [self.b_dec.double() @ columns.double() for columns in self.W_enc.split(max(1, 2**21 // self.d_in), dim=1)]
        return (self.b_enc.double() - torch.cat(taken)).to(self.work_dtype)

    def preactivations(self, x_TD: Tensor, features: Tensor | None = None) -> Tensor:
        """Encoder output before the activation, `[T, F]`, or `[T, S]` for the given features."""
        x_TD = self.encoder_input(x_TD)
        W_enc, b_enc = (self.W_enc, self.b_enc) if features is None else (self.W_enc[:, features], self.b_enc[features])
        return x_TD @ W_enc.to(x_TD.dtype) + b_enc

    def encode(self, x_TD: Tensor) -> Tensor:
        """`feature_acts[T, F]` >= 0 of activations `x[T, D]`. Eager: makes the whole [T, F]."""
        acts_TF = self._chosen(self.preactivations(x_TD))
        return acts_TF if self.act_scale is None else acts_TF * self.act_scale.to(acts_TF.dtype)

    def _chosen(self, pre_TF: Tensor) -> Tensor:
        if self.activation == "relu":
            return pre_TF.relu()
        if self.activation == "gated":
            return ((pre_TF + self.b_gate) > 0) * (pre_TF * self.r_mag.exp() + self.b_mag).relu()
        if self.threshold is not None and self.activation not in ("topk", "groupmax"):
            return pre_TF.relu() * (pre_TF > self.threshold)
        acts_TF = pre_TF.relu()
        if self.activation == "topk":
            val_TK, idx_TK = acts_TF.topk(self.k, dim=-1)
            return torch.zeros_like(acts_TF).scatter(-1, idx_TK, val_TK)
        if self.activation == "groupmax":
            grouped = acts_TF.unflatten(-1, (self.k, -1))
            val, idx = grouped.max(-1, keepdim=True)
            return torch.zeros_like(grouped).scatter(-1, idx, val).flatten(-2)
        flat = acts_TF.flatten()
        val, idx = flat.topk(min(self.k * acts_TF.shape[0], flat.numel()))
        return torch.zeros_like(flat).scatter(0, idx, val).view_as(acts_TF)

    def decode(self, acts_TF: Tensor, x_TD: Tensor | None = None) -> Tensor:
        """Reconstruction `[T, O]` of `feature_acts[T, F]`. `x`: what was encoded, needed where there is a `W_skip` or an `input_norm`."""
        return self.completed(acts_TF @ self.W_dec.to(acts_TF.dtype), x_TD)

    def completed(self, sum_TO: Tensor, x_TD: Tensor | None = None) -> Tensor:
        """`decode` from the sum of the active rows, `[T, O]`: biases, the way past the features, the norm undone."""
        out_TO = sum_TO + self.b_dec.to(sum_TO.dtype)
        if self.W_skip is None and self.input_norm == "none":
            return out_TO
        if x_TD is None:
            raise ValueError("decode: this dictionary needs what was encoded as well (W_skip or input_norm)")
        if self.W_skip is not None:
            return out_TO + x_TD.to(out_TO.dtype) @ self.W_skip.to(out_TO.dtype).T
        _, scale_T1, shift_T1 = self.normalised(x_TD)
        return out_TO * scale_T1 + shift_T1
