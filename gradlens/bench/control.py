"""Does control change what is learned, and only that? One run per pair, shape, seed and arm; the same data, steps and measures in all.

Shapes: `mix` (wanted rows and rows that show the unwanted concept, half of each batch) and `entangled` (each row shows both). Arms: without
rules (`none`), on what is wanted alone (`oracle`), each mode, and the controls: as many random features in a mode's place (`-random`),
random features that choose as many tokens of each row (`-scattered`), the rows that a text classifier calls free of the concept (`filter`),
an inoculation prompt, preventative steering. No Ray: one process, arms one after another. `bench_after` has what is measured of the
trained model beside answers and losses, `control_summary` the figures over seeds.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gradlens.bench.after import AfterTraining, released
from gradlens.bench.answer_length import room_for
from gradlens.bench.fingerprint import contents, fingerprint, of_concept, of_config
from gradlens.bench.pairs import Pair, training_files
from gradlens.bench.right_answers import right_share
from gradlens.concepts.checkers import answer_of, checker_for, judged, share_found
from gradlens.concepts.concept_files import load_concepts, save_concept
from gradlens.concepts.fitting import Concept
from gradlens.config import EvaluateSettings, ObserveSettings, RunConfig
from gradlens.control.rules import Rule
from gradlens.data.rows import read_rows
from gradlens.errors import ConfigError
from gradlens.lens import Lens
from gradlens.model.loading import load_tokenizer
from gradlens.recording.recorder import MemoryRecorder
from gradlens.training.rank import Rank, Shared
from gradlens.training.train import train_rank

SHAPES = ("mix", "entangled")
STEER = (1.0, 2.0, 4.0, 8.0)  # strengths, in units of the difference of means
RULES: dict[str, dict[str, Any]] = {
    "auto": {"mode": "auto"},
    "route": {"mode": "route"},
    "route-next": {"mode": "route", "tokens": "next"},
    "rewrite": {"mode": "rewrite"},
    "cut": {"mode": "rewrite", "bridge": False},
    "ablate": {"mode": "ablate"},
    "mean-ablate": {"mode": "mean-ablate"},
    "grad": {"mode": "grad"},
    "param": {"mode": "param"},
    "update": {"mode": "update"},
    "reweight": {"mode": "reweight"},
    "penalty": {"mode": "penalty", "strength": 30.0},
    "constrain": {"mode": "constrain"},
    "constrain-features": {"mode": "constrain", "measure": "activations"},
    **{f"steer-{strength:g}": {"mode": "steer", "strength": strength} for strength in STEER},
}
ARMS = ("none", "oracle", *RULES, *(f"{name}-random" for name in RULES if not name.startswith("steer")),
        "rewrite-scattered", "filter", "inoculate")  # fmt: skip
BASELINES = ("ablate", "ablate@mean", "ablate-random", *(f"steer-{strength:g}" for strength in STEER), "inoculate")
DEFAULT = {  # what a claim needs: no rule, the goal, what gradlens would choose, its control, and the tuned alternatives
    "mix": ("none", "oracle", "auto", "auto-random", *BASELINES, "filter"),
    "entangled": ("none", "oracle", "auto", "auto-random", "route", *BASELINES),
}
SOURCES = ("mean", "probe", "pca", "gradient")  # of directions that `MODE@SOURCE` acts along, in place of the concept's features
ALONG = ("ablate", "mean-ablate", "grad", "param", "update")
Progress = Callable[..., None]


def arms_for(pair: Pair, shape: str, asked: Sequence[str] | None) -> list[str]:
    """The arms of a pair and shape. Raises `ConfigError` for one that does not exist."""
    for arm in asked or ():
        if arm not in ARMS and not re.fullmatch(rf"inoculate-\d+|({'|'.join(ALONG)})@({'|'.join(SOURCES)})", arm):
            sources = f"; of directions: {'|'.join(ALONG)} @ {'|'.join(SOURCES)}"
            raise ConfigError(f"--arms: unknown arm {arm!r}; there is {', '.join(ARMS)}{sources}")
    found: list[str] = []
    for arm in asked or DEFAULT[shape]:
        if arm == "inoculate":
            found += [f"inoculate-{number}" for number in range(1, len(pair.inoculations) + 1)]
        elif arm.startswith("inoculate-") and not 0 < int(arm.rsplit("-", 1)[1]) <= len(pair.inoculations):
            have = f"has {len(pair.inoculations)} (inoculate-1 is the first)" if pair.inoculations else "has none"
            raise ConfigError(f"--arms: {arm}: the pair {pair.name} {have}; `inoculations` of its pair file lists such prompts")
        elif not (arm == "filter" and shape == "entangled"):  # there every row shows the concept: nothing would be left
            found.append(arm)
    return found


class Bench:
    """The runs of one pair in one shape: what they share is computed once."""

    def __init__(
        self, pair: Pair, shape: str, base: RunConfig, folder: Path, steps: int, tell: Progress, samples: int = 0, release: int = 0
    ) -> None:
        """`base`: model, dictionaries, optimiser. `folder`: for the files that arms need. `samples`: answers drawn for each prompt beside
        the greedy one. `release`: further steps without the rule, on plain data. Raises `ConfigError` for a pair without data."""
        rows = training_files(pair, shape)
        self.pair, self.shape, self.folder, self.tell, self.release = pair, shape, folder, tell, release
        self.concept = load_concepts([pair.concept])[0]
        self.shared = Shared()
        self.rewritten: dict[bytes, OrderedDict] = {}  # rows that one seed has rewritten, for the others
        positives = folder / "positives.jsonl"  # held out: no arm trains on the concept's examples
        positives.write_text("".join(json.dumps(row) + "\n" for row in self.concept.rows("positive")), encoding="utf-8")
        tokens = base.evaluate.max_new_tokens
        if "max_new_tokens" not in base.evaluate.model_fields_set:
            files = [file for file in (pair.wanted, pair.unwanted, pair.entangled) if file is not None]
            tokens = room_for(files, load_tokenizer(base.model.name), base.data.max_length)
        prompts = {"prompts": pair.prompts, **({"task": pair.wanted_heldout} if shape == "entangled" else {})}
        self.base = base.model_copy(
            update={
                "name": f"{pair.name}-{shape}", "concepts": [pair.concept], "rules": [], "probe": None,
                "data": base.data.model_copy(update={"train": rows, "weights": None, "wanted": None, "keep": None}),
                "train": base.train.model_copy(update={"steps": steps, "save_model": False, "checkpoint_every": None}),
                "observe": ObserveSettings(
                    estimators=["push"], drift_every=0, update_every=0, own_prompts=0, reference=None, every=10**6, probe_rows=16
                ),
                "evaluate": EvaluateSettings(
                    heldout={"wanted": pair.wanted_heldout, "unwanted": str(positives), "plain": pair.plain}, prompts=prompts,
                    max_rows=base.evaluate.max_rows, max_new_tokens=tokens, samples=samples,
                    temperature=base.evaluate.temperature,
                ),
            }
        )  # fmt: skip
        self.after = AfterTraining(self.base, self.concept, pair.plain)
        files = [pair.wanted, *rows, pair.wanted_heldout, pair.prompts, pair.plain]
        self._print = fingerprint(of_config(self.base), of_concept(self.concept), *map(contents, files))
        self.release_rows = contents(pair.release)

    @cached_property
    def checker_on_rows(self) -> dict[str, float]:
        """The checker's own control: the share of the rows in which it finds the concept, of those that are `wanted` (training and
        held-out) and of those that show it (`unwanted`: of `mix` the other rows, of `entangled` these rows in the unwanted form)."""
        check = checker_for(self.concept)
        if check is None:
            return {}
        wanted = [row for file in (self.pair.wanted, self.pair.wanted_heldout) for row in read_rows(file)]
        unwanted = read_rows(self.pair.unwanted if self.shape == "mix" else self.pair.entangled)
        return {"wanted": share_found(check, wanted), "unwanted": share_found(check, unwanted)}

    def fingerprint(self, arm: str) -> str:
        """Of all that the row of an arm depends on, beside its seed and steps: data, concept, settings, and what the arm itself is."""
        number = int(arm.rsplit("-", 1)[1]) if re.fullmatch(r"inoculate-\d+", arm) else 0
        prompt = self.pair.inoculations[number - 1 : number] if number else []
        return fingerprint(self._print, RULES.get(_mode_of(arm)), prompt)

    def run(self, arm: str, seed: int) -> dict[str, Any]:
        """Train one arm and measure it: one row of the results."""
        config = self._config(arm, seed)
        recorder, began, lenses = MemoryRecorder(), time.monotonic(), []
        label, shared = f"{self.base.name}, {arm}, seed {seed}", self._shared(config)

        def tell(what: str, **fields: Any) -> None:
            self.tell(f"{label}: {what}", **fields)

        def begin(lens: Lens) -> None:
            lenses.append(lens)
            for active in lens.control.rules:
                if active.rewriter is not None and config.model.method == "lora":  # else rows are read by a model that is trained meanwhile
                    active.rewriter.share(self.rewritten)
            self.after.begin(lens, shared.concepts[0], shared.before["answers"])

        with tempfile.TemporaryDirectory() as name:
            run_dir = Path(name)
            train_rank(Rank(config, run_dir, recorder, shared=shared, phase=tell, watching=begin))
            evaluation = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))
        before, after = evaluation["before"], evaluation["after"]
        name = self.concept.name
        measured = self._measures(after)
        tell("what rises instead")
        measured["displacement"] = self.after.displacement(lenses[0], after["answers"])
        seconds = round(time.monotonic() - began, 1)
        if self.release:
            later = released(lenses[0], config, shared.concepts[:1], self.pair.release, self.release, tell)
            about = {"steps": self.release, "data": self.pair.release, "contents": self.release_rows}
            measured["released"] = {**about, "nll": later["nll"], **self._measures(later)}
        steps = [record["scalars"] for record in recorder.records if "train/step_seconds" in record["scalars"]]
        shares = [value for scalars in steps for key, value in scalars.items() if key.startswith("rule/") and key.endswith("/share")]
        times = sorted(scalars["train/step_seconds"] for scalars in steps)
        chosen = [{key: event[key] for key in ("mode", "expects", "good")} for event in recorder.events if event["kind"] == "suggested"]
        if chosen:  # what auto has made of it, and what it said in advance
            measured["suggested"] = chosen[0]
        return {
            "pair": self.pair.name, "shape": self.shape, "arm": arm, "seed": seed, "steps": len(steps),
            "fingerprint": self.fingerprint(arm), **measured, "base_rate": self._measures(before)["rate"],
            "nll": after["nll"], "base_nll": before["nll"],
            "right": right_share([item["answer"] for item in after["answers"].get("task", ())], read_rows(self.pair.wanted_heldout)),
            "answer_tokens": self.base.evaluate.max_new_tokens,
            "touched": sum(shares) / len(shares) if shares else 0.0,
            "step_seconds": times[len(times) // 2] if times else None,
            "seconds": seconds, "checker": after["checkers"].get(name, {}) | self.checker_on_rows,
            "answers": {source: [item["answer"] for item in items[:3]] for source, items in after["answers"].items()},
        }  # fmt: skip

    def _measures(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        """Rates of the unwanted concept: `rate` (mean over prompt sets), `rates`, `counts` ({set: [answers that show it, answers]}), and
        `sampled` (the same counts of drawn answers) where there are some. `cut`: share of answers that did not end by themselves."""
        name = self.concept.name
        rates = {source: share[name] for source, share in evaluation["rates"].items()}
        counts = {source: [sum(item["hits"][name] for item in items), len(items)] for source, items in evaluation["answers"].items()}
        cut = sum(evaluation["cut"].values()) / sum(n for _, n in counts.values())
        found = {"rate": sum(rates.values()) / len(rates), "rates": rates, "counts": counts, "cut": cut}
        if "sampled" in evaluation:
            found["sampled"] = {source: [part[name]["hits"], part[name]["n"]] for source, part in evaluation["sampled"].items()}
        return found

    def _shared(self, config: RunConfig) -> Shared:
        """Concepts and the base model's evaluation, once they are known; readings never, since probe sets differ with the data."""
        self.shared.readings = None
        if len(config.concepts) == 1:
            return self.shared
        known = self.shared.concepts and [*self.shared.concepts, *load_concepts(config.concepts[1:])]
        return Shared(known, self.shared.before)  # with a concept that other arms do not have

    def _config(self, arm: str, seed: int) -> RunConfig:
        config = self.base.model_copy(update={"train": self.base.train.model_copy(update={"seed": seed})})
        if arm == "none":
            return config
        if arm == "oracle":
            keep = {"keep": [self.pair.wanted]} if self.shape == "mix" else {"train": [self.pair.wanted]}
            return config.model_copy(update={"data": config.data.model_copy(update=keep)})
        if arm == "filter":
            return config.model_copy(update={"data": config.data.model_copy(update=self._filtered())})
        mode, _, source = arm.partition("@")
        concept, settings = self.concept.name, dict(RULES.get(_mode_of(arm), {}))
        if arm.startswith("inoculate-"):
            settings = {"mode": "inoculate", "prompt": self.pair.inoculations[int(arm.rsplit("-", 1)[1]) - 1]}
        if settings["mode"] == "steer" or source:
            source = source or "mean"
            concept, directions = f"{concept}-{source}", self._directions(source, next(iter(config.dictionaries)))
            concepts = [*config.concepts, str(directions)]
            config = config.model_copy(update={"concepts": concepts})
            config = config.model_copy(update={"dictionaries": config.dictionaries | _brought(directions)})
        if arm.endswith(("-random", "-scattered")):
            settings |= {"random_control": seed} | ({"random_as": "tokens"} if arm.endswith("-scattered") else {})
        return config.model_copy(update={"rules": [Rule(concept=concept, **settings)]})

    def _filtered(self) -> dict[str, Any]:
        """Settings of `data` that leave out the rows in whose answer the concept's checker finds it. Both kinds stay sources of the
        mixture, so that as many rows of each file come in a step, on the average, as in the other arms."""
        check, train, weights, keep = checker_for(self.concept), [], [], []
        for number, source in enumerate(self.base.data.train):
            rows = read_rows(source)
            shown = judged(check, [answer_of(row) for row in rows])
            for kind in (False, True):
                chosen = [row for row, shows in zip(rows, shown, strict=True) if shows is kind]
                if not chosen:
                    continue
                file = self.folder / f"filtered-{self.shape}-{number}-{'shown' if kind else 'kept'}.jsonl"
                file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen), encoding="utf-8")
                train.append(str(file))
                weights.append(len(chosen) / len(rows))
                keep += [] if kind else [str(file)]
        if not keep:
            raise ConfigError(f"pair {self.pair.name}: the checker finds the concept in every row, so filtering leaves none")
        return {"train": train, "weights": weights, "keep": keep}

    def _directions(self, source: str, hookpoint: str) -> Path:
        """A concept file of directions of a source at a hookpoint, made once."""
        from gradlens.concepts.concept_compare import fit_directions
        from gradlens.dictionaries.concept_gradients import gradient_directions
        from gradlens.dictionaries.directions import save_directions
        from gradlens.model.loading import load_model

        path = self.folder / f"{source}.yaml"
        if not path.is_file():
            self.tell(f"directions: {source}")
            model, tokenizer = load_model(self.base.model.name)
            length = self.base.data.max_length
            if source == "gradient":
                found = gradient_directions(model, tokenizer, hookpoint, self.concept, max_length=length)
            else:
                found = fit_directions(model, tokenizer, hookpoint, self.concept, source, length)
            file = save_directions(found, self.folder / f"{source}.safetensors")
            save_concept(Concept(name=f"{self.concept.name}-{source}", directions=str(file)), path)
        return path


def _mode_of(arm: str) -> str:
    """The entry of `RULES` that an arm is or stands in for."""
    return re.sub("-(random|scattered)$", "", arm.partition("@")[0])


def _brought(path: Path) -> dict[str, str]:
    from gradlens.concepts.concept_files import direction_sources

    return direction_sources(load_concepts([path]))
