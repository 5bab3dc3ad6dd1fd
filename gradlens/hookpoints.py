"""Hookpoints: from a name to the module whose output is read.

Canonical names are module paths below the base model: `layers.15` is the output of block 15 (the residual stream after it),
`layers.15.mlp` what that block's MLP adds. The list of blocks is found by structure, so that `layers.15` also names
`transformer.h.15` of GPT-2. TransformerLens and SAELens names are accepted as aliases.
"""

from __future__ import annotations

import difflib
import re

from torch import nn

from gradlens.errors import InputError

_ALIASES = {
    "hook_resid_post": "layers.{L}",
    "hook_mlp_out": "layers.{L}.mlp",
    "hook_attn_out": "layers.{L}.self_attn",
}


def unwrap(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside wrappers (DDP, PEFT, torch.compile)."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of transformer blocks: the longest `ModuleList` that is not inside another one."""
    found = [(name, module) for name, module in unwrap(model).named_modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    outermost = [(n, m) for n, m in found if not any(n.startswith(other + ".") for other, _ in found if other)]
    if not outermost:
        raise InputError(f"{type(unwrap(model)).__name__} has no list of blocks; name a module path as hookpoint instead")
    return max(outermost, key=lambda pair: len(pair[1]))[1]


def canonical(name: str) -> str:
    """The canonical form of a hookpoint name, without a model: `15`, `model.layers.15`, `blocks.15.hook_resid_post` -> `layers.15`."""
    name = str(name).strip()
    if name.isdigit():
        return f"layers.{name}"
    match = re.fullmatch(r"blocks\.(\d+)\.(\w+)", name)
    if match:
        layer, hook = int(match[1]), match[2]
        if hook == "hook_resid_pre" and layer > 0:
            return f"layers.{layer - 1}"
        if hook in _ALIASES:
            return _ALIASES[hook].format(L=layer)
        raise InputError(f"hookpoint {name}: only {', '.join(_ALIASES)} and hook_resid_pre (above block 0) are known TransformerLens names")
    match = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)((?:\.\w+)*)", name)
    return f"layers.{match[1]}{match[2]}" if match else name


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module whose output is hookpoint `name`. Raises `InputError` with near names where there is none."""
    wanted = canonical(name)
    match = re.fullmatch(r"layers\.(\d+)((?:\.\w+)*)", wanted)
    if match:
        stack = blocks(model)
        layer, rest = int(match[1]), match[2].lstrip(".")
        if layer >= len(stack):
            raise InputError(
                f"hookpoint {name}: the model has blocks layers.0 to layers.{len(stack) - 1}; did you mean layers.{len(stack) - 1}?"
            )
        inner = dict(stack[layer].named_modules())
        if rest in inner:
            return inner[rest]
        near = difflib.get_close_matches(rest, [n for n in inner if n and "lora" not in n], n=3, cutoff=0.3)
        raise InputError(
            f"hookpoint {name}: block {layer} has no module {rest!r}; near: {', '.join(f'layers.{layer}.{n}' for n in near) or 'none'}"
        )
    modules = dict(unwrap(model).named_modules())
    hits = [path for path in modules if path == wanted or path.endswith("." + wanted)]
    if len(hits) == 1:
        return modules[hits[0]]
    last = len(blocks(model)) - 1
    near = difflib.get_close_matches(wanted, [*modules, *(f"layers.{i}" for i in range(last + 1))], n=3, cutoff=0.5)
    raise InputError(
        f"hookpoint {name}: {'several modules' if hits else 'no module'} of that name; "
        f"block outputs are layers.0 to layers.{last}" + (f"; near: {', '.join(near)}" if near else "")
    )


def layer_of(name: str) -> int | None:
    """The block a hookpoint belongs to, or None."""
    match = re.match(r"layers\.(\d+)", canonical(name))
    return int(match[1]) if match else None


def d_model(model: nn.Module) -> int:
    """Width of the residual stream."""
    config = unwrap(model).config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return config.hidden_size
