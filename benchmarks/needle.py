"""Needle test: a few percent of the training rows carry a concept that nobody announced. Are they at the top of what teaches it?

The concept's features are fitted on rows that are not trained on. Then one run, no rule, and all its rows are ranked:

    taught     gradlens examples RUN --concept NAME: loss of the tokens that express the concept, in rows that show it
    lessons    gradlens examples RUN --concept-file FILE, for a concept named only afterwards: from the features that each row was seen to
               teach most
    features   as taught was read before: mean over the concept's features of activation times loss
    push       the raw gradient along the concept's directions
    activation how much the row expresses the concept (mean over its tokens)
    loss       the row's loss (sum over its tokens)
    cosine     of the row's gradient at the hookpoint with the mean gradient of 24 rows that show the concept (base model)

Figure: AUC, the probability that a needle stands above another row; at each hookpoint, and together as `gradlens examples` does it.

    python benchmarks/needle.py                                                   the shipped concepts
    python benchmarks/needle.py --name mine --needles mine.jsonl --hay plain.jsonl     your own
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from unnamed import CONCEPTS, ROOT, shipped

from gradlens.concepts.fitting import Concept, fit_concept, save_concept
from gradlens.config import load_config
from gradlens.data import demo
from gradlens.data.rows import collate, read_rows, tokenize
from gradlens.dictionaries.formats import load_dictionary
from gradlens.model.hookpoints import find_hookpoint
from gradlens.model.loading import load_model
from gradlens.model.reading import pad_id_of
from gradlens.readings.projection import Projection, Tokens
from gradlens.readings.ranking import auc
from gradlens.recording.recorder import MemoryRecorder
from gradlens.recording.runfolder import versions
from gradlens.report.teaching import aucs_of, rank
from gradlens.training.rank import Rank
from gradlens.training.train import train_rank

SHOWN = 24  # rows that show the concept, for its mean gradient
FIT = 100  # rows of each kind that its features are fitted on
Row = dict[str, Any]


class Watching(Projection):
    """A projection that also keeps every row's loss and gradient, for the baselines."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loss: dict[int, float] = {}
        self.gradient: dict[str, dict[int, torch.Tensor]] = {name: {} for name in self.dictionaries}
        self.features: dict[str, dict[int, float]] = {name: {} for name in self.dictionaries}

    def add(self, hookpoint: str, tokens: Tokens, pairs: Any = None) -> None:
        super().add(hookpoint, tokens, pairs)
        (members,) = (ids for (_, name), ids in self._members.items() if name == hookpoint)
        with torch.no_grad():
            expressed_T = self.dictionaries[hookpoint].encode(tokens.h_TD)[:, members].mean(1) * tokens.loss_T
        for index, row in enumerate(tokens.row_ids or ()):
            mine = tokens.row_T == index
            self.loss[row] = tokens.loss_T[mine].sum().item()
            self.gradient[hookpoint][row] = tokens.g_TD[mine].sum(0)
            self.features[hookpoint][row] = expressed_T[mine].sum().item()


def mean_gradient(model: torch.nn.Module, tokenizer: Any, rows: list[Row], hookpoints: list[str]) -> dict[str, torch.Tensor]:
    """`{hookpoint: [D]}`: the loss gradient of rows, summed over tokens, mean over rows."""
    sums = {name: torch.zeros(0) for name in hookpoints}
    for row in rows:
        kept: dict[str, torch.Tensor] = {}
        handles = [find_hookpoint(model, name).watch(lambda h, name=name, kept=kept: kept.update({name: h})) for name in hookpoints]
        loss = model(**collate([tokenize(row, tokenizer, 96)], pad_id_of(tokenizer))).loss
        for handle in handles:
            handle.remove()
        for name, g in zip(hookpoints, torch.autograd.grad(loss, [kept[name] for name in hookpoints]), strict=True):
            sums[name] = g[0].sum(0) + (sums[name] if len(sums[name]) else 0)
    return {name: total / len(rows) for name, total in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument("--name", help="name of your own concept")
    parser.add_argument("--needles", type=Path, help="JSONL of rows that show it: some are trained on, the others fit its features")
    parser.add_argument("--hay", type=Path, help="JSONL of rows that do not, likewise; default: the demo's ordinary answers")
    parser.add_argument("--share", type=float, default=0.05, help="of the training rows")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="as of gradlens run")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "needle.jsonl")
    arguments = parser.parse_args()
    for concept in [arguments.name] if arguments.name else arguments.concepts.split(","):
        result = needle(concept, arguments)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(result) + "\n")
        figures = ", ".join(f"{name} {value:.3f}" for name, value in result["auc"]["together"].items())
        print(f"{concept}, {result['needles']} of {result['rows']} rows: {figures} ({result['seconds']:.0f} s)", flush=True)


