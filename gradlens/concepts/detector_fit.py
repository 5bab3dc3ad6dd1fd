"""Token detectors of a concept from its examples: read, fitted on one half, judged on the other (`detector.py` has the mathematics)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradlens.concepts.concept_files import Concept, Detector
from gradlens.concepts.detector import fit_detector, turns_of_phrase, weights_over
from gradlens.concepts.fitting import MAX_TEXTS, MIN_EXAMPLES, ChoosingHalf, counted_tokens, split_examples
from gradlens.concepts.row_detector import fit_halves
from gradlens.data.plain_answers import plain_answers
from gradlens.data.rows import IGNORE, Example
from gradlens.errors import ConfigError
from gradlens.model.hookpoints import canonical, layer_of
from gradlens.model.spelling import in_text
from gradlens.readings.probe import evenly
from gradlens.readings.ranking import auc

if TYPE_CHECKING:
    from gradlens.dictionaries.dictionary import Dictionary
    from gradlens.model.reading import Progress

NOTHING = Detector(
    features=[], weights=[], bias=-1.0, flagged_positive=0.0, flagged_negative=0.0, flagged_own=0.0, flagged_common=0.0, flagged_auc=0.5
)
QUESTIONS, TIMES = 256, 2  # of rows, after which examples are read as well; so many each
ENTRIES = 2**27  # activations, tokens times features, that a detector is fitted on: 512 MB
COMMON = 2  # a token that negative texts have that often is one of ordinary words


def fit_detectors(
    model: torch.nn.Module,
    tokenizer: Any,
    dictionaries: dict[str, Dictionary],
    concept: Concept,
    max_length: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
    max_texts: int = MAX_TEXTS,
    rows: bool = True,
    questions: Sequence[Sequence[int]] = (),
) -> Concept:
    """The concept with a detector at every given hookpoint that has none; what it brings is kept. Each text is read once. `rows`: one of
    rows too, where it brings only one of tokens.

    `questions`: token ids of what stands before the answers of rows that the detector is for (`questions_of`). Then each example is read
    as the answer to two of them too (a model reads the same words differently after another question), and the model's own answers to some
    are negatives beside the concept's (`plain_answers`).
    The detector is that of all examples; its figures are of one fitted on half of them, on the other half, after their own questions. Where
    no feature tells single tokens it finds none (and its figures say so); rows may be told all the same. Raises `ConfigError` for a concept
    with too few examples.
    """
    missing = lacking(concept, dictionaries, rows)
    if not missing:
        return concept
    if not concept.positive or not concept.negative:
        raise ConfigError(
            f"concept {concept.name}: modes rewrite, constrain and auto, and `rows`, need positive and negative examples (or `detectors`)"
        )
    choosing, judging = split_examples(concept, tokenizer, max_length, seed, max_texts)
    moved = [_moved(part, questions, max_length, seed) for part in (choosing, judging)]
    count = len(concept.rows("negative"))  # no more than these: else the concept's own tokens are too few beside them
    own = [(answer, False) for answer in plain_answers(model, tokenizer, concept, questions, progress, count)]
    parts = [choosing + moved[0], judging, *([moved[1]] if moved[1] else [])]  # the first chooses, the second judges
    halves = [_Half(model, tokenizer, missing, part, progress) for part in parts]
    plain = [_Half(model, tokenizer, missing, part, progress) for part in (own[::2], own[1::2]) if part]
    never = getattr(tokenizer, "all_special_ids", None) or ()
    phrases, every = (
        turns_of_phrase(*([text for half in some for text in half.texts[kind]] for kind in (True, False)), never)
        for some in ([*halves[:1], *plain[:1]], halves + plain)
    )
    found = dict(concept.detectors)
    for name, dictionary in missing.items():
        row = fit_halves([half.at[name] for half in halves], [half.at[name] for half in plain])
        if name in found:  # brought by the concept
            found[name] = found[name].model_copy(update={"row": row})
            continue
        every_half = [half.at[name] for half in halves + plain]
        live = np.flatnonzero(sum(half.fired[kind] for half in every_half for kind in (True, False)))
        room = ENTRIES // max(1, sum(half.tokens[kind] for half in every_half for kind in (True, False)))
        live = most_telling([half.at[name] for half in [*halves[:1], *plain[:1]]], live, room)
        acts = {kind: [half.at[name].activations(kind, live) for half in halves] for kind in (True, False)}
        others = [half.at[name].activations(False, live) for half in plain]
        first = fit_detector(acts[True][0], [acts[False][0], *others[:1]], live, phrases)
        final = fit_detector(np.concatenate(acts[True]), [np.concatenate(part) for part in (acts[False], others) if part], live, every)
        if first is None or final is None:
            found[name] = NOTHING.model_copy(update={"row": row})
            continue
        weights_C = weights_over(first, dictionary.d_sae).numpy()[live]
        flags = {kind: acts[kind][1] @ weights_C + first.bias > 0 for kind in (True, False)}
        figures = _figures(flags, halves, tokenizer)
        if len(others) > 1:
            strayed = float((others[1] @ weights_C + first.bias > 0).mean())
            figures["flagged_negative"] = round(max(figures["flagged_negative"], strayed), 4)
        found[name] = final.model_copy(update={**figures, "row": row})
    return concept.model_copy(update={"detectors": found})


def most_telling(halves: Sequence[ChoosingHalf], features: np.ndarray, most: int) -> np.ndarray:
    """Of some features at most so many: those whose share of tokens differs most between positives and negatives, in units of its error."""
    if len(features) <= most:
        return features
    tokens = {kind: max(1, sum(half.tokens[kind] for half in halves)) for kind in (True, False)}
    fired = {kind: sum(half.fired[kind][features] for half in halves) for kind in (True, False)}
    share = (fired[True] + fired[False]) / (tokens[True] + tokens[False])
    error = np.sqrt(share * (1 - share) * (1 / tokens[True] + 1 / tokens[False])).clip(1e-12)
    apart = np.abs(fired[True] / tokens[True] - fired[False] / tokens[False]) / error
    return np.sort(features[np.argsort(-apart, kind="stable")[:most]])


def questions_of(sources: Sequence[Sequence[Example]], most: int = QUESTIONS) -> list[list[int]]:
    """What stands before the answers of some rows of each source, as token ids; none of plain text."""
    found = []
    for source in sources:
        for i in evenly(len(source), -(-most // len(sources))):
            first = _begins(source[i])
            if first > 1:
                found.append(list(source[i].input_ids[:first]))
    return found


def _begins(example: Example) -> int:
    """The place of the first token that the loss counts."""
    return next((place for place, label in enumerate(example.labels) if label != IGNORE), len(example.labels))


def _moved(
    examples: Sequence[tuple[Example, bool]], questions: Sequence[Sequence[int]], max_length: int, seed: int
) -> list[tuple[Example, bool]]:
    """Each example's answer after some of the questions, of those that leave room for it."""
    random, found = np.random.default_rng(seed), []
    for example, kind in [*examples] * TIMES:
        first = _begins(example)
        room = max_length - (len(example.input_ids) - first)  # an answer that is cut off may have lost what it is an example of
        fitting = [question for question in questions if len(question) <= room]
        if fitting and first < len(example.input_ids):
            question = list(fitting[random.integers(len(fitting))])
            ids, labels = [*question, *example.input_ids[first:]], [*[IGNORE] * len(question), *example.labels[first:]]
            found.append((replace(example, input_ids=ids, labels=labels), kind))
    return found


