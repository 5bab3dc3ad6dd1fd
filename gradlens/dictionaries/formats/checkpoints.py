"""Dictionaries that are one torch file: Qwen-Scope, Goodfire, OpenAI. What they are of, and Qwen-Scope's k, stands in their names only."""

from __future__ import annotations

import re
from pathlib import Path

from gradlens.dictionaries.formats.place import Place
from gradlens.dictionaries.formats.raw import Raw
from gradlens.dictionaries.formats.tensors import PICKLES, need
from gradlens.errors import InputError

_OPENAI_HOOKS = {
    "resid_post_mlp": "hook_resid_post",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_delta_attn": "hook_attn_out",
    "mlp_post_act": "mlp.hook_post",
}


def recognise(place: Place) -> bool:
    path = _file(place)
    return path is not None and _kind(place, path) is not None


def _file(place: Place) -> Path | None:
    if place.part and place.file is None:  # Qwen-Scope's folder has a file per layer
        path = place.folder / f"layer{place.part[0]}.sae.pt"
        return path if path.is_file() else None
    return place.only(*PICKLES) or next(iter(place.matching(r"layer(\d+)\.sae\.pt").values()), None)


def _kind(place: Place, path: Path) -> str | None:
    if "cfg.json" in place.names:
        return None  # of SAELens, before it had safetensors
    names = place.tensor_names(path)
    if {"encoder_linear.weight", "decoder_linear.weight"} <= names:
        return "goodfire"
    if {"pre_bias", "latent_bias", "encoder.weight"} <= names:
        return "openai"
    return "qwen-scope" if {"W_enc", "W_dec", "b_enc", "b_dec"} == names else None


def read(place: Place) -> Raw:
    path = _file(place)
    assert path is not None  # recognise has seen it
    kind = _kind(place, path)
    if place.file is not None or kind != "qwen-scope":
        place.whole()
    return {"goodfire": _goodfire, "openai": _openai, "qwen-scope": _qwen}[kind](place, path)


def _goodfire(place: Place, path: Path) -> Raw:
    found = place.tensors(path)
    need(found, tuple(f"{side}_linear.{what}" for side in ("encoder", "decoder") for what in ("weight", "bias")), path)
    name = re.fullmatch(r"(.+)-SAE-l(\d+)", path.stem)
    tensors = {"W_enc": found["encoder_linear.weight"].T, "b_enc": found["encoder_linear.bias"],
               "W_dec": found["decoder_linear.weight"].T, "b_dec": found["decoder_linear.bias"]}  # fmt: skip
    return Raw(
        "goodfire", "relu", path, tensors, "relu",
        hookpoint=f"layers.{name[2]}" if name else "",
        model_name=("meta-llama/" if "Llama" in name[1] else "") + name[1] if name else None,
    )  # fmt: skip


def _openai(place: Place, path: Path) -> Raw:
    data, found = place.data(path), place.tensors(path)
    state = next((data[key] for key in ("state_dict", "sae") if isinstance(data.get(key), dict)), data)
    name = str(state.get("activation", "ReLU"))
    options = state.get("activation_state_dict") or {}
    if name not in ("ReLU", "TopK"):
        raise InputError(f"{path}: activation is {name!r}; gradlens reads OpenAI's ReLU and TopK")
    if "decoder.weight" not in found:
        raise InputError(f"{path}: decoder.weight is missing: its decoder is tied to the encoder, which gradlens does not read")
    where = re.search(r"/autoencoders/(\d+)", f"/{place.context}")
    location = next((hook for theirs, hook in _OPENAI_HOOKS.items() if theirs in place.context), None)
    return Raw(
        "openai", name, path,
        {"W_enc": found["encoder.weight"].T, "b_enc": found["latent_bias"], "W_dec": found["decoder.weight"].T, "b_dec": found["pre_bias"]},
        "topk" if name == "TopK" else "relu",
        k=int(options["k"]) if name == "TopK" and "k" in options else None, k_from=path.name, subtract=True,
        hookpoint=f"blocks.{where[1]}.{location}" if where and location else "",
        model_name="openai-community/gpt2" if "gpt2-small" in place.context else None,
        input_norm="layer_norm" if name == "TopK" else "none",  # as its own loader decides
    )  # fmt: skip


def _qwen(place: Place, path: Path) -> Raw:
    found = place.tensors(path)
    where = re.search(r"layer(\d+)\.sae", path.name)
    repository = re.search(r"SAE-Res-(.+)-W(\d+)K-L0_(\d+)", place.context)
    config, _ = place.config("config.json")
    k = int(repository[3]) if repository else config.get("k")
    if k is None:
        raise InputError(
            f"{path}: its k is not in the file but in the repository's name (SAE-Res-...-L0_50); keep that name in the path, "
            f'or put {{"k": 50}} into config.json beside it'
        )
    tensors = {"W_enc": found["W_enc"].T, "b_enc": found["b_enc"], "W_dec": found["W_dec"].T, "b_dec": found["b_dec"]}
    return Raw(
        "qwen-scope", "topk", path, tensors, "topk", k=k,
        hookpoint=f"layers.{where[1]}" if where else "", model_name=f"Qwen/{repository[1]}" if repository else None,
    )  # fmt: skip
