"""What the model does: greedy and sampled answers to prompts, mean loss on held-out rows, how often its answers show each concept.

Nothing here changes the model: its modes, its random state and its configuration are as before afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradlens.concepts.checkers import checker_for, errors_of, judged
from gradlens.errors import InputError
from gradlens.model.capture import inference
from gradlens.model.reading import pad_id_of

if TYPE_CHECKING:
    from gradlens.concepts.concept_files import Concept
    from gradlens.config import EvaluateSettings
    from gradlens.data.rows import Example

Progress = Callable[[int], object]  # called with the number of rows done since the last call
# What a model's own generation config may ask for and is not asked here: a penalty on tokens that have been also looks at the padding.
_PLAIN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_return_sequences": 1, "num_beams": 1}
_ALL_TOKENS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """eval mode, no gradients; afterwards every module's mode and the random state are what they were."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), inference(model):
        yield model  # without activation checkpointing as well, which only acts in training mode


def generate_answers(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str | dict[str, Any]],
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: Progress | None = None,
    temperature: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Answers in the order of the prompts (texts for a user's turn, or rows, whose last answer is left out); see `continue_texts`."""
    ids = prompt_ids(tokenizer, prompts)
    return decoded(tokenizer, continue_texts(model, tokenizer, ids, max_new_tokens, batch_size, progress, temperature, seed))


def decoded(tokenizer, answers: Sequence[Sequence[int]]) -> list[str]:
    return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]


def prompt_ids(tokenizer, prompts: Sequence[str | dict[str, Any]]) -> list[list[int]]:
    """What the model is given for each prompt, up to the opening of its answer."""
    from gradlens.data.rows import begun, messages_of, prompt_text

    rows = [{"prompt": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]
    templated = bool(getattr(tokenizer, "chat_template", None))  # a template writes its special tokens itself
    return [begun(prompt_text(row, tokenizer), tokenizer, special=not templated or messages_of(row) is None) for row in rows]


def continue_texts(
    model: nn.Module,
    tokenizer,
    ids: Sequence[Sequence[int]],
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: Progress | None = None,
    temperature: float | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """The tokens that the model writes after each text, up to and with the first that ends an answer: greedily, or drawn at a temperature
    from all tokens, the same ones for the same seed and texts.

    Rows are padded on the left, so that a greedy answer does not depend on its neighbours in the batch; see `_batches`.
    """
    from transformers import GenerationConfig

    pad, ends = pad_id_of(tokenizer), _end_ids(model, tokenizer)
    drawn = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature, **_ALL_TOKENS}
    lengths = {"max_new_tokens": max_new_tokens, "pad_token_id": pad, "eos_token_id": ends}
    config = GenerationConfig(use_cache=True, **lengths, **_PLAIN, **drawn)
    device = next(model.parameters()).device
    answers: list[list[int]] = [[] for _ in ids]
    with undisturbed(model):
        if temperature is not None:
            torch.manual_seed(seed)  # of this block alone
        for batch in _batches(model, ids, batch_size, pad):
            width = max(len(ids[i]) for i in batch)
            tokens = torch.tensor([[pad] * (width - len(ids[i])) + list(ids[i]) for i in batch], device=device)
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in batch], device=device)
            written = model.generate(input_ids=tokens, attention_mask=mask, generation_config=config)
            for i, row in zip(batch, written[:, width:].tolist(), strict=True):
                end = next((at + 1 for at, token in enumerate(row) if token in (ends or ())), len(row))
                answers[i] = row[:end]
            if progress is not None:
                progress(len(batch))
    return answers


def _batches(model: nn.Module, ids: Sequence[Sequence[int]], size: int, pad: int) -> list[list[int]]:
    """Which texts are continued together, shorter ones first. Each alone where the model does not heed a mask: RWKV would read the padding,
    and even among texts of one length transformers' RWKV goes on from the last token of another row of the batch."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    if size > 1 and len(ids) > 1 and not _heeds_mask(model, [pad, *ids[order[0]][-8:]]):
        size = 1
    return [order[start : start + size] for start in range(0, len(order), size)]


def _heeds_mask(model: nn.Module, text: list[int]) -> bool:
    """Whether it makes any difference to the model that the first token is masked."""
    tokens = torch.tensor([text, text], device=next(model.parameters()).device)  # state space models leave the mask of a single row unused
    seen, hidden = torch.ones_like(tokens), torch.ones_like(tokens)
    hidden[:, 0] = 0
    with_it, without = (model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, -1] for mask in (seen, hidden))
    return not torch.equal(with_it, without)


def _end_ids(model: nn.Module, tokenizer) -> list[int] | None:
    """Ids that end an answer: the tokenizer's and the model's own (chat models often have several)."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(found if isinstance(found, list) else [found])} - {None}
    return sorted(ids) or None


