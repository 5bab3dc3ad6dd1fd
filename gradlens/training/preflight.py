"""What can be known to be wrong with a config before anything is started: every check that needs no weights and no training.

`gradlens config check` shows the checks one by one; a run carries out the same ones before it starts Ray. The model is built from its
config on the meta device, so that hookpoints and widths are checked against real module names in a moment. Errors are those of the parts
themselves, so that they read the same everywhere.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from torch import nn

from gradlens.concepts.fitting import Concept, check_concept, load_concepts
from gradlens.config import RunConfig
from gradlens.control.rules import Rule, load_rules
from gradlens.data.rows import counted_reasons, lacking_rows, read_rows
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.fits import check_fits
from gradlens.dictionaries.formats import load_dictionary
from gradlens.dictionaries.labels import labels_of, load_labels
from gradlens.errors import ConfigError, InputError
from gradlens.model.hookpoints import blocks, by_place, canonical, d_model, layer_of
from gradlens.model.loading import check_on_hub, resolve_model
from gradlens.model.smollm2 import NAME as SMOLLM2
from gradlens.model.smollm2 import SHAPE, problems, smollm2_folder
from gradlens.recording.trackers import check_trackers


@dataclass(frozen=True)
class Found:
    """What a check has found: in words, and what a person should know of it although it is no error."""

    text: str
    warning: str = ""


@dataclass
class _Known:
    """What earlier checks have found for the later ones; what could not be read is not there, and has been told of."""

    model: nn.Module | None = None
    dictionaries: dict[str, Dictionary] = field(default_factory=dict)  # by canonical hookpoint
    sources: list[str] = field(default_factory=list)  # of concepts
    concepts: list[Concept] = field(default_factory=list)


Look = Callable[[], Found]  # raises `ConfigError` or `InputError`


def check(config: RunConfig) -> list[str]:
    """Raise `ConfigError` or `InputError` for what cannot work: files, names, hookpoints, widths, rules, weights of the mixture.
    Returns what a person should know although it can."""
    found = [look() for _, _, look in checks(config)]
    return [entry.warning for entry in found if entry.warning]


def checks(config: RunConfig) -> Iterator[tuple[str, str, Look]]:
    """`(key, source, look)` of every check; each is looked at before the next is asked for, since later ones go by what was found."""
    known, data, evaluate = _Known(), config.data, config.evaluate
    if config.trackers:
        yield "trackers", ", ".join(config.trackers), lambda: _trackers(config)
    for index, source in enumerate(data.train):
        yield f"data.train.{index}", source, lambda s=source: _rows(s, data.loss_on)
    yield "data", "", lambda: _mixture(config)
    if config.train.device == "cuda" and config.ray.address is None:
        yield "train.device", "", lambda: _gpus(config)
    for name, source in evaluate.heldout.items():
        yield f"evaluate.heldout.{name}", source, lambda s=source: _rows(s, "response")
    for name, source in evaluate.prompts.items():
        yield f"evaluate.prompts.{name}", source, lambda s=source: Found(f"{s}: {len(read_rows(s))} rows")
    if config.probe:
        yield "probe", config.probe, lambda: _rows(config.probe, data.loss_on)
    if config.observe.reference and config.dictionaries:
        yield "observe.reference", config.observe.reference, lambda: _rows(config.observe.reference, "response")
    yield "model", config.model.name, lambda: _model(config, known)
    for hookpoint, source in config.dictionaries.items():
        yield f"dictionaries.{hookpoint}", source, lambda h=hookpoint, s=source: _dictionary(config, known, h, s)
    for hookpoint, sources in config.labels.items():
        yield f"labels.{hookpoint}", ", ".join(sources), lambda h=hookpoint, s=sources: _labels(config, known, h, s)
    for index, source in enumerate(config.concepts):
        yield f"concepts.{index}", source, lambda s=source: _concepts(known, s)
    yield "rules", "", lambda: _rules(config, known)


def shape_of(name: str) -> nn.Module:
    """The modules of the model that a config names, without weights; `smollm2` need not have been fetched."""
    if name == SMOLLM2 and problems(smollm2_folder()):
        return _skeleton_of_smollm2()
    return skeleton(resolve_model(name))


@lru_cache(maxsize=4)
def skeleton(source: str) -> nn.Module:
    """A model's modules without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gradlens.quiet import quiet_transformers

    if not Path(source).is_dir():
        check_on_hub(source)
    with quiet_transformers():
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise InputError(
                f"{source}: no causal language model could be read there ({str(error).splitlines()[0]:.200}); "
                "expected `smollm2`, a Hugging Face name, or a folder with config.json"
            ) from None


