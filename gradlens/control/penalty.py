"""Mode penalty: each counted token's loss with a price on what the concept's features do more than in the model before training.

Added to the loss of the token that position t predicts: (1 - gain) · strength · Σ_i relu(f_ti - f_ti before training), in nats, f in its
own units; with a gain above 1 a bonus, on every active feature: (1 - gain) · strength · Σ_i (f_ti - f_ti before training). The term never
enters the loss that a loop sees: its gradient with respect to the activation is added to the one that comes by, which is the same.
Shape suffixes: B rows, S positions, D d_model, N features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.live_features import live_features


def penalty(acts_BSN: Tensor, before_BSN: Tensor, gain: float, strength: float) -> Tensor:
    """What is added to the loss at each position, `[B, S]`."""
    risen_BSN = acts_BSN - before_BSN
    priced_BSN = risen_BSN.relu() if gain < 1 else torch.where(acts_BSN > 0, risen_BSN, 0.0)
    return (1 - gain) * strength * priced_BSN.sum(-1)


def acts_of(dictionary: Dictionary, h_BSD: Tensor, ids_N: Tensor) -> Tensor:
    """Activations of some features at every position, `[B, S, N]`, differentiable in h."""
    acts_TN = live_features(dictionary, h_BSD.flatten(0, 1).to(dictionary.work_dtype), ids_N)
    return acts_TN.unflatten(0, h_BSD.shape[:2])


def penalty_gradient(
    dictionary: Dictionary, h_BSD: Tensor, ids_N: Tensor, before_BSN: Tensor, weight_BS: Tensor, gain: float, strength: float
) -> tuple[Tensor, Tensor]:
    """`(gradient[B, S, D] of Σ weight · penalty with respect to h, positions[B, S] that have something to pay)`.

    `weight_BS`: what one token's loss counts for in the loss whose gradient comes by, 0 where it does not count.
    """
    with torch.enable_grad():
        h_BSD = h_BSD.detach().requires_grad_()
        paid_BS = penalty(acts_of(dictionary, h_BSD, ids_N), before_BSN, gain, strength)
        (gradient_BSD,) = torch.autograd.grad((paid_BS * weight_BS).sum(), h_BSD)
    return gradient_BSD, (paid_BS.detach() != 0) & (weight_BS != 0)
