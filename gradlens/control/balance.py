"""A step's loss as the mean over the tokens that teach, where rules of mode route have left some out.

A training loop divides by all counted tokens, gated or not. A step of which most is gated then has a small gradient, is clipped less and
weighs less in Adam's moments than the same rows by themselves: with gain 0 on every unwanted row the run was not that on the wanted rows.
So the gradient is multiplied by counted tokens / tokens whose gain is not 0, over all micro-batches and ranks: that of the mean over what
is left. It grows `MOST` times at most, so that single tokens that slip through a gate never make a step of their own. Tokens that teach
less, or more, count as they are: a partial gain in a step of nothing else would be taken back.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gradlens.control.norm_cap import norm_of
from gradlens.world import World

MOST = 10.0


class Balance:
    """The gains of one step's tokens, and what they make of its gradient."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # counted tokens that teach, all counted tokens
        self._done = False
        self.scale = 1.0  # what the gradients of this step were multiplied by

    def add(self, gains_BS: Tensor, loss_BS: Tensor) -> None:
        """The gains of a micro-batch, and which of its tokens the loss counts."""
        if self._done:  # a step that the loop did not make, after all
            self.clear()
        self._sums += torch.stack([((gains_BS != 0) & loss_BS).sum(), loss_BS.sum()]).to(self._sums)

    def rewritten(self, before: Tensor, after: Tensor, gated: bool) -> None:
        """Counted tokens of a micro-batch before and after it was rewritten, where the loop divides by those before. `gated`: the rewritten
        tokens come to `add` as well."""
        if self._done:
            self.clear()
        self._sums += torch.stack([after * 0, before - after] if gated else [after, before]).to(self._sums)

    def __call__(self, parameters: Iterable[Tensor], world: World, clipped: float | None = None) -> float:
        """Scale the gradients in place, once a step, on all ranks alike; returns the factor. Waits for an accelerator where a rule acts.

        `clipped`: the norm to which the loop has clipped them already. They are scaled up to it at most: what was clipped would be clipped
        all the more, and what was not is as if it were clipped now.
        """
        if self._done:
            return self.scale
        self._done = True
        left, counted = world.sum_(self._sums.clone()).tolist()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not 0 < left < counted or not gradients:
            return 1.0
        self.scale = min(counted / left, MOST)
        if clipped is not None:
            self.scale = max(min(self.scale, clipped / max(norm_of(gradients), 1e-30)), 1.0)
        if self.scale != 1:
            for gradient in gradients:
                gradient.mul_(self.scale)
        return self.scale

    def clear(self) -> None:
        """Forget the step."""
        self._sums.zero_()
        self.scale, self._done = 1.0, False
