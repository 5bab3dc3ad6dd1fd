"""The parts of a block, found by what they are and not by one list of names: its mixer (attention, state space), its MLP, and what
each adds to the residual stream.

A block's parts are its direct children with matrices in them that are no norms. Which is which follows from their classes' names, else
from elimination and order. Where a norm stands between a part and the residual stream (Gemma, OLMo 2) follows from the data: the
block is run on a few tokens, and tensors are compared.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor, nn

from gradlens.errors import InputError

Kind = Literal["mixer", "MLP"]
_MLP = re.compile(r"(MLP|Mlp|FFN|Ffn|FeedForward|FeedForwardNetwork|MoE|Moe|MoeBlock|MoEBlock|Experts)$")
_MIXER = re.compile(r"Attention|Attn|Mixer|Mamba|SSM|DeltaNet|Recurrent|Conv|Retention|Lstm|LSTM")
# The matrix that ends a part, by its usual names.
OUT = {
    "mixer": ("o_proj", "out_proj", "c_proj", "dense", "wo", "proj", "linear_out"),
    "MLP": ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "proj_2"),
}


def parts(block: nn.Module) -> dict[str, nn.Module]:
    """A block's direct children that hold a matrix and are no norms, in their order."""
    return {name: child for name, child in block.named_children() if not _is_norm(child) and any(p.dim() > 1 for p in child.parameters())}


def kind_of(module: nn.Module) -> Kind | None:
    """What a part is by its class's name; None where that does not say."""
    name = type(module).__name__
    if _MLP.search(name):
        return "MLP"
    return "mixer" if _MIXER.search(name) else None


def part(block: nn.Module, kind: Kind, where: str) -> tuple[str, nn.Module]:
    """The block's only part of a kind, and its name there. Raises `InputError` that lists the parts where there is none, or several."""
    children = parts(block)
    kinds = {name: kind_of(child) for name, child in children.items()}
    mine = [name for name, found in kinds.items() if found == kind]
    if not mine and len(children) == 2:
        first, second = children  # by elimination, else by order: mixers come first
        known = {name: found for name, found in kinds.items() if found}
        mine = [name for name in children if name not in known] if known else [first if kind == "mixer" else second]
    if len(mine) > 1 and "self_attn" in mine:  # a state space beside attention (Falcon H1)
        mine = ["self_attn"]
    if len(mine) == 1:
        return mine[0], children[mine[0]]
    listed = ", ".join(f"{where}.{name} ({type(child).__name__})" for name, child in children.items()) or "none"
    raise InputError(f"{where} has {'several parts that are' if mine else 'no part that is'} its {kind}; its parts: {listed}")


def inner_path(block: nn.Module, rest: str, where: str) -> str:
    """The path in the block that `rest` means: as it is, or with `self_attn`, `mlp` and their last matrix by what they are here."""
    paths = dict(block.named_modules())
    if rest in paths:
        return rest
    head, _, tail = rest.partition(".")
    kind: Kind | None = {"self_attn": "mixer", "mlp": "MLP"}.get(head)
    if kind is None:
        return rest
    name = head if head in paths else part(block, kind, where)[0]
    if tail == ("o_proj" if kind == "mixer" else "down_proj"):
        tail = next((known for known in OUT[kind] if f"{name}.{known}" in paths), tail)
    return f"{name}.{tail}" if tail else name


def added(model: nn.Module, block: nn.Module, kind: Kind, where: str) -> nn.Module:
    """The module that puts out what a part adds to the residual stream: the part, or the norm after it. Raises `InputError` where no
    module does."""
    name, module = part(block, kind, where)
    flow = Flow(model, [block])
    if flow.puts_out_stream(block, module):
        raise InputError(
            f"{where}.{name} ({type(module).__name__}) puts out the residual stream itself, with what it adds already in it; "
            f"read {where}.{'resid_mid' if kind == 'mixer' else ''}".rstrip(".")
        )
    return flow.norm_after(block, module) or module


