"""Reading activations and losses, and deciding which tokens count.

Shape suffixes: B rows, S positions, C positions with logits, T counted tokens (flattened), D d_model, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.control.edits import Texts, texts_of
from gradlens.data.rows import IGNORE
from gradlens.errors import InputError, RunError
from gradlens.model.hookpoints import canonical, find_hookpoint, in_place, not_one_vector, unwrap
from gradlens.model.trainable import entry, is_sharded
from gradlens.readings.projection import Tokens

SOME = 2**19  # logits that are turned into log-probabilities at a time on a CPU


def counted_tokens(input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None, tokens: str = "response") -> Tensor:
    """Positions that count, `bool[B, S]`: never padding nor a row's first token; with `response` only tokens that the loss counts."""
    real_BS = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    keep_BS = real_BS & (real_BS.cumsum(-1) > 1)
    if tokens == "response" and labels is not None:
        keep_BS = keep_BS & (labels != IGNORE)
    return keep_BS


def token_loss(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """`-log p` of every target, `[B, S]` float32; 0 where the target is -100. Some positions at a time: no second [B, S, V]."""
    if logits_BSV.device.type == "cpu":  # elsewhere the host would have to wait for the number of targets
        found_BS, size = torch.zeros(targets_BS.shape, dtype=torch.float32), max(1, SOME // logits_BSV.shape[-1])
        counted = (targets_BS != IGNORE).nonzero(as_tuple=True)
        for at in zip(*(index.split(size) for index in counted), strict=True):
            log_p = logits_BSV[at].log_softmax(-1, dtype=torch.float32)
            found_BS[at] = nn.functional.nll_loss(log_p, targets_BS[at], reduction="none")
        return found_BS
    gold_BS = logits_BSV.gather(-1, targets_BS.clamp_min(0)[..., None])[..., 0].float()
    total_BS = torch.stack([logits_SV.float().logsumexp(-1) for logits_SV in logits_BSV])
    return torch.where(targets_BS == IGNORE, 0.0, total_BS - gold_BS)


def takes_columns(model: nn.Module) -> bool:
    """Whether the model makes logits only where `logits_to_keep` (a tensor of positions) asks for them."""
    parameters = inspect.signature(unwrap(model).forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return takes_any and "logits_to_keep" in parameters


def next_tokens(input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None) -> Tensor:
    """The token that each position predicts, `[B, S]`; -100 where the loss does not count it. Without labels every real token counts."""
    if labels is None:
        labels = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, IGNORE)
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE)


@dataclass
class MicroBatch:
    """What the lens knows of one forward pass."""

    keep_BS: Tensor  # positions that count
    targets_BS: Tensor  # the next token, where the loss counts it; else -100
    read_BS: Tensor | None = None  # those, and where the loss of a counted token acts: before an answer's first; None: those that count
    row_ids: tuple[int, ...] | None = None
    columns: Tensor | None = None  # positions that the model makes logits for (`logits_to_keep`); None: all
    token_loss_BS: Tensor | None = None  # loss of each token, at its own position; known when the forward pass is over
    shown: dict[int, Tensor] = field(default_factory=dict)  # id of who tells -> rows that show a concept, bool[B]
    routed: bool = False  # the gradient of its tokens' losses passes a gate
    reference: dict[str, Tensor] = field(default_factory=dict)  # hookpoint -> activation [B, S, D] before training, for `penalty`
    token_weight: Tensor | None = None  # what one token's loss counts for in what backward began at; known in backward
    texts: Texts | None = None  # where a row may hold several, told apart by their positions
    at_BS: Tensor | None = None  # where each token stood in its row before that was rewritten, -1: not known; None: where it stands

    def __post_init__(self) -> None:
        self.read_BS = self.keep_BS if self.read_BS is None else self.read_BS

    @property
    def loss_BS(self) -> Tensor:
        """Positions whose next token the loss counts."""
        return self.targets_BS != IGNORE

    @torch.no_grad()
    def note_logits(self, logits_BCV: Tensor, log_probs_BCV: Tensor | None = None) -> None:
        """Take the loss of every token from the logits that predicted it, or from their logarithmic softmax where somebody has made it."""
        targets_BC = self.targets_BS if self.columns is None else self.targets_BS[:, self.columns]
        if logits_BCV.shape[:2] != targets_BC.shape:
            return  # a model that makes logits for other positions than it says
        loss_BS = torch.zeros(len(targets_BC), self.targets_BS.shape[1] + 1, dtype=torch.float32, device=logits_BCV.device)
        columns = torch.arange(targets_BC.shape[1], device=logits_BCV.device) if self.columns is None else self.columns
        if log_probs_BCV is None:
            loss_BC = token_loss(logits_BCV, targets_BC)
        else:
            loss_BC = -log_probs_BCV.gather(-1, targets_BC.clamp_min(0)[..., None])[..., 0].float()
            loss_BC = loss_BC.masked_fill(targets_BC == IGNORE, 0)
        loss_BS[:, columns + 1] = loss_BC
        self.token_loss_BS = loss_BS[:, :-1]

    @torch.no_grad()
    def note_log_probs(self, log_probs: Tensor) -> None:
        """The same from a model that puts out log-probabilities in place of logits: `[B, S - 1]`, or `[B, S]` with a last one too many."""
        B, S = self.keep_BS.shape
        if log_probs.shape in ((B, S - 1), (B, S)):
            loss_BS = nn.functional.pad(-log_probs[:, : S - 1].float(), (1, 0))
            self.token_loss_BS = loss_BS.masked_fill(nn.functional.pad(~self.loss_BS[:, :-1], (1, 0), value=True), 0)

    @classmethod
    def of(cls, kwargs: dict, tokens: str, row_ids: tuple[int, ...] | None = None) -> MicroBatch | None:
        """From what a model is called with; None where that has no `input_ids`."""
        ids = kwargs.get("input_ids")
        if not isinstance(ids, Tensor):
            return None
        mask, labels = kwargs.get("attention_mask"), kwargs.get("labels")
        mask = mask if mask is not None and mask.shape == ids.shape else None
        columns = kwargs.get("logits_to_keep")
        targets_BS = next_tokens(ids, mask, labels)
        keep_BS, real_BS = (counted_tokens(ids, mask, labels, which) for which in (tokens, "all"))
        positions, texts = kwargs.get("position_ids"), None
        if isinstance(positions, Tensor) and positions.shape == ids.shape:
            begins_BS = positions == 0 if mask is None else (positions == 0) & mask.bool()
            texts = texts_of(begins_BS)
            if mask is None:  # told apart by their positions only: each has a first token
                keep_BS, real_BS = keep_BS & (positions > 0), real_BS & (positions > 0)
        read_BS = keep_BS | (real_BS & (targets_BS != IGNORE))
        return cls(keep_BS, targets_BS, read_BS, row_ids, columns if isinstance(columns, Tensor) else None, texts=texts)

    def select(self, x_BSD: Tensor, zero: bool = False) -> Tensor:
        """Tokens of `x[B, S, D]` that are read, flattened: `[T, D]` on CPU; elsewhere all positions, others zeroed if asked.

        Compaction needs the number of tokens on the host: on an accelerator that would be a synchronisation inside a hook.
        """
        flat = x_BSD.flatten(0, 1)
        if flat.device.type == "cpu":
            return flat[self.read_BS.flatten()]
        return flat.masked_fill(~self.read_BS.flatten()[:, None], 0) if zero else flat  # a NaN times 0 would stay

    def tokens(self, h_BSD: Tensor, g_TD: Tensor) -> Tokens:
        """What is projected: the tokens of `select`, each with its row, and whether it counts."""
        rows_BS = torch.arange(len(self.keep_BS), device=self.keep_BS.device)[:, None].expand_as(self.keep_BS)
        positions_BS = self.at_BS
        if positions_BS is None:
            positions_BS = torch.arange(self.keep_BS.shape[1], device=self.keep_BS.device).expand_as(self.keep_BS)
        counted_T, row_T, position_T = (self.select(x_BS[..., None])[:, 0] for x_BS in (self.keep_BS, rows_BS, positions_BS))
        # a loop's loss can count tokens that do not count here: a row's first token after padding on the left
        loss_BS = None if self.token_loss_BS is None else self.token_loss_BS.masked_fill(~self.keep_BS, 0)
        loss_T = None if loss_BS is None else self.select(loss_BS[..., None])[:, 0]
        return Tokens(self.select(h_BSD), g_TD, counted_T, row_T, position_T, len(self.keep_BS), self.row_ids, loss_T)


class Stop(Exception):
    """Ends a forward pass after the last hookpoint that is read."""


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """eval mode and no gradients, with every module's own mode restored."""
    modes = [(module, module.training) for module in model.modules()]
    # bitsandbytes' 4-bit layers pack their weights for good in a CPU's first evaluation, and are trained on otherwise from then on
    packing = [module for module, _ in modes if getattr(module, "support_avx512bf16_for_cpu", False)]
    for module in packing:
        module.support_avx512bf16_for_cpu = False
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module in packing:
            module.support_avx512bf16_for_cpu = True


def without_autocast(device: torch.device) -> AbstractContextManager:
    """In the precision of the tensors themselves, wherever a loop has its `torch.autocast`."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def outside_autocast(method: Callable[..., None]) -> Callable[..., None]:
    """A method of what has a `model`, run `without_autocast`: a loop may step its optimizer inside one."""

    @wraps(method)
    def run(self: Any, *args: Any) -> None:
        with without_autocast(next(self.model.parameters()).device):
            method(self, *args)

    return run


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Modules compiled in place (`module.compile()`) run as they are: compiled code does not see hooks that come later."""
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def read_activations(model: nn.Module, hookpoints: list[str], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Activations `[B, S, D]` at hookpoints, without gradients; the forward pass ends after the last of them.

    `batch` holds `input_ids` and optionally `attention_mask`, on any device; `past_key_values` with `position_ids`, where it goes on from a
    cache (`beginnings.py`). Hooks live only during the call; dropout is off.
    """
    return _read(model, hookpoints, batch, {}, stop=True)[0]


def read_with_loss(
    model: nn.Module,
    hookpoints: list[str],
    batch: dict[str, Tensor],
    look: Callable[[Tensor, Tensor | None], None] | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """As `read_activations`, and the loss of every token at its own position, `[B, S]` (0 where `labels` do not count it).

    The loss is None for a model without logits. Logits are made only where a token counts, if the model can; `look` is called with them,
    `[B, C, V]`, and with their positions (None: all).
    """
    device = next(unwrap(model).parameters()).device
    ids, mask, labels = (None if batch.get(key) is None else batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
    micro = MicroBatch(torch.ones_like(ids, dtype=torch.bool), next_tokens(ids, mask, labels))
    asked = {}
    if takes_columns(model):
        columns = micro.loss_BS.any(0).nonzero().flatten()
        micro.columns = columns if len(columns) else columns.new_zeros(1)
        asked = {"logits_to_keep": micro.columns}
    read, output = _read(model, hookpoints, batch, asked, stop=False)
    if getattr(output, "logits", None) is not None:
        micro.note_logits(output.logits)
        if look is not None and micro.token_loss_BS is not None:
            look(output.logits, micro.columns)
    return read, micro.token_loss_BS


def _read(
    model: nn.Module, hookpoints: list[str], batch: dict[str, Tensor], asked: dict[str, Tensor], stop: bool
) -> tuple[dict[str, Tensor], object]:
    stop = stop and not is_sharded(model)  # a forward pass that FSDP2 has begun must end
    model = entry(model)
    device = next(model.parameters()).device
    wanted = {canonical(name): find_hookpoint(model, name) for name in hookpoints}
    read: dict[str, Tensor] = {}
    versions: dict[str, int] = {}
    output = None

    def reader(name: str):
        def look(h: Tensor) -> None:
            read[name], versions[name] = h.detach(), h._version
            if stop and len(read) == len(wanted):
                raise Stop

        return look

    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask", "position_ids") if batch.get(key) is not None}
    cache = {"past_key_values": batch["past_key_values"]} if "past_key_values" in batch else {}
    with ExitStack() as stack:
        stack.enter_context(inference(model))
        stack.enter_context(uncompiled(model))
        for name, hookpoint in wanted.items():
            stack.callback(hookpoint.watch(reader(name)).remove)
        try:
            output = model(**inputs, **asked, **cache, use_cache=bool(cache))
        except Stop:
            pass  # every hookpoint has been read
    missed = [name for name in wanted if name not in read]
    if missed:
        raise RunError(f"the model's forward pass does not pass {', '.join(missed)}: nothing can be read there")
    for name, h in read.items():
        if h._version != versions[name]:
            raise InputError(in_place(name))
        if h.dim() != 3 or h.shape[:2] != inputs["input_ids"].shape:
            raise InputError(not_one_vector(name, h.shape, inputs["input_ids"].shape))
    return {canonical(name): read[canonical(name)] for name in hookpoints}, output
