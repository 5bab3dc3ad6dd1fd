"""Reading activations and deciding which tokens count.

Shape suffixes: B rows, S positions, T counted tokens (flattened), D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradlens.hookpoints import canonical, find_module, unwrap
from gradlens.projection import Tokens


def hidden(output: Tensor | tuple) -> Tensor:
    """The hidden state in a block's output (a tensor, or a tuple that starts with it)."""
    return output[0] if isinstance(output, tuple) else output


def replaced(output: Tensor | tuple, h: Tensor) -> Tensor | tuple:
    """The block's output with its hidden state replaced."""
    return (h, *output[1:]) if isinstance(output, tuple) else h


def counted_tokens(input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None, tokens: str = "response") -> Tensor:
    """Positions that count, `bool[B, S]`: never padding nor a row's first token; with `response` only tokens that the loss counts."""
    real_BS = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    keep_BS = real_BS & (real_BS.cumsum(-1) > 1)
    if tokens == "response" and labels is not None:
        keep_BS = keep_BS & (labels != -100)
    return keep_BS


@dataclass(frozen=True)
class MicroBatch:
    """What the lens knows of one forward pass."""

    keep_BS: Tensor  # positions that count
    loss_BS: Tensor  # positions whose next token the loss counts
    row_ids: tuple[int, ...] | None = None
    columns: Tensor | None = None  # positions that the model makes logits for (`logits_to_keep`); None: all

    @classmethod
    def of(cls, args: tuple, kwargs: dict, tokens: str, row_ids: tuple[int, ...] | None = None) -> MicroBatch | None:
        """From a model's call; None where it has no `input_ids`."""
        ids = kwargs.get("input_ids", args[0] if args and isinstance(args[0], Tensor) else None)
        if ids is None:
            return None
        mask, labels = kwargs.get("attention_mask"), kwargs.get("labels")
        mask = mask if mask is not None and mask.shape == ids.shape else None
        loss_BS = torch.zeros_like(ids, dtype=torch.bool)
        if labels is not None:
            loss_BS[:, :-1] = labels[:, 1:] != -100
        else:
            loss_BS[:, :-1] = True if mask is None else mask[:, 1:].bool()
        columns = kwargs.get("logits_to_keep")
        return cls(counted_tokens(ids, mask, labels, tokens), loss_BS, row_ids, columns if isinstance(columns, Tensor) else None)

    def select(self, x_BSD: Tensor, zero: bool = False) -> Tensor:
        """Counted tokens of `x[B, S, D]`, flattened: `[T, D]` on CPU; elsewhere all positions, those that do not count zeroed if asked.

        Compaction needs the number of tokens on the host: on an accelerator that would be a synchronisation inside a hook.
        """
        flat = x_BSD.flatten(0, 1)
        if flat.device.type == "cpu":
            return flat[self.keep_BS.flatten()]
        return flat * self.keep_BS.flatten()[:, None].to(flat.dtype) if zero else flat

    def tokens(self, h_BSD: Tensor, g_TD: Tensor) -> Tokens:
        """What is projected: the tokens of `select`, each with its row, and whether it counts."""
        rows_BS = torch.arange(len(self.keep_BS), device=self.keep_BS.device)[:, None].expand_as(self.keep_BS)
        positions_BS = torch.arange(self.keep_BS.shape[1], device=self.keep_BS.device).expand_as(self.keep_BS)
        counted_T, row_T, position_T = (self.select(x_BS[..., None])[:, 0] for x_BS in (self.keep_BS, rows_BS, positions_BS))
        return Tokens(self.select(h_BSD), g_TD, counted_T, row_T, position_T, len(self.keep_BS), self.row_ids)


class Stop(Exception):
    """Ends a forward pass after the last hookpoint that is read."""


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """eval mode and no gradients, with every module's own mode restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def read_activations(model: nn.Module, hookpoints: list[str], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Activations `[B, S, D]` at hookpoints, without gradients; the forward pass ends after the last of them.

    `batch` holds `input_ids` and optionally `attention_mask`, on any device. Hooks live only during the call; dropout is off.
    """
    model = unwrap(model)
    device = next(model.parameters()).device
    wanted = {canonical(name): find_module(model, name) for name in hookpoints}
    read: dict[str, Tensor] = {}

    def reader(name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            read[name] = hidden(output).detach()
            if len(read) == len(wanted):
                raise Stop

        return hook

    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask") if batch.get(key) is not None}
    with ExitStack() as stack:
        stack.enter_context(inference(model))
        for name, module in wanted.items():
            stack.callback(module.register_forward_hook(reader(name)).remove)
        try:
            model(**inputs, use_cache=False)
        except Stop:
            pass  # every hookpoint has been read
    return {canonical(name): read[canonical(name)] for name in hookpoints}
