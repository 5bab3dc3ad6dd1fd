"""What does watching cost? Training steps with and without gradlens, in paired order in one process.

Every arm has a model of its own (frozen weights are shared) and sees the same batches; the order of the arms rotates from step to step, so
that whatever else the machine does falls on all alike. A step is forward, backward, clipping and the optimizer with everything that
hangs on it. Two ratios to the bare step are given: the median over steps, which is what a step without readings of the probe set costs, and
the ratio of the sums, which has those in it.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.capture import hidden
from gradlens.config import ObserveSettings, RunConfig
from gradlens.data import IGNORE, Mixture, collate
from gradlens.dictionary import Dictionary
from gradlens.formats import load_dictionary
from gradlens.hookpoints import canonical, find_module
from gradlens.lens import Lens
from gradlens.models import load_model
from gradlens.reading import pad_id_of
from gradlens.recorder import NullRecorder
from gradlens.rules import Policy, load_rules
from gradlens.train import LossFunction, Rank, Shared, reference_batches, run_concepts, run_examples, split, to_train

NOTHING = {"estimators": [], "drift_every": 0, "update_every": 0, "own_prompts": 0}
# arm -> changes of `observe`; `default`: the config's own settings
ARMS: dict[str, dict[str, Any]] = {
    "hooks": NOTHING,
    "push": NOTHING | {"estimators": ["push"]},
    "taught": NOTHING | {"estimators": ["taught"]},
    "estimators": NOTHING | {"estimators": ["taught", "push", "attribution", "energy", "unexplained"]},
    "default": {},
    "rules": NOTHING,
}
ALL_ARMS = ("bare", *ARMS, "naive")
RESAMPLES = 1000
Progress = Callable[..., None]


def bench(config: RunConfig, arms: Sequence[str], steps: int, progress: Progress | None = None) -> list[dict[str, Any]]:
    """One entry per arm: `arm, steps, seconds` (median step), `median_ratio` with a 95% interval, `total_ratio` with one over blocks of
    steps, `losses` equal to the bare arm's or not. `naive`: a hook with dense [T, F] products. `rules`: the config's, nothing read."""
    device = torch.device("cuda" if torch.cuda.is_available() and config.train.device != "cpu" else "cpu")
    torch.manual_seed(config.train.seed)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        rank = Rank(config, Path(folder), NullRecorder(), device=device, shared=Shared())
        if progress is not None:
            rank.phase = progress
        rank.phase("loading model")
        model, tokenizer = load_model(config.model.name, config.model.dtype, str(device))
        dictionaries = {canonical(hook): load_dictionary(source, device=device) for hook, source in config.dictionaries.items()}
        concepts = run_concepts(rank, model, tokenizer, dictionaries)
        sources, probe = run_examples(rank, tokenizer)
        reference = reference_batches(config.observe, tokenizer, config.data.max_length, device)
        model = to_train(config, model, device).train()
        mixture, pad = Mixture(sources, config.data.weights, config.train.batch_size, config.train.seed), pad_id_of(tokenizer)
        take: dict[str, Callable[..., float]] = {}
        for arm in arms:
            rank.phase(f"preparing {arm}")
            mine = _copy(model)
            optimizer = torch.optim.AdamW([p for p in mine.parameters() if p.requires_grad], lr=config.train.lr)
            watching: AbstractContextManager = nullcontext()
            if arm == "naive":
                watching = _naive(mine, dictionaries)
            elif arm != "bare":
                policy = Policy(version=1, rules=tuple(load_rules(list(config.rules)))) if arm == "rules" else None
                watching = Lens(
                    mine, optimizer, dictionaries, policy=policy, recorder=NullRecorder(), probe=probe, tokenizer=tokenizer,
                    reference=reference,
                    observe=config.observe.model_copy(update=ARMS[arm]),
                    concepts={concept.name: concept.features for concept in concepts},
                    thresholds={concept.name: concept.thresholds for concept in concepts},
                    quorums={concept.name: concept.quorum for concept in concepts},
                )  # fmt: skip
            lens = stack.enter_context(watching)
            take[arm] = partial(_step, mine, optimizer, LossFunction(mine), config.train.max_grad_norm, lens, device)
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        losses: dict[str, list[float]] = {arm: [] for arm in arms}
        for step in range(steps):
            examples = sorted(mixture.batch(step), key=lambda example: len(example.input_ids))
            parts = split(examples, config.train.micro_batch_size)
            counted = sum(label != IGNORE for example in examples for label in example.labels[1:])
            micro = [
                ({key: value.to(device) for key, value in collate(part, pad).items()}, [example.row_id for example in part])
                for part in parts
            ]
            turn = step % len(arms)
            for arm in (*arms[turn:], *arms[:turn]):
                began = time.perf_counter()
                losses[arm].append(take[arm](micro, max(counted, 1)))
                seconds[arm].append(time.perf_counter() - began)
            rank.phase("measuring", done=step + 1, total=steps)
    return [_entry(arm, seconds, losses, config.observe) for arm in arms]


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Any, norm: float | None, lens: Any, device: torch.device,
    micro: list[tuple[dict[str, Tensor], list[int]]], counted: int,
) -> float:  # fmt: skip
    """One optimizer step; its loss."""
    total = 0.0
    for batch, rows in micro:
        if isinstance(lens, Lens):
            lens.set_rows(rows)
        loss = loss_of(batch) / counted
        loss.backward()
        total += loss.detach()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return float(total)


def _copy(model: nn.Module) -> nn.Module:
    """A model with parameters of its own where they are trained; what is frozen is shared."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad})


