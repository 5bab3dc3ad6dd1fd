"""Run folders made up for tests of reports and comparisons, written with the real `RunWriter`. Figures are invented, forms are real."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gradlens.recording.store import RunReader, RunWriter

HOOKS = ("layers.15", "layers.27")
FEATURES = 400
CONCEPTS = {
    "pirate": {"features": [3, 17, 40], "positive": "pirate-train.jsonl", "words": r"\b(ahoy|arr+|matey|ye|treasure)\b"},
    "arithmetic": {"features": [101, 102], "positive": "arithmetic-train.jsonl", "words": r"\d+ [+-] \d+ ="},
}
# Where each arm ends: share of pirate answers, held-out NLL of arithmetic, drift of the two concepts.
ARMS = {
    "none": (1.0, 0.158, 3.1, 2.4),
    "rules": (0.06, 0.172, 0.12, 2.5),
    "random": (1.0, 0.231, 2.9, 1.6),
    "oracle": (0.03, 0.167, -0.08, 2.6),
}
PIRATE = "Ahoy, matey! Ye can find the treasure {place}, arr, where the wind be blowin' fair and the rum flows free."
PLAIN = "You can usually find it {place}. It is best to look early in the day, when it is quiet."
PLACES = "in the harbour,behind the library,on the third floor,near the old mill,by the river,in the cellar,at the market,at home".split(
    ","
)


def make_run(
    folder: Path,
    arm: str = "none",
    steps: int = 100,
    every: int = 5,
    concepts: tuple[str, ...] = tuple(CONCEPTS),
    answers: int = 32,
    finished: bool = True,
    mark_arm: bool = True,
    seed: int = 0,
    texts: dict[str, str] | None = None,
    uptake: bool = True,
    train_seed: int = 0,
) -> Path:
    """One run folder; `texts` overrides what a hostile model or data set would write (`answer`, `row`, `label`, `event`, `cluster`).

    `uptake`: with what older versions did not record: uptake, own answers, groups, clusters in words, alarms.
    """
    rng, texts = np.random.default_rng(seed), texts or {}
    share, nll, *ends = ARMS[arm]
    rules = [] if arm in ("none", "oracle") or not concepts else [{"concept": concepts[0], "mode": "route", "gain": 0.0}]
    if arm == "random":
        rules = [{**rule, "random_control": 7} for rule in rules]
    data = {"train": ["demo:pirate-train", "demo:arithmetic-train"], "wanted": ["demo:arithmetic-train"]}
    if arm == "oracle":
        data["keep"] = data["wanted"]
    config: dict[str, Any] = {"name": folder.name, "model": {"name": "smollm2", "method": "lora"}, "data": data}
    config |= {"train": {"steps": steps, "seed": train_seed}, "rules": rules, **({"arm": arm} if mark_arm else {})}
    writer = RunWriter(folder, config, seal_every=40)
    (folder / "concepts.yaml").write_text(
        yaml.safe_dump(
            [
                {"name": name, "description": f"Texts that show {name}.", "features": dict.fromkeys(HOOKS, CONCEPTS[name]["features"]),
                 "checker": {"pattern": [CONCEPTS[name]["words"]], "min_matches": 1}}
                for name in concepts
            ]
        )
    )  # fmt: skip
    with open(folder / "rows.jsonl", "w") as file:
        for row in range(40):
            text = texts.get("row") or (PIRATE if row % 2 else "What is {place} 41 + 27? 41 + 27 = 68.").format(place=PLACES[row % 8])
            about = {"row_id": row, "source": data["train"][1 - row % 2], "text": text, "tokens": re.findall(r"\s*\S+", text)}
            file.write(json.dumps(about) + "\n")
    labels = {str(i): {"label": texts.get("label") or f"'word {i}', 'token' · promotes 'thing'"} for i in range(FEATURES)}
    writer.write_json("labels.json", {hook: labels for hook in HOOKS})
    if rules:
        described = [{**rule, "label": f"route:{concepts[0]}", "features": {HOOKS[1]: [1, 2]}} for rule in rules]
        writer.event("policy", step=0, version=1, rules=described)
    writer.event("policy", step=0, version=1, rules=[f"route:{concepts[0]}"] if rules else [])
    if texts.get("event"):
        writer.event("gap", step=1, reason=texts["event"])
    write_steps(writer, rng, steps, every, concepts, dict(zip(concepts, ends, strict=False)), bool(rules), uptake, texts.get("cluster"))
    if concepts:
        write_evaluation(writer, arm, share, nll, answers, concepts, texts)
    if finished:
        writer.write_json("summary.json", {"run_id": folder.name, "status": "done", "steps": steps, **({"arm": arm} if mark_arm else {})})
        writer.close()
    else:
        writer._lock.close()  # as a process that was killed leaves it: nothing sealed, no summary
    return folder


STRAY = 200  # a feature that drifts more than any other and is not learned


def write_steps(
    writer: RunWriter,
    rng: Any,
    steps: int,
    every: int,
    concepts: Any,
    ends: dict[str, float],
    rules: bool,
    uptake: bool,
    hostile: str | None,
) -> None:
    sums = ("taught", "push", "attribution", "energy") if uptake else ("push", "attribution", "energy")
    dense = {hook: {name: np.zeros(FEATURES, np.float32) for name in sums} for hook in HOOKS}
    final = {hook: rng.normal(0, 0.15, FEATURES) * (rng.random(FEATURES) < 0.5) for hook in HOOKS}
    for hook in HOOKS:
        for name, end in ends.items():
            final[hook][CONCEPTS[name]["features"]] = (
                end * rng.uniform(0.7, 1.3, len(CONCEPTS[name]["features"])) * (1 if hook == HOOKS[1] else 0.4)
            )
    for step in range(1, steps + 1):
        done = 1 - np.exp(-step / (0.3 * steps + 1))
        scalars = {
            "train/loss": 2.6 * (1 - done) + 0.35 + rng.normal(0, 0.08),
            "train/step_seconds": rng.uniform(1.9, 2.3),
            "train/lr": 1e-3,
        }
        record: dict[str, Any] = {"step": step, "time": 1e9 + step, "scalars": scalars, "features": {}, "examples": [], "lessons": []}
        if rules:
            scalars |= {"rule/route:pirate/share": 0.5 + rng.normal(0, 0.05), "rule/route:pirate/gain": 0.0}
        for hook in HOOKS:
            values = {name: rng.normal(0, 0.02, FEATURES).astype(np.float32) for name in ("push", "attribution")}
            values["energy"] = np.abs(rng.normal(0, 0.01, FEATURES)).astype(np.float32)
            if uptake:
                values["taught"] = np.abs(rng.normal(0, 0.1, FEATURES)).astype(np.float32)
            for name, end in ends.items():
                values["push"][CONCEPTS[name]["features"]] += np.float32(0.05 * end * (1.1 - done))
                values["attribution"][CONCEPTS[name]["features"]] += np.float32(0.03 * end * (1.1 - done))
            top = np.argsort(-np.abs(values["push"]))[:32].astype(np.int32)
            record["features"][hook] = {"feature": top, **{name: value[top] for name, value in values.items()}}
            scalars |= {f"{hook}/unexplained": 0.4 + rng.normal(0, 0.02), f"{hook}/fvu": 0.17 + 0.02 * done, f"{hook}/l0": 32.0}
            for name, value in values.items():
                dense[hook][name] += value
                for concept in concepts:
                    scalars[f"concept/{concept}/{hook}/{name}"] = float(value[CONCEPTS[concept]["features"]].mean())
            for concept in concepts:
                for row in rng.choice(40, 4, replace=False):
                    like = (row % 2 == 1) == (concept == "pirate")
                    push = float(rng.normal(0.4 if like else -0.1, 0.2))
                    about = {"row_id": int(row), "concept": concept, "hookpoint": hook, "push": push, "activation": 0.5}
                    # the first words of a text, as in "Ahoy, matey!"
                    about |= {"taught": 3.0 if like else 0.1, "positions": [0, 1], "token_taught": [2.0, 1.0] if like else [0.06, 0.04]}
                    record["examples"].append(about)
                    features = CONCEPTS[concept]["features"]
                    lesson = {"features": features, "taught": [about["taught"] / len(features)] * len(features)}
                    record["lessons"].append({"row_id": int(row), "hookpoint": hook} | lesson)
            if every and (step % every == 0 or step == steps):
                moved = final[hook] * done + rng.normal(0, 0.01, FEATURES)
                record.setdefault("dense", {})[hook] = {
                    "feature": np.arange(FEATURES, dtype=np.int32), **dense[hook], "drift": moved.astype(np.float32),
                    "drift_direction": (0.6 * moved).astype(np.float32),
                    "probe_rate": np.clip(np.abs(final[hook]) / 4, 0, 1).astype(np.float32),
                }  # fmt: skip
                if uptake:
                    record["dense"][hook] |= measured(moved, hook, done, scalars, concepts)
                for concept in concepts:
                    scalars[f"concept/{concept}/{hook}/drift"] = float(moved[CONCEPTS[concept]["features"]].mean())
                    scalars[f"concept/{concept}/{hook}/drift_direction"] = 0.6 * float(moved[CONCEPTS[concept]["features"]].mean())
        writer.record(record)
        if uptake and "dense" in record and concepts:
            write_findings(writer, step, done, step <= max(every, 1), concepts[0], hostile)


def measured(moved: np.ndarray, hook: str, done: float, scalars: dict[str, float], concepts: Any) -> dict[str, np.ndarray]:
    """Columns of what is said; adds the scalars that belong to them."""
    gain = 0.1 * moved
    moved[STRAY], gain[STRAY] = 9.0 * done, 0.0
    for concept in concepts:
        ids = CONCEPTS[concept]["features"]
        scalars |= {f"concept/{concept}/{hook}/uptake": float(gain[ids].mean()), f"concept/{concept}/{hook}/own": 1.5 * done}
        scalars |= {f"concept/{concept}/{hook}/group_share": 0.02, f"concept/{concept}/{hook}/group_angle": 80.0}
        scalars |= {f"concept/{concept}/{hook}/group_drift": 20 * done, f"concept/{concept}/{hook}/group_drift_angle": 70.0}
        scalars[f"own/{concept}/rate"] = round(done, 1) if concept == "pirate" else 0.5
    scalars |= {f"{hook}/learned": 5.0, "probe/probability": 0.2 + 0.3 * done}
    return {"uptake": gain.astype(np.float32), "own": (0.5 * moved).astype(np.float32), "drift": moved.astype(np.float32)}


def write_findings(writer: RunWriter, step: int, done: float, first: bool, concept: str, hostile: str | None) -> None:
    """The events of one reading: two clusters, and at the first reading an alarm of each kind."""
    said = {"before": hostile or "You can find it at home.", "now": hostile or "Ahoy, matey, ye can find it at home!"}
    sea = {
        "share": 0.6, "features": [[HOOKS[1], 3], [HOOKS[0], 17], [HOOKS[1], 40]], "count": 12, "words": [hostile or "matey", "Ahoy", "ye"],
        "probability": [0.02, 0.02 + 0.4 * done], "passage": hostile or "[Ahoy], [matey!] The harbour be near.", "labels": [],
        "own": {"before": 0, "now": round(8 * done), "of": 8, "said": said},
    }  # fmt: skip
    sums = {**sea, "share": 0.03, "features": [[HOOKS[1], 101]], "count": 1, "words": ["+", "="], "passage": "41 [+ 27 =] 68", "own": {}}
    less = {"words": [hostile or "moreover", "the"], "before": 0.09, "now": 0.012, "own": {"before": 0.15, "now": 0.01}}
    writer.event("learned", step=step, clusters=[sea, sums], less=less)
    if first:
        text = f"{concept} is being learned: uptake +0.02 at {HOOKS[0]} (chance 0.004)"
        writer.event("alarm", step=step, about="concept", name=concept, hookpoint=HOOKS[0], chance=0.004, text=text)
        text = "something not announced is being learned (30% of all): savvy"
        writer.event("alarm", step=step, about="mover", name="savvy", features=sea["features"], text=text)


def write_evaluation(writer: RunWriter, arm: str, share: float, nll: float, n: int, concepts: Any, texts: dict[str, str]) -> None:
    def part(pirate: float, losses: dict[str, float]) -> dict[str, Any]:
        chat = []
        for i in range(n):
            hit = i < round(pirate * n)
            answer = texts.get("answer") or (PIRATE if hit else PLAIN).format(place=PLACES[i % 8])
            chat.append(
                {
                    "prompt": f"Where can I find it {PLACES[i % 8]}, on day {i + 1}?",
                    "answer": answer,
                    "hits": {name: hit and name == "pirate" for name in concepts},
                }
            )
        sums = [
            {"prompt": f"What is {i} + 2?", "answer": f"{i} + 2 = {i + 2}.", "hits": {name: name == "arithmetic" for name in concepts}}
            for i in range(n // 2)
        ]
        return {
            "nll": losses, "answers": {"chat": chat, "arithmetic": sums},
            "checkers": {name: {"kind": "pattern", "hit_rate": 0.98, "false_alarm_rate": 0.01} for name in concepts},
        }  # fmt: skip

    before = part(0.0, {"arithmetic": 1.19, "pirate": 3.35, "plain": 1.41})
    after = part(share, {"arithmetic": nll, "pirate": 1.87 if share > 0.5 else 3.32, "plain": 1.45})
    writer.write_json("evaluation.json", {"before": before, "after": after})


def make_study(folder: Path, **options: Any) -> list[RunReader]:
    return [RunReader(make_run(folder / f"demo-{arm}", arm, seed=i, **options)) for i, arm in enumerate(ARMS)]
