"""Concept files: what a person names, with examples, features per hookpoint, a direction file, or several of these. YAML or JSONL;
`fitting.py` fits features.

A direction file becomes a dictionary of the run at `HOOKPOINT#CONCEPT`, and its directions the concept's features there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gradlens.config import RunConfig, explain, read_yaml
from gradlens.errors import ConfigError, InputError

Rows = str | list[str | dict[str, Any]]
FeatureId = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
FILES = (".jsonl", ".json")  # of examples


class CheckerSpec(BaseModel):
    """How a text is judged to show the concept; see `checkers.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    pattern: list[str] = Field([], description="Regular expressions, case ignored except in (?-i:...).")
    min_matches: int = Field(1, ge=1, description="Matches (of all patterns together) from which on a text counts.")
    classifier: str = Field("", description="Or a file that `gradlens concepts checker` wrote.")
    command: str | list[str] = Field(
        "",
        description="Or a program, run without a shell: a JSON line with `text` for each answer on its standard input, a number a line on "
        "its output. Words that name a file beside the concept file are taken from there.",
    )
    threshold: float = Field(0.5, description="The number from which on the command says that a text counts.")
    timeout: float = Field(120, gt=0, description="Seconds that the command has for all answers of one reading.")

    @property
    def arguments(self) -> list[str]:
        """The command in words."""
        return shlex.split(self.command) if isinstance(self.command, str) else list(self.command)

    @model_validator(mode="after")
    def _one_way(self) -> CheckerSpec:
        given = [key for key in ("pattern", "classifier", "command") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"give one of pattern, classifier and command, found {' and '.join(given) or 'none of them'}")
        try:
            self.arguments  # noqa: B018
        except ValueError as error:
            raise ValueError(f"command: {error}: {self.command!r}") from None
        for pattern in self.pattern:  # here, lest a file that `concepts fit` and `config check` take ends a run
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern: {pattern!r} is not a regular expression: {error}") from None
        return self


class Detection(BaseModel):
    """How well a set of features tells the concept's positives from its negatives, on texts that did not choose them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    auc: float = Field(..., description="AUC over texts of the set: mean over tokens of the summed activations.")
    best_feature: int = Field(..., description="The one feature of the set with the best AUC on the half that chose.")
    best_auc: float = Field(..., description="Its AUC on the held-out half.")
    rate_positive: float = Field(..., description="Share of the positives' response tokens on which the set fires.")
    rate_negative: float = Field(..., description="The same share of the negatives' tokens.")
    gate_rate_positive: float = Field(..., description="Share of the positives' loss tokens that a route rule would gate by default.")
    gate_rate_negative: float = Field(..., description="The same share of the negatives' loss tokens: what routing costs elsewhere.")
    texts_positive: int = Field(..., description="Held-out positives.")
    texts_negative: int = Field(..., description="Held-out negatives.")
    warning: str = Field("", description="What is wrong with this set, where something is.")


def _with_weights(detector: Any) -> Any:
    if len(detector.features) != len(detector.weights):
        raise ValueError(f"{len(detector.weights)} weights for {len(detector.features)} features")
    return detector


class RowDetector(BaseModel):
    """Which texts show the concept: where the weighted sum of a text's mean feature activations and the bias together are above 0
    (`row_detector.py`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    features: list[int] = Field(..., description="Feature ids.")
    weights: list[float] = Field(..., description="Weight of each feature's mean activation over a text's counted tokens.")
    bias: float = Field(..., description="Added to the weighted sum.")
    auc: float | None = Field(None, description="AUC on held-out examples.")
    accuracy: float | None = Field(None, description="Mean share of held-out positives and of negatives that it tells rightly.")

    @model_validator(mode="after")
    def _one_weight_each(self) -> RowDetector:
        return _with_weights(self)


class Detector(BaseModel):
    """Which tokens express the concept: where the weighted sum of feature activations and the bias together are above 0 (`detector.py`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    features: list[int] = Field(..., description="Feature ids.")
    weights: list[float] = Field(..., description="Weight of each feature's activation.")
    bias: float = Field(..., description="Added to the weighted sum.")
    flagged_positive: float | None = Field(None, description="Share of the held-out positives' tokens that it says express the concept.")
    flagged_negative: float | None = Field(None, description="The same share of the negatives' tokens: false alarms.")
    flagged_own: float | None = Field(None, description="Of the positives' words that no negative text has: the share it flags.")
    flagged_common: float | None = Field(None, description="Of the positives' words that negative texts have as well: the share it flags.")
    flagged_auc: float | None = Field(None, description="AUC over held-out texts of the share of tokens that it flags.")
    row: RowDetector | None = Field(None, description="Which whole texts show the concept; null: no examples to fit it on.")

    @model_validator(mode="after")
    def _one_weight_each(self) -> Detector:
        return _with_weights(self)


class Concept(BaseModel):
    """A named concept: examples, features per hookpoint, a direction file, or several of these."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name in rules, curves and reports.")
    description: str = Field("", description="One line for people.")
    positive: Rows = Field([], description="Texts or rows that show the concept, or a JSONL file, or demo:NAME.")
    negative: Rows = Field([], description="Texts or rows that do not.")
    read_as: Literal["auto", "answers", "texts"] = Field(
        "auto",
        description="How examples that are plain texts are read: answers (to an empty question, in the model's chat template), texts (from "
        "the beginning, as rows of plain text are); auto: answers where the tokenizer has a chat template.",
    )
    features: dict[str, list[FeatureId]] = Field({}, description="Hookpoint -> feature ids, best first; fitted where there are none.")
    directions: str = Field(
        "",
        description="Direction file (or FILE#GROUP) that says its hook: a dictionary of its own at HOOKPOINT#CONCEPT, all its own.",
    )
    thresholds: dict[str, list[float]] = Field(
        {}, description="Hookpoint -> activation above which each of its features counts as expressing the concept; default 0."
    )
    quorum: dict[str, Share] = Field(
        {}, description="Hookpoint -> share of the tokens around a token at which the features must be active for a route rule to gate it."
    )
    detectors: dict[str, Detector] = Field(
        {}, description="Hookpoint -> which tokens express the concept, and which rows show it; fitted for rules that need it."
    )
    row_detectors: dict[str, RowDetector] = Field(
        {}, description="Hookpoint -> what tells texts that show the concept; fitted with its features. By it rows are said to teach."
    )
    checker: CheckerSpec | None = Field(None, description="How answers are judged; null: a word classifier fitted on the examples.")
    detection: dict[str, Detection] = Field({}, description="Hookpoint -> held-out scores of the features.")

    @field_validator("features", "thresholds", "quorum", "detection", "detectors", "row_detectors", mode="before")
    @classmethod
    def _canonical_hookpoints(cls, value: Any) -> Any:
        from gradlens.model.hookpoints import by_place  # imports torch, which reading a schema should not

        try:
            return by_place(value, "hookpoints") if isinstance(value, dict) else value
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _something_to_go_by(self) -> Concept:
        if not self.features and not self.directions and not (self.positive and self.negative):
            raise ValueError(f"concept {self.name}: give features, directions, or both positive and negative examples")
        return self if self.directions else self.checked()

    def checked(self) -> Concept:
        """Itself. Raises `ValueError` for what is said of features that it has not; its `directions` have become features by then."""
        for hook, ids in self.features.items():
            if twice := [one for one in ids if ids.count(one) > 1]:
                raise ValueError(f"concept {self.name}: features.{hook} names {twice[0]} twice")
        for hook, values in self.thresholds.items():
            if len(values) != len(self.features.get(hook, [])):
                raise ValueError(
                    f"concept {self.name}: thresholds.{hook} has {len(values)} values for {len(self.features.get(hook, []))} features"
                )
        if self.features and (elsewhere := [hook for hook in self.quorum if hook not in self.features]):
            raise ValueError(f"concept {self.name}: quorum.{elsewhere[0]}: its features are at {', '.join(self.features)}")
        return self

    @property
    def direction_key(self) -> str:
        """Where the dictionary of `directions` is: HOOKPOINT#CONCEPT. Raises `InputError` for a file that does not say its hook."""
        from gradlens.dictionaries.directions import read_directions

        hook = read_directions(self.directions).hook
        if not hook:
            raise InputError(f"concept {self.name}: {self.directions} does not say where its directions are read; add `hook`")
        return f"{hook}#{key_name(self.name)}"

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The `positive` or `negative` examples as rows; files and demo names are read, doubles dropped."""
        from gradlens.data.rows import checked, read_rows

        value = getattr(self, kind)
        rows: list[dict[str, Any]] = []
        for item in [value] if isinstance(value, str) else value:
            if isinstance(item, dict):
                rows.append(checked(item, f"concept {self.name}: {kind}"))
            elif item.startswith("demo:") or _names_file(item) or (isinstance(value, str) and item.endswith(FILES)):
                rows.extend(read_rows(item))
            elif isinstance(value, str):
                raise ConfigError(f"concept {self.name}: {kind}: expected a list of texts, a JSONL file or demo:NAME, found {item!r}")
            else:
                rows.append({"text": item})
        return list({json.dumps(row, sort_keys=True): row for row in rows}.values())

    def examples(self, kind: str, tokenizer: Any) -> list[dict[str, Any]]:
        """`rows(kind)` as they are read. A model reads the same words differently at the beginning of a text, and a detector fitted there
        takes plain words for the concept in the answers of a chat (docs/control-figures.md)."""
        if self.read_as == "texts" or (self.read_as == "auto" and not getattr(tokenizer, "chat_template", None)):
            return self.rows(kind)
        marks = set(tokenizer.all_special_tokens)  # a text that has them is in the template already

        def bare(row: dict[str, Any]) -> bool:
            return not {"messages", "prompt"} & set(row) and not any(mark in row["text"] for mark in marks)

        return [{"prompt": "", "response": row["text"]} if bare(row) else row for row in self.rows(kind)]


def row_detectors_of(concepts: Sequence[Concept]) -> dict[tuple[str, str], RowDetector]:
    """What tells the texts of some concepts, by concept and hookpoint."""
    return {(concept.name, name): tells for concept in concepts for name, tells in concept.row_detectors.items()}


def key_name(concept: str) -> str:
    """A concept's name in the key of a dictionary of its own."""
    return re.sub("[^A-Za-z0-9_-]", "_", concept)


def direction_sources(concepts: Sequence[Concept]) -> dict[str, str]:
    """The dictionaries that concepts bring with them: `{HOOKPOINT#CONCEPT: direction file}`. Raises `ConfigError` where two are one."""
    named: dict[str, Concept] = {}
    for concept in concepts:
        if concept.directions and named.setdefault(concept.direction_key, concept) is not concept:
            other = named[concept.direction_key].name
            raise ConfigError(f"concepts {other} and {concept.name} both have their directions at {concept.direction_key}: rename one")
    return {key: concept.directions for key, concept in named.items()}


def with_direction_dictionaries(config: RunConfig) -> RunConfig:
    """The config with the dictionaries of those of its concepts that are given by direction files."""
    mentions = [source for source in config.concepts if Path(source).is_file() and "directions" in Path(source).read_text(errors="replace")]
    added = direction_sources(load_concepts(mentions))
    return config.model_copy(update={"dictionaries": {**config.dictionaries, **added}}) if added else config


def load_concepts(sources: Sequence[str | Path | Concept]) -> list[Concept]:
    """Concepts of YAML files (one concept, or a list), JSONL files (one on each line) and `demo:NAME`.

    Raises `ConfigError` naming file and key; the same name twice is refused.
    """
    concepts: list[Concept] = []
    origin: dict[str, str] = {}
    for source in sources:
        for concept in [source] if isinstance(source, Concept) else _read_file(source):
            place = concept.name if isinstance(source, Concept) else str(source)
            if concept.name in origin:
                raise ConfigError(f"{place}: the concept {concept.name} is already defined in {origin[concept.name]}; rename one of them")
            origin[concept.name] = place
            concepts.append(concept)
    return concepts


def save_concept(concepts: Concept | Sequence[Concept], path: str | Path) -> None:
    """Write one concept, or a list of them, as YAML (JSONL where the file is named so). Example files keep paths relative to it."""
    path = Path(path)
    many = [concepts] if isinstance(concepts, Concept) else list(concepts)
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for concept in many:
        entry = concept.model_dump(mode="json", exclude_defaults=True)
        for kind in ("positive", "negative"):
            if kind in entry:
                entry[kind] = _map_paths(entry[kind], lambda item: os.path.relpath(item, path.resolve().parent), Path())
        if concept.directions:
            entry["directions"] = os.path.relpath(concept.directions, path.resolve().parent)
        if concept.checker and concept.checker.classifier:
            entry["checker"]["classifier"] = os.path.relpath(concept.checker.classifier, path.resolve().parent)
        entries.append(entry)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    else:
        data = entries[0] if isinstance(concepts, Concept) else entries
        readable = not re.search("[\x85\u2028\u2029]", json.dumps(data, ensure_ascii=False))  # line ends to YAML: lost if not escaped
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=readable, default_flow_style=None, width=120)
    path.write_text(text, encoding="utf-8")


