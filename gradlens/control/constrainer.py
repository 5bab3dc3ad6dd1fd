"""Rules of mode constrain: the shell around `constraint.py` and the model. Reads how a concept's measure stands on its exemplars, with its
gradient, before the optimizer's step, and projects the change after it.

The measure is by how much the exemplars' tokens have risen above the model before training, in the mean over tokens: log-probability
(`likelihood`) or activation of the concept's features (`activations`). Only what has risen counts: else one token that is made
impossible would pay for all others. Its gradient is taken by itself (`torch.autograd.grad`): `.grad`, dropout's random numbers, DDP's
buckets and the lens's readings stay as they are. Ranks share the exemplars and add up: the same change on all of them.
Shape suffixes: B rows, S positions, T counted tokens, N features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.concepts.concept_files import Concept
from gradlens.concepts.detector import weights_over
from gradlens.concepts.detector_fit import sharpest
from gradlens.control.constraint import check_metric, constrain, metric_of
from gradlens.control.rewriter import Rewriter, Tokens
from gradlens.control.rules import Rule
from gradlens.data.rows import IGNORE, build_examples, collate
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.live_features import live_features
from gradlens.errors import ConfigError
from gradlens.model.capture import inference, next_tokens, takes_columns, token_loss, uncompiled
from gradlens.model.hookpoints import find_hookpoint, unwrap
from gradlens.model.reading import pad_id_of
from gradlens.model.trainable import is_sharded
from gradlens.readings.own import before_training
from gradlens.readings.probe import evenly
from gradlens.world import World, flat_sum_

EXEMPLARS, ROWS = 64, 8  # texts of a concept that are used; that are read at a time
Batch = dict[str, Tensor]
Values = Callable[[Batch], Tensor]  # of every counted token of a batch: [T] or [T, N]


def exemplars_of(
    concepts: Sequence[Concept],
    tokenizer: Any,
    max_length: int,
    model: nn.Module,
    dictionaries: dict[str, Dictionary],
    name: str | None,
) -> list[Batch]:
    """Positive examples of the concept of that name as batches, at most `EXEMPLARS`; none where it has none.

    Where the concept has token detectors, only the tokens that express it count: the others are what may be learned. Raises `ConfigError`
    where there are no such tokens.
    """
    concept = next((concept for concept in concepts if concept.name == name), None)
    rows = [] if concept is None or tokenizer is None else concept.examples("positive", tokenizer)
    if not rows:
        return []
    examples = build_examples([rows[i] for i in evenly(len(rows), EXEMPLARS)], tokenizer, max_length, source=concept.name)
    found = {place: each for place, each in concept.detectors.items() if place in dictionaries and each.features}
    if found:
        at = sharpest(found)
        weights_F = weights_over(found[at], dictionaries[at].d_sae, dictionaries[at].W_dec.device, dictionaries[at].work_dtype)
        rewriter = Rewriter(model, dictionaries, Tokens(at, weights_F, found[at].bias), False, tokenizer)
        told = rewriter.told([(each.input_ids, [label != IGNORE for label in each.labels]) for each in examples])
        examples = [
            replace(each, labels=[label if yes else IGNORE for label, yes in zip(each.labels, expressed, strict=True)])
            for each, expressed in zip(examples, told, strict=True)
            if any(expressed[1:])
        ]
        if not examples:
            raise ConfigError(f"constrain: the token detector of {concept.name} at {at} finds no token in its positive examples")
    device = next(model.parameters()).device
    # one by one, so that a batch has examples of every kind, however they are ordered
    count = -(-len(examples) // ROWS)
    batches = [collate(examples[first::count], pad_id_of(tokenizer)) for first in range(count)]
    return [{key: value.to(device) for key, value in batch.items()} for batch in batches]


def constrainer_of(
    rule: Rule,
    features: dict[str, Tensor],
    model: nn.Module,
    optimizer: Any,
    world: World,
    dictionaries: dict[str, Dictionary],
    exemplars: Callable[[str | None], list[Batch]],
) -> Constrainer:
    """What carries out a rule of mode constrain. Raises `ConfigError` where its concept has no examples, the optimizer's metric is not
    known, or parameters are split over ranks."""
    check_metric(optimizer)
    if is_sharded(model):
        raise ConfigError("constrain needs whole parameters and gradients, which FSDP2 splits over ranks; use DDP, or rules of mode route")
    batches = exemplars(rule.concept)
    if not batches:
        raise ConfigError(f"rule {rule.label}: constrain measures a concept on its positive examples, and there are none")
    if rule.measure == "likelihood":
        if rule.random_control is not None:
            batches = [scrambled(batch, rule.random_control) for batch in batches]
        return Constrainer(model, optimizer, world, batches, likelihood(model), rule.every)
    if any(dictionaries[name].hook_in for name in features):
        raise ConfigError(f"rule {rule.label}: constrain by activations does not act through transcoders; use measure: likelihood")
    return Constrainer(model, optimizer, world, batches, activations(model, dictionaries, features), rule.every)


def scrambled(batch: Batch, seed: int) -> Batch:
    """The same counted tokens at random places of the batch: the random control of the likelihood."""
    counted_BS, found = batch["labels"] != IGNORE, {**batch}
    order = torch.randperm(int(counted_BS.sum()), generator=torch.Generator().manual_seed(seed)).to(counted_BS.device)
    tokens_T = batch["labels"][counted_BS][order]
    for key in ("input_ids", "labels"):
        found[key] = batch[key].masked_scatter(counted_BS, tokens_T)
    return found


class Constrainer:
    """Carries out one rule of mode constrain."""

    def __init__(self, model: nn.Module, optimizer: Any, world: World, batches: Sequence[Batch], values: Values, every: int) -> None:
        self.model, self.optimizer, self.world, self.values, self.every = model, optimizer, world, values, every
        self.batches = [{key: value[world.rank :: world.size] for key, value in batch.items()} for batch in batches]
        self.shares = [1 / max(int((batch["labels"][:, 1:] != IGNORE).sum()), 1) for batch in batches]  # of one token of all ranks
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
        self.reference: list[Tensor | None] | None = None  # values in the model before training
        self.seen: Tensor | None = None  # the measure as last read
        self.measure: Tensor | None = None  # and what later changes made of it to first order
        self.slope: list[Tensor] = []
        self._before: list[Tensor] = []

    def before_step(self, step: int) -> None:
        """Remember the parameters; read the measure where that is due, on one batch after another. At the first time the model before
        training is read on all of them."""
        if self.reference is None:
            with before_training(unwrap(self.model)), inference(self.model):
                self.reference = [self.values(batch).detach() if len(batch["input_ids"]) else None for batch in self.batches]
        if self.measure is None or step % self.every == 0:
            self._read(step // self.every % len(self.batches))
        self._before = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def after_step(self, gain: float) -> tuple[Tensor, Tensor, Tensor]:
        """Project the optimizer's change. Returns squared lengths in its metric, of what stands against the constraint and of all of it,
        and whether the projection has made something not finite; gain 1 counts and changes nothing."""
        change = [parameter - before for parameter, before in zip(self.parameters, self._before, strict=True)]
        # with a gain above 0 a part of every step's rise is let through, so what has risen is not taken back
        room = -self.measure if gain <= 0 else 0.0
        made, found = constrain(change, self.slope, metric_of(self.optimizer, self.parameters), room, gain)
        broken = torch.zeros((), dtype=torch.float64, device=found.total.device)
        if gain != 1:
            for parameter, before, own, step in zip(self.parameters, self._before, change, made, strict=True):
                broken += own.isfinite().all() & ~step.isfinite().all()
                parameter.copy_(before + step)
        self.measure = (self.measure + found.left).clamp_min(0.0)
        self._before = []
        return found.beyond, found.total, broken

    def state_dict(self) -> dict[str, Any]:
        """This rank's examples and their values before training, which a run that goes on without an adapter could not read any more. The
        slope only where it is not read anew before the next step."""
        kept = {name: getattr(self, name) for name in ("batches", "shares", "reference", "seen", "measure")}
        return {**kept, "size": self.world.size, "slope": self.slope if self.every > 1 else []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.parameters[0].device
        there = lambda value: None if value is None else value.to(device)  # noqa: E731
        if state["size"] == self.world.size and state["reference"] is not None:  # else other examples are this rank's
            self.batches = [{key: there(value) for key, value in batch.items()} for batch in state["batches"]]
            self.shares, self.reference = state["shares"], [there(values) for values in state["reference"]]
        if state["slope"]:
            self.slope = [there(part) for part in state["slope"]]
            self.seen, self.measure = there(state["seen"]), there(state["measure"])

    def _read(self, number: int) -> None:
        """The measure and its gradient on one batch, at the parameters as they are, over all ranks."""
        batch, reference = self.batches[number], self.reference[number]
        total = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        slope = [torch.zeros_like(parameter) for parameter in self.parameters]
        if reference is not None:  # None: more ranks than rows
            with inference(self.model), uncompiled(unwrap(self.model)), torch.enable_grad():
                measure = self.shares[number] * _risen(self.values(batch) - reference).sum()
                found = torch.autograd.grad(measure, self.parameters, allow_unused=True)
            total += measure.detach()
            for mine, part in zip(slope, found, strict=True):
                if part is not None:
                    mine += part
        flat_sum_(self.world, [total, *slope])
        self.seen = self.measure = total
        self.slope = slope


def _risen(change: Tensor) -> Tensor:
    """relu, with the slope of the rising side at 0: before anything has moved, everything may rise."""
    return torch.where(change >= 0, change, 0.0)


def likelihood(model: nn.Module) -> Values:
    """Log-probability of every counted token, `[T]`; logits are made only where a row has one, if the model can."""
    selects = takes_columns(model)

    def values(batch: Batch) -> Tensor:
        targets_BS = next_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"])
        asked = {}
        if selects:
            asked["logits_to_keep"] = (targets_BS != IGNORE).any(0).nonzero().flatten()
            targets_BS = targets_BS[:, asked["logits_to_keep"]]
        logits = unwrap(model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **asked, use_cache=False).logits
        return -token_loss(logits, targets_BS)[targets_BS != IGNORE]

    return values


def activations(model: nn.Module, dictionaries: dict[str, Dictionary], features: dict[str, Tensor]) -> Values:
    """Activation of features at several hookpoints, where a counted token is predicted: `[T, N]`."""

    def values(batch: Batch) -> Tensor:
        seen_BS = next_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"]) != IGNORE
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for name, ids_N in features.items():

                def look(h_BSD: Tensor, name: str = name, ids_N: Tensor = ids_N) -> None:
                    dictionary = dictionaries[name]
                    found[name] = live_features(dictionary, h_BSD[seen_BS].to(dictionary.work_dtype), ids_N)

                stack.callback(find_hookpoint(model, name).watch(look).remove)
            unwrap(model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        return torch.cat([found[name] for name in features], 1)

    return values
