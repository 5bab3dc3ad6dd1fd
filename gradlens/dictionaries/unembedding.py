"""The model's own unembedding as a dictionary of tokens: feature i is token i, its label the token's text.

A token's direction is what its logit is the product with, up to the scale of the last norm: its row of the output embeddings times that
norm's weight, less the mean over tokens, which every softmax ignores. The `K` tokens with the largest products are active: what the model
would say if it ended here (a logit lens). As for any direction (`directions.py`) the row of `W_dec` is w / ||w||².
Shape suffixes: V tokens, D d_model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.errors import InputError
from gradlens.model.hookpoints import blocks, unwrap
from gradlens.model.spelling import each_in_text

PREFIX = "unembedding:"
K = 32  # active tokens


def from_unembedding(model: nn.Module, tokenizer: Any, hookpoint: str = "") -> Dictionary:
    """The dictionary of a model in memory. Raises `InputError` for a model without output embeddings."""
    base = unwrap(model)
    head, norm = head_and_norm(base)
    scale = None if norm is None else norm_scale(norm)
    return _dictionary(head.weight.detach().cpu(), scale, tokenizer, hookpoint, f"{PREFIX}{getattr(base.config, '_name_or_path', '')}")


def load_unembedding(source: str) -> Dictionary:
    """The dictionary of `unembedding:MODEL`: only the output embeddings and the last norm are read where safetensors files hold them as
    they are, otherwise the whole model."""
    from gradlens.model.loading import load_model, load_tokenizer, resolve_model
    from gradlens.training.preflight import skeleton

    name = source.removeprefix(PREFIX)
    if not name:
        raise InputError(f"{source}: expected the name of a model, for instance {PREFIX}smollm2")
    folder = _folder(resolve_model(name))
    model, tokenizer = skeleton(str(folder)), load_tokenizer(name)
    head, norm = head_and_norm(model)
    W_U, weight_D = _read(folder, model, head.weight), None if norm is None else _read(folder, model, norm.weight)
    if W_U is None or (norm is not None and weight_D is None):  # in other files, or made of several tensors: transformers knows how
        head, norm = head_and_norm(load_model(name)[0])
        return _dictionary(head.weight.detach(), None if norm is None else norm_scale(norm), tokenizer, "", source)
    return _dictionary(W_U, None if norm is None else norm_scale(norm, weight_D), tokenizer, "", source)


def token_texts(source: str) -> list[str]:
    """The labels of `unembedding:MODEL`: its tokens as text."""
    from gradlens.model.loading import load_tokenizer

    return _texts(load_tokenizer(source.removeprefix(PREFIX)))


def _texts(tokenizer: Any) -> list[str]:
    return [repr(text) for text in each_in_text(tokenizer, range(len(tokenizer)))]


def head_and_norm(model: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """The output embeddings, and the norm before them: the last module with a weight `[D]` that is in no block."""
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no output embeddings, so its tokens have no directions")
    inner = {id(module) for block in blocks(model) for module in block.modules()}
    found = [m for m in model.modules() if id(m) not in inner and "norm" in type(m).__name__.lower() and hasattr(m, "weight")]
    found = [m for m in found if m.weight is not None and tuple(m.weight.shape) == (head.weight.shape[1],)]
    return head, found[-1] if found else None


def norm_scale(norm: nn.Module, weight_D: Tensor | None = None) -> tuple[Tensor, bool]:
    """What a norm multiplies the normalised vector with, `[D]` float32, and whether it takes the mean away first.

    Measured, as models differ (Gemma keeps the weight less one): a vector of +1 and -1 has the mean 0 and the size 1. `weight`: instead of
    the norm's own, which may have no values yet.
    """
    norm = copy.deepcopy(norm)
    norm = (norm.to_empty(device="cpu") if weight_D is not None else norm.cpu()).float()
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            if weight_D is not None:
                parameter.copy_(weight_D if name == "weight" else torch.zeros_like(parameter))
        one_D = torch.ones_like(norm.weight)
        sign_D = one_D - 2 * (torch.arange(len(one_D)) % 2)
        return (norm(sign_D) - norm(-sign_D)) / 2 * sign_D, bool((norm(one_D) - norm(-one_D)).abs().max() < 1e-2)


def _dictionary(W_U: Tensor, scale: tuple[Tensor, bool] | None, tokenizer: Any, hookpoint: str, source: str) -> Dictionary:
    W_VD = W_U[: len(tokenizer)].float()
    if scale is not None:
        scale_D, centred = scale
        W_VD = W_VD * scale_D
        W_VD = W_VD - W_VD.mean(-1, keepdim=True) if centred else W_VD
    W_VD = W_VD - W_VD.mean(0)
    V, D = W_VD.shape
    size_V1 = W_VD.square().sum(-1, keepdim=True).clamp_min(1e-12)
    return Dictionary(
        W_enc=W_VD.T, b_enc=W_VD.new_zeros(V), W_dec=W_VD / size_V1, b_dec=W_VD.new_zeros(D), activation="topk", k=min(K, V),
        apply_b_dec_to_input=False, hookpoint=hookpoint,
        metadata={"source": source, "labels": _texts(tokenizer)},
    )  # fmt: skip


def _folder(source: str) -> Path:
    """The folder of a model's files; those of a name on the hub are fetched, or found in the cache."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise InputError(f"{PREFIX}{source}: the model could not be had ({str(error).splitlines()[0]:.200})") from None


def _read(folder: Path, model: nn.Module, weight: Tensor) -> Tensor | None:
    """One weight from the model's safetensors files, under any of the names that it has in the model (embeddings may be tied) or that
    transformers turns into one of them; None where no file has it as it is."""
    names = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight}
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    found = next((key for key in files if any(name == key or name.endswith(f".{key}") for name in names)), None)
    found = found or next((key for key, name in _renamed(list(files), model) if name in names), None)
    if found is None:
        return None
    with safe_open(files[found], framework="pt") as file:
        return file.get_tensor(found)


def _renamed(keys: list[str], model: nn.Module) -> list[tuple[str, str]]:
    """The keys of the model's files, each with the name in the model that it is loaded under (GPT-NeoX's head is `embed_out` in its files),
    less those that are converted as well."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        mapping, there = get_model_conversion_mapping(model), model.state_dict()
        renamings, converters = ([entry for entry in mapping if isinstance(entry, kind)] for kind in (WeightRenaming, WeightConverter))
        found = [(key, *rename_source_key(key, renamings, converters, model.base_model_prefix, there)) for key in keys]
    except (ImportError, AttributeError, TypeError):  # transformers does not promise these; without them the whole model is loaded
        return []
    return [(key, name) for key, name, converted in found if converted is None]