def _read_file(source: str | Path) -> list[Concept]:
    path, name = Path(source), str(source)
    if name.startswith("demo:"):
        from gradlens.data import demo

        path = demo.path(name)
        if path.suffix != ".yaml":
            raise ConfigError(f"{name}: this is a data set, not a concept")
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
        try:
            entries = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid JSONL: {error}") from None
    else:
        data = read_yaml(path)
        entries = data if isinstance(data, list) else [data]
    if not entries or entries == [{}]:
        raise ConfigError(f"{name}: no concept in it; expected keys {', '.join(Concept.model_fields)}")
    concepts = []
    for index, entry in enumerate(entries):
        place = name if len(entries) == 1 else f"{name}: concept {index + 1}"
        if not isinstance(entry, dict):
            raise ConfigError(f"{place}: expected a mapping with keys {', '.join(Concept.model_fields)}, found {type(entry).__name__}")
        for kind in ("positive", "negative"):
            if kind in entry:
                entry[kind] = _map_paths(entry[kind], lambda item: str((path.parent / item).absolute()), path.parent)
        if isinstance(entry.get("directions"), str):
            entry["directions"] = str(path.parent / entry["directions"])
        if isinstance(entry.get("checker"), dict):
            entry["checker"] = _checker_beside(entry["checker"], path.parent)
        try:
            concepts.append(_with_directions(Concept.model_validate(entry)))
        except ValidationError as error:
            raise ConfigError(explain(error, place, Concept)) from None
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
    return concepts


