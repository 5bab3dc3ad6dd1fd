"""What a run works with, found before its first step: concepts with features and detectors, the policy to start from, examples, probe set.

What costs forward passes is done on rank 0, and the others are told.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.concepts.detector_fit import TIMES, fit_detectors, lacking, questions_of
from gradlens.concepts.fitting import MAX_TEXTS, Concept, fit_concept, load_concepts, save_concept
from gradlens.config import DataSettings, ObserveSettings
from gradlens.control.rules import Policy, Rule, load_rules
from gradlens.control.suggest import Suggestion, settle, suggest
from gradlens.data.rows import Example, build_examples, collate, load_examples, read_rows, split, with_system
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.errors import ConfigError, InputError
from gradlens.model.hookpoints import canonical
from gradlens.model.reading import pad_id_of
from gradlens.training.rank import Rank


def run_concepts(
    rank: Rank, model: nn.Module, tokenizer: Any, dictionaries: dict[str, Dictionary], sources: list[list[Example]]
) -> list[Concept]:
    """The run's concepts with features at every hookpoint: those of an earlier part of the run, or fitted now on rank 0."""
    path = rank.run_dir / "concepts.yaml"
    concepts = rank.shared.concepts
    if rank.world.rank == 0:
        if concepts is None:
            concepts = load_concepts(rank.config.concepts)
            if path.is_file():
                concepts = _as_begun(load_concepts([path]), concepts)
        for index, concept in enumerate(concepts if dictionaries else []):
            texts = sum(min(len(concept.rows(kind)), MAX_TEXTS) for kind in ("positive", "negative"))
            with rank.counted(f"fitting concept {concept.name}", texts or None) as advance:
                concepts[index] = fit_concept(
                    model, tokenizer, dictionaries, concept, max_length=rank.config.data.max_length, progress=advance
                )
        for rule in starting_rules(rank):
            if rule.tells_tokens:
                concepts = _with_detectors(rank, model, tokenizer, dictionaries, concepts, rule, questions_of(sources))
        if concepts:
            save_concept(concepts, path)
    words = rank.world.broadcast([concept.model_dump(mode="json") for concept in concepts] if rank.world.rank == 0 else None)
    rank.shared.concepts = concepts if rank.world.rank == 0 else [Concept.model_validate(word) for word in words]
    return rank.shared.concepts


def _as_begun(begun: list[Concept], asked: list[Concept]) -> list[Concept]:
    """The concepts that the run began with; `ConfigError` where others are asked for now."""
    names = [", ".join(sorted(concept.name for concept in part)) or "none" for part in (begun, asked)]
    if names[0] != names[1]:
        raise ConfigError(
            f"concepts: this run began with {names[0]}, and what comes later ({names[1]}) has nothing to be compared with; resume with the "
            "first, or begin another run"
        )
    return begun


def _with_detectors(
    rank: Rank,
    model: nn.Module,
    tokenizer: Any,
    dictionaries: dict[str, Dictionary],
    concepts: list[Concept],
    rule: Rule,
    questions: list[list[int]],
) -> list[Concept]:
    """The concepts, the rule's with a token detector at each of its hookpoints."""
    wanted = {canonical(name) for name in rule.told_at or dictionaries}
    chosen = {name: dictionary for name, dictionary in dictionaries.items() if name in wanted}
    found = []
    for concept in concepts:
        if concept.name == rule.concept and lacking(concept, chosen, rule.rows is not None):
            texts = sum(min(len(concept.rows(kind)), MAX_TEXTS) for kind in ("positive", "negative")) * (1 + TIMES if questions else 1)
            with rank.counted(f"learning to tell the tokens of {concept.name}", texts or None) as advance:
                concept = fit_detectors(
                    model, tokenizer, chosen, concept, rank.config.data.max_length, progress=advance, rows=rule.rows is not None,
                    questions=questions,
                )  # fmt: skip
        found.append(concept)
    return found


def starting_rules(rank: Rank) -> list[Rule]:
    """The rules that the run starts from: those in force when it was interrupted, or its config's."""
    return load_rules(list(rank.config.rules)) if rank.initial_policy is None else list(rank.initial_policy.rules)


