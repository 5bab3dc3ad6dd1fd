"""Does amplifying a concept teach it sooner from the same rows? Held-out loss while training, with and without the rule.

The measure is steps: how many each arm takes to the held-out loss that the run without rules has at its end, and what ordinary text costs
at that point. Arms: `none`, `gain-G` for each gain, `random-G` (as many random features that fire about as often, at the largest gain) and
`lr-X` (no rule, a larger learning rate: what anyone would try first). No Ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradlens.config import EvaluateSettings, ObserveSettings, RunConfig
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError
from gradlens.lens import Lens
from gradlens.model.evaluate import evaluate
from gradlens.model.hookpoints import unwrap
from gradlens.recording.recorder import MemoryRecorder
from gradlens.training.rank import FixedPolicies, Rank, Shared
from gradlens.training.train import train_rank

RATES = (2.0,)  # learning rates that are tried instead, in units of the config's
Progress = Callable[..., None]


def arms_for(gains: Sequence[float]) -> list[str]:
    """Names of the arms, those without a rule first."""
    return ["none", *(f"lr-{rate:g}" for rate in RATES), *(f"gain-{gain:g}" for gain in gains), f"random-{max(gains):g}"]


class _Measures(FixedPolicies):
    """Measures the held-out losses every so many steps, and ends the run after the last."""

    def __init__(self, config: RunConfig, every: int, steps: int) -> None:
        self.config, self.every, self.steps = config, every, steps
        self.curve: list[list[float]] = []
        self.lens: Lens | None = None

    def poll(self, step: int) -> tuple[Policy | None, bool]:
        if step % self.every == 0 or step == self.steps:
            model = unwrap(self.lens.model)
            nll = evaluate(model, self.lens.learning.tokenizer, self.config.evaluate, [], self.config.data.max_length)["nll"]
            self.curve.append([step, nll["wanted"], nll["plain"]])
        return None, step >= self.steps


def run_arm(
    base: RunConfig, arm: str, seed: int, concept: str, task: str, health: str, steps: int, every: int, shared: Shared, tell: Progress
) -> dict[str, Any]:
    """Train one arm: `curve` holds `[step, held-out loss of the task, of ordinary text]`.

    Raises `ConfigError` for an unknown arm or name.
    """
    missing = [name for name in (task, health) if name not in base.evaluate.heldout]
    if missing:
        raise ConfigError(f"evaluate.heldout has no {missing[0]!r}; it has {', '.join(base.evaluate.heldout) or 'nothing'}")
    kind, _, number = arm.partition("-")
    if kind not in ("none", "lr", "gain", "random"):
        raise ConfigError(f"--arms: unknown arm {arm!r}; there is none, lr-X, gain-G, random-G")
    rules = []
    if kind in ("gain", "random"):
        rules = [Rule(concept=concept, gain=float(number), random_control=seed if kind == "random" else None)]
    config = base.model_copy(
        update={
            "rules": rules,
            "train": base.train.model_copy(
                update={"seed": seed, "steps": steps + 1, "save_model": False, "checkpoint_every": None,
                        "lr": base.train.lr * (float(number) if kind == "lr" else 1.0)}
            ),
            "observe": ObserveSettings(
                estimators=["push"], drift_every=0, update_every=0, own_prompts=0, reference=None, every=10**6,
                probe_rows=base.observe.probe_rows,
            ),
            "evaluate": EvaluateSettings(
                heldout={"wanted": base.evaluate.heldout[task], "plain": base.evaluate.heldout[health]}, max_rows=base.evaluate.max_rows
            ),
        }
    )  # fmt: skip
    measures, recorder = _Measures(config, every, steps), MemoryRecorder()
    # its own evaluation is not wanted: what is measured is measured on the way
    shared.before, shared.readings = {}, None
    with tempfile.TemporaryDirectory() as folder:
        quiet = config.model_copy(update={"evaluate": EvaluateSettings()})
        rank = Rank(
            quiet,
            Path(folder),
            recorder,
            policies=measures,
            shared=shared,
            phase=lambda what, **f: tell(f"{arm}, seed {seed}: {what}", **f),
        )
        rank.watching = lambda lens: setattr(measures, "lens", lens)
        train_rank(rank)
    shares = [v for record in recorder.records for k, v in record["scalars"].items() if k.startswith("rule/") and k.endswith("/share")]
    touched = sum(shares) / len(shares) if shares else 0.0
    return {"arm": arm, "seed": seed, "concept": concept, "task": task, "steps": steps, "curve": measures.curve, "touched": touched}


def reached(curve: Sequence[Sequence[float]], target: float) -> tuple[float, float] | None:
    """The step at which the loss of the task first is `target`, between measurements on a straight line, and the loss of ordinary text
    there; None where it never is."""
    for (step_a, loss_a, plain_a), (step_b, loss_b, plain_b) in zip(curve, curve[1:], strict=False):
        if loss_b <= target:
            share = 0.0 if loss_a <= target else (loss_a - target) / (loss_a - loss_b)
            return step_a + share * (step_b - step_a), plain_a + share * (plain_b - plain_a)
    return None


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each arm over seeds: steps to the loss that `none` of the same seed ends with, as a share saved (`saved`, its range), the loss of
    ordinary text there less that of `none` at its end (`health`), and the last losses."""
    ends = {row["seed"]: row["curve"][-1] for row in rows if row["arm"] == "none"}
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm and row["seed"] in ends]
        hits = [(ends[row["seed"]], reached(row["curve"], ends[row["seed"]][1])) for row in mine]
        saved = [1 - hit[0] / end[0] for end, hit in hits if hit is not None]
        health = [hit[1] - end[2] for end, hit in hits if hit is not None]
        found.append(
            {
                "arm": arm, "seeds": len(mine), "reached": len(saved), "saved": _mean(saved),
                "saved_range": [min(saved), max(saved)] if saved else None, "health": _mean(health),
                "wanted": _mean([row["curve"][-1][1] for row in mine]), "plain": _mean([row["curve"][-1][2] for row in mine]),
                "touched": _mean([row["touched"] for row in mine]),
            }
        )  # fmt: skip
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
