"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`, or `params_layer_i.safetensors` of crosscoders and cross-layer transcoders).

Version 1 says what it is in its path only (`gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`), version 2 also in `config.json`.
All are JumpReLU, without b_dec taken from the input. Of a multi-layer one (`w_dec [F, layers, D]` beside each layer's own encoder) a part
`#i:o` is read: the features of file i, as they act at the layer of file o.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from gradlens.dictionaries.formats.place import Place
from gradlens.dictionaries.formats.raw import Raw
from gradlens.dictionaries.formats.tensors import need, read_slice
from gradlens.errors import InputError

NAME, NAME_2 = "gemma-scope", "gemma-scope-2"
_FILES = ("params.npz", "params.safetensors")
_PART = r"params_layer_(\d+)\.safetensors"
_HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}  # by the end of the repository's name


def recognise(place: Place) -> bool:
    return place.weights(*_FILES) is not None or bool(place.matching(_PART)) or _by_names(place) is not None


def _by_names(place: Place) -> Path | None:
    """A file of another name with the tensors of version 2 in it."""
    path = place.only(".safetensors", ".npz")
    names = place.tensor_names(path)
    return path if {"w_enc", "w_dec", "threshold"} <= names else None


def read(place: Place) -> Raw:
    if place.matching(_PART):
        return _read_part(place)
    place.whole()
    path = place.weights(*_FILES) or _by_names(place)
    assert path is not None  # recognise has seen it
    tensors = {re.sub(r"^w_(enc|dec)$", r"W_\1", name): value for name, value in place.tensors(path).items()}
    need(tensors, ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"), path)
    return _second(place, path, tensors) if path.suffix == ".safetensors" else _first(place, path, tensors)


def _first(place: Place, path: Path, tensors: dict[str, Tensor]) -> Raw:
    layer = place.layer(r"layer_(\d+)")
    repository = re.search(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)", place.context)
    size, tuned, kind = repository.groups() if repository else (None, None, None)
    embedding = "/embedding/" in f"{place.context}/"
    at = "" if layer is None else f"blocks.{layer}."
    hookpoint, hook_in = f"{at}{_HOOKS[kind]}" if at and kind in _HOOKS else "", ()
    if kind == "transcoders":
        hookpoint, hook_in = f"{at}hook_mlp_out", (f"{at}ln2.hook_normalized",)
    if embedding:  # they were trained on embeddings that Gemma had multiplied by it
        root = tensors["W_enc"].shape[0] ** 0.5
        tensors |= {"W_enc": tensors["W_enc"] / root, "W_dec": tensors["W_dec"] * root}
    return Raw(
        NAME, "jumprelu", path, {name: tensors[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}, "jumprelu",
        hookpoint="embed_tokens" if embedding else hookpoint,
        hook_in=hook_in,
        model_name=f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "") if size else None,
    )  # fmt: skip


def _second(place: Place, path: Path, tensors: dict[str, Tensor]) -> Raw:
    config = _config(place)
    hook_in, hook_out = (str(config.get(f"hf_hook_point_{side}") or "") for side in ("in", "out"))
    hook_out = hook_out or hook_in
    transcodes = hook_in != hook_out or "affine_skip_connection" in tensors or not hook_in and "transcoder" in place.context.lower()
    return Raw(
        NAME_2, "jump_relu", path, _ours(tensors), "jumprelu",
        hookpoint=hook_out if not transcodes or hook_in != hook_out else "",
        hook_in=(hook_in,) if transcodes else (),
        model_name=_model(config, place),
    )  # fmt: skip


def _ours(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: tensors[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    if "affine_skip_connection" in tensors:
        found["W_skip"] = tensors["affine_skip_connection"].T  # stored as [d_in, d_out]
    return found


def _read_part(place: Place) -> Raw:
    files = {int(re.fullmatch(_PART, path.name)[1]): path for path in place.folder.iterdir() if re.fullmatch(_PART, path.name)}
    chosen = place.matching(_PART)
    first = place.part[0] if place.part else next(iter(chosen)) if len(chosen) == 1 else None
    last = place.part[-1] if place.part else first
    if first not in files or last not in files:
        listed = f"{min(files)} to {max(files)}" if len(files) > 2 else ", ".join(map(str, sorted(files)))
        raise InputError(f"{place.folder}: one encoder per layer, here {listed}; name a part: SOURCE#3, or SOURCE#3:7 for another layer")
    path = files[first]
    tensors = {re.sub(r"^w_(enc|dec)$", r"W_\1", name): value for name, value in place.tensors(path).items()}
    need(tensors, ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"), path)
    if tensors["W_dec"].dim() != 3 or last >= tensors["W_dec"].shape[1]:
        raise InputError(
            f"{path}: w_dec has shape {list(tensors['W_dec'].shape)}, expected [d_sae, layers, d_model] with layer {last} in it"
        )
    own = _ours(tensors) if first == last else _ours({k: v for k, v in tensors.items() if k != "affine_skip_connection"})
    own["W_dec"] = tensors["W_dec"][:, last]
    if first != last:
        own["b_dec"] = read_slice(files[last], "b_dec", slice(None))
    layers = re.search(r"layer((?:_\d+)+)_width", place.context)  # a crosscoder's folder lists its layers
    number = [int(n) for n in layers[1].split("_") if n] if layers else list(range(tensors["W_dec"].shape[1]))
    if max(first, last) >= len(number):
        raise InputError(f"{place.folder}: its name lists {len(number)} layers, its w_dec has {tensors['W_dec'].shape[1]}")
    config = _config(place)
    if "clt" in re.split(r"[/_\-]", place.context.lower()) or config.get("hf_hook_point_out"):
        hook_in, hookpoint = f"layers.{number[first]}.pre_feedforward_layernorm", f"layers.{number[last]}.post_feedforward_layernorm"
    elif layers or "crosscoder" in place.context.lower():
        hook_in, hookpoint = f"layers.{number[first]}", f"layers.{number[last]}"
    else:
        hook_in, hookpoint = "", ""
    return Raw(
        NAME_2, "jump_relu (multi-layer)", path, own, "jumprelu",
        hookpoint=hookpoint, hook_in=() if hook_in == hookpoint != "" else (hook_in,), model_name=_model(config, place),
        facts={"part": {"encoder": first, "decoder": last, "of": len(number)}, "partial": True},
    )  # fmt: skip


def _config(place: Place) -> dict[str, Any]:
    """`config.json`; what it does not say from the path, as SAELens infers it."""
    config, path = place.config("config.json")
    if path is not None and path.parent != place.folder:
        config = {}  # of the repository, not of this dictionary
    architecture = config.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise InputError(f"{path}: architecture is {architecture!r}, expected 'jump_relu'")
    layer = place.layer(r"layer_(\d+)")
    if config.get("hf_hook_point_in") or layer is None:
        return config
    at, kinds = f"model.layers.{layer}", place.context.lower()
    hooks = {
        "transcoder": (f"{at}.pre_feedforward_layernorm.output", f"{at}.post_feedforward_layernorm.output"),
        "resid_post": (f"{at}.output", None),
        "attn_out": (f"{at}.self_attn.o_proj.input", None),
        "mlp_out": (f"{at}.post_feedforward_layernorm.output", None),
    }
    found = next((pair for kind, pair in hooks.items() if kind in kinds), (None, None))
    return config | {"hf_hook_point_in": found[0], "hf_hook_point_out": found[1]}


def _model(config: dict[str, Any], place: Place) -> str | None:
    name = config.get("model_name")
    if not name:
        repository = re.search(r"gemma-scope-2-(\w+-(?:pt|it))", place.context)
        name = f"gemma-3-{repository[1]}" if repository else None
    if not name:
        return None
    name = (name if "google" in name else f"google/{name}").replace("-v3", "-3")
    return name.replace("-pt", "") if "270m" in name else name  # the smallest model's name does not say pt