def needle(concept: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run; AUC of every ranking at every hookpoint and together."""
    rng = random.Random(arguments.seed)
    needles = read_rows(arguments.needles) if arguments.name else shipped(concept, "train")
    hay = read_rows(arguments.hay) if arguments.hay else demo.rows("plain-train") + demo.rows("arithmetic-train")
    rng.shuffle(needles)
    rng.shuffle(hay)
    count = round(arguments.steps * 8 * arguments.share)
    keep = min(FIT, len(needles) - count)
    trained, other = needles[keep : keep + count], needles[:keep]
    rows, ordinary = [*trained, *hay[FIT : FIT + arguments.steps * 8 - count]], hay[:FIT]
    marked = [(row, index < count) for index, row in enumerate(rows)]
    rng.shuffle(marked)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row, _ in marked), encoding="utf-8")
        probe = folder / "probe.jsonl"
        probe.write_text("".join(json.dumps(row) + "\n" for row in ordinary[:8]), encoding="utf-8")
        config = load_config(
            ROOT / "configs" / "quickstart.yaml",
            ["rules=[]", "concepts=[]", "evaluate={}", f"model.name={arguments.model}", f"train.seed={arguments.seed}",
             "train.save_model=false", f"train.steps={len(marked) // 8}", f"data.train={json.dumps([str(data)])}", "data.wanted=null",
             f"probe={probe}", "observe.drift_every=0", "observe.update_every=0", "observe.own_prompts=0", *arguments.changes],
        )  # fmt: skip
        model, tokenizer = load_model(arguments.model)
        dictionaries = {name: load_dictionary(source) for name, source in config.dictionaries.items()}
        fitted = fit_concept(model, tokenizer, dictionaries, Concept(name=concept, positive=other, negative=ordinary), max_length=96)
        concept_gradient = mean_gradient(model, tokenizer, other[:SHOWN], list(dictionaries))
        del model
        named = folder / "concept.yaml"
        save_concept(fitted.model_copy(update={"positive": [], "negative": []}), named)
        recorder, projections = MemoryRecorder(), []

        def projector(*given: Any) -> Watching:
            projections.append(Watching(dictionaries, *given))
            return projections[-1]

        began = time.monotonic()
        config = config.model_copy(update={"concepts": [str(named)]})
        train_rank(Rank(config, folder, recorder, projector=projector))
        seconds = time.monotonic() - began
    watched, labels = projections[0], {index: is_needle for index, (_, is_needle) in enumerate(marked)}
    seen = sorted(watched.loss)
    scores: dict[str, dict[str, np.ndarray]] = {
        kind: {} for kind in ("taught", "lessons", "features", "push", "activation", "loss", "cosine")
    }
    for hook in dictionaries:
        by_row = {row["row_id"]: row for record in recorder.records for row in record.get("examples", []) if row["hookpoint"] == hook}
        for kind in ("taught", "push", "activation"):
            scores[kind][hook] = np.array([by_row[row][kind] for row in seen])
        tells, lessons = fitted.row_detectors[hook], np.zeros(len(seen))
        weights = dict(zip(tells.features, tells.weights, strict=True))
        for row in (row for record in recorder.records for row in record.get("lessons", []) if row["hookpoint"] == hook):
            pairs = zip(row["features"], row["taught"], strict=True)
            lessons[seen.index(row["row_id"])] += sum(max(weights.get(feature, 0.0), 0.0) * value for feature, value in pairs)
        scores["lessons"][hook] = lessons
        scores["features"][hook] = np.array([watched.features[hook][row] for row in seen])
        scores["loss"][hook] = np.array([watched.loss[row] for row in seen])
        g = torch.stack([watched.gradient[hook][row] for row in seen])
        scores["cosine"][hook] = torch.nn.functional.cosine_similarity(g, concept_gradient[hook][None]).numpy()
    is_needle = np.array([labels[row] for row in seen])

    def figure(values: np.ndarray) -> float:
        return round(auc(values[is_needle], values[~is_needle]), 4)

    found = {hook: {kind: figure(values[hook]) for kind, values in scores.items()} for hook in dictionaries}
    told = {True: aucs_of(fitted), False: {hook: detection.auc for hook, detection in fitted.detection.items()}}

    def together(kind: str, values: dict[str, np.ndarray]) -> float:
        aucs = told[kind in ("taught", "lessons")]
        return figure(rank(np.stack(list(values.values())), [aucs[hook] for hook in values])[1])

    found["together"] = {kind: together(kind, values) for kind, values in scores.items()}
    return {
        "concept": concept, "seed": arguments.seed, "share": arguments.share, "rows": len(seen), "needles": int(is_needle.sum()),
        "features": fitted.features, "detection": told[False], "row_detectors": told[True], "auc": found,
        "seconds": round(seconds, 1), "time": time.strftime("%Y-%m-%d"), "versions": versions(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