def lacking(concept: Concept, dictionaries: dict[str, Dictionary], rows: bool = True) -> dict[str, Dictionary]:
    """The dictionaries at whose hookpoints the concept has no detector yet, or (`rows`) one of tokens and none of rows that examples could
    give."""

    def ready(name: str) -> bool:
        return name in concept.detectors and (not rows or concept.detectors[name].row is not None or not _enough(concept))

    return {canonical(name): each for name, each in dictionaries.items() if not ready(canonical(name))}


def _enough(concept: Concept) -> bool:
    return all(len(concept.rows(kind)) >= MIN_EXAMPLES for kind in ("positive", "negative"))


def best_rows(detectors: dict[str, Detector]) -> str | None:
    """The hookpoint whose detector tells rows best, of equals the lowest (the shortest forward pass); None where none can."""
    able = {name: each.row for name, each in detectors.items() if each.row is not None}

    def order(name: str) -> tuple[float, float, float]:
        return (able[name].accuracy or 0.0, able[name].auc or 0.0, -(layer_of(name) or 0))

    return max(sorted(able), key=order, default=None)


def sharpest(detectors: dict[str, Detector]) -> str:
    """The hookpoint whose detector finds most of the concept's own words and flags fewest tokens of negatives, which count twice, and
    ordinary words of positives: late in a model the context speaks from each token, and a detector flags whole texts."""

    def order(name: str) -> tuple[bool, float]:
        each = detectors[name]
        return bool(each.features), (each.flagged_own or 0.0) - 2 * (each.flagged_negative or 0.0) - (each.flagged_common or 0.0)

    return max(sorted(detectors), key=order)


