"""Crosscoders of the dictionary_learning forks (`model.safetensors` with `config.json`, as the hub mixin saves them, or a torch file).

One encoder reads L places at once, one decoder writes each: `encoder.weight [L, D, F]`, `decoder.weight [L, F, D]`. `SOURCE#l` is the
features as they act at place l, reading all of them side by side. What the places are (layers of one model, or one layer of several
models) the files do not say: `hook_in` is empty names until somebody gives them, and one between models cannot be read from one of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gradlens.dictionaries.formats.place import Place
from gradlens.dictionaries.formats.raw import Raw
from gradlens.dictionaries.formats.tensors import PICKLES
from gradlens.dictionaries.formats.thresholds import measured
from gradlens.errors import InputError

NAME = "crosscoder"
_CODE = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
_EPS = 1e-8  # added to the scale by the library when it undoes it


def recognise(place: Place) -> bool:
    path = _weights(place)
    if path is None or not {"encoder.weight", "decoder.weight"} <= place.tensor_names(path):
        return False
    return place.tensors(path)["encoder.weight"].dim() == 3


def _weights(place: Place) -> Path | None:
    return place.weights("model.safetensors") or place.only(".safetensors", *PICKLES)


def read(place: Place) -> Raw:
    path = _weights(place)
    assert path is not None  # recognise has seen it
    found = place.tensors(path)
    config, _ = place.config("config.json")
    missing = [name for name in ("encoder.bias", "decoder.bias") if name not in found]
    if missing:
        raise InputError(f"{path}: {', '.join(missing)} missing; found {', '.join(sorted(found))}")
    W_LDF, W_LFD = (found[f"{side}.weight"].float() for side in ("encoder", "decoder"))
    L, D, F = W_LDF.shape
    if tuple(W_LFD.shape) != (L, F, D):
        raise InputError(f"{path}: decoder.weight has shape {list(W_LFD.shape)}, expected {[L, F, D]} (encoder.weight is {[L, D, F]})")
    for name, shape in (("encoder.bias", [F]), ("decoder.bias", [L, D])):
        if list(found[name].shape) != shape:
            raise InputError(f"{path}: {name} has shape {list(found[name].shape)}, expected {shape} (encoder.weight is {[L, D, F]})")
    chosen = place.part[0] if len(place.part) == 1 else None
    if chosen is None or chosen >= L:
        raise InputError(f"{path}: one encoder for {L} places, a decoder for each; name one: SOURCE#0 to SOURCE#{L - 1}")
    if "encoder_layers" in config and config["encoder_layers"] not in (None, list(range(L))):
        raise InputError(f"{path}: encoder_layers is {config['encoder_layers']}; gradlens reads crosscoders that read every place")
    scale_LD, mean_LD = _norm(found, L, D)
    W_LDF = W_LDF * scale_LD[:, :, None]
    b_enc = found["encoder.bias"].float() - torch.einsum("ld,ldf->f", mean_LD, W_LDF)
    normed = bool((scale_LD != 1).any() or mean_LD.any())
    undo_D = (
        (1 / (scale_LD[chosen] + _EPS) if "activation_global_scale" in found else 1 / scale_LD[chosen]) if normed else W_LFD.new_ones(D)
    )
    tensors = {
        "W_enc": W_LDF.reshape(L * D, F), "b_enc": b_enc, "W_dec": W_LFD[chosen] * undo_D,
        "b_dec": found["decoder.bias"][chosen].float() * undo_D + mean_LD[chosen],
    }  # fmt: skip
    activation, k = "relu", None
    if "k" in found or "threshold" in found:
        activation, k = "batchtopk", int(found["k"]) if "k" in found else None
        norm_F = _code_norm(found, config, W_LFD, path)
        level = measured(found["threshold"], path) if "threshold" in found else None
        if level is not None:
            tensors["threshold"] = level / norm_F
        else:  # the batch chooses by f * norm
            tensors |= {"W_enc": tensors["W_enc"] * norm_F, "b_enc": b_enc * norm_F, "act_scale": 1 / norm_F}
    return Raw(
        NAME, config.get("dict_class") or ("BatchTopKCrossCoder" if k else "CrossCoder"), path, tensors, activation, k=k,
        hook_in=("",) * L, model_name=config.get("model_name"),
        facts={"part": {"decoder": chosen, "of": L}},
    )  # fmt: skip


def _norm(found: dict[str, Tensor], L: int, D: int) -> tuple[Tensor, Tensor]:
    """`(scale[L, D], mean[L, D])`: the encoder's input is (x - mean) * scale. NaN stands for no norm."""
    mean, std = found.get("activation_mean"), found.get("activation_std")
    if mean is None or std is None or mean.isnan().any() or std.isnan().any():
        return torch.ones(L, D, dtype=torch.float32), torch.zeros(L, D, dtype=torch.float32)
    mean, std = (value.float().expand(L, D) for value in (mean, std))
    whole = found.get("activation_global_scale")
    return (1 / (std + _EPS) if whole is None else whole.float().view(L, 1).expand(L, D)), mean


def _code_norm(found: dict[str, Tensor], config: dict, W_LFD: Tensor, path: Path) -> Tensor:
    """What activations are multiplied with before they are compared, `[F]`."""
    stored = found.get("code_normalization_id")
    name = _CODE.get(int(stored)) if stored is not None else str(config.get("code_normalization", "CROSSCODER")).upper()
    per_layer, whole = W_LFD.norm(dim=2).sum(0), W_LFD.norm(dim=(0, 2))
    if name == "MIXED":
        return whole * config.get("code_normalization_alpha_sae", 1.0) + per_layer * config.get("code_normalization_alpha_cc", 0.1)
    if name not in ("CROSSCODER", "SAE", "NONE"):
        raise InputError(
            f"{path}: code_normalization is {name}: each place has active features of its own, which one dictionary cannot say"
        )
    return {"CROSSCODER": per_layer, "SAE": whole, "NONE": torch.ones_like(whole)}[name]
