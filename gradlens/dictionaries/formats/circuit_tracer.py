"""circuit-tracer: per-layer transcoders (`layer_i.safetensors`) and cross-layer ones (`W_enc_i.safetensors`, `W_dec_i.safetensors`).

`W_enc [F, D]` is transposed, `W_dec` is not. `config.yaml`, in the folder or above it, names the model and the hooks. A cross-layer
transcoder has one encoder per layer and writes to this and every later layer, `W_dec_i [F, layers - i, D]`: `#i:o` is its features of layer
i as they act at layer o, `#i` at their own. What layer o puts out is the sum over all i: one part does not reconstruct it (`partial`).
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from gradlens.dictionaries.formats.place import Place, locate
from gradlens.dictionaries.formats.raw import Raw
from gradlens.dictionaries.formats.tensors import read_slice
from gradlens.dictionaries.formats.thresholds import per_feature
from gradlens.errors import InputError

NAME = "circuit-tracer"
CFG = ("config.yaml", "config.yml")
_LAYER, _ENC, _DEC = r"layer_(\d+)\.safetensors", r"W_enc_(\d+)\.safetensors", r"W_dec_(\d+)\.safetensors"


def recognise(place: Place) -> bool:
    if place.matching(_ENC) or place.matching(_DEC):
        return True
    files = place.matching(_LAYER)
    if files:
        return {"W_enc", "W_dec", "b_enc", "b_dec"} <= place.tensor_names(next(iter(files.values())))
    return "model_kind" in place.config(*CFG)[0] and place.file is None


def read(place: Place) -> Raw:
    config, config_path = place.config(*CFG)
    hook_in, hook_out = (str(config.get(f"feature_{side}_hook") or "") for side in ("input", "output"))
    model = config.get("model_name")
    if place.matching(_ENC) or place.matching(_DEC):
        return _cross_layer(place, hook_in or "hook_resid_mid", hook_out or "hook_mlp_out", model)
    files = place.matching(_LAYER)
    layer = _one(place, sorted(files) or list(range(len(config.get("transcoders") or []))))
    hooks = {"hookpoint": f"blocks.{layer}.{hook_out or 'hook_mlp_out'}", "hook_in": (f"blocks.{layer}.{hook_in or 'mlp.hook_in'}",)}
    if not files:  # a list of where they are
        from gradlens.dictionaries.formats import read_raw

        there = locate(str(config["transcoders"][layer]).partition("?")[0])
        raw = read_raw(there)
        if raw is None:
            raise InputError(f"{config_path}: transcoders[{layer}]: nothing known at {there.source}")
        raw.hookpoint, raw.hook_in, raw.model_name = hooks["hookpoint"], hooks["hook_in"], model or raw.model_name
        return raw
    path = files[layer]
    found = place.tensors(path)
    for name in found:
        if "log_threshold" in name:
            raise InputError(
                f"{path}: {name}: thresholds stored as logarithms are of an older form that circuit-tracer does not read either"
            )
    tensors = {name: found[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip") if name in found}
    tensors["W_enc"] = tensors["W_enc"].T
    level = found.get("activation_function.threshold", found.get("threshold"))
    return Raw(
        NAME, "per-layer transcoder", path, tensors | _threshold(level, tensors["b_enc"], path),
        "relu" if level is None else "jumprelu",
        model_name=model, **hooks,
    )  # fmt: skip


def _threshold(level: Tensor | None, b_enc: Tensor, path: Path) -> dict[str, Tensor]:
    return {} if level is None else {"threshold": per_feature(level, b_enc, path)}


def _cross_layer(place: Place, hook_in: str, hook_out: str, model: str | None) -> Raw:
    named = place.matching(_ENC) or place.matching(_DEC)
    encoders = {int(m[1]): place.folder / name for name in place.names if (m := re.fullmatch(_ENC, name))}
    decoders = {int(m[1]): place.folder / name for name in place.names if (m := re.fullmatch(_DEC, name))}
    first = _one(place, sorted(named))
    last = place.part[-1] if place.part else first
    for files, number, what in ((encoders, first, "W_enc"), (decoders, first, "W_dec"), (encoders, last, "W_enc")):
        if number not in files:
            raise InputError(f"{place.folder / f'{what}_{number}.safetensors'}: no such file; layer {first} at {last} needs it")
    own = place.tensors(encoders[first])
    missing = [name for name in (f"W_enc_{first}", f"b_enc_{first}", f"b_dec_{first}") if name not in own]
    if missing:
        raise InputError(f"{encoders[first]}: {', '.join(missing)} missing; found {', '.join(sorted(own))}")
    if last < first:
        raise InputError(f"{place.source}: features of layer {first} act at layers {first} and above, not at {last}")
    tensors = {
        "W_enc": own[f"W_enc_{first}"].T, "b_enc": own[f"b_enc_{first}"],
        "W_dec": read_slice(decoders[first], f"W_dec_{first}", (slice(None), last - first)),
        "b_dec": own[f"b_dec_{first}"] if first == last else read_slice(encoders[last], f"b_dec_{last}", slice(None)),
    }  # fmt: skip
    level = own.get(f"threshold_{first}")
    return Raw(
        NAME, "cross-layer transcoder", decoders[first], tensors | _threshold(level, tensors["b_enc"], encoders[first]),
        "relu" if level is None else "jumprelu",
        hookpoint=f"blocks.{last}.{hook_out}", hook_in=(f"blocks.{first}.{hook_in}",), model_name=model,
        facts={"part": {"encoder": first, "decoder": last, "of": len(encoders)}, "partial": True},
    )  # fmt: skip


def _one(place: Place, layers: list[int]) -> int:
    """The layer that is asked for."""
    if place.part:
        if place.part[0] in layers:
            return place.part[0]
        raise InputError(f"{place.source}: no layer {place.part[0]}; here are {_listed(layers)}")
    if len(layers) == 1:
        return layers[0]
    raise InputError(f"{place.source}: holds the transcoders of layers {_listed(layers)}; name one: SOURCE#{layers[len(layers) // 2]}")


def _listed(layers: list[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 3 and layers[-1] - layers[0] == len(layers) - 1 else ", ".join(map(str, layers))