def _begins_a_word(text: str) -> bool:
    """Whether a token begins a word of its own: parts of words and marks belong to ordinary and other words alike."""
    return text[:1].isspace() and len(text.strip()) > 1 and text.strip().isalpha()


def _figures(flags: dict[bool, np.ndarray], halves: Sequence[_Half], tokenizer: Any) -> dict[str, float | None]:
    ordinary = Counter(token for text in {tuple(text) for half in halves for text in half.texts[False]} for token in text)
    words = {token: _begins_a_word(in_text(tokenizer, [token])) for token in set(halves[1].ids(True))}
    common = np.array([words[token] and ordinary[token] >= COMMON for token in halves[1].ids(True)])
    own = np.array([words[token] and ordinary[token] == 0 for token in halves[1].ids(True)])

    def share(flagged: np.ndarray) -> float | None:
        return round(float(flagged.mean()), 4) if len(flagged) else None

    shares = {kind: [part.mean() for part in _by_text(flags[kind], halves[1].texts[kind])] for kind in (True, False)}
    return {
        "flagged_auc": round(auc(shares[True], shares[False]), 4),
        "flagged_positive": share(flags[True]), "flagged_negative": share(flags[False]),
        "flagged_own": share(flags[True][own]), "flagged_common": share(flags[True][common]),
    }  # fmt: skip


def _by_text(flags_T: np.ndarray, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return np.split(flags_T, np.cumsum([len(text) for text in texts])[:-1])


class _Half:
    """Half of the examples: at each hookpoint the activations of its counted tokens, and which tokens they are, in the same order."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, dictionaries: dict[str, Dictionary], half: Sequence, progress: Any) -> None:
        from gradlens.dictionaries.encoding import encode_active
        from gradlens.model.reading import pad_id_of, read_texts

        self.at = {name: ChoosingHalf(dictionary.d_sae) for name, dictionary in dictionaries.items()}
        self.texts: dict[bool, list[list[int]]] = {True: [], False: []}
        examples = [example for example, _ in half]
        for i, h in read_texts(model, dictionaries, examples, pad_id_of(tokenizer), progress=progress):
            kind, counted = half[i][1], counted_tokens(examples[i])
            self.texts[kind].append([examples[i].input_ids[t] for t in counted])
            for name, dictionary in dictionaries.items():
                h_TD = h[name][counted].to(dictionary.W_enc.device, dictionary.work_dtype)
                self.at[name].add(kind, *encode_active(dictionary, h_TD))

    def ids(self, kind: bool) -> list[int]:
        return [token for text in self.texts[kind] for token in text]
