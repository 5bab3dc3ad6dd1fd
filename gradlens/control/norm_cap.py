"""A cap on what rules that amplify do to the gradient: its norm over all parameters may grow to `CAP` times what it was, not further.

What it was is the running mean of the norm over the steps in which no rule amplified. Where rules have amplified in every step it is
estimated: each step's norm divided by what they make of it, which follows from the share that they touched in the step before; in the
very first, of which nothing is known, by their gain (the least that it can have been). Steps without a gradient do not count. Beyond
the cap the whole gradient is scaled down, as clipping does: its direction stays. Clipping of the training loop's own
(`train.max_grad_norm`) comes first. Optimizers like Adam hardly see a gradient's scale; the cap is for steps that grow suddenly, and for
optimizers that do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

CAP = 3.0
MEMORY = 0.05  # weight of a step in the running mean


def norm_of(gradients: Sequence[Tensor]) -> float:
    """Their norm together, over all shards where they are sharded."""
    total = torch.nn.utils.get_total_norm(gradients)
    return float(total.full_tensor() if hasattr(total, "full_tensor") else total)


class NormCap:
    """Looks at gradients before the optimizer's step; one synchronisation with an accelerator each time."""

    def __init__(self) -> None:
        self.reference: float | None = None
        self.known = ""  # how the reference is: "measured", "estimated", or the "least" that it can be
        self.scale = 1.0  # what the last gradient was multiplied by
        self._capped = False

    def __call__(self, parameters: Iterable[Tensor], factor: float, tell: Callable[..., Any], growth: float | None = None) -> None:
        """Scale the gradients in place where they are too large under gains of up to `factor`; `tell(norm, most)` once as that begins.
        `growth`: how many times as large the norm is by these gains, as far as that is known."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        norm = norm_of(gradients)
        self.scale = 1.0
        if not math.isfinite(norm) or norm == 0:  # nothing to scale, and no measure of later steps: rules can leave out all rows of one
            return
        reference, known = self.reference, self.known
        if factor <= 1:
            self._learn(norm, "measured")
        elif known != "measured" and (growth is not None or reference is None):
            self._learn(norm / (factor if growth is None else growth), "least" if growth is None else "estimated")
        if self.known != known:
            reference = self.reference
        most = CAP * reference if factor > 1 else math.inf
        if norm > most:
            self.scale = most / norm
            for gradient in gradients:
                gradient.mul_(self.scale)
            if not self._capped:
                tell(norm, most)
        self._capped = norm > most

    def _learn(self, norm: float, how: str) -> None:
        """What was known in a worse way is forgotten."""
        self.reference = norm if self.known != how else (1 - MEMORY) * self.reference + MEMORY * norm
        self.known = how

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference, "known": self.known, "capped": self._capped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reference, self._capped = state["reference"] or None, state["capped"]
        self.known = state.get("known", "measured") if self.reference is not None else ""
