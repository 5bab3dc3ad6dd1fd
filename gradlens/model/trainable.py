"""What a model, its optimizer and a policy must be for the lens to read and edit them, told at start: how the model is spread over
ranks, who steps.

A reading is only right where it is known what the optimizer's gradient is made of. What is not known here is refused, with the way out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradlens.config import ObserveSettings
from gradlens.control.rules import GATES, Policy
from gradlens.errors import ConfigError
from gradlens.model.hookpoints import unwrap
from gradlens.world import World

# Names in an optimizer's class hierarchy -> why it cannot be watched
_OPTIMIZERS = {
    "LBFGS": "LBFGS runs the loop's forward pass several times a step; use an optimizer that takes one gradient a step, such as AdamW",
    "DeepSpeedOptimizerWrapper": "DeepSpeed steps inside its engine, where no hook sees it; use FSDP2 (fully_shard) or DDP",
    "DeepSpeedZeroOptimizer": "DeepSpeed steps inside its engine, where no hook sees it; use FSDP2 (fully_shard) or DDP",
    "LayerWiseDummyOptimizer": "it steps layer by layer inside backward, where no step can be seen; use its form that is not layer-wise",
}  # fmt: skip
_CALL_FORWARD = ("AdaLoraModel", "AdaptionPromptModel")
_MODELS = {
    "DataParallel": "nn.DataParallel copies the model in every step, and the copies have no hooks; use DistributedDataParallel",
    "FullyShardedDataParallel": "FSDP1 flattens parameters; use FSDP2 (torch.distributed.fsdp.fully_shard)",
    "DeepSpeedEngine": "DeepSpeed steps inside its engine, where no hook sees it; use FSDP2 (fully_shard) or DDP",
}


def check_trainable(model: nn.Module, optimizer: Any, world: World) -> None:
    """Raise `ConfigError` with the reason where this model and optimizer cannot be watched."""
    for module in _wrappers(model):
        name = type(module).__name__
        if name in _MODELS:
            raise ConfigError(f"{name} is not supported: {_MODELS[name]}")
        if getattr(getattr(module, "active_peft_config", None), "is_prompt_learning", False):
            kind = type(module.active_peft_config).__name__
            raise ConfigError(f"{kind}: what it learns are tokens before the model, which readings and rules do not see; use LoRA")
    inner = stepped(optimizer)
    for kind in {*type(optimizer).__mro__, *type(inner).__mro__}:
        if kind.__name__ in _OPTIMIZERS:
            raise ConfigError(f"{type(inner).__name__} is not supported: {_OPTIMIZERS[kind.__name__]}")
    if not hasattr(inner, "register_step_pre_hook"):
        found = type(optimizer).__name__
        raise ConfigError(
            f"the optimizer is of type {found}; expected one torch.optim.Optimizer (or accelerate's wrapper of one); of "
            "several give the one that steps last"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in inner.param_groups for parameter in group["params"]):
        raise ConfigError("the optimizer trains none of this model's parameters; make it from those of the model that is watched")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise ConfigError(
            f"the model's parameters are on {' and '.join(devices)} (device_map?): readings and rules need all of it on one device; "
            "load it without device_map, or spread it over ranks with FSDP2"
        )
    inner_model = unwrap(model)
    kind = type(inner_model).__name__
    if not hasattr(inner_model, "get_input_embeddings") or not hasattr(inner_model, "config"):
        raise ConfigError(f"{kind} is no model of transformers' own; give the language model inside it, which the loop may go on calling")
    if kind.endswith("ForQuestionAnswering") or (kind.endswith("Model") and inner_model.get_output_embeddings() is None):
        raise ConfigError(f"{kind} has no head that predicts the next token, and gradlens reads models that do")
    if kind.endswith(("ForSequenceClassification", "ForTokenClassification")):
        raise ConfigError(f"{kind} predicts labels; gradlens reads models that predict the next token")
    if kind.endswith(("ForMaskedLM", "ForPreTraining")) or getattr(getattr(inner_model, "config", None), "is_encoder_decoder", False):
        what = "predicts masked tokens" if kind.endswith(("ForMaskedLM", "ForPreTraining")) else "has an encoder and a decoder"
        raise ConfigError(f"{kind} {what}; gradlens reads decoder-only models that predict the next token")
    if any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in model.parameters()):
        raise ConfigError("parameters have hooks that act in backward, as optimizers fused into it do; step after backward instead")
    _check_shards(model, world)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 holds the parameters: then every forward pass is one of all ranks together."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: no model can be one
    return fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules())


def entry(model: nn.Module) -> nn.Module:
    """The module to call for readings: past DDP and torch.compile; with FSDP2 the outermost that gathers parameters."""
    return next((module for module in _wrappers(model) if is_fsdp(module)), called(model))


def called(model: nn.Module) -> nn.Module:
    """The innermost module that is called, so that its hooks run: the model itself, but where an adapter of PEFT calls its `forward`."""
    tuners = (getattr(module, "base_model", None) for module in _wrappers(model))
    return next((tuner for tuner in tuners if type(tuner).__name__ in _CALL_FORWARD), unwrap(model))


def is_fsdp(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def stepped(optimizer: Any) -> Any:
    """The optimizer whose hooks see a step: accelerate's wrapper does not call the base class's constructor, so the one inside it. Other
    wrappers (Lookahead) are optimizers themselves, whose step goes on after that of the one inside."""
    return optimizer if "_optimizer_step_pre_hooks" in getattr(optimizer, "__dict__", {}) else getattr(optimizer, "optimizer", optimizer)


def after_closure(args: tuple, kwargs: dict[str, Any], ours: Callable[[], None]) -> tuple[tuple, dict[str, Any]] | None:
    """What an optimizer's step is to be given so that `ours` runs between its closure's backward pass and the change of the parameters;
    None where there is no closure, and `ours` has run."""
    closure = kwargs.get("closure") or next((value for value in args[1:] if callable(value)), None)
    if closure is None:
        ours()
        return None

    def then_ours() -> Any:
        loss = closure()
        ours()
        return loss

    given = {**kwargs, "closure": then_ours} if "closure" in kwargs else kwargs
    return tuple(then_ours if value is closure else value for value in args), given


def left_to_others(model: nn.Module, optimizer: Any) -> str | None:
    """What is to be said where this optimizer does not have all that is trained: another one may step after it."""
    mine = {id(parameter) for group in stepped(optimizer).param_groups for parameter in group["params"]}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    others = sum(id(parameter) not in mine for parameter in trained)
    if not others:
        return None
    return (
        f"{others} of {len(trained)} trainable parameters are not in the optimizer that is watched: readings are made when it has stepped, "
        "so where another one trains them, watch the one that steps last"
    )


def _wrappers(model: nn.Module) -> list[nn.Module]:
    """The model and what it wraps, from the outside in, down to the model that `unwrap` finds."""
    inner, found = unwrap(model), [model]
    while found[-1] is not inner:
        outer = found[-1]
        found.append(getattr(outer, "_orig_mod", None) or getattr(outer, "module", None) or outer.get_base_model())
    return found


def _check_shards(model: nn.Module, world: World) -> None:
    tensor = sys.modules.get("torch.distributed.tensor")
    if tensor is None:
        return
    spread = [parameter for parameter in model.parameters() if isinstance(parameter, tensor.DTensor)]
    if not spread:
        return
    if not is_sharded(model):
        raise ConfigError(
            "the model's parameters are split over ranks without FSDP2 (tensor parallel?): ranks then share tokens; use DDP or FSDP2"
        )
    if entry(model) is unwrap(model) and not is_fsdp(unwrap(model)):
        raise ConfigError("FSDP2: fully_shard was called on blocks only; call it on the whole model too, as its documentation says")
    for parameter in spread:
        shards = sum(placement.is_shard() for placement in parameter.placements)
        if shards > 1:
            raise ConfigError("FSDP2 together with tensor parallelism is not supported: ranks then share tokens; use FSDP2 alone")
        if parameter.device_mesh.size() != world.size:
            raise ConfigError(f"FSDP2 over {parameter.device_mesh.size()} of {world.size} ranks is not supported; shard over all of them")


def scaler_of(optimizer: Any) -> Any:
    """The gradient scaler that accelerate has put into its wrapper of the optimizer, if any."""
    return getattr(optimizer, "scaler", None)


def check_scaler(scaler: Any) -> None:
    """Raise `ConfigError` where a `torch.amp.GradScaler` is stepping the optimizer right now and none has been told of."""
    frame = sys._getframe(1) if scaler is None else None
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.amp.GradScaler) and owner.is_enabled():
            raise ConfigError("a GradScaler scales the loss, and gradlens was not told of it: give watch(..., scaler=scaler)")
        frame = frame.f_back


def check_policy(policy: Policy, before: Policy, model: nn.Module, sharded: bool, observe: ObserveSettings) -> None:
    """Raises `ConfigError` where this model, these settings or the moment (`before`: the policy in force) do not allow a rule."""
    for rule in policy.rules:
        if rule.mode in GATES and unwrap(model).get_output_embeddings() is None:
            name = type(unwrap(model)).__name__
            raise ConfigError(f"rule {rule.label}: {rule.mode} needs the model's output embeddings, and {name} has none")
        if sharded and rule.mode in ("param", "update"):
            raise ConfigError(
                f"rule {rule.label}: {rule.mode} edits whole matrices, which FSDP2 splits over ranks; use route, ablate or grad"
            )
        if sharded and rule.mode in ("rewrite", "penalty"):
            raise ConfigError(
                f"rule {rule.label}: {rule.mode} reads rows with the model before training, which FSDP2 splits over ranks; "
                "use DDP, or route"
            )
        if rule.mode == "inoculate" and rule not in before.rules:
            raise ConfigError("inoculate acts on the data of a run from its first step; it cannot be put in force while it goes on")
        if rule.target is not None:
            key = "own_every" if rule.target.measure == "own" else "drift_every"
            if not getattr(observe, key):
                raise ConfigError(f"rule {rule.label}: a target is held by readings of the probe set; set observe.{key} to 1 step or more")