@lru_cache(maxsize=1)
def _skeleton_of_smollm2() -> nn.Module:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**SHAPE))


def _trackers(config: RunConfig) -> Found:
    check_trackers(config.trackers)
    return Found("installed")


def _rows(source: str, loss_on: Literal["response", "all"]) -> Found:
    rows = read_rows(source)
    lacking = lacking_rows(rows, loss_on, source)
    left_out = sum(map(len, lacking.values()))
    warning = f"{source}: {left_out} of {len(rows)} rows are left out: {counted_reasons(lacking)}" if lacking else ""
    return Found(f"{source}: {len(rows)} rows", warning)


def _mixture(config: RunConfig) -> Found:
    data = config.data
    for name, chosen in (("wanted", data.wanted), ("keep", data.keep)):
        for source in chosen or []:
            if source not in data.train:
                near = difflib.get_close_matches(source, data.train, n=1)
                raise ConfigError(f"data.{name}: {source} is not in data.train" + (f"; did you mean {near[0]}?" if near else ""))
    if data.weights is not None:
        if len(data.weights) != len(data.train):
            raise ConfigError(f"data.weights has {len(data.weights)} entries, data.train has {len(data.train)}")
        if min(data.weights) < 0 or not math.isfinite(sum(data.weights)) or sum(data.weights) <= 0:
            raise ConfigError(f"data.weights must be finite, not negative, and not all 0; found {data.weights}")
    if config.train.batch_size < config.train.num_workers:
        raise ConfigError(f"train.batch_size ({config.train.batch_size}) is less than train.num_workers ({config.train.num_workers})")
    return Found(f"{len(data.train)} file{'s' if len(data.train) > 1 else ''}, weights {data.weights or 'equal'}")


def _gpus(config: RunConfig) -> Found:
    """A GPU for every rank: Ray would wait for one without end."""
    import torch

    there, wanted = torch.cuda.device_count(), config.train.num_workers
    if there < wanted:
        has = "1 GPU" if there == 1 else f"{there} GPUs"
        raise ConfigError(f"train.device: cuda, and this machine has {has} for train.num_workers: {wanted}; take fewer, or device: auto")
    return Found(f"{there} GPU{'s' if there > 1 else ''}")


def _model(config: RunConfig, known: _Known) -> Found:
    """The model, and that the blocks named for its adapter are there."""
    model = shape_of(config.model.name)
    depth = len(blocks(model))
    if config.model.method == "lora" and config.model.lora.layers is not None:
        first, final = config.model.lora.layers
        if not 0 <= first <= final < depth:
            raise ConfigError(f"model.lora.layers: [{first}, {final}] is not a range within the blocks 0 to {depth - 1}")
    known.model = model
    fetched = config.model.name != SMOLLM2 or not problems(smollm2_folder())
    return Found(f"{config.model.name}: {depth} blocks of width {d_model(model)}" + ("" if fetched else "; a run fetches it first (93 MB)"))


