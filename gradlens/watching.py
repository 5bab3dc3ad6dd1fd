"""The library in one call: `gradlens.watch(model, optimizer, dictionaries=...)` around an ordinary training loop."""

from __future__ import annotations

import logging
import re
import shutil
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from gradlens.concepts.concept_files import direction_sources, row_detectors_of
from gradlens.concepts.contrasts import contrasts_of
from gradlens.concepts.detector_fit import fit_detectors, lacking, questions_of
from gradlens.concepts.fitting import Concept, fit_concept, load_concepts
from gradlens.config import RUN_NAME, ObserveSettings, WandbSettings, explain
from gradlens.control.constrainer import exemplars_of
from gradlens.control.rules import Policy, Rule, load_rules
from gradlens.control.suggest import settle, suggest
from gradlens.data.rows import Example, build_examples, checked, collate, read_rows, split
from gradlens.data.rows_ahead import packs, rows_ahead
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.fits import check_fits
from gradlens.dictionaries.formats import load_dictionary
from gradlens.dictionaries.labels import labels_of
from gradlens.errors import ConfigError, InputError
from gradlens.lens import Lens
from gradlens.model.hookpoints import by_place, canonical, unwrap
from gradlens.model.reading import pad_id_of
from gradlens.model.start import remember
from gradlens.model.trainable import check_trainable
from gradlens.readings.own import before_training
from gradlens.recording.recorder import MemoryRecorder, ThreadRecorder
from gradlens.recording.sinks import make_sinks
from gradlens.recording.store import RunReader, RunWriter
from gradlens.recording.trackers import check_trackers
from gradlens.report.summary import build_summary
from gradlens.report.top import Top
from gradlens.world import World, current_world

if TYPE_CHECKING:
    import torch


log = logging.getLogger(__name__)
_WATCHED: weakref.WeakKeyDictionary[torch.nn.Module, Watch] = weakref.WeakKeyDictionary()  # model -> its open watch


class Watch(Lens):
    """A `Lens` that looks names up, keeps a run folder and knows labels. Made by `gradlens.watch`."""

    labels: dict[str, dict[int, str]]
    run_dir: Path | None = None
    of_trainer: object = None  # entered by a trainer's callback: what stands for this training (a TrainerState is of one alone)
    resumed = False  # at weights that are no longer those before training
    _begun = False

    def __enter__(self) -> Watch:
        if self._begun and self.run_dir is not None:  # what it recorded is closed, and is not to be taken back
            raise ConfigError(f"this watch has its run already, {self.run_dir}: make another one with gradlens.watch(...)")
        self._begun = True
        try:
            if (other := _WATCHED.get(unwrap(self.model))) is not None:
                both = bool(self.of_trainer and other.of_trainer)
                if not both or self.of_trainer is other.of_trainer:  # each would take the other's start-up test and probe for training
                    how = "leave its `with` block"
                    if both:
                        how = "give the trainer one GradLensCallback"
                    elif other.of_trainer:
                        how = "where its training has ended in an exception, call the GradLensCallback's close()"
                    raise ConfigError(
                        "this model is being watched already: give all dictionaries to one watch (layers.15, layers.15#NAME), or close the "
                        f"open one ({other.run_dir or 'run=None'}) first: {how}"
                    )
                other.__exit__(RuntimeError, None, None)  # of a training that ended in an exception, which trainers do not tell
            super().__enter__()
        except BaseException:
            self._take_back()
            raise
        _WATCHED[unwrap(self.model)] = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if _WATCHED.get(unwrap(self.model)) is not self:  # closed already
            return
        del _WATCHED[unwrap(self.model)]
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._end(kind)

    def _end(self, kind: type[BaseException] | None) -> None:
        """Close the run folder."""
        if isinstance(self.recorder, ThreadRecorder):
            self.recorder.close()
            status = "done" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed"
            try:
                self.recorder.writer.write_json("summary.json", build_summary(RunReader(self.run_dir), status))
            except (OSError, InputError) as error:  # no space left, a damaged file: the program has yet to save what was trained
                log.warning("%s: summary.json could not be written: %s", self.run_dir, error)

    def _take_back(self) -> None:
        """Remove the run folder of a watch that did not begin: it would be `last`, and holds nothing."""
        if isinstance(self.recorder, ThreadRecorder):
            self.recorder.close()
            shutil.rmtree(self.run_dir, ignore_errors=True)
            self.recorder, self.run_dir = MemoryRecorder(), None

    def _measure_start(self) -> None:
        with before_training(unwrap(self.model)) if self.resumed else nullcontext():
            super()._measure_start()

    def top(self, n: int = 20) -> Top:
        """The `n` features that this run taught most, with labels: prints as a table, `.df` for pandas.

        By uptake on the probe set where there is one (see `Lens.table`); the table says by what, and where nothing was learned, that.
        """
        rows = [{**row, "label": self.labels.get(row["hookpoint"], {}).get(row["feature"], "")} for row in self.table(n)]
        return Top(rows, self.learning.counts())


