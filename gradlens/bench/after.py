"""What `gradlens bench control` measures of a trained arm beside its answers and losses: what rose instead, and what is left after release.

What rose: the concept's features, their neighbours and the dictionaries' health on texts that nobody trained on, trained model against
base model; the same features in the model's own answers; and a probe fitted anew on the trained model's activations, which asks whether the
concept is still to be read in texts, and whether the model's own answers read like it, whatever the checker says.
Release: further steps without the rule, with the same optimizer, on plain data; then the arm's evaluation again.
Shape suffixes: R texts, F d_sae, D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.concepts.concept_files import Concept
from gradlens.config import RunConfig
from gradlens.data.rows import Example, Mixture, collate, load_examples, split, tokenize
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.probing import mean_difference
from gradlens.lens import Lens
from gradlens.model.capture import counted_tokens
from gradlens.model.evaluate import evaluate
from gradlens.model.hookpoints import canonical, place, unwrap
from gradlens.model.reading import pad_id_of, read_texts
from gradlens.readings.displacement import coactive, nearest, rise
from gradlens.readings.own import before_training
from gradlens.readings.probe import ProbeReading, ProbeTokens, evenly, read_tokens
from gradlens.readings.ranking import auc
from gradlens.readings.significance import MIN_TEXTS, beyond_chance
from gradlens.training.checkpoint import trainable
from gradlens.training.train import LossFunction
from gradlens.training.train import counted_tokens as counted_labels

TEXTS = 24  # of the concept's positives, and of its negatives, that are read; half of them fit the probe, half judge it
ANSWERS = 24  # answers to each set of prompts that are read
PLAIN = 16  # rows of ordinary text
LAYERS = 4  # blocks that a probe looks at, evenly spread, beside the dictionaries' hookpoints
RISING = 5  # features named


@dataclass
class Base:
    """The model before training, read once for all arms."""

    features: dict[str, list[int]]  # hookpoint -> the concept's
    neighbours: dict[str, dict[str, list[int]]]  # hookpoint -> kind -> features
    texts: dict[str, ProbeReading]  # of the concept's positives
    plain: dict[str, ProbeReading]
    probe: dict[str, dict[str, Tensor]]  # place -> positive, negative -> mean activation of each text [R, D]
    answers: dict[str, ProbeReading]  # of its own answers; {} where it said nothing
    probed_answers: dict[str, float]  # place -> how its own answers read


class AfterTraining:
    """What is read of the arms of one pair and shape."""

    def __init__(self, config: RunConfig, concept: Concept, plain: str) -> None:
        self.config, self.plain, self.names = config, plain, [canonical(name) for name in config.dictionaries]
        self.concept = concept
        self.base: Base | None = None

    def begin(self, lens: Lens, concept: Concept, answers: dict[str, list[dict[str, str]]]) -> None:
        """Read the model before its first step. `concept`: with features; `answers`: see `evaluate`."""
        if self.base is not None:
            return
        model, dictionaries, self._tokenizer = unwrap(lens.model), self._dictionaries(lens), lens.learning.tokenizer
        rows = {kind: self.concept.examples(kind, self._tokenizer) for kind in ("positive", "negative")}
        self.examples = {kind: self._examples([found[i] for i in evenly(len(found), TEXTS)]) for kind, found in rows.items()}
        self.plain_examples = load_examples(self.plain, self._tokenizer, self.config.data.max_length)[:PLAIN]
        features = {name: ids for name, ids in concept.features.items() if name in dictionaries and ids}
        texts, known = self._read(model, dictionaries, self.examples["positive"])
        neighbours = {
            name: {"cosine": nearest(dictionaries[name], ids), "coactive": _coactive(known, name, ids, dictionaries[name])}
            for name, ids in features.items()
        }
        probe = self._pooled_texts(model, dictionaries)
        said = self._answers(answers)
        read = self._read(model, dictionaries, said)[0] if said else {}
        plain = self._read(model, dictionaries, self.plain_examples)[0]
        self.base = Base(features, neighbours, texts, plain, probe, read, self._answers_by_probe(model, said, probe))

    def displacement(self, lens: Lens, answers: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
        """`{"hookpoints": {name: {"texts", "answers", "rising", "fvu"}}, "probe": {place: {"auc", "answers"}}, "reader"}`, plain JSON data.

        `texts`: on the concept's positives, summed over features: what the concept's `own` had before, by how much `own`, `cosine` and
        `coactive` neighbours rose, and the chance of the latter (`displacement.rise`). `answers`: the same sums in the model's own answers,
        before and now. `rising`: the features that rose most beyond chance on the positives, those of the sets left out. `fvu`: on
        ordinary text, before and now. `probe`: `auc` over held-out texts, and `answers`: how the own answers read, 0 like the negatives and
        1 like the positives; before and now, each by a probe of its own. `reader`: which model reads the answers' features.
        """
        base, model, dictionaries = self.base, unwrap(lens.model), self._dictionaries(lens)
        texts, plain = (self._read(model, dictionaries, part)[0] for part in (self.examples["positive"], self.plain_examples))
        probe = self._pooled_texts(model, dictionaries)
        said = self._answers(answers)
        with before_training(model) as apart:
            read = self._read(model, dictionaries, said)[0] if said else {}
        pooled = self._answers_by_probe(model, said, probe)
        hookpoints = {}
        for name, ids in base.features.items():
            now, then, sets = texts[name], base.texts[name], base.neighbours[name]
            change_RF = now.rows - then.rows
            rises = {kind: rise(change_RF, then.acts, found, aside=ids) for kind, found in sets.items()}
            figures = {"had": _sum(then.acts, ids), "own": _sum(now.acts - then.acts, ids)}
            figures |= {kind: rose.change for kind, rose in rises.items()} | {"chance": {kind: rose.chance for kind, rose in rises.items()}}
            hookpoints[name] = {
                "texts": figures,
                "answers": {
                    kind: [_sum(part[name].acts, found) if part else None for part in (base.answers, read)]
                    for kind, found in {"own": ids, **sets}.items()
                },
                "rising": _rising(change_RF, {*ids, *sets["cosine"], *sets["coactive"]}),
                "fvu": [base.plain[name].fvu, plain[name].fvu],
            }  # fmt: skip
        probed = {
            at: {"auc": [_auc(base.probe[at]), _auc(probe[at])], "answers": [base.probed_answers.get(at), pooled.get(at)]} for at in probe
        }
        return {"hookpoints": hookpoints, "probe": probed, "reader": "base" if apart else "trained"}

    # -- inside ---------------------------------------------------------------------------------------------------------------

    def _dictionaries(self, lens: Lens) -> dict[str, Dictionary]:
        """Those that every arm has: some arms bring directions of their own."""
        return {name: lens.dictionaries[name] for name in self.names}

    def _examples(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        found = [tokenize(row, self._tokenizer, self.config.data.max_length) for row in rows]
        return [example for example in found if counted_labels([example])]

    def _answers(self, answers: dict[str, list[dict[str, str]]]) -> list[Example]:
        items = [item for part in answers.values() for item in part[:ANSWERS] if item["answer"]]
        return self._examples([{"prompt": item["prompt"], "response": item["answer"]} for item in items])

    def _read(
        self, model: nn.Module, dictionaries: dict[str, Dictionary], examples: list[Example]
    ) -> tuple[dict[str, ProbeReading], ProbeTokens]:
        pad = pad_id_of(self._tokenizer)
        return read_tokens(model, dictionaries, [collate(part, pad) for part in split(examples, 8)], pairs=True)

    def _places(self, model: nn.Module, dictionaries: dict[str, Dictionary]) -> list[str]:
        blocks = model.config.get_text_config().num_hidden_layers
        spread = [f"layers.{blocks * (number + 1) // LAYERS - 1}" for number in range(min(LAYERS, blocks))]
        return list(dict.fromkeys([*(place(name) for name in dictionaries), *spread]))

    def _pooled(self, model: nn.Module, places: Sequence[str], examples: list[Example]) -> dict[str, Tensor]:
        """Mean activation of each text's counted tokens, `[R, D]` at each place."""
        found: dict[str, dict[int, Tensor]] = {at: {} for at in places}
        for number, h in read_texts(model, places, examples, pad_id_of(self._tokenizer)):
            batch = collate([examples[number]], 0)
            keep_S = counted_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"])[0]
            for at in places:
                found[at][number] = h[at][keep_S.to(h[at].device)].double().mean(0).cpu()
        return {at: torch.stack([rows[number] for number in range(len(examples))]) for at, rows in found.items()}

    def _pooled_texts(self, model: nn.Module, dictionaries: dict[str, Dictionary]) -> dict[str, dict[str, Tensor]]:
        if not all(self.examples.values()):
            return {}  # a concept without examples of both kinds: nothing to fit a probe on
        places = self._places(model, dictionaries)
        read = {kind: self._pooled(model, places, examples) for kind, examples in self.examples.items()}
        return {at: {kind: part[at] for kind, part in read.items()} for at in places}

    def _answers_by_probe(self, model: nn.Module, said: list[Example], probe: dict[str, dict[str, Tensor]]) -> dict[str, float]:
        if not said or not probe:
            return {}
        read = self._pooled(model, list(probe), said)
        return {at: _position(read[at], texts) for at, texts in probe.items()}


