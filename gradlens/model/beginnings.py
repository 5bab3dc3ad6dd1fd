"""Texts that begin alike, read as one: the keys and values of beginnings are kept, and what comes after is read on top of them, as
transformers' models generate.

`restoring.py` asks of the same row how many different words read at the same place, and most of what it reads is the text before.
Shape suffixes: B texts, P positions of the longest beginning, S positions of the longest rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gradlens.control.row_teller import padded
from gradlens.model.hookpoints import unwrap
from gradlens.model.trainable import is_sharded

KEPT = 2**29  # bytes of keys and values; beyond that those that came first are forgotten
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")  # the last is GPT-Neo's, whose mask counts columns of the cache

Beginning = tuple[int, ...]
Layers = list[tuple[Tensor, Tensor]]  # keys and values of each block, [positions, heads, d_head]


class Beginnings:
    """What was read of beginnings, for one model that does not change meanwhile."""

    def __init__(self, model: nn.Module, run: Callable[[dict[str, Any]], Any]) -> None:
        """`run`: a forward pass through all blocks."""
        self.model, self.run = unwrap(model), run
        self.able = _goes_on_from_a_cache(model)
        config = self.model.config.get_text_config() if self.able else None
        self.window = min(filter(None, (getattr(config, key, None) for key in WINDOWS)), default=None)
        self.known: dict[Beginning, Layers] = {}

    def rests(self, texts: Sequence[Sequence[int]], starts: Sequence[int]) -> dict[str, Any] | None:
        """The batch that reads each text from its `start` on: `input_ids[B, S]`, `position_ids[B, S]`, `attention_mask[B, P + S]`,
        `past_key_values`. None where the model cannot, or a text has no beginning."""
        if not self.able or min(starts) < 1 or (self.window is not None and 2 * max(map(len, texts)) > self.window):
            return None
        heads = [tuple(text[:start]) for text, start in zip(texts, starts, strict=True)]
        new = sorted({head for head in heads if head not in self.known}, key=len)
        while new:  # one that begins with another goes on from there
            now = [head for at, head in enumerate(new) if not any(head[: len(other)] == other for other in new[:at])]
            self._read(now)
            new = [head for head in new if head not in self.known]
        found = self._batch(texts, starts, [self.known[head] for head in heads])
        self._forget()
        return found

    def _read(self, heads: Sequence[Beginning]) -> None:
        before = [self._longest(head) for head in heads]
        starts = [len(head) for head in before]
        batch = self._batch(heads, starts, [self.known.get(head, []) for head in before])
        self.run(batch)
        width = max(starts)
        for number, (head, start) in enumerate(zip(heads, starts, strict=True)):
            rest = slice(width, width + len(head) - start)
            self.known[head] = [
                tuple(torch.cat([x[number, :, :start], x[number, :, rest]], 1).transpose(0, 1) for x in (layer.keys, layer.values))
                for layer in batch["past_key_values"].layers
            ]

    def _longest(self, head: Beginning) -> Beginning:
        """Of the known beginnings the longest that this one begins with; () where there is none."""
        return max((known for known in self.known if head[: len(known)] == known), key=len, default=())

    def _batch(self, texts: Sequence[Sequence[int]], starts: Sequence[int], layers: Sequence[Layers]) -> dict[str, Any]:
        from transformers import DynamicCache

        device = next(self.model.parameters()).device
        cache, depth = DynamicCache(), max(map(len, layers))
        empty = next((each for each in layers if each), [])
        for block in range(depth):
            parts = [each[block] if each else tuple(x[:0] for x in empty[block]) for each in layers]
            cache.update(*(pad_sequence(list(x), batch_first=True).transpose(1, 2) for x in zip(*parts, strict=True)), block)
        batch = padded([text[start:] for text, start in zip(texts, starts, strict=True)], device)
        at_B, steps_S = torch.tensor(list(starts), device=device), torch.arange(batch["input_ids"].shape[1], device=device)
        held_BP = torch.arange(max(starts), device=device) < at_B[:, None]
        return {
            "input_ids": batch["input_ids"], "position_ids": at_B[:, None] + steps_S,
            "attention_mask": torch.cat([held_BP.to(batch["attention_mask"].dtype), batch["attention_mask"]], 1),
            "past_key_values": cache,
        }  # fmt: skip

    def _forget(self) -> None:
        size = {head: sum(x.numel() * x.element_size() for pair in layers for x in pair) for head, layers in self.known.items()}
        total = sum(size.values())
        for head in list(self.known):
            if total <= KEPT:
                return
            total -= size[head]
            del self.known[head]


def _goes_on_from_a_cache(model: nn.Module) -> bool:
    """Whether the model reads on from keys and values at positions that it is told: not one that keeps states of another kind, nor one
    whose forward passes all ranks must run alike."""
    inner = unwrap(model)
    supports = getattr(type(inner), "_supports_default_dynamic_cache", None)
    takes = {"past_key_values", "position_ids", "attention_mask"} <= set(inspect.signature(inner.forward).parameters)
    able = supports is not None and supports() and takes and not inner.config.is_encoder_decoder and not is_sharded(model)
    return able and _attends_alone(inner.config)


def _attends_alone(config: Any) -> bool:
    """Whether keys and values are all that the blocks keep. Hybrids, whose blocks also keep states, read on from a cache as well, but only
    from where that cache was left: states of the middle of a text cannot be had from it."""
    from transformers import DynamicCache

    try:
        kinds = [type(layer).__name__ for layer in DynamicCache(config=config).layers]
    except KeyError:  # a kind of block that transformers has no cache for
        return False
    while kinds and kinds[-1] == "DummyLayer":  # the last blocks read keys and values of others (Gemma 3n)
        kinds.pop()
    return set(kinds) <= {"DynamicLayer", "DynamicSlidingWindowLayer"}  # by name: what is derived from these keeps more
