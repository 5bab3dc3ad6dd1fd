"""OpenMOSS: Llama Scope (`hyperparams.json`, `checkpoints/final.safetensors`), Llama Scope R1 and llamascopium (`config.json`,
`sae_weights.safetensors`).

Activations were scaled to a mean norm of sqrt(d_model) when these were trained, s = sqrt(d_model) / mean norm; the features are those of
x * s. Llama Scope's one threshold is stored in raw units (it is multiplied by s, as SAELens found out); that of the later ones is not.
llamascopium chooses active features by activation times decoder norm (`sparsity_include_decoder_norm`) and reports plain activations.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradlens.dictionaries.formats.place import Place
from gradlens.dictionaries.formats.raw import Raw
from gradlens.dictionaries.formats.tensors import PICKLES
from gradlens.dictionaries.formats.thresholds import per_feature
from gradlens.errors import InputError

NAME, NAME_LIBRARY = "llama-scope", "llamascopium"
_FINAL = ("final.safetensors", "pruned.safetensors", "final.pt")
_WEIGHTS = ("sae_weights.safetensors", "sae_weights.pt")
_KEYS = {"hook_point_in", "sae_type", "norm_activation"}  # a config of OpenMOSS has one of them


def recognise(place: Place) -> bool:
    path = _weights(place)
    if path is None:
        return False
    if place.find("hyperparams.json") is not None:
        return True
    keys = set(place.config("config.json")[0])
    if path.suffix in PICKLES and not keys & _KEYS:
        return False
    names = place.tensor_names(path)
    return {"W_E", "W_D"} <= names or bool({"encoder.weight", "decoder.weight"} <= names and keys & _KEYS)


def _weights(place: Place) -> Path | None:
    path = place.weights(*_WEIGHTS, *_FINAL)
    if path is None and place.file is None:
        path = next((place.folder / "checkpoints" / name for name in _FINAL if (place.folder / "checkpoints" / name).is_file()), None)
    return path


def read(place: Place) -> Raw:
    path = _weights(place)
    assert path is not None  # recognise has seen it
    config, config_path = place.config("hyperparams.json", "config.json")
    if config_path is None:
        raise InputError(f"{path}: its hyperparams.json or config.json is missing; without it the scale of its inputs is not known")
    first = config_path.name == "hyperparams.json"
    _refuse(config, config_path)
    found = place.tensors(path)
    library = "W_E" in found
    tensors = _ours(found, library, path)
    hook_in, hook_out = str(config.get("hook_point_in") or ""), str(config.get("hook_point_out") or config.get("hook_point_in") or "")
    activation, k = _activation(config, config_path, found, first)
    scale_in = _scale(config, config_path, found, tensors["W_enc"].shape[0], "in", hook_in, first)
    scale_out = _scale(config, config_path, found, tensors["W_enc"].shape[0], "out", hook_out, first)
    if activation == "jumprelu":
        tensors["threshold"] = _threshold(config, config_path, found, path, tensors["b_enc"], scale_in if first else None)
    return Raw(
        NAME_LIBRARY if library else NAME, str(config.get("act_fn", activation)), path, tensors, activation,
        k=k, k_from=config_path.name, hookpoint=hook_out, hook_in=(hook_in,) if hook_in != hook_out else (),
        model_name=config.get("model_name") or _model(place.context),
        scale_in=scale_in, scale_out=scale_out,
        chosen_by_norm=library and bool(config.get("sparsity_include_decoder_norm", True)),
    )  # fmt: skip


def _refuse(config: dict[str, Any], path: Path) -> None:
    kind = str(config.get("sae_type", "sae"))
    if kind != "sae":
        raise InputError(f"{path}: sae_type is {kind!r}; of llamascopium gradlens reads sae (autoencoders and transcoders)")
    if config.get("use_glu_encoder"):
        raise InputError(f"{path}: use_glu_encoder is true: its encoder is a product of two, which no other format has; it is not read")
    if config.get("apply_decoder_bias_to_pre_encoder"):
        raise InputError(f"{path}: apply_decoder_bias_to_pre_encoder is true; gradlens reads those whose encoder takes the input as it is")


def _ours(found: dict[str, Tensor], library: bool, path: Path) -> dict[str, Tensor]:
    names = (
        {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
        if library
        else {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
    )
    missing = [theirs for ours, theirs in names.items() if theirs not in found and ours != "b_dec"]
    if missing:
        raise InputError(f"{path}: {', '.join(missing)} missing; found {', '.join(sorted(found))}")
    tensors = {ours: found[theirs] for ours, theirs in names.items() if theirs in found}
    if not library:
        tensors |= {"W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"].T}
    if "b_dec" not in tensors:  # use_decoder_bias: false
        tensors["b_dec"] = tensors["W_dec"].new_zeros(tensors["W_dec"].shape[-1])
    return tensors


def _activation(config: dict[str, Any], path: Path, found: dict[str, Tensor], first: bool) -> tuple[str, int | None]:
    default = "jumprelu" if first or any("log_jumprelu_threshold" in name for name in found) else "relu"
    name = str(config.get("act_fn", default)).lower()
    if name not in ("relu", "jumprelu", "topk", "batchtopk"):
        raise InputError(f"{path}: act_fn is {name!r}; gradlens reads relu, jumprelu, topk and batchtopk")
    return name, config.get("top_k", 50) if name in ("topk", "batchtopk") else None


def _threshold(
    config: dict[str, Any], path: Path, found: dict[str, Tensor], weights: Path, like: Tensor, raw_scale: float | None
) -> Tensor:  # fmt: skip
    stored = next((value for name, value in found.items() if name.endswith("log_jumprelu_threshold")), None)
    if stored is not None:
        return per_feature(stored, like, weights).exp()
    value = config.get("jump_relu_threshold")
    if not isinstance(value, (int, float)):
        raise InputError(f"{path}: jump_relu_threshold is {value!r}, expected a number: it is a jumprelu dictionary")
    return torch.full(like.shape, value * (1.0 if raw_scale is None else raw_scale), dtype=torch.promote_types(like.dtype, torch.float32))


def _scale(
    config: dict[str, Any], path: Path, found: dict[str, Tensor], d_model: int, side: str, hook: str, first: bool
) -> float | None:  # fmt: skip
    """sqrt(d_model) / mean norm at one side; None where activations are taken as they are."""
    norm = config.get("norm_activation", "dataset-wise" if first else "inference")
    if norm == "inference":
        return None
    if norm != "dataset-wise":
        raise InputError(f"{path}: norm_activation is {norm!r}; gradlens reads dataset-wise (one scale) and inference (none)")
    norms = config.get("dataset_average_activation_norm") or {}
    value = norms.get(hook, norms.get(side)) if isinstance(norms, dict) else None
    stored = found.get(f"dataset_average_activation_norm.{hook}", found.get(f"dataset_average_activation_norm.{side}"))
    value = float(stored) if stored is not None else value
    if not isinstance(value, (int, float)) or not value > 0:
        raise InputError(f"{path}: norm_activation is dataset-wise, but dataset_average_activation_norm has no number for {hook or side}")
    return d_model**0.5 / value


def _model(context: str) -> str | None:
    return "meta-llama/Llama-3.1-8B" if re.search(r"Llama3_1-8B-Base", context) else None
