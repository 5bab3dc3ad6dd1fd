"""How far may the curves be believed? Trains as a config says, reads everything at every step, and scores each estimator against drift.

Rules are left out: what an unfiltered run learns is what has to be predicted. No Ray: one process, one run a seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradlens.config import EvaluateSettings, RunConfig
from gradlens.faithfulness import TRUTHS, concept_auc, scores

WINDOWS = (1, 10, 50)
AUC_STEPS = 10  # by when features of known concepts should stand out
ESTIMATORS = ["push", "attribution", "energy", "activation"]
ALL = 10**6  # batches of the probe set
NOT_ESTIMATES = {*TRUTHS, "probe_rate", "learned"}
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
        return {name: np.diff(np.stack(rows), axis=0) for name, rows in self.columns.items() if name not in NOT_ESTIMATES}

    def truths(self) -> dict[str, np.ndarray]:
        return {name: np.stack(self.columns[name]) for name in TRUTHS}

    def live(self) -> np.ndarray:
        """Features that fire on the probe set at some step."""
        return np.stack(self.columns["probe_rate"]).max(0) > 0


class _Collector:
    """A recorder that keeps every dense reading in memory."""

    def __init__(self) -> None:
        self.curves: dict[str, Curves] = {}
        self.seconds: list[float] = []

    def record(self, record: dict[str, Any]) -> None:
        for hookpoint, reading in record.get("dense", {}).items():
            self.curves.setdefault(hookpoint, Curves()).add(reading)
        if "train/step_seconds" in record["scalars"]:
            self.seconds.append(record["scalars"]["train/step_seconds"])

    def event(self, kind: str, **fields: Any) -> None:
        """Events are of no concern here."""


def bench(config: RunConfig, seeds: Sequence[int], windows: Sequence[int] = WINDOWS, progress: Progress | None = None) -> list[dict]:
    """One row per seed, hookpoint, estimator, truth and window (see `faithfulness.Score`), with the AUC of every concept's features.

    `progress(seed, phase, **fields)` is told what is going on.
    """
    rows: list[dict] = []
    for seed in seeds:
        curves, members = _train(config, seed, partial(progress, seed) if progress else None)
        rng = np.random.default_rng(seed)
        for hookpoint, found in curves.items():
            estimates = found.estimates()
            estimates["random"] = rng.normal(size=next(iter(estimates.values())).shape)
            live = found.live()
            aucs = {
                name: {
                    concept: concept_auc(steps[:AUC_STEPS].sum(0), ids, live)
                    for (concept, hook), ids in members.items()
                    if hook == hookpoint
                }
                for name, steps in estimates.items()
            }
            for score in scores(hookpoint, estimates, found.truths(), live, windows):
                rows.append({"seed": seed, **score.as_dict(), "concept_auc": aucs[score.estimator], "live": int(live.sum())})
    return rows


def _train(config: RunConfig, seed: int, phase: Progress | None) -> tuple[dict[str, Curves], dict[tuple[str, str], list[int]]]:
    import torch

    from gradlens.train import Rank, Shared, train_rank

    config = config.model_copy(
        update={
            "rules": [],
            "train": config.train.model_copy(update={"seed": seed, "save_model": False, "checkpoint_every": None}),
            "observe": config.observe.model_copy(
                update={"every": 1, "drift_every": 1, "update_every": 1, "update_batches": ALL, "estimators": ESTIMATORS}
            ),
            "evaluate": EvaluateSettings(),
        }
    )
    collector, shared = _Collector(), Shared()
    device = torch.device("cuda" if torch.cuda.is_available() and config.train.device != "cpu" else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        rank = Rank(config, Path(folder), collector, device=device, shared=shared)
        if phase is not None:
            rank.phase = phase
        train_rank(rank)
    concepts = shared.concepts or []
    return collector.curves, {(concept.name, hook): ids for concept in concepts for hook, ids in concept.features.items()}


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
        for concept in members[0]["concept_auc"]:
            values = [member["concept_auc"][concept] for member in members if member["concept_auc"][concept] is not None]
            entry.setdefault("concept_auc", {})[concept] = float(np.mean(values)) if values else None
        merged.append(entry)
    return sorted(merged, key=lambda entry: (entry["hookpoint"], entry["truth"], entry["window"], -entry["spearman"]))
