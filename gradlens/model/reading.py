"""Activations of many texts, text by text: the loop that concepts and labels share. Memory does not grow with the number of texts.

Shape suffixes: S tokens of one text, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradlens.errors import InputError
from gradlens.model.hookpoints import canonical

if TYPE_CHECKING:
    from gradlens.data.rows import Example
    from gradlens.dictionaries.dictionary import Dictionary

Progress = Callable[[int], object]  # called with the number of texts done since the last call


def places(dictionaries: Mapping[str, Dictionary]) -> list[str]:
    """The hookpoints whose tensors these dictionaries need: where each acts, and of a transcoder where it reads."""
    wanted = [place for name, dictionary in dictionaries.items() for place in (name, *dictionary.read_at(name))]
    return list(dict.fromkeys(wanted))


def side_by_side(tensors: Iterable[Tensor], dictionary: Dictionary, name: str) -> Tensor:
    """What the dictionary at hookpoint `name` encodes, from the tensors where it reads: `[..., D]`, D their widths together."""
    tensors = list(tensors)
    x = tensors[0] if len(tensors) == 1 else torch.cat(tensors, -1)
    if x.shape[-1] != dictionary.d_in:
        where = " and ".join(dictionary.read_at(name))
        raise InputError(f"dictionary at {name}: it reads vectors of width {dictionary.d_in}, and {where} has {x.shape[-1]}")
    return x


def encoder_input(dictionary: Dictionary, name: str, read: Mapping[str, Tensor]) -> Tensor:
    """`side_by_side` from tensors by their canonical hookpoint, as `read_activations` gives them for `places`."""
    return side_by_side((read[canonical(place)] for place in dictionary.read_at(name)), dictionary, name)


def read_texts(
    model: torch.nn.Module,
    hookpoints: Sequence[str] | Mapping[str, Dictionary],
    examples: Sequence[Example],
    pad_id: int,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yields `(i, {hookpoint: h[S, D]})` for every example i, without padding; short texts first, so that batches waste little.

    With dictionaries in place of hookpoints h is what each of them encodes.
    """
    from gradlens.data.rows import collate
    from gradlens.model.capture import read_activations

    wanted = places(hookpoints) if isinstance(hookpoints, Mapping) else list(hookpoints)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        activations = read_activations(model, wanted, collate([examples[i] for i in rows], pad_id))
        if isinstance(hookpoints, Mapping):
            activations |= {canonical(name): encoder_input(d, name, activations) for name, d in hookpoints.items() if d.hook_in}
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