def _with_directions(concept: Concept) -> Concept:
    if not concept.directions:
        return concept
    from gradlens.dictionaries.directions import read_directions

    found, key = read_directions(concept.directions), concept.direction_key
    ids = list(range(found.dictionary().d_sae))
    # what `gradlens concepts directions` found to gate best; the concept's own come first
    thresholds = {key: [found.facts["threshold"]] * len(ids), **concept.thresholds} if "threshold" in found.facts else concept.thresholds
    quorum = {key: found.facts["quorum"], **concept.quorum} if "quorum" in found.facts else concept.quorum
    return concept.model_copy(update={"features": {**concept.features, key: ids}, "thresholds": thresholds, "quorum": quorum}).checked()


def _checker_beside(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A checker whose files are found beside the concept file; a command in words."""
    if isinstance(spec.get("classifier"), str) and spec["classifier"]:
        spec = spec | {"classifier": str(folder / spec["classifier"])}
    command = spec.get("command")
    try:
        words = shlex.split(command) if isinstance(command, str) else command
    except ValueError:
        return spec  # the model says what is wrong with it
    if isinstance(words, list) and words:
        beside = [str((folder / word).resolve()) if isinstance(word, str) and (folder / word).is_file() else word for word in words]
        spec = spec | {"command": beside}
    return spec


def _names_file(item: Any, folder: Path = Path()) -> bool:
    """Whether one of several examples is the name of a file: a sentence may end in `package.json`, too."""
    if not isinstance(item, str) or not item.endswith(FILES) or item.startswith("demo:") or "\n" in item:
        return False
    return not re.search(r"\s", item) or os.path.isabs(item) or os.path.isfile(folder / item)  # Path.is_file raises for a long text


def _map_paths(value: Any, change: Callable[[str], str], folder: Path) -> Any:
    """`value` (a string or a list) with every example file's path, from `folder`, changed; texts, rows and demo names stay."""
    if isinstance(value, list):
        return [change(item) if _names_file(item, folder) else item for item in value]
    is_path = isinstance(value, str) and value.endswith(FILES) and not value.startswith("demo:") and "\n" not in value
    return change(value) if is_path else value
