"""Activations of many texts, text by text: the loop that concepts and labels share. Memory does not grow with the number of texts.

Shape suffixes: S tokens of one text, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gradlens.data import Example

Progress = Callable[[int], object]  # called with the number of texts done since the last call


def read_texts(
    model: torch.nn.Module,
    hookpoints: Sequence[str],
    examples: Sequence[Example],
    pad_id: int,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yields `(i, {hookpoint: h[S, D]})` for every example i, without padding; short texts first, so that batches waste little."""
    from gradlens.capture import read_activations
    from gradlens.data import collate
    from gradlens.hookpoints import canonical

    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        activations = read_activations(model, list(hookpoints), collate([examples[i] for i in rows], pad_id))
        for row, i in enumerate(rows):
            length = len(examples[i].input_ids)
            yield i, {hookpoint: activations[canonical(hookpoint)][row, :length] for hookpoint in hookpoints}
        if progress is not None:
            progress(len(rows))


def pad_id_of(tokenizer) -> int:
    """The tokenizer's padding id, else its end-of-text id, else 0 (padding is masked everywhere, so any id will do)."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None:
            return int(value)
    return 0
