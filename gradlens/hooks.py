"""What happens while training passes the model: hooks on it, at its hookpoints and at its head, and what they know of the pass.

Nothing here synchronises with an accelerator, but where rules tell or rewrite rows. With no rule in force no hook changes any tensor.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from gradlens.config import ObserveSettings
from gradlens.control.control import Control
from gradlens.control.row_teller import Row
from gradlens.data.rows import IGNORE
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import ROOM, by_feature, encode_active, encode_some
from gradlens.dictionaries.precision import needless, to_encode
from gradlens.errors import ConfigError, RunError
from gradlens.model.capture import MicroBatch, without_autocast
from gradlens.model.hookpoints import find_hookpoint, unwrap
from gradlens.model.reading import side_by_side
from gradlens.model.saved_losses import saved_log_probs
from gradlens.model.trainable import called, entry
from gradlens.readings.projection import NEED_PAIRS, Projector
from gradlens.readings.routers import Routers

log = logging.getLogger(__name__)
NO_LABELS = (
    "the model is called without labels, so every real token counts as one that is learned, questions too: pass labels to the model as "
    "well, or say observe.tokens: all where that is so (Trainer takes them away for label_smoothing_factor and compute_loss_func)"
)
# Devices on which a route rule that nobody reads along with has no more than its own features looked at. A CPU finds all of them, in the
# same way at every step, so that what is observed never moves a token over a rule's threshold, not even by rounding.
ALONE = ("cuda",)
Inputs = dict[str, dict[int, Tensor]]  # hookpoint of a transcoder -> number of a place that it reads -> the tensor there


class Hooks:
    """The hooks of one lens. `rows`, `scale`, `fired`, `saw_gradients` are read and set by the lens."""

    def __init__(
        self,
        model: nn.Module,
        dictionaries: dict[str, Dictionary],
        control: Control,
        projector: Projector,
        observe: ObserveSettings,
        *,
        begin: Callable[[dict], None],
        look_at_scale: Callable[[], None],
        clock: Callable[[str], AbstractContextManager],
        tell_once: Callable[..., bool],
    ) -> None:
        """`begin(batch)`: told what each forward pass of training is given, before it runs or is rewritten; it may read the model.
        `look_at_scale`: sets `scale`. `clock(part)`: counts what a reading costs. `tell_once(key, kind, **fields)`: an event of which once
        a run is enough."""
        self.model, self.dictionaries, self.control, self.projector, self.observe = model, dictionaries, control, projector, observe
        self.hookpoints = {name: find_hookpoint(model, name) for name in dictionaries}
        # of transcoders: where they read
        self.readers = {name: [find_hookpoint(model, at) for at in d.read_at(name)] for name, d in dictionaries.items() if d.hook_in}
        # float32 whatever the model trains in; float64 only where the model itself is (tests of exactness)
        self.dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
        self._begin, self._look_at_scale, self._clock, self._tell_once = begin, look_at_scale, clock, tell_once
        self.open = False  # forward passes are of training
        self.rows: tuple[int, ...] | None = None
        self.scale = 1.0  # that the loss of the step in progress is multiplied by
        self.fired: set[str] = set()  # hookpoints that any forward pass of training has passed
        self.saw_gradients = False  # in the step in progress
        self._parameters = _positional(unwrap(model))
        self._prepares = False  # the loop has its batches rewritten itself
        self._positions = WeakTensorKeyDictionary()  # `input_ids` of a prepared batch -> where its tokens stood before
        self._within = False  # a forward pass of the model is in progress
        self.must_have_labels = False  # a trainer takes the labels away from the model only where its loss needs them elsewhere
        self.end_step()

    def end_step(self) -> None:
        """Forget what belongs to the step in progress."""
        self.rows, self.saw_gradients = None, False
        self._batch: MicroBatch | None = None  # of the forward pass in progress, if it is one of training
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self._inputs: Inputs = {}  # what transcoders read in the forward pass in progress
        self._ablated: set[str] = set()  # hookpoints at which a rule has changed the activation
        self._unread: dict[str, list[MicroBatch]] = {name: [] for name in self.dictionaries}  # passed without gradients

    def register(self, hook: Callable[..., Any], routers: Routers | None) -> None:
        """Put the hooks on the model; `hook(remove)` is told how each is taken off."""
        untraced = torch.compiler.disable  # compiled models call hooks as they are, between their graphs
        model, start = called(self.model), entry(self.model)
        # Before all other hooks there: the first time the probe set is read, and FSDP2's hook must not have begun a forward pass by then
        hook(start.register_forward_pre_hook(untraced(self._on_model), prepend=True, with_kwargs=True).remove)
        hook(model.register_forward_hook(untraced(self._on_output)).remove)
        hook(start.register_forward_hook(untraced(self._on_end), always_call=True).remove)
        for name, hookpoints in self.readers.items():
            for number, hookpoint in enumerate(hookpoints):
                hook(hookpoint.watch(untraced(partial(self._on_input, name, number))).remove)
        for names in self._places():
            hook(self.hookpoints[names[0]].watch(untraced(partial(self._on_hookpoint, names))).remove)
        if routers is not None:
            hook(routers.watch(lambda: self._batch if self.observing() else None).close)
        head = unwrap(self.model).get_output_embeddings()
        if head is not None:
            hook(head.register_forward_hook(untraced(self._on_head)).remove)

    def observing(self) -> bool:
        return self.control.step % self.observe.every == 0

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Forward passes inside are not of training, also where one of training is in progress."""
        within, opened = self._within, self.open
        self.open = False
        try:
            yield
        finally:
            self._within, self.open = within, opened

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See `Lens.prepare`."""
        self._prepares = True
        with self.closed():
            self._begin(batch)
        found, positions_BS = self._rewritten(batch)
        if positions_BS is not None:
            self._positions[found["input_ids"]] = positions_BS
        return found

    def left_out(self, rows: Sequence[Row]) -> list[bool]:
        """Which rows teach nothing by the rules in force, as far as that is known before the model is given them; they are counted as
        touched, and are to be left out of the batch. Reads rows that are new with the model before training."""
        if not self.control.leaves_rows_out():
            return [False] * len(rows)
        with self.closed(), self._clock("rows"):
            return self.control.leave_out(rows)

    def _rewritten(self, batch: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        if not self.control.in_force("rewrite", dry=True):
            return batch, None
        with self.closed(), self._clock("rewrite"):
            return self.control.rewrite(batch)

    # -- the model ------------------------------------------------------------------------------------------------------------

    def _on_model(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._within, self._pairs, self._inputs, self._batch = True, {}, {name: {} for name in self.readers}, None
        if not (self.open and torch.is_grad_enabled() and module.training):
            return None
        self._look_at_scale()
        kwargs = dict(zip(self._parameters, args, strict=False)) | kwargs
        with self.closed():
            self._begin(kwargs)
        changed, ids = None, kwargs.get("input_ids")
        rewrites = bool(self.control.in_force("rewrite", dry=True))
        positions_BS = self._positions.get(ids) if rewrites and isinstance(ids, Tensor) else None  # None: copied on the way, so not known
        if rewrites and not self._prepares:
            before, (kwargs, positions_BS) = kwargs, self._rewritten(kwargs)
            changed = ((), kwargs)
            if kwargs.get("num_items_in_batch") is not None or kwargs.get("fused_lm_head"):  # a trainer has counted the tokens before this
                counts = [(batch["labels"][:, 1:] != IGNORE).sum() for batch in (before, kwargs)]
                self.control.balance.rewritten(*counts, gated=bool(self.control.in_force("route")))
        with self.closed():
            reference = self.control.references(kwargs)
        batch, self.rows = MicroBatch.of(kwargs, self.observe.tokens, self.rows), None
        if batch is not None:
            slow = needless(self.observe.precision, batch.keep_BS.device)
            if slow and self._tell_once("precision", "precision", reason=slow):
                log.warning("%s", slow)
            unlabelled = self.observe.tokens == "response" and kwargs.get("labels") is None
            if unlabelled and self.must_have_labels and self.control.acts():
                raise ConfigError(
                    "the trainer calls the model without labels (compute_loss_func?), and rules would act on the questions as well: leave "
                    "compute_loss_func away, or train without rules, or say observe.tokens: all where every token is learned"
                )
            if unlabelled and self._tell_once("no_labels", "no_labels", reason=NO_LABELS):
                log.warning("%s", NO_LABELS)
            if batch.row_ids is not None and len(batch.row_ids) != len(batch.keep_BS):
                raise RunError(f"set_rows was given {len(batch.row_ids)} row numbers for a batch of {len(batch.keep_BS)} rows")
            batch.reference = reference
            self._tell_rows(batch, kwargs)
        if batch is not None and self.control.in_force("rewrite"):
            batch.at_BS = torch.full_like(batch.targets_BS, -1) if positions_BS is None else positions_BS
        self._batch = batch
        return changed

    def _tell_rows(self, batch: MicroBatch, kwargs: dict) -> None:
        if not self.control.weighs_rows():
            return
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        mask = mask if mask is not None and mask.shape == ids.shape else None
        if batch.texts is not None and bool(_several(batch.texts[0], mask)):
            raise RunError(
                "a rule acts in whole rows (reweight, or one with rows), and each of these rows holds several texts; train without packing"
            )
        if self.control.tells_rows():
            with self.closed(), self._clock("rows"):
                self.control.tell_rows(batch, ids, mask, kwargs.get("labels"))

    def _on_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        batch = self._batch
        if batch is None or not torch.is_grad_enabled():
            return
        if self.control.in_force("route", dry=True) and not batch.routed:
            self._route_output(batch, output)
        if batch.reference:
            self._weigh_tokens(batch, output)
        if not self.observing() or "taught" not in self.observe.estimators:
            return
        with self._clock("step"):
            self._note_losses(batch, output)
        if batch.token_loss_BS is None:
            reason = "the model's output has no logits for the tokens that it reads: what rows teach is not known"
            self._tell_once("no logits", "not_read", estimator="taught", reason=reason)

    @staticmethod
    def _note_losses(batch: MicroBatch, output: Any) -> None:
        logits, log_probs = getattr(output, "logits", None), getattr(output, "log_probs", None)
        if batch.token_loss_BS is not None:
            return
        if logits is not None:
            batch.note_logits(logits.detach(), saved_log_probs(getattr(output, "loss", None), logits))
        elif isinstance(log_probs, Tensor):
            batch.note_log_probs(log_probs.detach())

    def _weigh_tokens(self, batch: MicroBatch, output: Any) -> None:
        """`penalty` is in units of a token's loss: how much one counts, however the loop sums, averages and scales, is seen in backward.

        The gradient that comes to the model's loss, times loss / sum of the tokens' losses.
        """
        loss, log_probs = getattr(output, "loss", None), getattr(output, "log_probs", None)
        self._note_losses(batch, output)
        B, S = batch.keep_BS.shape
        if isinstance(log_probs, Tensor) and log_probs.requires_grad and log_probs.shape in ((B, S - 1), (B, S)):

            def at_tokens(g: Tensor) -> None:  # TRL's trainers make their loss of these, not of the model's
                batch.token_weight = nn.functional.pad(-g.detach(), (0, S - g.shape[1]))

            log_probs.register_hook(at_tokens)
            return
        if not isinstance(loss, Tensor) or batch.token_loss_BS is None:
            raise RunError(
                "penalty adds to the loss of each token, and this model gives no loss with logits or log_probs; "
                "call it with labels, and with a loss that is not fused (use_liger_kernel=False)"
            )
        total = batch.token_loss_BS.sum()
        share = torch.where(total > 0, loss.detach() / total, 0.0)

        def look(g: Tensor) -> None:
            batch.token_weight = g.detach() * share

        if loss.requires_grad:
            loss.register_hook(look)

    def _on_end(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._within, self._batch = False, None

    # -- hookpoints -----------------------------------------------------------------------------------------------------------

    def _places(self) -> list[list[str]]:
        """Names of hookpoints, those that read the same tensor together."""
        found: dict[tuple[int, bool], list[str]] = {}
        for name, hookpoint in self.hookpoints.items():
            found.setdefault((id(hookpoint.module), hookpoint.at_input), []).append(name)
        return list(found.values())

    def _on_input(self, name: str, number: int, h: Tensor) -> None:
        if self._within and self._batch is not None:
            self._inputs[name][number] = h.detach()

    def _read(self, name: str, h: Tensor, inputs: Inputs) -> Tensor:
        """What the dictionary at `name` encodes, where h is the tensor there; of a transcoder what it has read in this forward pass."""
        if name not in self.readers:
            return h
        dictionary, found = self.dictionaries[name], inputs[name]
        if len(found) < len(self.readers[name]):
            places = ", ".join(dictionary.read_at(name))
            raise RunError(f"the dictionary at {name} reads {places}, and not all of that has been seen when its features are asked for")
        return side_by_side((found[number] for number in sorted(found)), dictionary, name)

    def _on_hookpoint(self, names: list[str], h: Tensor) -> Tensor | None:
        """One tensor, and the names of the dictionaries there: all read it as it is before any of them edits it.

        Checkpointing runs parts of the model twice: what lies inside such a part is passed again in backward. In its reentrant form only
        the second time has gradients, and then it must be known of which batch they are.
        """
        if not self._within:
            return self._on_recomputed(names, h)
        batch = self._batch
        if batch is None:
            return None
        self.fired.update(names)
        for name in names:
            if name in self.control.routed_hookpoints():
                self._pairs[name] = self.encode(name, batch.select(self._read(name, h.detach(), self._inputs)))
        if h.requires_grad:
            self._listen(names, h, batch, {name: pairs for name, pairs in self._pairs.items() if not self._alone(name, h.device)})
        elif not torch.is_grad_enabled():
            self._unread[names[0]].append(batch)
        return self._ablate(names, h, count=True)

    def _on_recomputed(self, names: list[str], h: Tensor) -> Tensor | None:
        if not (self.open and torch.is_grad_enabled()):
            return None
        waiting = self._unread[names[0]]
        if waiting and h.requires_grad:
            if len(waiting) > 1:
                raise RunError(
                    f"hookpoint {names[0]} lies inside a part of the model that reentrant checkpointing runs again, and there were several "
                    "forward passes before this backward pass: whose gradient this is cannot be told; use use_reentrant=False"
                )
            self._listen(names, h, waiting.pop(), {})
        return self._ablate(names, h, count=False) if names[0] in self._ablated else None

    def _listen(self, names: list[str], h: Tensor, batch: MicroBatch, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
        if self.observing() or batch.reference or any(self.control.in_force("grad", name, dry=True) for name in names):
            hook = partial(self._on_gradient, names, h.detach(), batch, pairs, self._inputs)
            h.register_hook(torch.compiler.disable(hook))

    def _ablate(self, names: list[str], h: Tensor, count: bool) -> Tensor | None:
        new = h
        with without_autocast(h.device):
            for name in names:
                if self.control.edits_activation(name):
                    self._ablated.add(names[0])
                    new = self.control.edit_activation(name, new, count)
        return None if new is h else new

    def _on_gradient(
        self, names: list[str], h_BSD: Tensor, batch: MicroBatch, pairs: dict[str, tuple[Tensor, Tensor]], inputs: Inputs, g_BSD: Tensor
    ) -> Tensor | None:
        with without_autocast(g_BSD.device):  # a loop may call backward inside
            return self._with_gradient(names, h_BSD, batch, pairs, inputs, g_BSD)

    def _with_gradient(
        self, names: list[str], h_BSD: Tensor, batch: MicroBatch, pairs: dict[str, tuple[Tensor, Tensor]], inputs: Inputs, g_BSD: Tensor
    ) -> Tensor | None:
        self.saw_gradients = True
        edited = g_BSD
        for name in names:
            if self.control.in_force("grad", name, dry=True):
                edited = self.control.edit_gradient(name, edited)
            if name in batch.reference:
                edited = self.control.add_penalty(name, h_BSD, edited, batch)
        if self.observing():
            with self._clock("step"):
                g_TD = batch.select(edited, zero=True)
                if self.scale != 1:  # in the precision that is computed in: a small gradient is zero in float16 without its scale
                    g_TD = g_TD.to(self.dtype) / self.scale
                tokens = replace(batch.tokens(h_BSD, g_TD), step=self.control.step)
                for name in names:  # what a transcoder reads and the gradient where it acts
                    own = replace(tokens, h_TD=batch.select(self._read(name, h_BSD, inputs))) if name in self.readers else tokens
                    self.projector.add(name, own, pairs.get(name))
        return None if edited is g_BSD else edited

    @torch.no_grad()
    def encode(self, name: str, h_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The active features that a route rule looks at, before the backward pass; all there are, where others read them too."""
        with without_autocast(h_TD.device):
            dictionary = self.dictionaries[name]
            if self._alone(name, h_TD.device):
                return encode_some(dictionary, h_TD, self.control.routed_features(name))
            return encode_active(dictionary, to_encode(dictionary, h_TD, self.observe.precision), room=ROOM)

    def _alone(self, name: str, device: torch.device) -> bool:
        """Whether a route rule's features are looked at and no others."""
        read = self.observing() and (NEED_PAIRS | {"taught"}) & set(self.observe.estimators)
        return device.type in ALONE and not read and by_feature(self.dictionaries[name])

    # -- the head: which tokens teach -------------------------------------------------------------------------------------------

    def _on_head(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if self._batch is None or not torch.is_grad_enabled() or not self.control.in_force("route", dry=True):
            return
        gains_BS = self.control.token_gains(self._batch, self._pairs)
        if gains_BS is None:  # a dry run: counted, and that is all
            self._batch.routed = True
            return
        if self._batch.columns is not None:
            gains_BS = gains_BS[:, self._batch.columns]
        # The gradient at the head's input carries every token's loss to the trunk; a trainable head needs its own share gated too.
        trained = any(parameter.requires_grad for parameter in module.parameters())
        target = output if trained else args[0]
        if target.shape[:2] != gains_BS.shape:
            raise RunError(
                f"route: the model's head sees positions {list(target.shape[:2])}, the batch has {list(gains_BS.shape)}; "
                "train with logits for all positions, or name them in a logits_to_keep tensor"
            )
        self._batch.routed = True
        target.register_hook(lambda g: g * gains_BS[..., None].to(g.dtype))

    def _route_output(self, batch: MicroBatch, output: Any) -> None:
        """`route` where the head is part of a fused loss, as in TRL's trainers: its output is every token's log-probability."""
        log_probs, S = getattr(output, "log_probs", None), batch.keep_BS.shape[1]
        if not isinstance(log_probs, Tensor) or log_probs.shape not in ((len(batch.keep_BS), S - 1), (len(batch.keep_BS), S)):
            raise RunError(
                "route: the loss of this model does not pass its output embeddings (a fused loss?), so tokens cannot be gated; "
                "switch the fused loss off (use_liger_kernel=False)"
            )
        gains_BS = self.control.token_gains(batch, self._pairs)
        batch.routed = True
        if log_probs.requires_grad and gains_BS is not None:
            gains_BS = gains_BS[:, : log_probs.shape[1]]
            log_probs.register_hook(lambda g: g * gains_BS.to(g.dtype))


def _positional(model: nn.Module) -> list[str]:
    """Names of what a model's forward takes in order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in inspect.signature(model.forward).parameters.items() if parameter.kind in kinds]


def _several(first_BS: Tensor, mask_BS: Tensor | None) -> Tensor:
    """Whether a row holds several texts, from where each position's text begins."""
    begins_BS = first_BS == torch.arange(first_BS.shape[1], device=first_BS.device)
    begins_BS = begins_BS if mask_BS is None else begins_BS & mask_BS.bool()
    return (begins_BS.sum(-1) > 1).any()