def _dictionary(config: RunConfig, known: _Known, hookpoint: str, source: str) -> Found:
    """A dictionary that is there, fits the model where it is read, and gets a gradient there."""
    dictionary = load_dictionary(source)
    if known.model is not None:
        check_fits(known.model, dictionary, hookpoint, source)
    _check_reached(config, hookpoint)
    by_place(config.dictionaries, "dictionaries")  # no place twice
    known.dictionaries[canonical(hookpoint)] = dictionary
    return Found(f"{source}: {dictionary.d_sae} features of width {dictionary.d_out} for {canonical(hookpoint)}")


def _check_reached(config: RunConfig, hookpoint: str) -> None:
    """A hookpoint below the first adapter gets no gradient: nothing could be read there."""
    if config.model.method != "lora" or config.model.lora.layers is None:
        return
    first, layer = config.model.lora.layers[0], layer_of(hookpoint)
    if layer is not None and layer < first:
        raise ConfigError(
            f"dictionaries.{hookpoint}: model.lora.layers begins at block {first}, so no gradient reaches {hookpoint}; "
            f"choose a hookpoint from layers.{first} on, or train earlier blocks"
        )


def _labels(config: RunConfig, known: _Known, hookpoint: str, sources: list[str]) -> Found:
    places = {canonical(name) for name in config.dictionaries}
    if canonical(hookpoint) not in places:
        raise ConfigError(f"labels.{hookpoint}: no dictionary at {hookpoint}; this config has {', '.join(sorted(places)) or 'none'}")
    dictionary = known.dictionaries.get(canonical(hookpoint))
    if dictionary is not None:
        labels_of(dictionary, hookpoint, sources, dictionary.d_sae)  # none of a feature that it has not
    return Found("; ".join(f"{source}: {len(load_labels(source, hookpoint))} features" for source in sources))


def _concepts(known: _Known, source: str) -> Found:
    """The concepts of a file, each with what it takes to have features at every dictionary."""
    load_concepts([*known.sources, source])  # no name twice
    concepts = load_concepts([source])
    known.sources.append(source)
    known.concepts += concepts
    sizes = {hookpoint: dictionary.d_sae for hookpoint, dictionary in known.dictionaries.items()}
    for concept in concepts if sizes else []:
        check_concept(concept, sizes)
    return Found(", ".join(concept.name for concept in concepts))


def _rules(config: RunConfig, known: _Known) -> Found:
    rules = load_rules(list(config.rules))
    for index, rule in enumerate(rules):
        _check_rule(rule, f"rules.{index} ({rule.label})", config, known)
    return Found(", ".join(rule.label for rule in rules) or "none: the run is only observed")


def _check_rule(rule: Rule, where: str, config: RunConfig, known: _Known) -> None:
    hookpoints = [canonical(hookpoint) for hookpoint in config.dictionaries]
    names = [concept.name for concept in known.concepts]
    if not hookpoints:
        raise ConfigError(f"{where}: a rule needs a dictionary; add `dictionaries: {{HOOKPOINT: FOLDER}}`")
    if rule.concept and rule.concept not in names and len(known.sources) == len(config.concepts):
        near = difflib.get_close_matches(rule.concept, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; concepts of this config: {', '.join(names) or 'none'}"
        raise ConfigError(f"{where}: unknown concept {rule.concept!r}{hint}")
    measured = [rule.target.hookpoint] if rule.target is not None and rule.target.hookpoint else []
    if rule.target is not None and not config.observe.drift_every:
        raise ConfigError(f"{where}: a target is held by readings of the probe set; set observe.drift_every to 1 step or more")
    for hookpoint in [*(rule.hookpoints or []), *rule.features, *measured]:
        if canonical(hookpoint) not in hookpoints:
            raise ConfigError(f"{where}: no dictionary at {hookpoint}; this config has {', '.join(hookpoints)}")
    for hookpoint, ids in rule.features.items():
        dictionary = known.dictionaries.get(canonical(hookpoint))
        wrong = [i for i in ids if not 0 <= i < dictionary.d_sae] if dictionary else []
        if wrong:
            raise ConfigError(f"{where}: features.{hookpoint}: {wrong[0]} is not one of 0..{dictionary.d_sae - 1}")
