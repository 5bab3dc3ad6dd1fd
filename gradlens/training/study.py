"""A study: the same config as several arms that differ in one thing, so that the effect of the rules can be told from everything else."""

from __future__ import annotations

from collections.abc import Sequence

from gradlens.concepts.concept_files import key_name, with_direction_dictionaries
from gradlens.config import RunConfig
from gradlens.control.rules import load_rules
from gradlens.errors import ConfigError
from gradlens.report.compare import ARMS


def arms_of(config: RunConfig, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[RunConfig]:
    """One config per seed and arm. `none`: without rules; `rules`: as given; `random`: every rule on as many random live features;
    `oracle`: without rules, on the rows of `data.wanted` alone, the same ones at each step. Default: every arm the config allows.

    Raises `ConfigError` for an unknown arm, or one that the config gives no ground for.
    """
    lacking = {}
    if not config.rules:
        lacking = dict.fromkeys(("rules", "random"), "the config has no `rules`; add one, for instance [{concept: NAME}]")
    elif cannot := _no_random(config):
        lacking["random"] = cannot
    if not config.data.wanted:
        lacking["oracle"] = "the config does not say what is wanted; add `data.wanted: [FILE OF data.train]`"
    chosen = list(arms) if arms is not None else [arm for arm in ARMS if arm not in lacking]
    for arm in chosen:
        if arm not in ARMS:
            raise ConfigError(f"--arms: {arm!r} is not one of {', '.join(ARMS)}")
        if arm in lacking:
            raise ConfigError(f"--arms {arm}: {lacking[arm]}")
    if len(set(chosen)) < len(chosen) or not chosen:
        raise ConfigError(f"--arms: expected different arms out of {', '.join(ARMS)}")
    seeds = [config.train.seed] if seeds is None else list(seeds)
    return [_arm(config, arm, seed, several=len(seeds) > 1) for seed in seeds for arm in chosen]


def _no_random(config: RunConfig) -> str:
    """Why no features can be drawn in the place of those of the rules' concepts; "" where they can."""
    rules = load_rules(list(config.rules))
    if rule := next((rule for rule in rules if rule.mode == "inoculate"), None):
        return f"rule {rule.label} looks at no features, so there are no random ones in their place"
    own = {name for key in with_direction_dictionaries(config).dictionaries for _, mark, name in [key.partition("#")] if mark}
    rule = next((rule for rule in rules if rule.concept and key_name(rule.concept) in own), None)
    return f"concept {rule.concept} is a direction of its own, beside which there are no others to draw" if rule else ""


def _arm(config: RunConfig, arm: str, seed: int, several: bool) -> RunConfig:
    rules = load_rules(list(config.rules)) if arm in ("rules", "random") else []
    if arm == "random":
        rules = [rule.model_copy(update={"random_control": seed}) for rule in rules]
    data = config.data.model_copy(update={"keep": list(config.data.wanted)}) if arm == "oracle" else config.data
    name = f"{config.name}-{arm}" + (f"-seed{seed}" if several else "")
    train = config.train.model_copy(update={"seed": seed})
    return config.model_copy(update={"arm": arm, "name": name, "rules": rules, "data": data, "train": train})