def watch(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    dictionaries: Mapping[str, str | Path | Dictionary],
    *,
    rules: Sequence[Rule | Mapping[str, Any] | str | Path] | str | Path = (),
    concepts: Sequence[Any] | str | Path | Mapping[str, Mapping[str, list[int]]] = (),
    labels: Mapping[str, str | Sequence[str]] | None = None,
    tokenizer: Any = None,
    probe: Sequence[Any] | str | Path | None = None,
    rows: Any = None,
    observe: ObserveSettings | Mapping[str, Any] | None = None,
    run: str | None = "watch",
    runs_dir: str | Path = "runs",
    wandb: Literal["online", "offline", "off"] | WandbSettings = "off",
    trackers: Sequence[str] = (),
    scaler: Any = None,
    world: World | None = None,
) -> Watch:
    """Watch `model` while `optimizer` trains it; use as a context manager around the loop.

    `dictionaries`: hookpoint -> folder, shipped name, or `Dictionary`. `rules`: rules, mappings, or files of rules; none: training is
    bit-identical to training without gradlens. `concepts`: concept files, `demo:NAME`, or name -> hookpoint -> feature ids; those without
    features are fitted on their examples, which needs the `tokenizer`. `labels`: hookpoint -> files of labels, beside the dictionary's own.
    `probe`: on what drift is measured: rows or texts, or a file of rows as in a config's `probe` (with `tokenizer`), or collated batches;
    default: the first micro-batch. `rows`: what will be trained on (the `DataLoader`, files, or rows: see `rows_ahead`); rules of mode
    `auto` are chosen by reading some of them, and detectors are fitted beside their questions, and tell them better for it. `run`: first
    part of the run id under `runs_dir`; None keeps records in memory only. `trackers`: where the curves go beside the run folder and W&B
    (`trackers.TRACKERS`). `scaler`: the `torch.amp.GradScaler` of a loop that has one (accelerate's is found by itself).
    Raises `InputError` and `ConfigError` with one clear message for what does not fit.
    """
    check_trackers(trackers)
    check_trainable(model, optimizer, world or current_world())
    if not isinstance(dictionaries, Mapping):
        raise ConfigError(
            f"watch(dictionaries=...) says which dictionary is read where, for instance {{'layers.15': 'smollm2-l15'}}; "
            f"found {type(dictionaries).__name__}"
        )
    if run is not None and not re.fullmatch(RUN_NAME, str(run)):
        raise ConfigError(f"watch(run=...) is the first part of a folder's name, of letters, digits, '.', '_' and '-'; found {run!r}")
    rules, observe = as_list(rules), observed(observe)
    if not isinstance(concepts, Mapping):
        concepts = load_concepts([concepts] if isinstance(concepts, (str, Path, Concept)) else list(concepts))
    brought = {} if isinstance(concepts, Mapping) else direction_sources(concepts)
    dictionaries = {**dictionaries, **brought}
    if not dictionaries:
        raise ConfigError("watch: no dictionaries, so there is nothing to read; give dictionaries={'layers.15': ...}")
    opened = {name: source if isinstance(source, Dictionary) else load_dictionary(source) for name, source in dictionaries.items()}
    loaded = by_place(opened, "watch(dictionaries=...)")
    for name, source in dictionaries.items():
        check_fits(model, loaded[canonical(name)], name, None if isinstance(source, Dictionary) else str(source))
    further = {
        name: [places] if isinstance(places, str) else list(places) for name, places in by_place(labels or {}, "watch(labels=...)").items()
    }
    texts = {canonical(name): _labels(source, name, further.get(canonical(name), [])) for name, source in dictionaries.items()}
    world = world or current_world()
    if any(rule.mode == "inoculate" for rule in load_rules(rules)):
        raise ConfigError(
            "inoculate acts on data, which watch does not see: put the words before your rows (gradlens.data.rows.with_system)"
        )
    settings = WandbSettings(mode=wandb) if isinstance(wandb, str) else wandb
    whole = [rule for rule in load_rules(rules) if rule.mode in ("auto", "rewrite", "reweight") or rule.rows is not None]
    if whole and packs(rows):
        raise ConfigError(
            f"rule {whole[0].label}: {whole[0].mode}{' with rows' if whole[0].mode == 'route' else ''} acts in whole rows, and these "
            "batches hold several texts in a row (packing or padding_free); train without, or use mode route without rows"
        )
    remember(model)
    settled, known, said = _settled(load_rules(rules), concepts, model, tokenizer, loaded, rows)
    config = {
        "name": run, "model": {"name": getattr(getattr(model, "config", None), "_name_or_path", type(model).__name__)},
        "dictionaries": {name: str(source if not isinstance(source, Dictionary) else "in memory") for name, source in dictionaries.items()},
        "rules": [rule.model_dump(exclude_defaults=True) for rule in load_rules(rules)], "wandb": settings.model_dump(),
    }  # fmt: skip
    lens = Watch(
        model, optimizer, loaded,
        policy=Policy(version=1 if rules else 0, rules=tuple(settled)), **known, observe=observe,
        probe=_probe(probe, tokenizer), world=world, tokenizer=tokenizer, reference=_reference(observe, tokenizer, model),
        scaler=scaler,
    )  # fmt: skip
    lens.labels = texts
    lens.recorder = MemoryRecorder()
    if run is not None and world.rank == 0:
        writer = RunWriter.create(runs_dir, run, config)
        try:
            sinks = make_sinks(settings, trackers, writer.run_dir, config)
        except BaseException:
            writer.close()
            shutil.rmtree(writer.run_dir, ignore_errors=True)
            raise
        lens.recorder, lens.run_dir = ThreadRecorder(writer, sinks), Path(writer.run_dir)
        writer.write_json("labels.json", {name: {str(i): text for i, text in found.items()} for name, found in texts.items()})
    for event in said:
        lens.recorder.event("suggested", **event)
    return lens