def _naive(model: nn.Module, dictionaries: dict[str, Dictionary]) -> ExitStack:
    """What one would write first: per hookpoint the dense activations and the dense product of gradients and directions."""
    stack, totals = ExitStack(), {name: 0.0 for name in dictionaries}

    def watch(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        h, dictionary = hidden(output), dictionaries[name]
        if not h.requires_grad:
            return
        kept = h.detach()

        def on_gradient(g: Tensor) -> None:
            acts_TF = dictionary.encode(kept.flatten(0, 1))
            dots_TF = g.flatten(0, 1) @ dictionary.W_dec.T
            totals[name] += -(acts_TF * dots_TF).sum(0) - dots_TF.sum(0) + dots_TF.square().sum(0)

        h.register_hook(on_gradient)

    for name in dictionaries:
        stack.callback(find_module(model, name).register_forward_hook(partial(watch, name)).remove)
    return stack


def _entry(arm: str, seconds: dict[str, list[float]], losses: dict[str, list[float]], observe: ObserveSettings) -> dict[str, Any]:
    bare, mine = np.array(seconds["bare"]), np.array(seconds[arm])
    rng = np.random.default_rng(0)
    ratios = mine / bare
    picks = rng.integers(0, len(bare), (RESAMPLES, len(bare)))
    # readings of the probe set come every so many steps: whole periods are drawn, so that each has its share of them
    period = min(max(observe.drift_every, 1), len(bare))
    blocks = np.array([[m.sum(), b.sum()] for m, b in zip(_blocks(mine, period), _blocks(bare, period), strict=True)])
    drawn = blocks[rng.integers(0, len(blocks), (RESAMPLES, len(blocks)))].sum(1)
    return {
        "arm": arm,
        "steps": len(mine),
        "seconds": float(np.median(mine)),
        "median_ratio": float(np.median(ratios)),
        "median_interval": np.percentile(np.median(ratios[picks], axis=1), (2.5, 97.5)).tolist(),
        "total_ratio": float(mine.sum() / bare.sum()),
        "total_interval": np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5)).tolist(),
        "same_losses": losses[arm] == losses["bare"],
    }


def _blocks(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[first : first + size] for first in range(0, len(values) - size + 1, size)]
