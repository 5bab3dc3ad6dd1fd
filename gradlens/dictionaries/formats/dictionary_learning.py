"""saprmarks' dictionary_learning: `trainer_i/ae.pt` and `config.json`, one class of dictionary per set of tensor names.

A run that was interrupted leaves `{step, ae, optimizer, config, norm_factor}` in `ae.pt` with its biases in the scale of training: they
are multiplied by `norm_factor`, as the library does when a run ends. A file without its config is told by the names of its tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats.place import Place
from gradlens.dictionaries.formats.raw import Raw
from gradlens.dictionaries.formats.tensors import PICKLES, finite
from gradlens.dictionaries.formats.thresholds import measured
from gradlens.errors import InputError
from gradlens.files import write_atomic
from gradlens.model.hookpoints import layer_of

NAME = "dictionary_learning"
CFG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}  # nn.Linear: transposed
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
# class -> (activation, our name -> theirs, b_dec is taken from the input)
CLASSES: dict[str, tuple[str, dict[str, str], bool]] = {
    "AutoEncoder": ("relu", _LINEAR | {"b_dec": "bias"}, True),
    "AutoEncoderNew": ("relu", _LINEAR | {"b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": (
        "gated",
        {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias", "r_mag": "r_mag", "b_gate": "gate_bias",
         "b_mag": "mag_bias"},
        True,
    ),
    "JumpReluAutoEncoder": ("jumprelu", _PLAIN | {"threshold": "threshold"}, False),
    "AutoEncoderTopK": ("topk", _LINEAR | {"b_dec": "b_dec"}, True),  # its threshold is not what it encodes with
    "BatchTopKSAE": ("batchtopk", _LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}, True),
    "MatryoshkaBatchTopKSAE": ("batchtopk", _PLAIN | {"threshold": "threshold"}, True),
}  # fmt: skip
_SCALED = ("b_enc", "b_dec", "b_gate", "b_mag", "threshold")  # by norm_factor


def recognise(place: Place) -> bool:
    if place.weights(WEIGHTS) is not None:
        return True
    path = place.only(*PICKLES)
    if path is None or "cfg.json" in place.names:  # SAELens had torch files too
        return False
    if "trainer" in place.config(CFG)[0]:
        return True
    data = place.data(path)
    return isinstance(data, dict) and (isinstance(data.get("ae"), dict) or _class_of(place.tensors(path)) is not None)


def read(place: Place) -> Raw:
    path = place.weights(WEIGHTS) or place.only(*PICKLES)
    data, found = place.data(path), place.tensors(path)
    interrupted = isinstance(data, dict) and isinstance(data.get("ae"), dict)
    config, config_path = place.config(CFG)
    trainer, buffer = config.get("trainer") or (data.get("config") if interrupted else None) or {}, config.get("buffer") or {}
    for key, value in (("trainer", trainer), ("buffer", buffer)):
        if not isinstance(value, dict):
            raise InputError(f"{config_path or path}: {key}: expected an object, found {type(value).__name__}")
    name = trainer.get("dict_class") or _class_of(found)
    if name not in CLASSES:
        what = f"dict_class is {name!r}" if name else f"its tensors are {', '.join(sorted(found))}"
        raise InputError(f"{config_path or path}: {what}; of dictionary_learning gradlens reads {', '.join(CLASSES)}")
    activation, names, subtract = CLASSES[name]
    missing = [theirs for theirs in names.values() if theirs not in found]
    if missing:
        raise InputError(f"{path}: {', '.join(missing)} missing for {name}; found {', '.join(sorted(found))}")
    tensors = {ours: found[theirs] for ours, theirs in names.items()}
    for matrix in ("W_enc", "W_dec"):
        if names[matrix].endswith(".weight"):
            tensors[matrix] = tensors[matrix].T
    k = found["k"].item() if "k" in found else trainer.get("k")
    if "threshold" in tensors and tensors["threshold"].dim() == 0:
        level = measured(tensors.pop("threshold"), path)
        if level is not None:
            tensors["threshold"] = level.repeat(tensors["W_enc"].shape[1])
    if interrupted:
        factor = float(data.get("norm_factor") or 1.0)
        tensors |= {key: value * factor for key, value in tensors.items() if key in _SCALED}
    hookpoint, hook_in = _hookpoint(trainer, buffer)
    groups = found.get("group_sizes")
    return Raw(
        NAME, name, path, tensors, activation,
        k=k if activation in ("topk", "batchtopk") else None, k_from=CFG, subtract=subtract, hookpoint=hookpoint, hook_in=hook_in,
        model_name=trainer.get("lm_name"), unit_rows=name == "AutoEncoder" and not _unit(tensors["W_dec"]),
        facts={} if groups is None else {"group_sizes": groups.tolist()},
    )  # fmt: skip


def _class_of(found: dict[str, Tensor]) -> str | None:
    """The class whose tensors these are."""
    names = set(found)
    if found.get("encoder.weight", torch.zeros(0, 0)).dim() != 2:
        return None  # a crosscoder
    if {"encoder.weight", "decoder.weight", "b_dec", "k"} <= names:
        return "AutoEncoderTopK" if "threshold" not in names or bool((found["threshold"] < 0).all()) else None
    if {"W_enc", "W_dec", "group_sizes"} <= names:
        return "MatryoshkaBatchTopKSAE"
    for name in ("GatedAutoEncoder", "AutoEncoderNew", "AutoEncoder"):
        if set(CLASSES[name][1].values()) <= names:
            return name
    return "JumpReluAutoEncoder" if set(CLASSES["JumpReluAutoEncoder"][1].values()) == names else None


def _hookpoint(trainer: dict[str, Any], buffer: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Where it acts, and of a transcoder where it reads."""
    layer, submodule = trainer.get("layer"), str(trainer.get("submodule_name") or buffer.get("submodule_name") or "resid_post")
    if not isinstance(layer, int):
        return "", ()
    parts = {"resid_post": "", "resid_pre": ".in", "mlp": ".mlp", "att": ".self_attn", "resid": ""}
    part = next((ours for theirs, ours in parts.items() if theirs in submodule), None)
    if part is None:
        return "", ()
    io, place = buffer.get("io", "out"), f"layers.{layer}{part}"
    return (f"{place}.in", ()) if io == "in" else (place, (f"{place}.in",) if io == "in_and_out" else ())


