"""What can be known to be wrong with a config before anything is started: every check that needs no weights and no training.

The model is built from its config on the meta device, so that hookpoints and widths are checked against real module names in
a moment. Errors are those of the parts themselves, so that they read the same everywhere.
"""

from __future__ import annotations

import difflib
import math
from functools import lru_cache

from torch import nn

from gradlens.concepts import load_concepts
from gradlens.config import RunConfig
from gradlens.data import read_rows
from gradlens.errors import ConfigError, InputError
from gradlens.formats import check_width, load_dictionary
from gradlens.hookpoints import blocks, canonical, d_model, find_hookpoint, in_stream, layer_of, same_place
from gradlens.labels import labels_of
from gradlens.models import resolve_model
from gradlens.rules import load_rules
from gradlens.trackers import check_trackers


def check(config: RunConfig) -> None:
    """Raise `ConfigError` or `InputError` for what cannot work: files, names, hookpoints, widths, rules, weights of the mixture."""
    check_trackers(config.trackers)
    rules = load_rules(list(config.rules))
    concepts = load_concepts(config.concepts)
    _check_rules(rules, [concept.name for concept in concepts], config)
    _check_data(config)
    model = skeleton(resolve_model(config.model.name))
    for hookpoint, source in config.dictionaries.items():
        find_hookpoint(model, hookpoint)
        dictionary = _dictionary(source)
        for place in dictionary.read_at(canonical(hookpoint)):
            find_hookpoint(model, place)
        if in_stream(hookpoint):
            check_width(dictionary, d_model(model), hookpoint)
        if dictionary.hookpoint and not same_place(model, dictionary.hookpoint, hookpoint):
            raise ConfigError(f"dictionaries.{hookpoint}: {source} was trained at {dictionary.hookpoint}; use it there")
    _check_labels(config)
    _check_trainable(config, model)


@lru_cache(maxsize=4)
def skeleton(source: str) -> nn.Module:
    """A model's modules without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gradlens.quiet import quiet_transformers

    with quiet_transformers():
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise InputError(
                f"{source}: no causal language model could be read there ({str(error).splitlines()[0]:.200}); "
                "expected `smollm2`, a Hugging Face name, or a folder with config.json"
            ) from None


@lru_cache(maxsize=8)
def _dictionary(source: str):
    return load_dictionary(source)


def _check_rules(rules: list, names: list[str], config: RunConfig) -> None:
    hookpoints = [canonical(hookpoint) for hookpoint in config.dictionaries]
    for index, rule in enumerate(rules):
        where = f"rules.{index} ({rule.label})"
        if not hookpoints:
            raise ConfigError(f"{where}: a rule needs a dictionary; add `dictionaries: {{HOOKPOINT: FOLDER}}`")
        if rule.concept and rule.concept not in names:
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
            size = _dictionary(config.dictionaries[_key(config, hookpoint)]).d_sae
            wrong = [i for i in ids if not 0 <= i < size]
            if wrong:
                raise ConfigError(f"{where}: features.{hookpoint}: {wrong[0]} is not one of 0..{size - 1}")


def _key(config: RunConfig, hookpoint: str) -> str:
    return next(name for name in config.dictionaries if canonical(name) == canonical(hookpoint))


def _check_labels(config: RunConfig) -> None:
    places = {canonical(hookpoint): source for hookpoint, source in config.dictionaries.items()}
    for hookpoint, sources in config.labels.items():
        if canonical(hookpoint) not in places:
            raise ConfigError(f"labels.{hookpoint}: no dictionary at {hookpoint}; this config has {', '.join(places) or 'none'}")
        labels_of(_dictionary(places[canonical(hookpoint)]), hookpoint, sources, _dictionary(places[canonical(hookpoint)]).d_sae)


def _check_data(config: RunConfig) -> None:
    data = config.data
    sources = [*data.train, *config.evaluate.heldout.values(), *config.evaluate.prompts.values(), *([config.probe] if config.probe else [])]
    for source in dict.fromkeys(sources):
        read_rows(source)
    for field in ("wanted", "keep"):
        for name in getattr(data, field) or []:
            if name not in data.train:
                near = difflib.get_close_matches(name, data.train, n=1)
                raise ConfigError(f"data.{field}: {name} is not in data.train" + (f"; did you mean {near[0]}?" if near else ""))
    if data.weights is not None:
        if len(data.weights) != len(data.train):
            raise ConfigError(f"data.weights has {len(data.weights)} entries, data.train has {len(data.train)}")
        if min(data.weights) < 0 or not math.isfinite(sum(data.weights)) or sum(data.weights) <= 0:
            raise ConfigError(f"data.weights must be finite, not negative, and not all 0; found {data.weights}")
    if config.train.batch_size < config.train.num_workers:
        raise ConfigError(f"train.batch_size ({config.train.batch_size}) is less than train.num_workers ({config.train.num_workers})")


def _check_trainable(config: RunConfig, model: nn.Module) -> None:
    """A hookpoint below the first adapter gets no gradient: nothing could be read there."""
    last = len(blocks(model)) - 1
    if config.model.method != "lora" or config.model.lora.layers is None:
        return
    first, final = config.model.lora.layers
    if not 0 <= first <= final <= last:
        raise ConfigError(f"model.lora.layers: [{first}, {final}] is not a range within the blocks 0 to {last}")
    for hookpoint in config.dictionaries:
        layer = layer_of(hookpoint)
        if layer is not None and layer < first:
            raise ConfigError(
                f"dictionaries.{hookpoint}: model.lora.layers begins at block {first}, so no gradient reaches {hookpoint}; "
                f"choose a hookpoint from layers.{first} on, or train earlier blocks"
            )
