"""EleutherAI's sparsify: `HOOKPOINT/cfg.json` and `HOOKPOINT/sae.safetensors`; the folder's name is the module's path.

`encoder.weight [F, D]`, `encoder.bias`, `W_dec [F, D]` (rows are directions: no transposing), `b_dec`, optionally `W_skip`. An autoencoder
takes b_dec from its input, a transcoder (`transcode`) does not: it reads what goes into the module and writes what comes out of it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats.place import Place
from gradlens.dictionaries.formats.raw import Raw
from gradlens.dictionaries.formats.tensors import finite
from gradlens.errors import InputError
from gradlens.files import write_atomic
from gradlens.model.hookpoints import canonical

NAME = "sparsify"
CFG, WEIGHTS = "cfg.json", "sae.safetensors"


def recognise(place: Place) -> bool:
    if place.weights(WEIGHTS) is not None:
        return True
    return CFG in place.names and {"encoder.weight", "W_dec"} <= place.tensor_names(place.only(".safetensors"))


def read(place: Place) -> Raw:
    path = place.weights(WEIGHTS) or place.only(".safetensors")
    config, config_path = place.config(CFG)
    if config_path is None or config_path.parent != place.folder:
        raise InputError(f"{place.folder / CFG}: no such file; a sparsify folder has {CFG} beside {WEIGHTS}")
    found = place.tensors(path)
    missing = [name for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec") if name not in found]
    if missing:
        why = "; saved without its decoder, it has no directions" if missing == ["W_dec"] else f"; found {', '.join(sorted(found))}"
        raise InputError(f"{path}: {', '.join(missing)} missing{why}")
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise InputError(f"{config_path}: activation is {activation!r}; sparsify knows topk and groupmax")
    if config.get("signed"):
        raise InputError(f"{config_path}: signed is true: its features are chosen by their size and can be negative; that is not read")
    tensors = {"W_enc": found["encoder.weight"].T, "b_enc": found["encoder.bias"], "W_dec": found["W_dec"], "b_dec": found["b_dec"]}
    if "W_skip" in found:
        tensors["W_skip"] = found["W_skip"]
    elif config.get("skip_connection"):
        raise InputError(f"{path}: skip_connection is true in {CFG}, but W_skip is missing")
    transcodes, name = bool(config.get("transcode")), _hookpoint(place)
    return Raw(
        NAME, f"{activation}{' transcoder' if transcodes else ''}", path, tensors, activation,
        k=config.get("k"), k_from=CFG, subtract=not transcodes, hookpoint=name,
        hook_in=(f"{name}.in" if name else "",) if transcodes else (),
        model_name=config.get("model_name"),
    )  # fmt: skip


def _hookpoint(place: Place) -> str:
    """The module that the path names: its end from `layers.N` (or `h.N`) on."""
    found = re.findall(r"(?:^|[/.])((?:layers|h|blocks)\.\d+(?:\.[A-Za-z_]\w*)*)(?=/|$)", place.context.removesuffix(f"/{WEIGHTS}"))
    return canonical(found[-1]) if found else ""


def write(dictionary: Dictionary, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `cfg.json` and `sae.safetensors` into `FOLDER/HOOKPOINT` and return that. Raises `InputError` for what has no such form."""
    transcodes = bool(dictionary.hook_in)
    lacks = None
    if dictionary.activation not in ("topk", "groupmax"):
        lacks = f"its activation is {dictionary.activation}, sparsify has topk and groupmax"
    elif dictionary.d_in != dictionary.d_out:
        lacks = f"it reads vectors of width {dictionary.d_in} and writes {dictionary.d_out}"
    elif dictionary.input_norm != "none" or dictionary.act_scale is not None:
        lacks = "it normalises each token" if dictionary.input_norm != "none" else "its features have a unit of their own"
    elif transcodes and dictionary.hook_in != (f"{dictionary.hookpoint}.in",):
        lacks = (
            f"it reads {', '.join(dictionary.hook_in)} and writes {dictionary.hookpoint}; sparsify's transcoders read the module they write"
        )
    elif not dictionary.hookpoint:
        lacks = "its hookpoint is not known, and sparsify's folder is named after it"
    if lacks:
        raise InputError(f"{folder}: no sparsify form: {lacks}")
    b_enc = dictionary.b_enc
    if not transcodes and not dictionary.apply_b_dec_to_input:  # (x - b_dec) W + b = x W + (b - b_dec W)
        b_enc = b_enc + dictionary.b_dec @ dictionary.W_enc
    if transcodes and dictionary.apply_b_dec_to_input:
        b_enc = b_enc - dictionary.b_dec @ dictionary.W_enc
    tensors = {"encoder.weight": dictionary.W_enc.T, "encoder.bias": b_enc, "W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not finite(tensor):
            raise InputError(f"{folder}: {name} has values that {dtype} cannot hold; save with dtype=torch.float32")
    config = {
        "activation": dictionary.activation, "expansion_factor": 32, "normalize_decoder": False, "num_latents": dictionary.d_sae,
        "k": dictionary.k, "multi_topk": False, "skip_connection": dictionary.W_skip is not None, "transcode": transcodes,
        "d_in": dictionary.d_in,
    }  # fmt: skip
    if dictionary.metadata.get("model_name"):
        config["model_name"] = dictionary.metadata["model_name"]  # sparsify drops what it does not know
    folder = Path(folder)
    if folder.name != dictionary.hookpoint:
        folder = folder / dictionary.hookpoint
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, save(tensors))
    write_atomic(folder / CFG, json.dumps(config))
    return folder
