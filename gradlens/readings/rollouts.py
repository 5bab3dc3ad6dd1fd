"""Texts that a reinforcement learning trainer lets the model write, collected from the batches that it trains on.

GRPO and its like generate answers and then train on them with `labels` on what was written: those batches are the rollouts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradlens.data.rows import IGNORE
from gradlens.model.capture import counted_tokens
from gradlens.model.hookpoints import unwrap

PROMPTS = 12  # in a reading: chance is judged over prompts, and six of them are the least
KEPT = 2048  # texts that are waited with for so many prompts; where there are fewer prompts, none of them is ever read


def prompt_of_row(batches: list[dict[str, Tensor]]) -> list[int]:
    """The number of each row's prompt, for the rows in which the model wrote something that counts."""
    seen: dict[tuple[int, ...], int] = {}
    keys = []
    for batch in batches:
        mask = batch.get("attention_mask")
        counted_BS = counted_tokens(batch["input_ids"], mask, batch["labels"])
        for row, (ids_S, wrote_S) in enumerate(zip(batch["input_ids"], batch["labels"] != IGNORE, strict=True)):
            if counted_BS[row].any():
                before = slice(0, int(wrote_S.int().argmax()))
                prompt = ids_S[before] if mask is None else ids_S[before][mask[row, before].bool()]  # padding may be on the left
                keys.append(seen.setdefault(tuple(prompt.tolist()), len(seen)))
    return keys


def mean_by(rows_RF: Tensor, group_R: list[int]) -> Tensor:
    """Mean row of each group: answers to one prompt are not independent, and chance is judged over what is."""
    group = torch.tensor(group_R)
    count = torch.bincount(group).float()
    return torch.zeros(len(count), rows_RF.shape[1], dtype=rows_RF.dtype).index_add_(0, group, rows_RF) / count[:, None]


class Rollouts:
    """Collects training batches of a model until `take` has `PROMPTS` different prompts to give."""

    def __init__(self, model: nn.Module) -> None:
        self._batches: list[dict[str, Tensor]] = []
        self._texts: set[bytes] = set()
        self._prompts: set[bytes] = set()  # of the texts
        self.collecting = True
        self._handle = unwrap(model).register_forward_pre_hook(torch.compiler.disable(self._on_model), with_kwargs=True)

    def take(self) -> list[dict[str, Tensor]] | None:
        """The batches, once there are prompts enough; then collecting stops until `collecting` is set again."""
        if len(self._prompts) < PROMPTS:
            return None
        found, self.collecting = self._batches, False
        self._forget()
        return found

    def _forget(self) -> None:
        self._batches, self._texts, self._prompts = [], set(), set()

    def close(self) -> None:
        self._handle.remove()

    def _on_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids, labels, mask = (kwargs.get(name) for name in ("input_ids", "labels", "attention_mask"))
        if not (self.collecting and module.training and torch.is_grad_enabled()) or ids is None or labels is None:
            return
        mask = torch.ones_like(ids) if mask is None else mask
        new = []
        for row in range(len(ids)):
            real = mask[row].bool()
            text = ids[row][real].cpu().numpy().tobytes()
            if text not in self._texts:  # rollouts are trained on several times
                self._texts.add(text)
                self._prompts.add(ids[row][real & (labels[row] == -100)].cpu().numpy().tobytes())
                new.append(row)
        if new:
            batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
            self._batches.append({name: value[new].detach().clone() for name, value in batch.items()})
        if len(self._texts) > KEPT and len(self._prompts) < PROMPTS:
            self._forget()
