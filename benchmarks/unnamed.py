"""Does a run say what it learned, without being told what to look for? One run per concept, no concept named; then the controls.

Half of the training rows show the concept, half are arithmetic (or `--other`). Afterwards, and not before, the concept is used to judge: is
one of the five clusters about it? A cluster is if its features tell held-out texts with the concept from the same texts without it: AUC at
least 0.95 of the largest sum over the features, each in units of its maximum, at any token of the response. The words are for people.
What the model says less (`gradlens/readings/said_less.py`) is judged beside them: AUC of how small a share of a held-out text's words it
is.

Controls, which read unchanged texts: `lr0` trains with learning rate 0, `noise` on responses of tokens drawn at random from the vocabulary:
there is nothing to learn, and nothing should be reported beyond the false discovery rate. `shuffled` trains on responses whose words are
drawn at random from all responses: what is left to learn is how often each word is said.

    python benchmarks/unnamed.py                                             the shipped concepts and the controls
    python benchmarks/unnamed.py --name mine --rows mine.jsonl --without plain.jsonl    your own: rows that show it, and the same without it
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gradlens.config import load_config
from gradlens.data import demo
from gradlens.data.rows import tokenize
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import load_dictionary
from gradlens.model.loading import load_model
from gradlens.model.reading import pad_id_of, read_texts
from gradlens.readings.ranking import auc
from gradlens.readings.said_less import share_in
from gradlens.recording.recorder import MemoryRecorder
from gradlens.recording.runfolder import versions
from gradlens.report.findings import less_in_words
from gradlens.training.rank import Rank
from gradlens.training.train import train_rank

ROOT = Path(__file__).parents[1]
CONCEPTS = ("pirate", "french", "capitals", "flattery", "question")
CONTROLS = ("lr0", "noise", "shuffled")
HELD = 24  # texts of each kind that judge
AUC = 0.95
Row = dict[str, Any]


def shipped(concept: str, split: str, seed: int = 0) -> list[Row]:
    """Rows that show one of the shipped concepts."""
    if concept in demo.STYLES:
        rng = random.Random(f"{seed}/{concept}/{split}")
        return [demo.STYLES[concept](row, rng) for row in demo.rows(f"plain-{split}")]
    return demo.rows(f"{concept}-{split}")


def shuffled(rows: list[Row], seed: int) -> list[Row]:
    """The same prompts, every word of the responses drawn from the words of all of them."""
    rng = random.Random(seed)
    words = [word for row in rows for word in row["response"].split()]
    return [{"prompt": row["prompt"], "response": " ".join(rng.choice(words) for _ in row["response"].split())} for row in rows]


def noise(rows: list[Row], tokenizer: Any, seed: int) -> list[Row]:
    """The same prompts, every response as many tokens of the vocabulary."""
    rng = random.Random(seed)
    size = len(tokenizer)
    made = []
    for row in rows:
        ids = [rng.randrange(size) for _ in tokenizer(row["response"])["input_ids"]]
        made.append({"prompt": row["prompt"], "response": tokenizer.decode(ids, skip_special_tokens=True)})
    return made


def run(train: list[list[Row]], probe: list[Row], model: str, seed: int, changes: list[str]) -> tuple[MemoryRecorder, float]:
    """Train on the sources as the demo's config says, without rules and concepts; what was recorded, and how long it took."""
    recorder = MemoryRecorder()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = []
        for number, rows in enumerate([*train, probe]):
            files.append(folder / f"{number}.jsonl")
            files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = load_config(
            ROOT / "configs" / "quickstart.yaml",
            ["rules=[]", "concepts=[]", "evaluate={}", f"model.name={model}", f"train.seed={seed}", "train.save_model=false",
             f"data.train={json.dumps([str(file) for file in files[:-1]])}", "data.wanted=null", f"probe={files[-1]}", *changes],
        )  # fmt: skip
        began = time.monotonic()
        train_rank(Rank(config, folder, recorder))
    return recorder, time.monotonic() - began


