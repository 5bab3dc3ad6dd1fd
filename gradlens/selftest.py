"""Start-up self-test: every hook fires exactly once per micro-batch, and an edit there changes the gradients.

Hooks can fail silently (compiled models, fused losses, checkpointing, frozen prefixes); a lens that reads nothing, or a rule that
changes nothing, must say so before the run costs anything.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from gradlens.capture import hidden
from gradlens.errors import ConfigError, RunError
from gradlens.hookpoints import unwrap


def self_test(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Run two small forward and backward passes. Raises `ConfigError` or `RunError` that names the hookpoint and the reason.

    Leaves `.grad`, the random state and the modules' modes as they were.
    """
    if not modules:
        return
    inner = unwrap(model)
    device = next(inner.parameters()).device
    vocabulary = inner.get_input_embeddings().num_embeddings
    ids = (torch.arange(16).view(2, 8) * 37 + 11) % vocabulary
    batch = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device), "labels": ids.to(device)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("nothing in the model is trainable: no parameter has requires_grad")
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), ExitStack() as stack:
        modes = [(module, module.training) for module in model.modules()]
        stack.callback(lambda: [setattr(module, "training", mode) for module, mode in modes] and None)
        # train mode, as checkpointing acts only there; seeded, so that dropout is the same in every pass
        model.train()
        plain, forwards, backwards = _gradients(inner, batch, parameters, modules, edited=None)
        for name in modules:
            if forwards[name] != 1:
                raise RunError(f"self-test: the hook at {name} fired {forwards[name]} times in one forward pass, expected 1; {_WHY}")
            if backwards[name] is None:
                raise ConfigError(
                    f"hookpoint {name}: nothing trainable lies below it, so no gradient passes there; choose a later hookpoint"
                )
            if backwards[name] != 1:
                raise RunError(
                    f"self-test: the gradient hook at {name} fired {backwards[name]} times in one backward pass, expected 1; {_WHY}"
                )
            changed, _, _ = _gradients(inner, batch, parameters, modules, edited=name)
            if all(torch.equal(a, b) for a, b in zip(plain, changed, strict=True)):
                raise RunError(f"self-test: an edit of the gradient at {name} changed no parameter's gradient; {_WHY}")


_WHY = "if the model was compiled, attach gradlens before torch.compile; reentrant checkpointing is not supported (use_reentrant=False)"


def _gradients(
    model: nn.Module, batch: dict[str, Tensor], parameters: list[nn.Parameter], modules: dict[str, nn.Module], edited: str | None
) -> tuple[list[Tensor], dict[str, int], dict[str, int | None]]:
    forwards = dict.fromkeys(modules, 0)
    backwards: dict[str, int | None] = dict.fromkeys(modules, 0)

    def on_forward(name: str):
        def hook(module: nn.Module, args: tuple, output) -> None:
            forwards[name] += 1
            h = hidden(output)
            if not h.requires_grad:
                backwards[name] = None
                return

            def on_backward(g: Tensor) -> Tensor | None:
                backwards[name] += 1
                return g * 0 if name == edited else None

            h.register_hook(on_backward)

        return hook

    torch.manual_seed(0)
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(on_forward(name)).remove)
        loss = model(**batch, use_cache=False).loss
        # autograd.grad neither touches .grad nor wakes the gradient hooks of DDP
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [g if g is not None else torch.zeros(()) for g in gradients], forwards, backwards
