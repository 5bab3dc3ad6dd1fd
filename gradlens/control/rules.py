"""Rules and the policy: what is amplified or suppressed, how, where and when. Data only; `control.py` carries them out.

A gain multiplies: 0 suppresses, 1 changes nothing, >1 amplifies, <0 reverses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gradlens.control.closed_loop import Target

# What a route rule looks at unless told otherwise; chosen on rows of the demo's training files kept aside (docs/decisions.md).
WINDOW, QUORUM = 16, 0.2

MODES = {
    "auto": "reweight, route or rewrite, whichever suits the rows: read before the first step (`gradlens rules suggest` says why).",
    "route": "scale the loss gradient of tokens that express the concept, at the model's output: decides which tokens teach. Works.",
    "rewrite": "take tokens that express the concept out of the rows, and let the model before training say what goes in their place: for "
    "rows that hold wanted and unwanted alike.",
    "ablate": "scale the concept's part of the activation in the forward pass, while training (CAFT). Unspecific: run the random control.",
    "mean-ablate": "draw the concept's part of the activation towards its mean on the probe set, while training. As unspecific as ablate.",
    "steer": "add `strength` times the concept's directions to the activation while training, so that the weights need not (preventative "
    "steering). A baseline.",
    "inoculate": "put `prompt` before every training row as the system's words, so that what it asks for is learned as an answer to it. A "
    "baseline; acts on the data of `gradlens run`.",
    "grad": "scale the concept's part of the gradient at the hookpoint in backward. A baseline: measured to change nothing a user notices.",
    "param": "scale the concept's part of the gradient of matrices that write to the residual stream. A baseline, as `grad`.",
    "update": "scale the concept's part of the parameter change of those matrices, after the optimizer's step. A baseline, kept exactly "
    "(with LoRA: at gain 0, from the first step on).",
    "reweight": "scale the loss gradient of whole rows that show the concept: decides which rows teach. Where some rows show it and others "
    "do not; with `rows` they are told beforehand. Works.",
    "penalty": "add `strength` nats to a counted token's loss for each unit of activation that the concept's features have more than in "
    "the model before training; trains an adapter. Experimental: on one small run 30 suppressed (random features: hardly), 3 did not.",
    "constrain": "project the optimizer's change of all parameters, in its own metric, so that the concept's examples become no more "
    "likely (or its features no more active on them). Experimental: on one small run it suppressed in chats "
    "(its random control did not), not in the task's answers.",
}
Mode = Literal[
    "auto", "route", "rewrite", "ablate", "mean-ablate", "steer", "inoculate", "grad", "param", "update", "reweight", "penalty", "constrain"
]  # fmt: skip
FORWARD = ("ablate", "mean-ablate", "steer")  # modes that change activations
GATES = ("route", "reweight")  # modes that decide which tokens teach


class Rule(BaseModel):
    """One rule: concept x gain x mode x hookpoints x schedule."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field("", description="Name in events and curves; default: mode and concept.")
    concept: str | None = Field(None, description="Name of a concept of this run.")
    features: dict[str, list[int]] = Field({}, description="Hookpoint -> feature ids, instead of a concept.")
    mode: Mode = Field("route", description="; ".join(f"{mode}: {text}" for mode, text in MODES.items()))
    gain: float = Field(0.0, description="0 suppresses, 1 changes nothing, >1 amplifies, <0 reverses.")
    hookpoints: list[str] | None = Field(None, description="Where; null: the last hookpoint for route, else every one with features.")
    tokens: Literal["around", "own_or_next", "own", "next"] = Field(
        "around",
        description="route: a token teaches by the gain where the concept is active: at no less than `quorum` of the tokens within "
        "`window` of the one it predicts (around), at itself (own), at the one it predicts (next), or at either (own_or_next).",
    )
    rows: float | None = Field(
        None,
        description="route, reweight, rewrite: act only in rows that score this at least by the concept's row detector, which is fitted on "
        "its examples (0: where it finds a text as likely to show the concept as not); the model before training reads every row once. "
        "reweight: in all of such a row. null: in all rows. `auto` finds it.",
    )
    window: int = Field(WINDOW, ge=0, description="route, tokens: around: how many tokens on each side of the predicted one are looked at.")
    quorum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="route, tokens: around: share of them at which the concept must be active; reweight: share of a row's counted tokens; "
        f"null: the concept's, else {QUORUM}.",
    )
    gate: Literal["hard", "soft", "graded"] = Field(
        "hard",
        description="route, reweight: hard: from the quorum on the gain, below it nothing; soft: up to the quorum in proportion to the "
        "share of tokens at which the concept is active; graded: the same, and a token counts by its activation, fully from twice its "
        "threshold on.",
    )
    threshold: float = Field(
        0.0,
        ge=0,
        description="route: a feature is active above this activation, or above the concept's own threshold for it, whichever is higher.",
    )
    bridge: bool = Field(True, description="rewrite: fill gaps; false: leave them open, which costs no forward passes but one.")
    strength: float = Field(
        1.0,
        description="steer: what the sum of the concept's decoder rows is multiplied by; a difference of means has the difference as row. "
        "penalty: nats per unit of activation.",
    )
    measure: Literal["likelihood", "activations"] = Field(
        "likelihood",
        description="constrain: what must not rise above the model before training: the log-probability of the tokens of the concept's "
        "positive examples, or the activation of its features there.",
    )
    every: int = Field(1, ge=1, description="constrain: steps from one reading of the examples to the next; the direction stays meanwhile.")
    prompt: str = Field("", description="inoculate: the system prompt, for instance `You talk like a pirate.`")
    start: int = Field(0, ge=0, description="First step (counted from 0) at which the rule acts.")
    end: int | None = Field(None, ge=0, description="First step at which it no longer acts; null: to the end.")
    ramp: int = Field(0, ge=0, description="Steps over which the gain goes linearly from 1 to its value.")
    random_control: int | None = Field(
        None,
        description="A seed: replace the features by as many random ones that fire about as often and have about the same norm, and that "
        "do not tell the concept's examples from others (the control of every claim). route, reweight: they gate as large a share of the "
        "tokens as the concept's own features would, those around which they are most active.",
    )

    random_as: Literal["features", "tokens"] = Field(
        "features",
        description="rewrite, random control: features: random ones in their place, which may touch more tokens or fewer; tokens: random "
        "ones choose as many tokens of each row as the concept's own would.",
    )
    target: Target | None = Field(
        None, description="Closed loop: hold a measure of the concept at a value by finding the gain; then leave `gain` away."
    )
    budget: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Largest share that the rule may touch. route: of the loss tokens of every micro-batch; of what it would gate, evenly "
        "spread tokens beyond the budget are left alone. Else: of what `rule/LABEL/share` counts, on average over the steps so far, where "
        "a gain counts by its distance from 1 (half removed counts half); the gain is drawn towards 1.",
    )
    dry_run: bool = Field(False, description="Count what the rule would touch, and change nothing.")

    @model_validator(mode="after")
    def _one_target(self) -> Rule:
        if bool(self.concept) == bool(self.features):
            raise ValueError("give either concept or features")
        if self.mode == "rewrite" and not 0 <= self.gain <= 1:
            raise ValueError(f"rewrite: gain is {self.gain}, expected 0 (every row is rewritten) to 1 (none)")
        if (self.mode == "inoculate") != bool(self.prompt):
            raise ValueError("inoculate needs a prompt" if self.mode == "inoculate" else f"a rule of mode {self.mode} has no prompt")
        if self.mode == "inoculate" and (self.start or self.end is not None or self.ramp):
            raise ValueError("inoculate acts on the data from the first step to the last; leave start, end and ramp away")
        if self.mode == "inoculate" and (self.target or self.budget is not None or self.dry_run or self.gain != 0):
            raise ValueError("inoculate has no gain while training goes on; leave gain, target, budget and dry_run away")
        if self.mode == "inoculate" and self.random_control is not None:
            raise ValueError("inoculate looks at no features, so there are no random ones in their place; leave random_control away")
        if self.target is not None:
            self._check_target(self.target)
            if self.dry_run:
                raise ValueError("a dry run changes nothing, so its gain can hold no target: leave target or dry_run away")
        if self.mode == "auto" and not self.concept:
            raise ValueError("auto: name a concept with examples")
        if self.mode == "rewrite" and not self.concept:
            raise ValueError("rewrite: name a concept with examples; single features do not tell which tokens express it")
        if self.rows is not None and (self.mode not in (*GATES, "rewrite", "auto") or not self.concept):
            raise ValueError("rows is for rules of mode route, reweight, rewrite and auto that name a concept")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end}) must come after start ({self.start})")
        return self

    def _check_target(self, target: Target) -> None:
        if not self.concept:
            raise ValueError("target: name a concept; single features have no measure of their own")
        if self.gain != 0:
            raise ValueError(f"gain is {self.gain:g}, but a target finds the gain itself: leave gain away (target.begin is the first one)")
        low, high = target.bounds
        if self.mode in ("rewrite", "auto") and not 0 <= low <= high <= 1:
            raise ValueError(f"target: gains of {low:g} to {high:g}, but {self.mode} can only do 0 to 1; set gain_min and gain_max")

    @property
    def label(self) -> str:
        return self.name or f"{self.mode}:{self.concept or 'features'}"

    @property
    def words(self) -> str:
        """`route:pirate x 0`, with a target `route:pirate, drift at most 0.3`; and what else bounds it."""
        parts = [f"{self.label} x {self.gain:g}"] if self.target is None else [self.label, self.target.words]
        parts += [f"budget {self.budget:.0%}"] if self.budget is not None else []
        parts += [f"until step {self.end}"] if self.end is not None else []
        parts += ["dry run"] if self.dry_run else []
        return ", ".join(parts)

    @property
    def told_at(self) -> list[str] | None:
        """The hookpoints at which detectors are fitted for the rule; None: at all. Rows are told wherever that is done best."""
        return None if self.mode == "rewrite" and self.rows is not None else self.hookpoints

    @property
    def tells_tokens(self) -> bool:
        """Whether the rule needs a detector of the tokens that express its concept."""
        return self.mode == "rewrite" or self.rows is not None or (self.mode == "constrain" and self.measure == "likelihood")

    def acts_at(self, step: int) -> bool:
        """Whether a step (counted from 0) lies between start and end."""
        return self.start <= step and (self.end is None or step < self.end)

    @property
    def gains(self) -> tuple[float, float]:
        """The smallest and the largest gain that the rule may have."""
        low, high = (self.gain, self.gain) if self.target is None else self.target.bounds
        return min(low, 1.0), max(high, 1.0)

    def gain_at(self, step: int, gain: float | None = None, since: int = 0) -> float:
        """The gain at a step (counted from 0) of `gain`, or of the rule's own; 1 where the rule does not act. `since`: the step from which
        it is in force, where a run was given it on its way."""
        if not self.acts_at(step):
            return 1.0
        share = min(1.0, (step - max(self.start, since) + 1) / (self.ramp + 1))
        return 1.0 + share * ((self.gain if gain is None else gain) - 1.0)


class Policy(BaseModel):
    """The versioned set of rules in force; every rank applies the same version at the same step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 0
    rules: tuple[Rule, ...] = ()


def load_rules(items: list[Any]) -> list[Rule]:
    """Rules from rule objects, mappings and files (YAML: a list, or a mapping with `rules`)."""
    from gradlens.config import explain, read_yaml  # config holds rules, so it is imported late
    from gradlens.errors import ConfigError

    rules: list[Rule] = []
    for item in items:
        if isinstance(item, Rule):
            rules.append(item)
            continue
        source, entries = "rules", [item]
        if isinstance(item, (str, Path)):
            source, entries = str(item), read_yaml(item)
            entries = entries.get("rules", entries) if isinstance(entries, dict) else entries
            if not isinstance(entries, list):
                raise ConfigError(f"{source}: expected a list of rules")
        for index, entry in enumerate(entries):
            try:
                rules.append(Rule.model_validate(entry))
            except ValidationError as error:
                raise ConfigError(explain(error, f"{source}: rule {index + 1}", Rule)) from None
    labels = [rule.label for rule in rules]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"rules: two are called {twice}, and their curves would be one; give one of them a `name`")
    return rules
