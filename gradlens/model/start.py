"""What a model with an adapter was when its run began.

A LoRA that starts at nothing is switched off for it, which costs nothing. Others start at something (PiSSA, OLoRA, an adapter that is
trained further), or are not all that is trained (norms, biases): of those the trained parameters are remembered, and put in their places
while the model before training is asked. That costs one copy of what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from gradlens.model.hookpoints import unwrap

_BEGINS_AT_NOTHING = {"lora_B", "lora_embedding_A"}  # one factor of the product; of the other anything may be there
_ZERO = (True, "gaussian")  # `init_lora_weights` with which one factor begins at 0
_OTHER_FACTOR = {"lora_A", "lora_embedding_B", "modules_to_save"}  # the last: copies, which are switched off with the adapter


@dataclass(frozen=True)
class Start:
    """`weights`: of the trained parameters, where the adapter's switch does not lead back. `known`: whether it can be had at all."""

    weights: tuple[tuple[nn.Parameter, Tensor], ...] = ()
    known: bool = True


_STARTS: WeakKeyDictionary[nn.Module, Start] = WeakKeyDictionary()


def remember(model: nn.Module, resumed: bool = False, again: bool = True) -> None:
    """To be called before the first step. `resumed`: its weights are no longer those, and only the adapter's switch can lead back. `again`:
    False leaves what is remembered as it is. Nothing is where there is no adapter that is switched on."""
    if not adapted(model) or (not again and remembered(model) is not None):
        return
    if _begins_at_nothing(model, resumed):
        found = Start()
    elif resumed:
        found = Start(known=False)
    else:
        found = Start(tuple((p, _local(p).clone()) for p in model.parameters() if p.requires_grad))
    _STARTS[unwrap(model)] = found


def remembered(model: nn.Module) -> Start | None:
    return _STARTS.get(unwrap(model))


def forget(model: nn.Module) -> None:
    _STARTS.pop(unwrap(model), None)


def adapted(model: nn.Module) -> list[nn.Module]:
    """The parts of its adapters that are switched on."""
    found = [module for module in model.modules() if hasattr(module, "enable_adapters") and hasattr(module, "disable_adapters")]
    return [module for module in found if module.disable_adapters is False]  # a model has a method of this name


@contextmanager
def put_back(start: Start) -> Iterator[None]:
    """With the weights that the run began with. Autograd does not notice: what it has kept of a forward pass is read when they are back."""
    parameters = [_local(parameter) for parameter, _ in start.weights]
    now = [values.clone() for values in parameters]
    try:
        for values, (_, then) in zip(parameters, start.weights, strict=True):
            values.copy_(then)
        yield
    finally:
        for values, mine in zip(parameters, now, strict=True):
            values.copy_(mine)


def _begins_at_nothing(model: nn.Module, resumed: bool) -> bool:
    """Whether switching the adapter off gives the model before training. Of a resumed run its factors say nothing any more, but its
    settings how they began; whether it had been trained before that, nobody knows."""
    for module in model.modules() if resumed else ():
        settings = getattr(module, "peft_config", None)
        if isinstance(settings, dict) and any(getattr(one, "init_lora_weights", True) not in _ZERO for one in settings.values()):
            return False
    for name, parameter in model.named_parameters():
        parts = set(name.split("."))
        if parts & _BEGINS_AT_NOTHING:
            if not resumed and bool(_local(parameter).any()):
                return False
        elif parameter.requires_grad and not parts & _OTHER_FACTOR:
            return False
    return True


def _local(parameter: nn.Parameter) -> Tensor:
    """Its values, this rank's where they are sharded, without autograd."""
    values = parameter.detach()
    values = values.to_local() if hasattr(values, "to_local") else values
    return values.data  # whose changes are not counted as the parameter's
