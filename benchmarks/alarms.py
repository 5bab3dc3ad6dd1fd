"""Does an alarm come before the model's answers tell? Readings after every step, beside a check of answers after every step.

Of every shipped pair (or your own pair file): a run on rows of which half show a concept that is watched, and a control on the wanted rows
alone, in which that concept must not raise an alarm. The probe set is the same in both: half of its texts show the concept, so that the
control has something to be wrong about. Written for each run: the step of the alarm, the step at which the answers to
`--prompts` held-out prompts first show the concept in a tenth more of them than before training, and when something unannounced was told.

    python benchmarks/alarms.py                       all shipped pairs
    python benchmarks/alarms.py --pairs mine.yaml --seeds 0,1,2 --steps 16
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from gradlens.bench.pairs import SHIPPED, Pair, load_pair
from gradlens.concepts.checkers import checker_for, judged
from gradlens.concepts.concept_files import load_concepts
from gradlens.config import load_config
from gradlens.data.rows import read_rows
from gradlens.model.evaluate import generate_answers
from gradlens.model.hookpoints import unwrap
from gradlens.recording.recorder import MemoryRecorder
from gradlens.recording.runfolder import versions
from gradlens.report.findings import RISE
from gradlens.training.rank import FixedPolicies, Rank
from gradlens.training.train import train_rank

ROOT = Path(__file__).parents[1]


class _Answers(FixedPolicies):
    """Answers the prompts before every step, and counts those that show the concept."""

    def __init__(self, prompts: list[Any], check: Any, tokens: int) -> None:
        self.prompts, self.check, self.tokens = prompts, check, tokens
        self.lens: Any = None
        self.rates: list[float] = []  # after 0, 1, ... steps

    def poll(self, step: int) -> tuple[None, bool]:
        written = generate_answers(unwrap(self.lens.model), self.lens.learning.tokenizer, self.prompts, self.tokens)
        self.rates.append(sum(judged(self.check, written)) / len(written))
        return None, False


PROBE = 8  # texts of each kind, which are not trained on


def run(pair: Pair, alone: bool, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run: with the rows that show the concept, or `alone`, on the wanted ones."""
    (concept,), recorder = load_concepts([pair.concept]), MemoryRecorder()
    unwanted = read_rows(pair.unwanted)
    answers = _Answers(read_rows(pair.prompts)[: arguments.prompts], checker_for(concept), 32)
    with tempfile.TemporaryDirectory() as folder:
        parts = {"shown": unwanted[:-PROBE], "probe": [*unwanted[-PROBE:], *read_rows(pair.wanted_heldout)[:PROBE]]}
        files = {name: Path(folder) / f"{name}.jsonl" for name in parts}
        for name, rows in parts.items():
            files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        train = [pair.wanted] if alone else [pair.wanted, str(files["shown"])]
        config = load_config(
            ROOT / "configs" / "quickstart.yaml",
            ["rules=[]", "evaluate={}", f"concepts={json.dumps([pair.concept])}", f"data.train={json.dumps(train)}", "data.wanted=null",
             f"train.seed={seed}", f"train.steps={arguments.steps}", "train.save_model=false", "observe.drift_every=1",
             "observe.own_every=1", f"probe={files['probe']}", *arguments.changes],
        )  # fmt: skip
        rank = Rank(config, Path(folder), recorder, policies=answers, watching=lambda lens: setattr(answers, "lens", lens))
        train_rank(rank)
    alarms = [event for event in recorder.events if event["kind"] == "alarm"]
    named = [event["step"] for event in alarms if event["about"] == "concept" and event["name"] == concept.name]
    told = next((step for step, rate in enumerate(answers.rates) if rate >= answers.rates[0] + RISE), None)
    return {
        "pair": pair.name, "control": alone, "seed": seed, "steps": arguments.steps, "probe_shows": PROBE,
        "alarm": named[0] if named else None, "answers": told,
        "rates": [round(rate, 3) for rate in answers.rates], "of": len(answers.prompts),
        "unannounced": [{"step": event["step"], "words": event["name"]} for event in alarms if event["about"] == "mover"],
        "time": time.strftime("%Y-%m-%d"), "versions": versions(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default=",".join(SHIPPED), help="shipped pairs, or pair files, by commas")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=16, help="held-out prompts that are answered after every step")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="as of gradlens run")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "alarms.jsonl")
    arguments = parser.parse_args()
    done = [json.loads(line) for line in arguments.out.read_text(encoding="utf-8").splitlines()] if arguments.out.is_file() else []
    known = {(row["pair"], row["control"], row["seed"], row["steps"]) for row in done if row.get("probe_shows") == PROBE}
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(int, arguments.seeds.split(",")):
            for name in arguments.pairs.split(","):
                pair = load_pair(name, Path(folder) / Path(name).stem)
                for alone in (False, True):
                    if (pair.name, alone, seed, arguments.steps) in known:
                        continue
                    row = run(pair, alone, arguments, seed)
                    arguments.out.parent.mkdir(parents=True, exist_ok=True)
                    with arguments.out.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                    kind = "control" if alone else "shown"
                    print(
                        f"{pair.name}, {kind}, seed {seed}: alarm at {row['alarm']}, answers tell at {row['answers']} {row['rates']}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
