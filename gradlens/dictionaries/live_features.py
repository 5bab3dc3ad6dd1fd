"""Activations of a few features as a differentiable function of the model's activations: what `penalty` and `constrain` act on.

Shape suffixes: T tokens, D d_model, N features asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import ROOM, encode_active


def live_features(dictionary: Dictionary, x_TD: Tensor, ids_N: Tensor) -> Tensor:
    """`feature_acts[T, N]` of some features, differentiable in x; the same values as `Dictionary.encode`, without its [T, F].

    Which features fire is looked at without a gradient, so it is that of the active ones: a feature that is off has none.
    """
    with torch.no_grad():
        idx_TK, val_TK = encode_active(dictionary, x_TD.detach(), room=ROOM)
        slot_F = torch.full((dictionary.d_sae,), len(ids_N), device=ids_N.device).scatter(
            0, ids_N, torch.arange(len(ids_N), device=ids_N.device)
        )
        active_TN = torch.zeros(len(x_TD), len(ids_N) + 1, device=x_TD.device, dtype=torch.bool)
        active_TN = active_TN.scatter(1, torch.where(val_TK > 0, slot_F[idx_TK], len(ids_N)), True)[:, :-1]
    acts_TN = dictionary.preactivations(x_TD, ids_N)
    if dictionary.activation == "gated":
        acts_TN = acts_TN * dictionary.r_mag[ids_N].exp() + dictionary.b_mag[ids_N]
    if dictionary.act_scale is not None:
        acts_TN = acts_TN * dictionary.act_scale[ids_N].to(acts_TN.dtype)
    return torch.where(active_TN, acts_TN, 0.0)


def live_features_eager(dictionary: Dictionary, x_TD: Tensor, ids_N: Tensor) -> Tensor:
    """The same by definition, with the whole [T, F]."""
    return dictionary.encode(x_TD)[:, ids_N]
