"""The nearest change of the parameters that keeps a measure where it is: linear algebra over lists of tensors, one per parameter.

d is the change that the optimizer made, c the gradient of the measure, P the optimizer's own diagonal metric: it counts a change as large
where it takes small steps itself. The nearest change with <c, d> <= room, nearest in Σ d²/P, is d - λ P c with
λ = max(0, <c, d> - room) / <c, P c> (a projection on a half-space). Sums are in float64, and nothing waits for an accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.errors import ConfigError

ADAM, SGD = ("Adam", "AdamW"), ("SGD",)  # classes of torch.optim whose metric is known
FLOOR = 0.01  # of the mean of v: no change is counted as more than ten times cheaper than the usual one


@dataclass
class Constrained:
    """What `constrain` found; 0-dimensional float64 tensors."""

    rise: Tensor  # <c, d> of the optimizer's change
    left: Tensor  # <c, d> of the change that is made
    beyond: Tensor  # ||λ P c||² in the metric at gain 0: what stands against the constraint
    total: Tensor  # ||d||² in the metric


def constrain(
    change: Sequence[Tensor], slope: Sequence[Tensor], metric: Sequence[Tensor], room: Tensor | float = 0.0, gain: float = 0.0
) -> tuple[list[Tensor], Constrained]:
    """The change with what it raises beyond `room` multiplied by `gain`: 0 keeps <c, d> <= room, 1 changes nothing.

    A room below zero asks for a fall. What is done about it is at most as large as the optimizer's change itself, so that a measure
    that is far too high comes down over several steps and not at once. Where P is 0 nothing is changed.
    """
    rise, steep = _dot(slope, change), _dot([c * p for c, p in zip(slope, metric, strict=True)], slope)
    total = _sum((d.double().square() / p.double()).where(p > 0, 0.0).sum() for d, p in zip(change, metric, strict=True))
    excess = torch.minimum(rise - room, (steep * total).sqrt()).clamp_min(0.0)
    step = torch.where(steep > 0, excess / steep, 0.0)
    made = [d - ((1 - gain) * step.to(d.dtype) * p * c).to(d.dtype) for d, c, p in zip(change, slope, metric, strict=True)]
    return made, Constrained(rise, rise - (1 - gain) * step * steep, step.square() * steep, total)


def metric_of(optimizer: Any, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """P of each parameter after a step, in its shape: lr / (sqrt(v) + eps) for Adam and AdamW (v without its bias), lr for SGD.

    Where Adam has had next to no gradient, 1 / sqrt(v) has no bound, and the whole correction would go there, decided by rounding: v counts
    as at least `FLOOR` of its mean over the tensor. Where it has had none at all P is 0: it makes no step there either (embeddings of
    tokens that the data has not).
    """
    optimizer = unwrapped(optimizer)
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    found = []
    for parameter in parameters:
        group, state = groups[parameter], optimizer.state.get(parameter, {})
        lr = torch.as_tensor(group["lr"], dtype=parameter.dtype, device=parameter.device)
        if _named(optimizer, SGD):
            found.append(lr.expand_as(parameter))
        elif "exp_avg_sq" not in state:  # no gradient yet
            found.append(torch.zeros_like(parameter))
        else:
            v = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
            v = v / (1 - group["betas"][1] ** state["step"].to(v.device))
            floored = torch.maximum(v, FLOOR * v.mean())
            found.append(torch.where(v > 0, lr / (floored.sqrt() + group["eps"]), 0.0).to(parameter.dtype))
    return found


def check_metric(optimizer: Any) -> None:
    """Raise `ConfigError` for an optimizer whose metric is not known."""
    inner = unwrapped(optimizer)
    if not _named(inner, ADAM + SGD):
        raise ConfigError(
            f"constrain: the change is projected in the optimizer's own metric, which is known of Adam, AdamW and SGD of torch.optim; this "
            f"one is {type(inner).__module__}.{type(inner).__name__}; use one of them, or rules of mode route or rewrite"
        )


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _named(optimizer: Any, names: Sequence[str]) -> bool:
    return any(kind.__module__.startswith("torch.optim.") and kind.__name__ in names for kind in type(optimizer).__mro__)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return _sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True))


def _sum(parts: Any) -> Tensor:
    return torch.stack(list(parts)).sum()
