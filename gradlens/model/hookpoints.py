"""Hookpoints: from a name to the place in the model whose tensor is read.

Canonical names are module paths below the base model: `layers.15` is the output of block 15 (the residual stream after it),
`layers.15.mlp` what that block's MLP puts out, `layers.15.mlp.in` what it takes in. The list of blocks and the parts of a block are found
by structure (`structure.py`), so that `layers.15` also names `transformer.h.15` of GPT-2 and `layers.15.self_attn` the mixer of a Mamba
block. `attn_out` and `mlp_out` are what a block's parts add to the residual stream, `resid_mid` the stream between them.
TransformerLens, SAELens and nnsight names are accepted as aliases.
Several dictionaries at one place have names of their own after a `#`: `layers.15` and `layers.15#probes` read the same tensor.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradlens.errors import ConfigError, InputError, RunError
from gradlens.model import structure

# TransformerLens names below `blocks.L.`
_ALIASES = {
    "hook_resid_post": "layers.{L}",
    "hook_resid_mid": "layers.{L}.resid_mid",
    "hook_mlp_in": "layers.{L}.resid_mid",
    "hook_mlp_out": "layers.{L}.mlp_out",
    "hook_attn_out": "layers.{L}.attn_out",
    "attn.hook_z": "layers.{L}.self_attn.o_proj.in",
    "mlp.hook_in": "layers.{L}.mlp.in",
    "mlp.hook_post": "layers.{L}.mlp.down_proj.in",
}
_ELSEWHERE = re.compile(r"vision|visual|image|audio|speech")  # towers with lists of blocks of their own


@dataclass(frozen=True)
class Hookpoint:
    """What a module puts out, or takes in."""

    name: str  # canonical
    module: nn.Module
    at_input: bool = False

    def watch(self, look: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `look(h)` with the tensor here in every forward pass until the handle is removed; what it returns takes the tensor's place,
        unless it is None."""
        if self.at_input:
            return self.module.register_forward_pre_hook(lambda module, args, kwargs: self._on_input(look, args, kwargs), with_kwargs=True)
        return self.module.register_forward_hook(lambda module, args, output: self._on_output(look, output))

    def _on_input(self, look: Callable[[Tensor], Tensor | None], args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        h = structure.taken(args, kwargs)
        if h is None:
            raise RunError(f"hookpoint {self.name}: {type(self.module).__name__} was called without a tensor")
        new = look(h)
        if new is None:
            return None
        return tuple(new if x is h else x for x in args), {key: new if x is h else x for key, x in kwargs.items()}

    def _on_output(self, look: Callable[[Tensor], Tensor | None], output: object) -> object:
        h = structure.put_out(output)
        if h is None:
            raise RunError(f"hookpoint {self.name}: {type(self.module).__name__} put out {type(output).__name__}, expected a tensor")
        new = look(h)
        if new is None:
            return None
        if isinstance(output, list):
            return [new, *output[1:]]
        return (new, *output[1:]) if isinstance(output, tuple) else new


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
    """The model's list of blocks: the longest `ModuleList` that is not inside another one, nor in a tower for images or sound."""
    lists = [(name, module) for name, module in unwrap(model).named_modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    found = [(name, module) for name, module in lists if not _ELSEWHERE.search(name)]
    outermost = [(n, m) for n, m in found if not any(n.startswith(other + ".") for other, _ in found if other)]
    if not outermost:
        raise InputError(f"{type(unwrap(model)).__name__} has no list of blocks; name a module path as hookpoint instead")
    return max(outermost, key=lambda pair: len(pair[1]))[1]


def place(name: str) -> str:
    """The canonical hookpoint without the name of a dictionary there: `layers.15#probes` -> `layers.15`."""
    return canonical(name).partition("#")[0]


def canonical(name: str) -> str:
    """The canonical form of a hookpoint name, without a model: `15`, `model.layers.15`, `blocks.15.hook_resid_post` -> `layers.15`;
    `model.layers.15.mlp.input` -> `layers.15.mlp.in`. What follows a `#` names one of several dictionaries there and stays."""
    name, separator, label = str(name).strip().partition("#")
    if separator:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", label):
            raise InputError(f"hookpoint {name}#{label}: after the # comes the name of a dictionary, of letters, digits, - and _")
        return f"{canonical(name)}#{label}"
    if name.isdigit():
        return f"layers.{name}"
    match = re.fullmatch(r"blocks\.(\d+)\.((?:\w+\.)?hook_\w+)", name)
    if match:
        return _of_transformerlens(name, int(match[1]), match[2])
    name = re.sub(r"\.outputs?(\[0\])*$", "", name)  # as nnsight writes it
    name = re.sub(r"\.inputs?(\[0\])*$", ".in", name)
    match = re.fullmatch(r"(.*\.)?(?:layers|h|blocks)\.(\d+)((?:\.\w+)*)", name)
    return f"layers.{match[2]}{match[3]}" if match and not _ELSEWHERE.search(match[1] or "") else name


def by_place(named: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`named` with its keys in canonical form. Raises `ConfigError`, which says `what` it is, where two of them mean one place."""
    found: dict[str, Any] = {}
    for name, value in named.items():
        if canonical(name) in found:
            first = next(key for key in named if canonical(key) == canonical(name))
            raise ConfigError(
                f"{what}: {first} and {name} both mean {canonical(name)}; keep one of them "
                f"(a second dictionary there has a name of its own: {canonical(name)}#NAME)"
            )
        found[canonical(name)] = value
    return found


def _of_transformerlens(name: str, layer: int, hook: str) -> str:
    if hook == "hook_resid_pre":
        return f"layers.{layer - 1}" if layer > 0 else "layers.0.in"
    if hook in _ALIASES:
        return _ALIASES[hook].format(L=layer)
    if hook in ("ln1.hook_normalized", "ln2.hook_normalized"):
        raise InputError(
            f"hookpoint {name}: the value before the norm's weight is no tensor of a Hugging Face model; "
            f"divide the rows of W_enc by that weight and read layers.{layer}.{'self_attn' if hook.startswith('ln1') else 'mlp'}.in"
        )
    raise InputError(f"hookpoint {name}: of TransformerLens's names these are known: hook_resid_pre, {', '.join(_ALIASES)}")


def find_hookpoint(model: nn.Module, name: str) -> Hookpoint:
    """The place that `name` means in this model. Raises `InputError` with near names where there is none."""
    wanted = place(name)
    match = re.fullmatch(r"layers\.(\d+)\.(attn_out|mlp_out|resid_mid)", wanted)
    if match:
        block, where = _block(model, name, int(match[1])), f"layers.{match[1]}"
        if match[2] == "resid_mid":
            return Hookpoint(wanted, structure.between(unwrap(model), block, where), at_input=True)
        return Hookpoint(wanted, structure.added(unwrap(model), block, "mixer" if match[2] == "attn_out" else "MLP", where))
    path = wanted.removesuffix(".in")
    module = find_module(model, path)
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        inside = ", ".join(f"{path}.{key}" for key in module._modules)
        raise InputError(f"hookpoint {name}: a list of modules, which puts nothing out itself; name one of {inside}")
    return Hookpoint(wanted, module, at_input=path != wanted)


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module of that name. Raises `InputError` with near names where there is none."""
    wanted = place(name)
    match = re.fullmatch(r"layers\.(\d+)((?:\.\w+)*)", wanted)
    if match:
        layer, rest = int(match[1]), match[2].lstrip(".")
        block = _block(model, name, layer)
        inner = dict(block.named_modules())
        path = structure.inner_path(block, rest, f"layers.{layer}")
        if path in inner:
            return inner[path]
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


def _block(model: nn.Module, name: str, layer: int) -> nn.Module:
    stack = blocks(model)
    if layer >= len(stack):
        last = f"layers.{len(stack) - 1}"
        raise InputError(f"hookpoint {name}: the model has blocks layers.0 to {last}; did you mean {last}?")
    return stack[layer]


def in_place(name: str) -> str:
    """The message where a model writes into a tensor after it was read (the MLP's of Falcon takes up the attention's)."""
    return f"hookpoint {name}: the model adds to this tensor in place, so what is read there is not what the module put out; choose a block"


def not_one_vector(name: str, shape: Sequence[int], tokens: Sequence[int]) -> str:
    """The message where a tensor is no `[rows, positions, width]`: streams side by side (Gemma 3n's blocks), experts' flattened tokens."""
    return (
        f"hookpoint {name}: the tensor there has shape {list(shape)} for {list(tokens)} tokens; expected one vector for each token, "
        f"[{', '.join(map(str, tokens))}, width]; a part of the block (NAME.mlp, NAME.self_attn) may have one"
    )


def same_place(model: nn.Module, a: str, b: str) -> bool:
    """Whether two names mean the same tensor of this model; a name that it does not have means none of its tensors."""
    try:
        if canonical(a) == canonical(b):
            return True
        first, second = find_hookpoint(model, a), find_hookpoint(model, b)
    except InputError:
        return False
    return first.module is second.module and first.at_input == second.at_input


def layer_of(name: str) -> int | None:
    """The block a hookpoint belongs to, or None."""
    match = re.match(r"layers\.(\d+)", canonical(name))
    return int(match[1]) if match else None


def in_stream(name: str) -> bool:
    """Whether a hookpoint is the residual stream, or what is added to it: as wide as the model."""
    return re.fullmatch(r"layers\.\d+(\.in|\.resid_mid|\.attn_out|\.mlp_out)?", place(name)) is not None


def d_model(model: nn.Module) -> int:
    """Width of the residual stream."""
    config = unwrap(model).config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return config.hidden_size