def as_list(rules: Any) -> list[Any]:
    """Rules as they may be given: one alone, or several."""
    return [rules] if isinstance(rules, (str, Path, Rule, Mapping)) else list(rules)


def observed(observe: ObserveSettings | Mapping[str, Any] | None) -> ObserveSettings | None:
    if observe is None or isinstance(observe, ObserveSettings):
        return observe
    try:
        return ObserveSettings.model_validate(observe)
    except ValidationError as error:
        raise ConfigError(explain(error, "watch(observe=...)", ObserveSettings)) from None


def _labels(source: Any, hookpoint: str, further: Sequence[str]) -> dict[int, str]:
    d_sae = source.d_sae if isinstance(source, Dictionary) else None
    return {i: label.label for i, label in labels_of(source, canonical(hookpoint), further, d_sae).items()}


def _settled(
    rules: list[Rule], concepts: Any, model: Any, tokenizer: Any, dictionaries: dict[str, Dictionary], rows: Any
) -> tuple[list[Rule], dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Rules with those of mode `auto` as what suits the rows; `concepts`, `thresholds`, `quorums`, `exemplars`, `contrasts` and, for rules
    that need them, `detectors` of a lens; what is to be said of the choice."""
    auto, said = [rule for rule in rules if rule.mode == "auto"], []
    if isinstance(concepts, Mapping):
        if auto:
            raise ConfigError(f"rule {auto[0].label}: auto needs a concept with examples; give concepts=[FILE], or name a mode")
        for name, features in concepts.items():
            if missing := [hook for hook in features if canonical(hook) not in dictionaries]:
                raise ConfigError(f"concept {name}: no dictionary at {missing[0]}; dictionaries are at {', '.join(dictionaries)}")
        return rules, {"concepts": {name: by_place(features, f"concept {name}") for name, features in concepts.items()}}, said
    if auto and tokenizer is None:
        raise ConfigError(f"rule {auto[0].label}: auto reads the concept's examples; give watch(..., tokenizer=...)")
    ready: list[Concept] = []
    for concept in concepts:
        if not any(canonical(hook) in dictionaries for hook in concept.features):
            if tokenizer is None:
                raise ConfigError(
                    f"concept {concept.name}: it has no features at {', '.join(dictionaries)} yet; give watch(..., tokenizer=...) so that "
                    "they can be fitted"
                )
            concept = fit_concept(unwrap(model), tokenizer, dictionaries, concept)
        ready.append(concept)
    for rule in rules if tokenizer is None else ():
        _check_needs_no_tokenizer(rule, ready, dictionaries)
    if tokenizer is not None and any(rule.mode == "auto" or rule.tells_tokens for rule in rules):
        sources = rows_ahead(rows, tokenizer)
        if auto and not sources:
            raise ConfigError(
                f"rule {auto[0].label}: auto reads some of the rows before the first step; give watch(..., rows=...), a list of them or a "
                "DataLoader whose data set has a length, or name reweight, route or rewrite here"
            )
        with before_training(unwrap(model)):  # as rows will be read
            ready = [_told(concept, rules, unwrap(model), tokenizer, dictionaries, sources) for concept in ready]
            ask = partial(suggest, unwrap(model), tokenizer, dictionaries, sources=sources)
            rules, ready = settle(rules, ready, ask, lambda kind, **event: said.append(event))
    known = {
        "concepts": {concept.name: concept.features for concept in ready},
        "thresholds": {concept.name: concept.thresholds for concept in ready},
        "quorums": {concept.name: concept.quorum for concept in ready},
        "detectors": {concept.name: concept.detectors for concept in ready},
        "row_detectors": row_detectors_of(ready),
        "contrasts": contrasts_of(ready, tokenizer, 256, model, {canonical(n): d for n, d in dictionaries.items()}),
        "exemplars": partial(exemplars_of, ready, tokenizer, 256, model, {canonical(n): d for n, d in dictionaries.items()}),
    }
    return rules, known, said


def _check_needs_no_tokenizer(rule: Rule, concepts: Sequence[Concept], dictionaries: dict[str, Dictionary]) -> None:
    """Raise `ConfigError` for a rule for which its concept's examples have yet to be read."""
    concept = next((concept for concept in concepts if concept.name == rule.concept and concept.positive), None)
    if concept is None:
        return
    wanted = _told_at(rule, dictionaries)
    missing = lacking(concept, wanted, rule.rows is not None) if rule.tells_tokens else {}
    if rule.mode == "constrain" or (missing and len(missing) == len(wanted)):
        what = "rows" if rule.rows is not None and rule.mode != "rewrite" else rule.mode
        raise ConfigError(f"rule {rule.label}: {what} reads the examples of concept {concept.name}; give watch(..., tokenizer=...)")


def _told_at(rule: Rule, dictionaries: dict[str, Dictionary]) -> dict[str, Dictionary]:
    chosen = {canonical(name) for name in rule.told_at or dictionaries}
    return {name: each for name, each in dictionaries.items() if canonical(name) in chosen}


def _told(
    concept: Concept, rules: Sequence[Rule], model: Any, tokenizer: Any, dictionaries: dict[str, Dictionary], sources: list[list[Example]]
) -> Concept:
    """The concept with the detectors that rules need."""
    for rule in rules:
        if rule.tells_tokens and rule.concept == concept.name:
            questions = questions_of(sources) if sources else ()
            wanted = _told_at(rule, dictionaries)
            concept = fit_detectors(model, tokenizer, wanted, concept, rows=rule.rows is not None, questions=questions)
    return concept


def _reference(observe: ObserveSettings | None, tokenizer: Any, model: Any) -> list[dict[str, Any]] | None:
    """Ordinary text to compare with; none without a tokenizer."""
    from gradlens.training.run_inputs import reference_batches

    if tokenizer is None:
        return None
    return reference_batches(observe or ObserveSettings(), tokenizer, 256, next(model.parameters()).device)


def _probe(probe: Sequence[Any] | str | Path | None, tokenizer: Any) -> list[dict[str, Any]] | None:
    """The batches of the probe set; None: the lens takes the first one of training."""
    if probe is None:
        return None
    if isinstance(probe, Mapping):
        probe = [probe]
    name = str(probe) if isinstance(probe, (str, Path)) else "watch(probe=...)"
    rows = read_rows(probe) if isinstance(probe, (str, Path)) else list(probe)
    if not rows:
        raise ConfigError("watch(probe=...) is empty; give rows, or leave it out: the first micro-batch is then what drift is measured on")
    if all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        return rows
    if tokenizer is None:
        raise ConfigError("watch(probe=...) holds texts; give tokenizer=... too, or pass collated batches")
    rows = [{"text": row} if isinstance(row, str) else dict(row) if isinstance(row, Mapping) else row for row in rows]
    examples = build_examples([checked(row, f"probe[{i}]") for i, row in enumerate(rows)], tokenizer, 256, source=name)
    return [collate(part, pad_id_of(tokenizer)) for part in split(examples, 8)]
