"""How far may the curves be believed? Trains as a config says, reads everything at every step, and scores each estimator against drift.

Rules are left out: what an unfiltered run learns is what has to be predicted. No Ray: one process, one run a seed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradlens.config import EvaluateSettings, RunConfig
from gradlens.lens import Lens
from gradlens.readings.faithfulness import TRUTHS, concept_auc, scores
from gradlens.readings.probe import evenly, read_probe, spread

WINDOWS = (1, 10, 50)
AUC_STEPS = 10  # by when features of known concepts should stand out
ESTIMATORS = ["taught", "push", "attribution", "energy", "activation"]
ALL = 10**6  # rows of the probe set
FEW = 2  # rows of the cheap form of `update`
NOT_ESTIMATES = {*TRUTHS, "probe_rate", "learned", "own"}
# estimator -> reading that it comes from; the others are taken at every step
COSTS = {"update": "update", "update_direction": "update", "uptake": "probe", f"update ({FEW} rows)": "few", "random": None}
AUCS = ("concept_auc", "concept_auc_firing")
TIMED = 5  # readings of `FEW` rows that are timed
Progress = Callable[..., None]


@dataclass
class Curves:
    """Cumulated readings of all features at one hookpoint, one row per step, the first that of the untrained model."""

    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, reading: dict[str, np.ndarray]) -> None:
        for name, values in reading.items():
            if name not in self.columns:  # nothing is known before training but the zeros that every sum starts from
                self.columns[name] = [np.zeros(len(values))]
            self.columns[name].append(np.asarray(values, dtype=np.float64))

    def estimates(self) -> dict[str, np.ndarray]:
        """`[S, F]` per estimator: what each step added."""
        return {
            name: np.diff(np.stack(rows), axis=0)
            for name, rows in self.columns.items()
            if name not in NOT_ESTIMATES and not name.startswith(("few/", "rest/"))
        }

    def truths(self, kind: str = "") -> dict[str, np.ndarray]:
        """Drift of the whole probe set, or (`rest/`, `few/`) of some of its rows."""
        return {name: np.stack(self.columns[kind + name]) for name in TRUTHS}


class _Collector:
    """A recorder that keeps every dense reading in memory, and what each reading cost."""

    def __init__(self) -> None:
        self.curves: dict[str, Curves] = {}
        self.seconds: dict[str, list[float]] = {}
        self.few: list[float] = []  # seconds
        self.lens: Lens | None = None

    def record(self, record: dict[str, Any]) -> None:
        for hookpoint, reading in record.get("dense", {}).items():
            self.curves.setdefault(hookpoint, Curves()).add(reading | self._by_rows(hookpoint))
        for name, value in record["scalars"].items():
            if name.endswith("_seconds"):
                self.seconds.setdefault(name, []).append(value)
        if len(self.few) < TIMED:
            began = time.perf_counter()
            tokens = self.lens.observe.tokens
            read_probe(self.lens.model, self.lens.dictionaries, spread(self.lens.probe, FEW, tokens), tokens)
            self.few.append(time.perf_counter() - began)

    def event(self, kind: str, **fields: Any) -> None:
        """Events are of no concern here."""

    def _by_rows(self, hookpoint: str) -> dict[str, np.ndarray]:
        """Drift on `FEW` rows of the probe set, and on all the others: what is measured on the one is to predict the other."""
        now, then = self.lens.last[hookpoint], self.lens.start[hookpoint]
        few = np.zeros(len(now.rows), dtype=bool)
        few[evenly(len(few), FEW)] = True
        if few.all():
            return {}
        dictionary = self.lens.dictionaries[hookpoint]
        parts = {}
        for name, picked in (("few/", few), ("rest/", ~few)):
            parts[f"{name}drift"] = (now.rows - then.rows)[picked].mean(0).numpy()
            moved_D = (now.row_means - then.row_means)[picked].mean(0)
            parts[f"{name}drift_direction"] = dictionary.along(moved_D.to(dictionary.W_dec.device)).cpu().numpy()
        return parts

    def costs(self) -> dict[str, float]:
        """Of every reading: median seconds as a share of a step without any."""
        readings = {name.removeprefix("observe/").removesuffix("_seconds"): v for name, v in self.seconds.items() if "observe/" in name}
        spent = [sum(parts) for parts in zip(*readings.values(), strict=False)]
        # a step's own time is taken before its readings, which fall into the next one's
        bare = [step - rest for step, rest in zip(self.seconds["train/step_seconds"][1:], spent, strict=False)]
        bare = bare[TIMED:] or bare  # while `FEW` rows are timed, steps are longer
        return {name: float(np.median(values) / np.median(bare)) for name, values in {**readings, "few": self.few}.items()} if bare else {}


def bench(config: RunConfig, seeds: Sequence[int], windows: Sequence[int] = WINDOWS, progress: Progress | None = None) -> list[dict]:
    """One row per seed, hookpoint, estimator, truth and window (see `faithfulness.Score`), with the AUC of every concept's features and
    what a reading costs, in steps.

    `update (2 rows)` is drift on two rows of the probe set; its truth is drift on the other rows.
    `progress(seed, phase, **fields)` is told what is going on.
    """
    rows: list[dict] = []
    for seed in seeds:
        collector, members = _train(config, seed, partial(progress, seed) if progress else None)
        rng, costs = np.random.default_rng(seed), collector.costs()
        for hookpoint, found in collector.curves.items():
            estimates = found.estimates()
            estimates["random"] = rng.normal(size=next(iter(estimates.values())).shape)
            rate = np.stack(found.columns["probe_rate"]).max(0)
            live = rate > 0
            aucs = {name: _aucs(steps, members, hookpoint, live, rate) for name, steps in estimates.items()}
            made = scores(hookpoint, estimates, found.truths(), live, windows)
            if "few/drift" in found.columns:
                few = {name: np.diff(steps, axis=0) for name, steps in found.truths("few/").items()}
                for truth, steps in few.items():
                    name = f"update ({FEW} rows)"
                    aucs[name] = _aucs(steps, members, hookpoint, live, rate)
                    made += scores(hookpoint, {name: steps}, {truth: found.truths("rest/")[truth]}, live, windows)
            for score in made:
                cost = costs.get(COSTS.get(score.estimator, "step"))
                rows.append({"seed": seed, **score.as_dict(), **aucs[score.estimator], "live": int(live.sum()), "cost": cost})
    return rows


def _aucs(
    steps: np.ndarray, members: dict[tuple[str, str], list[int]], hookpoint: str, live: np.ndarray, rate: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """Of every concept: how far its features stand out after `AUC_STEPS` steps, each counted once, and each as often as it fires."""
    total, mine = steps[:AUC_STEPS].sum(0), {concept: ids for (concept, hook), ids in members.items() if hook == hookpoint}
    return {
        "concept_auc": {concept: concept_auc(total, ids, live) for concept, ids in mine.items()},
        "concept_auc_firing": {concept: concept_auc(total, ids, live, rate) for concept, ids in mine.items()},
    }


def _train(config: RunConfig, seed: int, phase: Progress | None) -> tuple[_Collector, dict[tuple[str, str], list[int]]]:
    import torch

    from gradlens.training.rank import Rank, Shared
    from gradlens.training.train import train_rank

    observe = {"every": 1, "drift_every": 1, "update_every": 1, "update": "exact", "update_rows": ALL, "estimators": ESTIMATORS}
    config = config.model_copy(
        update={
            "rules": [],
            "train": config.train.model_copy(update={"seed": seed, "save_model": False, "checkpoint_every": None}),
            "observe": config.observe.model_copy(update=observe | {"own_prompts": 0}),
            "evaluate": EvaluateSettings(),
        }
    )
    collector, shared = _Collector(), Shared()
    device = torch.device("cuda" if torch.cuda.is_available() and config.train.device != "cpu" else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        rank = Rank(config, Path(folder), collector, device=device, shared=shared, watching=partial(setattr, collector, "lens"))
        if phase is not None:
            rank.phase = phase
        train_rank(rank)
    concepts = shared.concepts or []
    return collector, {(concept.name, hook): ids for concept in concepts for hook, ids in concept.features.items()}


def table(rows: Sequence[dict]) -> list[dict]:
    """Means over seeds, best first within hookpoint, truth and window: what the README shows."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["hookpoint"], row["truth"], row["window"], row["estimator"]), []).append(row)
    merged = []
    for (hookpoint, truth, window, estimator), members in groups.items():
        spread = [member["spearman"] for member in members]
        entry = {"hookpoint": hookpoint, "truth": truth, "window": window, "estimator": estimator, "seeds": len(members)}
        entry |= {name: float(np.mean([member[name] for member in members])) for name in ("spearman", "pearson", "precision")}
        entry |= {"spearman_min": min(spread), "spearman_max": max(spread)}
        costs = [member["cost"] for member in members if member.get("cost") is not None]
        entry["cost"] = float(np.mean(costs)) if costs else None
        for kind in AUCS:
            for concept in members[0].get(kind, {}):
                values = [member[kind][concept] for member in members if member[kind][concept] is not None]
                entry.setdefault(kind, {})[concept] = float(np.mean(values)) if values else None
        merged.append(entry)
    return sorted(merged, key=lambda entry: (entry["hookpoint"], entry["truth"], entry["window"], -entry["spearman"]))