def _unit(W_dec: Tensor) -> bool:
    norms = W_dec.float().norm(dim=-1)
    return torch.allclose(norms, torch.ones_like(norms))  # as the library decides whether to normalise


def write(dictionary: Dictionary, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `ae.pt` and `config.json`. Raises `InputError` for what dictionary_learning has no class for.

    A class takes b_dec from its input or does not; where that differs, b_enc takes up the difference, which changes nothing.
    """
    name = {"relu": "AutoEncoder", "gated": "GatedAutoEncoder", "jumprelu": "JumpReluAutoEncoder", "topk": "AutoEncoderTopK"}.get(
        dictionary.activation
    )
    lacks = None
    if dictionary.activation == "batchtopk":
        level = dictionary.threshold
        if level is None or bool((level == level[0]).all()):
            name = "BatchTopKSAE"
        else:
            name = "JumpReluAutoEncoder"  # its thresholds differ
    if dictionary.activation == "relu" and not (dictionary.apply_b_dec_to_input and _unit(dictionary.W_dec)):
        name = "AutoEncoderNew"  # the other one normalises its rows when it is loaded
    if name is None:
        lacks = f"its activation is {dictionary.activation}"
    elif dictionary.hook_in or dictionary.W_skip is not None:
        lacks = "it is a transcoder"
    elif dictionary.input_norm != "none" or dictionary.act_scale is not None:
        lacks = "it normalises each token" if dictionary.input_norm != "none" else "its features have a unit of their own"
    elif layer_of(dictionary.hookpoint) is None:
        lacks = f"its hookpoint is {dictionary.hookpoint or 'not known'}, and {CFG} names a layer"
    if lacks:
        raise InputError(f"{folder}: no dictionary_learning form: {lacks}")
    _, names, subtract = CLASSES[name]
    values = {ours: getattr(dictionary, ours) for ours in (*names, "threshold") if getattr(dictionary, ours) is not None}
    if subtract != dictionary.apply_b_dec_to_input:
        shift = dictionary.b_dec @ dictionary.W_enc
        if name == "GatedAutoEncoder":
            raise InputError(
                f"{folder}: no dictionary_learning form: a gated dictionary there takes b_dec from its input, this one does not"
            )
        values["b_enc"] = values["b_enc"] + (shift if subtract else -shift)
    tensors = {}
    for ours, theirs in names.items():
        if ours == "threshold" and name == "BatchTopKSAE":
            level = values.get("threshold")
            tensors[theirs] = torch.tensor(-1.0 if level is None else float(level[0]))
            continue
        value = values[ours].detach().to("cpu", dtype)
        if not finite(value):
            raise InputError(f"{folder}: {ours} has values that {dtype} cannot hold; save with dtype=torch.float32")
        tensors[theirs] = (value.T if theirs.endswith(".weight") else value).contiguous()
    k = dictionary.k
    if name in ("AutoEncoderTopK", "BatchTopKSAE"):
        if not k:
            raise InputError(f"{folder}: no dictionary_learning form: {name} needs k, which is not known")
        tensors |= {"k": torch.tensor(k, dtype=torch.int)}
        tensors.setdefault("threshold", torch.tensor(-1.0))
    layer = layer_of(dictionary.hookpoint)
    kinds = {"": "resid_post", ".mlp": "mlp", ".self_attn": "attention", ".in": "resid_pre"}
    rest = dictionary.hookpoint.removeprefix(f"layers.{layer}")
    if rest not in kinds:
        raise InputError(f"{folder}: no dictionary_learning form: it knows no place such as {dictionary.hookpoint}")
    trainer = {
        "dict_class": name, "activation_dim": dictionary.d_in, "dict_size": dictionary.d_sae, "layer": layer,
        "lm_name": dictionary.metadata.get("model_name"), "submodule_name": f"{kinds[rest]}_layer_{layer}", "k": k,
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / WEIGHTS)
    write_atomic(folder / CFG, json.dumps({"trainer": {key: value for key, value in trainer.items() if value is not None}}))
    return folder