def released(
    lens: Lens,
    config: RunConfig,
    concepts: Sequence[Concept],
    source: str,
    steps: int,
    tell: Callable[..., None] = lambda what, **fields: None,
) -> dict[str, Any]:
    """Train on for `steps` on the rows of `source`, without rules, with the optimizer as it was left; then `evaluate` again."""
    model, tokenizer, settings = lens.model, lens.learning.tokenizer, config.train
    device, pad = next(model.parameters()).device, pad_id_of(tokenizer)
    examples = load_examples(source, tokenizer, config.data.max_length, config.data.loss_on)
    mixture = Mixture([examples], None, settings.batch_size, settings.seed)
    parameters, call = list(trainable(model).values()), LossFunction(model)
    model.train()
    for step in range(steps):
        batch = mixture.batch(step)
        scale = 1 / max(counted_labels(batch), 1)
        for part in split(batch, settings.micro_batch_size):
            (call({key: value.to(device) for key, value in collate(part, pad).items()}) * scale).backward()
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf)
        lens.optimizer.step()
        lens.optimizer.zero_grad(set_to_none=True)
        tell("released", done=step + 1, total=steps)
    tell("evaluating after release")
    return evaluate(unwrap(model), tokenizer, config.evaluate, concepts, config.data.max_length)