def between(model: nn.Module, block: nn.Module, where: str) -> nn.Module:
    """The module whose input is the residual stream between mixer and MLP. Raises `InputError` where both read the block's input."""
    _, mlp = part(block, "MLP", where)
    part(block, "mixer", where)
    flow = Flow(model, [block])
    first = flow.norm_before(block, mlp) or mlp
    if flow.inputs and _same(flow.inputs[first], flow.inputs[block]):
        raise InputError(f"{where} computes its mixer and its MLP side by side: there is no residual stream between them")
    return first


class Flow:
    """What went into and came out of some blocks and their children on a few tokens. Empty for a model without weights (meta device)."""

    def __init__(self, model: nn.Module, stack: list[nn.Module]) -> None:
        from gradlens.model.capture import Stop, inference  # capture resolves hookpoints, which needs this file

        self.inputs: dict[nn.Module, Tensor] = {}
        self.outputs: dict[nn.Module, Tensor] = {}
        weight = model.get_input_embeddings().weight  # adapters of it have one too, and nothing else
        if weight.device.type == "meta":
            return

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = taken(args, kwargs)
            if x is not None:
                self.inputs[module] = x.detach().clone()

        def after(module: nn.Module, args: tuple, output: object) -> None:
            x = put_out(output)
            if x is not None:
                self.outputs[module] = x.detach().clone()
            if module is stack[-1]:
                raise Stop

        ids = (torch.arange(1, 4) * 37 % weight.shape[0])[None].to(weight.device)
        with ExitStack() as hooks:
            for module in [module for block in stack for module in (block, *block.children())]:
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(after).remove)
            hooks.enter_context(inference(model))
            try:
                model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            except Stop:
                pass  # all blocks have been seen

    def norm_after(self, block: nn.Module, module: nn.Module) -> nn.Module | None:
        """The norm that takes what the block's part puts out, on its way to the stream."""
        if self.puts_out_stream(block, module):
            return None  # the norm after that is the next part's
        return next((norm for norm in _norms(block) if _same(self.inputs.get(norm), self.outputs.get(module))), None)

    def puts_out_stream(self, block: nn.Module, module: nn.Module) -> bool:
        """Whether the block's part puts out the stream, what it adds already in it (Bloom): what the block puts out, or what another part
        or the norm before that takes."""
        others = [part for part in parts(block).values() if part is not module]
        before = [self.norm_before(block, part) or part for part in others]
        return any(_same(self.outputs.get(module), x) for x in (self.outputs.get(block), *(self.inputs.get(first) for first in before)))

    def adds_up(self, block: nn.Module) -> bool:
        """Whether what comes out of the block is what went in and what its parts add, each times one number. True without any data."""
        x, y = self.inputs.get(block), self.outputs.get(block)
        if x is None or y is None:
            return True
        added = (self.outputs.get(self.norm_after(block, module) or module) for module in parts(block).values())
        columns = torch.stack([a.flatten().double().cpu() for a in (x, *added) if a is not None and a.numel() == y.numel()], 1)
        whole = y.flatten().double().cpu()
        rest = whole - columns @ torch.linalg.lstsq(columns, whole[:, None], driver="gelsd").solution[:, 0]
        return bool(rest.norm() <= max(1e-4, 4 * torch.finfo(y.dtype).eps) * whole.norm())

    def norm_before(self, block: nn.Module, module: nn.Module) -> nn.Module | None:
        """The norm that puts out what the block's part takes."""
        return next((norm for norm in _norms(block) if _same(self.outputs.get(norm), self.inputs.get(module))), None)


def _norms(block: nn.Module) -> list[nn.Module]:
    return [child for child in block.children() if _is_norm(child)]


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.numel() == b.numel() and bool(torch.equal(a.flatten(), b.flatten()))


def taken(args: tuple, kwargs: dict) -> Tensor | None:
    """What a module takes in: its first positional argument, else `hidden_states`, else its first tensor."""
    candidates = [*args[:1], kwargs.get("hidden_states"), *kwargs.values()]
    return next((x for x in candidates if isinstance(x, Tensor)), None)


def put_out(output: object) -> Tensor | None:
    """What a module puts out: a tensor, or the first of a tuple or list."""
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) else None
