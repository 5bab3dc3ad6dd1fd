"""Directions from a concept's gradients: where its examples ask the residual stream to go, and other examples do not.

Of every counted token g = -d loss / dh, the loss being the sum of -log p over the answer. The axes are the leading eigenvectors of
C+ - C-, each the mean of g gᵀ over the tokens of one kind divided by its trace (contrastive PCA with weight 1, Abid et al. 2018): plain
PCA finds what every text asks for. Baselines for rules of mode `grad`, `param`, `update`, `ablate`.
Shape suffixes: B rows, S positions, T tokens, D d_model, r axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradlens.concepts.fitting import MAX_TEXTS, Concept, split_examples
from gradlens.data.rows import IGNORE, Example, collate, split
from gradlens.dictionaries.directions import Directions
from gradlens.model.capture import inference, token_loss
from gradlens.model.hookpoints import find_hookpoint, place
from gradlens.model.reading import Progress, pad_id_of

AXES, ROWS = 8, 8  # axes kept; rows read together


def contrastive_axes(C_pos_DD: Tensor, C_neg_DD: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `n` leading eigenvectors of the difference of two second moments, each over its trace: `axes[r, D]` orthonormal, and the share
    of either kind's energy along each, `[r]`. Axes of which the negatives hold more are left out, but for the first."""
    pos_DD, neg_DD = (C / C.diagonal().sum().clamp_min(1e-30) for C in (C_pos_DD.double(), C_neg_DD.double()))
    values, vectors = torch.linalg.eigh(pos_DD - neg_DD)
    order = values.flip(0)
    kept = max(1, min(n, int((order > 0).sum())))
    axes_RD = vectors.flip(1)[:, :kept].T.contiguous()
    shares = [torch.einsum("rd,de,re->r", axes_RD, C, axes_RD) for C in (pos_DD, neg_DD)]
    return axes_RD, shares[0], shares[1]


def gradient_directions(
    model: nn.Module,
    tokenizer: Any,
    hookpoint: str,
    concept: Concept,
    n: int = AXES,
    max_length: int = 256,
    seed: int = 0,
    max_texts: int = MAX_TEXTS,
    progress: Progress | None = None,
) -> Directions:
    """Up to `n` signed directions of a concept at a hookpoint; `facts` hold the share of gradient energy along all of them on the half of
    the examples that did not choose them, of positives and of negatives. Costs a forward and a backward pass over the examples."""
    halves, at = split_examples(concept, tokenizer, max_length, seed, max_texts), place(hookpoint)
    (pos_DD, neg_DD), held_out = (_second_moments(model, tokenizer, at, half, progress) for half in halves)
    axes_RD, _, _ = contrastive_axes(pos_DD, neg_DD, n)
    shares = [float((axes_RD @ C * axes_RD).sum() / C.diagonal().sum().clamp_min(1e-30)) for C in held_out]
    facts = {
        "kind": "gradient", "concept": concept.name, "texts": len(halves[0]), "held_out_texts": len(halves[1]),
        "held_out_energy": {"positive": round(shares[0], 4), "negative": round(shares[1], 4)},
    }  # fmt: skip
    labels = tuple(f"{concept.name} (gradient {number + 1})" for number in range(len(axes_RD)))
    return Directions(axes_RD.float(), torch.zeros(len(axes_RD)), None, labels, at, True, {concept.name: list(range(len(axes_RD)))}, facts)


def _second_moments(
    model: nn.Module, tokenizer: Any, at: str, half: list[tuple[Example, bool]], progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Sum of g gᵀ over counted tokens, `[D, D]` float64, of positives and of negatives."""
    found = []
    for kind in (True, False):
        total = None
        for part in split([example for example, positive in half if positive == kind], ROWS):
            g_TD = token_gradients(model, at, collate(part, pad_id_of(tokenizer))).double()
            total = g_TD.T @ g_TD if total is None else total + g_TD.T @ g_TD
            if progress is not None:
                progress(len(part))
        found.append(total)
    return found[0], found[1]


def token_gradients(model: nn.Module, at: str, batch: dict[str, Tensor]) -> Tensor:
    """g at every position that predicts a counted token, `[T, D]` float32 on the CPU. Parameters get no gradient; dropout is off."""
    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in batch.items()}
    targets_BS = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
    held: list[Tensor] = []

    def cut(h: Tensor) -> Tensor:
        held.append(h.detach().requires_grad_())
        return held[0]

    handle = find_hookpoint(model, at).watch(cut)
    try:
        with inference(model), torch.enable_grad():
            logits_BSV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            (g_BSD,) = torch.autograd.grad(token_loss(logits_BSV, targets_BS).sum(), held)
    finally:
        handle.remove()
    return -g_BSD[targets_BS != IGNORE].float().cpu()