def mean_nll(
    model: nn.Module, examples: Sequence[Example], batch_size: int = 8, pad_id: int = 0, progress: Progress | None = None
) -> float:
    """Mean loss in nats per counted token over all rows: every token weighs the same, whatever row it is in."""
    from gradlens.data.rows import IGNORE, collate

    device = next(model.parameters()).device
    total, count = 0.0, 0
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    with undisturbed(model):
        for start in range(0, len(order), batch_size):
            batch = {
                key: value.to(device) for key, value in collate([examples[i] for i in order[start : start + batch_size]], pad_id).items()
            }
            logits_BSV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            targets_BS = batch["labels"][:, 1:]
            counted = targets_BS != IGNORE
            loss = nn.functional.cross_entropy(logits_BSV[:, :-1][counted].float(), targets_BS[counted], reduction="sum")
            total, count = total + loss.double().item(), count + int(counted.sum())
            if progress is not None:
                progress(batch["input_ids"].shape[0])
    if not count:
        raise InputError("no token is counted by the loss in the held-out rows")
    return total / count


def evaluate(
    model: nn.Module,
    tokenizer,
    settings: EvaluateSettings,
    concepts: Sequence[Concept],
    max_length: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Everything `settings` asks for, as plain JSON data.

    `{"nll": {held-out set: nats per token}, "rates": {prompt set: {concept: share of answers}},
    "answers": {prompt set: [{"prompt", "answer", "hits": {concept: bool}}]}, "cut": {prompt set: answers that did not end by themselves},
    "checkers": {concept: see `errors_of`}}`, and where answers are drawn `"sampled": {prompt set: {concept: {"hits", "n"}}}`, over all
    draws.
    """
    from gradlens.data.rows import build_examples, read_rows

    checkers = {concept.name: checker for concept in concepts if (checker := checker_for(concept)) is not None}
    nll = {}
    for name, source in settings.heldout.items():
        examples = build_examples(read_rows(source)[: settings.max_rows], tokenizer, max_length, source=source)
        nll[name] = mean_nll(model, examples, pad_id=pad_id_of(tokenizer), progress=progress)
    answers: dict[str, list[dict[str, Any]]] = {}
    sampled: dict[str, dict[str, dict[str, int]]] = {}
    cut: dict[str, int] = {}
    ends = _end_ids(model, tokenizer) or ()
    for name, source in settings.prompts.items():
        rows = read_rows(source)[: settings.max_rows]
        ids = continue_texts(model, tokenizer, prompt_ids(tokenizer, rows), settings.max_new_tokens, progress=progress)
        written, cut[name] = decoded(tokenizer, ids), sum(answer[-1] not in ends for answer in ids)
        hits = {concept: judged(check, written) for concept, check in checkers.items()}
        answers[name] = [
            {"prompt": question_of(row), "answer": answer, "hits": {concept: found[number] for concept, found in hits.items()}}
            for number, (row, answer) in enumerate(zip(rows, written, strict=True))
        ]
        drawn = []
        for seed in range(settings.samples):
            drawn += generate_answers(
                model, tokenizer, rows, settings.max_new_tokens, progress=progress, temperature=settings.temperature, seed=seed
            )
        if drawn:
            sampled[name] = {concept: {"hits": sum(judged(check, drawn)), "n": len(drawn)} for concept, check in checkers.items()}
    rates = {
        name: {concept: sum(item["hits"][concept] for item in items) / len(items) for concept in checkers}
        for name, items in answers.items()
    }
    kinds = {name: errors_of(check) for name, check in checkers.items()}
    return {"nll": nll, "rates": rates, "answers": answers, "cut": cut, "checkers": kinds} | ({"sampled": sampled} if sampled else {})


def question_of(row: dict[str, Any]) -> str:
    """What the user asks in a row: the last user turn, or the plain text."""
    from gradlens.data.rows import messages_of

    messages = messages_of(row)
    if messages is None:
        return row["text"]
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