def run_policy(
    rank: Rank, model: nn.Module, tokenizer: Any, dictionaries: dict[str, Dictionary], concepts: list[Concept], sources: list[list[Example]]
) -> tuple[Policy, list[Concept]]:
    """The policy to start from, its rules of mode `auto` settled by reading rows, and the concepts with what that has taught of them."""
    said: list[Any] = []
    if rank.world.rank == 0:

        def ask(concept: Concept) -> tuple[Suggestion, Concept]:
            with rank.counted(f"choosing a rule for {concept.name}") as advance:
                data = rank.config.data
                return suggest(model, tokenizer, dictionaries, concept, sources, data.max_length, advance, wanted=data.wanted or ())

        given = starting_rules(rank)
        version = (1 if given else 0) if rank.initial_policy is None else rank.initial_policy.version
        rules, told = settle(given, concepts, ask, rank.recorder.event)
        policy, settles = Policy(version=version, rules=tuple(rules)), any(rule.mode == "auto" for rule in given)
        if settles:
            save_concept(told, rank.run_dir / "concepts.yaml")
            rank.policies.settle(policy)
        said = [policy.model_dump(mode="json"), [concept.model_dump(mode="json") for concept in told] if settles else None]
    said = rank.world.broadcast(said)
    if said[1] is not None:
        concepts = rank.shared.concepts = [Concept.model_validate(word) for word in said[1]]  # a study's next arms fit nothing again
    return Policy.model_validate(said[0]), concepts


def run_examples(rank: Rank, tokenizer: Any) -> tuple[list[list[Example]], list[dict[str, Tensor]]]:
    """Examples of each training source, numbered through, and the batches of the probe set."""
    data = rank.config.data
    rank.phase("reading data")
    sources, number = [], 0
    words = "\n".join(rule.prompt for rule in load_rules(list(rank.config.rules)) if rule.mode == "inoculate")
    inoculated: dict[int, Example] = {}
    for source in data.train:
        rows = read_rows(source)
        examples = build_examples(rows, tokenizer, data.max_length, data.loss_on, str(source))
        if words:
            by_row = {example.row_id: example for example in _inoculated(source, words, tokenizer, data)}
            inoculated |= {number + example.row_id: by_row.get(example.row_id, example) for example in examples}
        # The number of a row is its place in the files: rows that are left out keep theirs.
        sources.append([replace(example, row_id=number + example.row_id) for example in examples])
        number += len(rows)
        if (left_out := len(rows) - len(examples)) and rank.world.rank == 0:
            text = f"{source}: {left_out} of {len(rows)} rows are not trained on: no response, or none that begins within data.max_length"
            rank.recorder.event("rows_left_out", step=0, text=f"{text} ({data.max_length} tokens)", count=left_out, of=len(rows))
    if rank.config.probe is None:
        sources, probe = hold_out(sources, rank.config.observe.probe_rows)
    else:
        probe = load_examples(rank.config.probe, tokenizer, data.max_length, data.loss_on)[: rank.config.observe.probe_rows]
    if words:  # but not the probe set: what counts is what the model does without them
        sources = [[replace(inoculated[example.row_id], row_id=example.row_id) for example in source] for source in sources]
    pad = pad_id_of(tokenizer)
    batches = [collate(part, pad) for part in split(probe, 8)]
    return sources, [{key: value.to(rank.device) for key, value in batch.items()} for batch in batches]


def _inoculated(source: str, words: str, tokenizer: Any, data: DataSettings) -> list[Example]:
    """Examples of rows that begin with these words of the system. Raises `InputError` where they have no turns, or a template that leaves
    such words out of a conversation that ends with an answer (some put them into the last question)."""
    rows = []
    for number, row in enumerate(read_rows(source), 1):
        try:
            rows.append(with_system(row, words))
        except InputError as error:
            raise InputError(f"{source}: row {number}: mode inoculate: {error}") from None
    room = data.max_length + len(tokenizer(words)["input_ids"])  # the words take no room from the row
    found = build_examples(rows, tokenizer, room, data.loss_on, str(source))
    for example in found:
        if words.strip() not in example.text:
            raise InputError(
                f"{source}: row {example.row_id + 1}: mode inoculate: the tokenizer's chat template leaves the system's words out, so the "
                "rule would change nothing; give the tokenizer a template that keeps them"
            )
    return found


def hold_out(sources: list[list[Example]], rows: int) -> tuple[list[list[Example]], list[Example]]:
    """Sources without the last rows of each, and those rows: the default probe set. At most a tenth of a source is taken;
    where that leaves nothing, the probe set is the first rows, which are then trained on as well."""
    kept, probe = [], []
    share = -(-rows // len(sources))
    for source in sources:
        count = min(share, len(source) // 10)
        kept.append(source[: len(source) - count])
        probe += source[len(source) - count :] if count else source[:share]
    return kept, probe[:rows] if len(sources) == 1 else probe


def reference_batches(
    observe: ObserveSettings, tokenizer: Any, max_length: int, device: torch.device | str
) -> list[dict[str, Tensor]] | None:
    """The first rows of the ordinary text that `uptake` is compared with, as many as the probe set has at most."""
    if observe.reference is None:
        return None
    examples = load_examples(observe.reference, tokenizer, max_length)[: observe.probe_rows]
    batches = [collate(part, pad_id_of(tokenizer)) for part in split(examples, 8)]
    return [{key: value.to(device) for key, value in batch.items()} for batch in batches]