def judge(clusters: list[dict], model: str, positive: list[Row], negative: list[Row], dictionaries: dict[str, Dictionary]) -> list[float]:
    """Of every cluster: how well its features tell the texts with the concept from those without."""
    loaded, tokenizer = load_model(model)
    examples = [tokenize(row, tokenizer, 96) for row in positive + negative]
    features = sorted({(name, feature) for cluster in clusters for name, feature in cluster["features"]})
    acts: dict[int, torch.Tensor] = {}  # text -> [T, N]
    for index, read in read_texts(loaded, list(dictionaries), examples, pad_id_of(tokenizer)):
        counted = [t for t, label in enumerate(examples[index].labels) if label != -100 and t]
        encoded = {name: dictionary.encode(read[name][counted]) for name, dictionary in dictionaries.items()}
        acts[index] = torch.stack([encoded[name][:, feature] for name, feature in features], dim=1)
    largest = torch.cat(list(acts.values())).amax(0).clamp_min(1e-9) if features else torch.zeros(0)
    found = []
    for cluster in clusters:
        mine = [
            number for number, (name, feature) in enumerate(features) if [name, feature] in [list(pair) for pair in cluster["features"]]
        ]
        scores = [(acts[index] / largest)[:, mine].sum(1).max().item() for index in range(len(examples))]
        found.append(auc(scores[: len(positive)], scores[len(positive) :]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default=",".join((*CONCEPTS, *CONTROLS)), help="shipped concepts and controls")
    parser.add_argument("--name", help="name of your own concept")
    parser.add_argument("--rows", type=Path, help="JSONL of rows that show it; the last tenth judges")
    parser.add_argument("--without", type=Path, help="JSONL of rows that do not; the last tenth judges")
    parser.add_argument("--other", default="demo:arithmetic-train", help="what the other half of the training rows is")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="as of gradlens run")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "unnamed.jsonl")
    arguments = parser.parse_args()
    from gradlens.data.rows import read_rows

    other = read_rows(arguments.other)
    config = load_config(ROOT / "configs" / "quickstart.yaml", arguments.changes)
    dictionaries = {name: load_dictionary(source) for name, source in config.dictionaries.items()}
    for concept in [arguments.name] if arguments.name else arguments.concepts.split(","):
        control = concept in CONTROLS
        if arguments.name:
            rows, plain = read_rows(arguments.rows), read_rows(arguments.without)
            cut, cut_plain = len(rows) - max(8, len(rows) // 10), len(plain) - max(8, len(plain) // 10)
            train, held, without = rows[:cut], rows[cut:], plain[cut_plain:]
        else:
            name = "pirate" if control else concept
            train, held, without = shipped(name, "train"), shipped(name, "heldout"), demo.rows("plain-heldout")
        size = config.observe.probe_rows // 2
        probe = held[:size] + other[-size:]
        sources = [train, other[:-size]]
        if concept == "shuffled":
            sources = [shuffled(source, arguments.seed) for source in sources]
        if concept == "noise":
            sources = [noise(source, load_model(arguments.model)[1], arguments.seed) for source in sources]
        changes = [*arguments.changes, *(["train.lr=0"] if concept == "lr0" else [])]
        recorder, seconds = run(sources, probe, arguments.model, arguments.seed, changes)
        clusters = next((event["clusters"] for event in reversed(recorder.events) if event["kind"] == "learned"), [])
        less = dict(next((event["less"] for event in reversed(recorder.events) if event["kind"] == "learned"), {}))
        if less and not control:
            shares = [[-share_in([row["response"]], less["words"]) for row in texts[-HELD:]] for texts in (held, without)]
            less["auc"] = round(auc(*shares), 3)
        last = recorder.records[-1]["scalars"]
        live = {n: int((recorder.records[-1]["dense"][n]["probe_rate"] > 0).sum()) for n in dictionaries}
        aucs = [] if control else judge(clusters, arguments.model, held[-HELD:], without[-HELD:], dictionaries)
        result = {
            "concept": concept, "seed": arguments.seed, "seconds": round(seconds, 1),
            "learned": {name: int(last.get(f"{name}/learned", 0)) for name in dictionaries}, "live": live,
            "found": None if control else next((n for n, value in enumerate(aucs, 1) if value >= AUC), None),
            "auc": [round(value, 3) for value in aucs], "less": less,
            "clusters": [{key: entry[key] for key in ("share", "count", "words", "probability", "passage", "own")} for entry in clusters],
            "alarms": [{key: event[key] for key in ("step", "name")} for event in recorder.events if event["kind"] == "alarm"],
            "time": time.strftime("%Y-%m-%d"), "versions": versions(),
        }  # fmt: skip
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(result, ensure_ascii=False) + "\n")
        print(f"{concept}: cluster {result['found']} of {len(clusters)}, learned {result['learned']} of {live}, {seconds:.0f} s")
        for entry, value in zip(clusters, aucs or [float("nan")] * len(clusters), strict=True):
            own = entry["own"]
            said = f", in {own['before']} then {own['now']} of {own['of']} own answers" if own else ""
            print(f"  {entry['share']:.0%} AUC {value:.2f}: {', '.join(entry['words'])}{said}\n      {entry['passage']}")
        if less:
            print(f"  less, AUC {less.get('auc', float('nan')):.2f}: {', '.join(less['words'])}, {less_in_words(less)}")


if __name__ == "__main__":
    main()
