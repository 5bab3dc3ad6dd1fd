"""Start-up self-test: every hook fires exactly once per micro-batch, and an edit there changes the gradients.

Hooks can fail silently (compiled models, fused losses, checkpointing, frozen prefixes); a lens that reads nothing, or a rule that
changes nothing, must say so before the run costs anything.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from gradlens.errors import ConfigError, InputError, RunError
from gradlens.model.capture import uncompiled
from gradlens.model.hookpoints import Hookpoint, in_place, not_one_vector, unwrap
from gradlens.model.trainable import entry
from gradlens.world import World


def self_test(model: nn.Module, hookpoints: dict[str, Hookpoint], widths: dict[str, int], together: World | None = None) -> None:
    """Run small forward and backward passes. Raises `ConfigError`, `InputError` or `RunError` that names the hookpoint and the reason.

    `widths`: what the tensor at each hookpoint must measure, as its dictionary was made for it. `together`: the ranks, where parameters
    are sharded over them, so that all must run this.

    Leaves `.grad`, the random state and the modules' modes as they were.
    """
    if not hookpoints:
        return
    inner = unwrap(model)
    device = next(inner.parameters()).device
    vocabulary = inner.get_input_embeddings().weight.shape[0]
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
        stack.enter_context(uncompiled(model))
        called, by_backward = entry(model), together is not None
        try:
            plain, shapes, backwards = _gradients(called, batch, parameters, hookpoints, None, by_backward)
            # what is trained inside checkpointed blocks alone (an adapter) is not in the graph, and autograd.grad does not go there
            again = not by_backward and not all(backwards.values())
        except RuntimeError as error:
            if "heckpoint" not in str(error):
                raise
            again = True
        if again:  # reentrant checkpointing knows `backward` only
            by_backward = True
            plain, shapes, backwards = _gradients(called, batch, parameters, hookpoints, None, by_backward)
        for name, found in shapes.items():
            if len(found) != 1:
                raise RunError(f"self-test: the hook at {name} fired {len(found)} times in one forward pass, expected 1; {_WHY}")
            if found[0][:-1] != ids.shape:
                raise InputError(not_one_vector(name, found[0], ids.shape))
            if found[0][-1] != widths[name]:
                raise InputError(f"dictionary at {name}: its width is {widths[name]}, the tensor there has {found[0][-1]}")
            if backwards[name] is None:
                raise ConfigError(
                    f"hookpoint {name}: nothing trainable lies below it, so no gradient passes there; choose a later hookpoint"
                )
            if backwards[name] != 1:
                raise RunError(
                    f"self-test: the gradient hook at {name} fired {backwards[name]} times in one backward pass, expected 1; {_WHY}"
                )
            if together is None and not any(gradient.any() for gradient in plain):
                continue  # what is trained acts at tokens that these are not: there is nothing that an edit could change
            changed, _, _ = _gradients(called, batch, parameters, hookpoints, name, by_backward)
            differ = torch.tensor(float(not all(torch.equal(a, b) for a, b in zip(plain, changed, strict=True))), device=device)
            if not (differ if together is None else together.sum_(differ)):
                raise RunError(f"self-test: an edit of the gradient at {name} changed no parameter's gradient; {_WHY}")


_WHY = "is a part of the model compiled, or run several times?"


def check_passed(silent: list[str], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """After the first backward pass of training: `RunError` where there are gradients, and hooks (`silent`) that no forward pass has
    passed."""
    trained = (parameter for group in optimizer.param_groups for parameter in group["params"])
    if not silent or all(parameter.grad is None for parameter in trained):
        return
    if not unwrap(model).training:
        raise RunError(
            "the model is in evaluation mode, and what it does there is not taken for training: call model.train() before the "
            "loop (from_pretrained gives models in evaluation mode, and Lightning leaves them so)"
        )
    raise RunError(
        f"there are gradients, but no forward pass of training has passed the hooks at {', '.join(silent)}. A model that "
        "torch.compile has compiled before keeps to its code: watch it before its first step, or call torch.compiler.reset(). "
        "A loop must call the model itself, not its parts"
    )


def _gradients(
    model: nn.Module,
    batch: dict[str, Tensor],
    parameters: list[nn.Parameter],
    hookpoints: dict[str, Hookpoint],
    edited: str | None,
    by_backward: bool,
) -> tuple[list[Tensor], dict[str, list[torch.Size]], dict[str, int | None]]:
    """Gradients of the parameters; of every hookpoint the shapes of its tensor, one for each time it was seen, and how many gradients
    came there (None: none can)."""
    shapes: dict[str, list[torch.Size]] = {name: [] for name in hookpoints}
    versions: dict[str, tuple[Tensor, int]] = {}
    came = dict.fromkeys(hookpoints, 0)
    possible = set()

    def on_forward(name: str):
        def look(h: Tensor) -> None:
            shapes[name].append(h.shape)
            versions[name] = h.detach(), h._version
            if not h.requires_grad:
                return
            possible.add(name)

            def on_backward(g: Tensor) -> Tensor | None:
                came[name] += 1
                return g * 0 if name == edited else None

            h.register_hook(on_backward)

        return look

    torch.manual_seed(0)
    with ExitStack() as stack:
        for name, hookpoint in hookpoints.items():
            stack.callback(hookpoint.watch(on_forward(name)).remove)
        loss = model(**batch, use_cache=False).loss
        for name, (h, version) in versions.items():
            if h._version != version:
                raise InputError(in_place(name))
        seen = {name: list(found) for name, found in shapes.items()}  # checkpointing runs what lies inside a block again
        gradients = _by_backward(loss, parameters) if by_backward else _by_grad(loss, parameters)
    return gradients, seen, {name: count if name in possible else None for name, count in came.items()}


def _by_grad(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    # autograd.grad neither touches .grad nor wakes the gradient hooks of DDP
    return [torch.zeros(()) if g is None else g for g in torch.autograd.grad(loss, parameters, allow_unused=True)]


def _by_backward(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Where autograd.grad does not do: reentrant checkpointing, FSDP2. DDP's hooks sleep, since it did not run the forward pass."""
    before = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        found = [parameter.grad for parameter in parameters]
    finally:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad
    return [torch.zeros(()) if g is None else g.to_local() if hasattr(g, "to_local") else g for g in found]
