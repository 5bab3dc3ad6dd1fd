"""`update`: what the optimizer's actual parameter change does to every feature, to first order, on the probe set.

Whatever made the change (Adam's scaling, clipping, weight decay, momentum, LoRA) is in it, because it is taken from the parameters. Source:
forward-mode differentiation of the network along the step; costs about three forward passes of the texts that are read.
Shape suffixes: T counted tokens of the probe set, D d_model, F d_sae.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import encode_active
from gradlens.model.capture import Stop, counted_tokens, inference, uncompiled
from gradlens.model.hookpoints import canonical, find_hookpoint, unwrap
from gradlens.model.reading import encoder_input, places
from gradlens.readings.attribution import feature_sums

CHUNK = 512  # tokens encoded at a time


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that an optimizer may change, by their names in the unwrapped model, detached."""
    return {name: parameter.detach() for name, parameter in unwrap(model).named_parameters() if parameter.requires_grad}


def change_of_activations(
    model: nn.Module,
    hookpoints: list[str],
    batch: dict[str, Tensor],
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    tokens: str = "response",
) -> dict[str, tuple[Tensor, Tensor]]:
    """`{hookpoint: (h[T, D], dh[T, D])}`: activations at the midpoint of two sets of parameters, and the derivative along their difference.

    dh = J(θ_mid)·(θ_after - θ_before), by one forward-mode pass (about three forward passes; it ends after the last hookpoint).
    Taken at the midpoint the remainder is of third order in the change, so readings over several steps at once stay exact enough to
    add up to the drift. Linear in the change: give `before` and `after` that differ in some parameters only to get those parameters'
    part. Flash and efficient attention have no forward mode, so attention runs in its plain form meanwhile.
    """
    inner = unwrap(model)
    device = next(inner.parameters()).device
    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask", "position_ids") if batch.get(key) is not None}
    keep_BS = counted_tokens(batch["input_ids"], batch.get("attention_mask"), batch.get("labels"), tokens).to(device)
    wanted = {canonical(name): find_hookpoint(inner, name) for name in hookpoints}
    middle = {name: torch.lerp(before[name], after[name], 0.5) for name in after}
    change = {name: after[name] - before[name] for name in after}

    def forward(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        read: dict[str, Tensor] = {}

        def reader(name: str):
            def look(h: Tensor) -> None:
                read[name] = h[keep_BS]
                if len(read) == len(wanted):
                    raise Stop

            return look

        with ExitStack() as stack:
            stack.enter_context(uncompiled(inner))  # a compiled forward does not pass hooks that came after it
            for name, hookpoint in wanted.items():
                stack.callback(hookpoint.watch(reader(name)).remove)
            try:
                torch.func.functional_call(inner, parameters, (), {**inputs, "use_cache": False})
            except Stop:
                pass  # every hookpoint has been read
        return read

    with inference(inner), sdpa_kernel(SDPBackend.MATH):
        h, dh = torch.func.jvp(forward, (middle,), (change,))
    return {name: (h[name].detach(), dh[name].detach()) for name in wanted}


@dataclass
class UpdateReading:
    """Effect of a parameter change at one hookpoint, mean over the probe set's counted tokens."""

    acts: Tensor  # [F] on feature activations
    direction: Tensor  # [F] along unit directions


def read_update(
    model: nn.Module,
    dictionaries: dict[str, Dictionary],
    batches: list[dict[str, Tensor]],
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    tokens: str = "response",
) -> dict[str, UpdateReading]:
    """`update` of every feature: along directions d̂_i · mean_t dh_t, and on activations mean_t f(h_t + dh_t/2) - f(h_t - dh_t/2).

    The second form passes the predicted change of each token through the encoder, so features that switch on or off are in it.
    """
    changes = [change_of_activations(model, places(dictionaries), batch, before, after, tokens) for batch in batches]
    h, dh = ({name: torch.cat([change[name][side] for change in changes]) for name in changes[0]} for side in (0, 1))
    out = {}
    for name, dictionary in dictionaries.items():
        h_TD, dh_TD = (encoder_input(dictionary, name, read).to(dictionary.work_dtype) for read in (h, dh))
        acts_F = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=h_TD.device)
        for middle, change in zip(h_TD.split(CHUNK), dh_TD.split(CHUNK), strict=True):
            for sign in (1, -1):
                idx_TK, val_TK = encode_active(dictionary, middle + sign * change / 2)
                acts_F += feature_sums(idx_TK, sign * val_TK.double(), dictionary.d_sae)
        direction_F = dictionary.along(dh[canonical(name)].to(dictionary.work_dtype).mean(0))
        out[name] = UpdateReading((acts_F / len(h_TD)).cpu(), direction_F.double().cpu())
    return out
