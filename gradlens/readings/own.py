"""What the model says by itself: its own continuations of the probe set's prompts, read through the dictionaries.

A concept often shows first in what a model says, not in what it reads. The texts are read by the model as it was before training where
that is at hand for nothing (an adapter that can be switched off), so that the reading tells of the text and not of the reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.data.rows import IGNORE, Example, collate
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.model.evaluate import continue_texts
from gradlens.model.reading import pad_id_of
from gradlens.model.spelling import Spelling
from gradlens.model.start import adapted, put_back, remembered
from gradlens.readings.probe import ProbeReading, ProbeTokens, evenly, read_tokens
from gradlens.report.excerpts import Place, strongest


@dataclass
class OwnReading:
    """What the model said at one step, and how it reads."""

    answers: list[str]
    at: dict[str, ProbeReading]  # hookpoint -> means over the answers' tokens; empty where no answer has a token to read
    known: ProbeTokens | None  # not kept over a restart
    lengths: list[int] = field(default_factory=list)  # read tokens of every answer that has some


def prompts_of(batches: list[dict[str, Tensor]], rows: int) -> list[list[int]]:
    """Prompts of at most `rows` texts, evenly spread: what comes before the first token that the loss counts; half of a plain text."""
    texts: list[list[int]] = []
    for batch in batches:
        mask = batch.get("attention_mask")
        labels = batch.get("labels")
        for index, ids in enumerate(batch["input_ids"]):
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[index].bool()
            counted = real if labels is None else real & (labels[index] != IGNORE)
            first = int(counted.int().argmax()) if counted.any() else 0
            length = int(real.sum())
            start = int(real.int().argmax())  # padding may be on the left
            end = first if first > start + 1 else start + max(1, length // 2)
            texts.append(ids[start:end].tolist())
    texts = [text for text in texts if text]
    return [texts[i] for i in evenly(len(texts), rows)]


def read_own(
    model: nn.Module, tokenizer: Any, dictionaries: dict[str, Dictionary], prompts: list[list[int]], max_new_tokens: int
) -> OwnReading:
    """Let the model continue the prompts, greedily, and read what it wrote. Costs a generation and a forward pass."""
    written = continue_texts(model, tokenizer, prompts, max_new_tokens)
    answers = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in written]
    at, known = read_written(model, dictionaries, prompts, written, pad_id_of(tokenizer))
    return OwnReading(answers, at, known, [] if known is None else torch.bincount(known.row_T.long()).tolist())


def change_by_answer(before: OwnReading, now: OwnReading, hookpoint: str) -> Tensor | None:
    """What the answer to every prompt contributes to the change of each feature's mean over all answers' tokens, `[R, F]`, float64; None
    where a prompt has no answer to compare."""
    parts = []
    for reading in (before, now):
        if not reading.lengths or len(reading.lengths) != len(reading.answers):
            return None
        tokens_R1 = torch.tensor(reading.lengths, dtype=torch.float64)[:, None]
        parts.append(reading.at[hookpoint].rows.double() * tokens_R1 / tokens_R1.sum())
    return parts[1] - parts[0]


def read_written(
    model: nn.Module, dictionaries: dict[str, Dictionary], prompts: list[list[int]], written: list[list[int]], pad_id: int
) -> tuple[dict[str, ProbeReading], ProbeTokens | None]:
    """Means over the written tokens, read by the model before training where it can be had. `({}, None)` where nothing was written."""
    examples = [
        Example([*prompt, *answer], [*[IGNORE] * len(prompt), *answer], number, "own", "")
        for number, (prompt, answer) in enumerate(zip(prompts, written, strict=True))
        if answer
    ]
    if not examples:
        return {}, None
    batches = [collate(examples[start : start + 8], pad_id) for start in range(0, len(examples), 8)]
    with before_training(model):
        return read_tokens(model, dictionaries, batches, pairs=True)


def place_in_answer(tokenizer: Any, reading: OwnReading, row: int, weight_T: np.ndarray) -> Place | None:
    """Where in an answer, in characters, most of some weight of all read tokens is; None where none is, and where tokens are not kept."""
    if reading.known is None:
        return None
    mine = (reading.known.row_T == row).numpy()
    tokens = strongest(weight_T[mine])
    if tokens is None:
        return None
    ids = reading.known.ids_T[torch.from_numpy(mine)].tolist()
    begun = lambda end: tokenizer.decode(ids[:end], skip_special_tokens=True)  # noqa: E731
    lead = len(begun(None)) - len(begun(None).lstrip())  # answers are kept without it
    first, last = (min(max(len(begun(end)) - lead, 0), len(reading.answers[row])) for end in Spelling(tokenizer).widened(ids, tokens))
    return first, last


def weights_in(reading: OwnReading, weights: Mapping[tuple[str, int], float]) -> np.ndarray:
    """How much of some features, `{(hookpoint, id): weight}`, every token of the answers has; nothing where tokens are not kept."""
    if reading.known is None:
        return np.zeros(0)
    total_T = torch.zeros(len(reading.known.ids_T), dtype=torch.float32)
    for (hookpoint, feature), weight in weights.items():
        pairs = reading.known.pairs[hookpoint]
        mine = pairs.feature_P.long() == feature
        total_T.index_add_(0, pairs.token_P[mine].long(), weight * pairs.value_P[mine].float())
    return total_T.numpy()


@contextmanager
def before_training(model: nn.Module) -> Iterator[bool]:
    """The model as its run began: without its adapter, or with what that began with (`gradlens.model.start`). Yields False, and the model
    as it is, where it has no adapter, or nothing leads back."""
    switches, start = adapted(model), remembered(model)
    with ExitStack() as stack:
        if start is not None and start.weights:
            stack.enter_context(put_back(start))
        elif start is None or start.known:
            for module in switches:
                trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
                module.enable_adapters(False)
                stack.callback(_enable, module, trained)
        yield bool(switches) and (start is None or start.known)


def _enable(module: Any, trained: list[tuple[nn.Parameter, bool]]) -> None:
    module.enable_adapters(True)
    for parameter, was in trained:  # switching an adapter off and on decides anew what is trained, also of what was frozen
        parameter.requires_grad_(was)
