"""Which parameters write to the residual stream: the last matrices of every block's mixer and MLP, experts and adapters included.

Shape letters: D d_model, E experts, I width of an expert, r rank of an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradlens.errors import ConfigError
from gradlens.model import structure
from gradlens.model.hookpoints import blocks, canonical, d_model, unwrap
from gradlens.model.loading import is_conv1d

# The usual names of matrices whose output is added to the residual stream.
NAMES = {"o_proj", "down_proj", "c_proj", "dense_4h_to_h", "dense", "out_proj", "fc2", "fc_out", "wo", "w2", "output_linear", "linear_out"}
Turn = Callable[[Tensor], Tensor]


def as_it_is(matrix: Tensor) -> Tensor:
    return matrix


def _last_two(matrix: Tensor) -> Tensor:
    return matrix.transpose(-1, -2)


@dataclass(frozen=True, eq=False)
class Writer:
    """A parameter and how what it writes reaches the stream."""

    part: str  # its part's name in the block
    layer: int
    kind: structure.Kind | None  # the part's
    parameter: Tensor  # [D, I], [I, D], [E, D, I], [E, I, D]; a bias [D] or [E, D]
    turn: Turn  # puts D last, and back
    low_rank: bool  # the B of LoRA, whose A changes what is written as well
    norm: nn.Module | None  # what stands between the part and the stream (Gemma, OLMo 2)

    @torch.no_grad()
    def basis(self, Q_Dr: Tensor) -> Tensor:
        """What must leave this parameter so that span(Q) leaves the stream: span(Q), through the weights of the norm after it.

        A norm also divides by the size of the whole, which turns nothing into the span.
        """
        if self.norm is None:
            return Q_Dr
        ones_D = torch.ones(1, 1, len(Q_Dr), device=Q_Dr.device, dtype=next(self.norm.parameters()).dtype)
        return torch.linalg.qr(self.norm(ones_D)[0, 0, :, None].to(Q_Dr.dtype) * Q_Dr).Q


def find_writers(model: nn.Module) -> list[Writer]:
    """Every parameter that writes to the residual stream within the blocks, trainable or not. One forward pass of a few tokens.

    Raises `ConfigError` where a part of a block has no matrix that is known to write, or where something else than its parts writes: an
    edit would pass it by.
    """
    inner, found = unwrap(model), []
    stack, width = list(blocks(model)), d_model(model)
    flow = structure.Flow(inner, stack)
    for layer, block in enumerate(stack):
        loose = []  # single matrices beside the parts, as OPT's fc1 and fc2
        for name, part in structure.parts(block).items():
            norm = flow.norm_after(block, part)
            mine = [Writer(name, layer, structure.kind_of(part), *each, norm) for each in _of_part(name, part, width)]
            found += mine
            if (other := _beside(name, part, mine)) is not None:
                raise ConfigError(_ADAPTED.format(layer=layer, other=other))
            if _is_matrix(part):
                loose.append(bool(mine))
            elif not mine:
                raise ConfigError(_UNKNOWN.format(layer=layer, name=name, kind=type(part).__name__, names=", ".join(sorted(NAMES))))
        if loose and not any(loose):
            raise ConfigError(_UNKNOWN.format(layer=layer, name="*", kind="Linear", names=", ".join(sorted(NAMES))))
        own = [name for name, parameter in block.named_parameters(recurse=False) if parameter.requires_grad]
        if own or not flow.adds_up(block):
            raise ConfigError(_OTHERWISE.format(layer=layer, kind=type(block).__name__, how=f" by {own[0]}" if own else ""))
    return found


_UNKNOWN = (
    "param and update need the matrices that write to the residual stream, and none is known in layers.{layer}.{name} ({kind}); "
    "known names are {names}; route and ablate work"
)
_ADAPTED = (
    "param and update hold what is added to matrices, and layers.{layer}.{other} changes what one writes in another way (DoRA, IA3 and "
    "their like); use plain LoRA, or route or ablate"
)
_OTHERWISE = (
    "param and update need blocks that only add to the residual stream, and layers.{layer} ({kind}) changes it{how} beside what its parts "
    "add; route and ablate work"
)


def below(writers: list[Writer], hookpoint: str) -> list[Writer]:
    """Those whose output is in the residual stream at the hookpoint. Raises `ConfigError` where its directions are not the stream's."""
    match = re.fullmatch(r"layers\.(\d+)((?:\.\w+)*)(?:#.*)?", canonical(hookpoint))
    if match is None:
        return writers
    layer, rest = int(match[1]), match[2].lstrip(".")
    if rest.endswith(".in"):
        raise ConfigError(f"param and update act on what is written to the residual stream, and {hookpoint} is not in it")
    kinds = {"in": (), "resid_mid": ("mixer",), "attn_out": ("mixer",), "self_attn": ("mixer",)}.get(rest, ("mixer", "MLP", None))
    return [writer for writer in writers if writer.layer < layer or (writer.layer == layer and writer.kind in kinds)]


def _of_part(name: str, part: nn.Module, width: int) -> Iterator[tuple[Tensor, Turn, bool]]:
    for path, module in part.named_modules():
        if isinstance(getattr(module, "down_proj", None), nn.Parameter):  # experts in one parameter
            yield module.down_proj, as_it_is if _written_last(module, width) else _last_two, False
            if isinstance(bias := getattr(module, "down_proj_bias", None), nn.Parameter):
                yield bias, as_it_is, False
        if not _is_matrix(module):
            continue
        steps = f"{name}.{path}".split(".")
        written = module.nf if is_conv1d(module) else module.out_features
        if written != width or "lora_A" in steps or not (NAMES & set(steps) or _adapts_experts(part, path)):
            continue
        yield module.weight, as_it_is if is_conv1d(module) else _last_two, "lora_B" in steps
        if module.bias is not None:
            yield module.bias, as_it_is, False


def _beside(name: str, part: nn.Module, writers: list[Writer]) -> str | None:
    """A parameter that trains within a writing matrix and is neither that nor the A of LoRA: an adapter that scales or turns what is
    written."""
    known = {id(writer.parameter) for writer in writers}
    for path, parameter in part.named_parameters():
        path = f"{name}.{path}"
        steps = path.split(".")
        if parameter.requires_grad and id(parameter) not in known and NAMES & set(steps[:-1]) and "lora_A" not in steps:
            return path
    return None


def _written_last(experts: nn.Module, width: int) -> bool:
    """Whether the last dimension of all experts' `down_proj [E, ., .]` is the one that is written."""
    told = getattr(experts, "is_transposed", None)
    return experts.down_proj.shape[-1] == width != experts.down_proj.shape[-2] if told is None else told


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _adapts_experts(part: nn.Module, path: str) -> bool:
    """Whether a module is the matrix B of an adapter of all experts' last matrices (peft: `experts.lora_B.default`)."""
    owner, _, rest = path.rpartition(".lora_B")
    return bool(rest) and getattr(part.get_submodule(owner), "parameter_name", None) == "down_proj"