def _coactive(known: ProbeTokens, name: str, ids: list[int], dictionary: Dictionary) -> list[int]:
    return coactive(known.pairs[name], ids, dictionary.d_sae, len(known.row_T))


def _sum(acts_F: Tensor, ids: Sequence[int]) -> float:
    return acts_F[list(ids)].sum().item()


def _rising(change_RF: Tensor, known: set[int]) -> list[list[float]]:
    """`[feature, change]` of those that rose most beyond chance."""
    if len(change_RF) < MIN_TEXTS:
        return []
    mean_F = change_RF.mean(0).where(beyond_chance(change_RF, rising=True), torch.zeros(()))
    mean_F[list(known)] = 0
    best = mean_F.topk(min(RISING, len(mean_F)))
    return [[int(i), value.item()] for i, value in zip(best.indices, best.values, strict=True) if value > 0]


def _halves(texts: dict[str, Tensor], first: bool) -> tuple[Tensor, Tensor]:
    """Activations of every other text of both kinds, and which are positive."""
    parts = [rows[0 if first else 1 :: 2] for rows in (texts["positive"], texts["negative"])]
    return torch.cat(parts), torch.tensor([True] * len(parts[0]) + [False] * len(parts[1]))


def _auc(texts: dict[str, Tensor]) -> float | None:
    """How well a difference of means, fitted on one half of the texts, tells the other half's positives: AUC; None with too few texts."""
    if min(map(len, texts.values())) < 2:
        return None
    w_D, b = mean_difference(*_halves(texts, first=True))
    x_RD, yes_R = _halves(texts, first=False)
    read_R = (x_RD @ w_D + b).numpy()
    return float(auc(read_R[yes_R.numpy()], read_R[~yes_R.numpy()]))


def _position(answers_RD: Tensor, texts: dict[str, Tensor]) -> float:
    """Where the answers lie on average between the negatives' mean (0) and the positives' (1)."""
    w_D, b = mean_difference(torch.cat([texts["positive"], texts["negative"]]), _kinds(texts))
    return float((answers_RD @ w_D + b).mean() + 0.5)


def _kinds(texts: dict[str, Tensor]) -> Tensor:
    return torch.tensor([True] * len(texts["positive"]) + [False] * len(texts["negative"]))
