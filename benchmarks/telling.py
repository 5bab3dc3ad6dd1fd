"""Are the rows that show a concept, and the tokens that express it, told? Held to what is known of pairs, on rows no detector has seen.

Of every pair (shipped, or a pair file): how the row detector tells `unwanted` rows from `wanted` ones, and which tokens the token detector
takes out of `entangled` rows, beside the true difference to their plain form. Nothing is trained but the detectors.

    python benchmarks/telling.py                              all shipped pairs, and those of other_pairs.py
    python benchmarks/telling.py mine.yaml --json
    python benchmarks/telling.py --examples texts             the same with poorer concept files, see `EXAMPLES`
"""

from __future__ import annotations

import argparse
import difflib
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import other_pairs

from gradlens.bench.pairs import EXAMPLES as EXAMPLES_OF_PAIRS
from gradlens.bench.pairs import SHIPPED, Pair, load_pair
from gradlens.concepts.concept_files import Concept, load_concepts
from gradlens.concepts.detector import weights_over
from gradlens.concepts.detector_fit import best_rows, fit_detectors, questions_of, sharpest
from gradlens.concepts.row_detector import split
from gradlens.control.rewriter import Rewriter, Tokens
from gradlens.control.row_teller import RowTeller
from gradlens.data.rows import IGNORE, Example, collate, load_examples, read_rows
from gradlens.dictionaries.formats import load_dictionary
from gradlens.model.loading import load_model
from gradlens.readings.ranking import auc
from gradlens.recording.runfolder import versions

ROOT = Path(__file__).parents[1]
ROWS, LENGTH, BATCH = 48, 96, 8
DICTIONARIES = {"layers.15": "smollm2-l15", "layers.27": "smollm2-l27"}


# What a concept file may bring in place of 60 chats of either kind, half of them of the rows' kind:
EXAMPLES = {
    "given": "as they are",
    "texts": "the answers alone, without the questions",
    "few": "16 of either kind",
    "elsewhere": "positives from other chats than the rows', negatives from `demo:plain-train`",
    "own": "positives of the rows' kind too, negatives from `demo:plain-train` (what is of the rows' kind is then of the concept)",
}


def of_kind(concept: Concept, kind: str) -> Concept:
    """The concept with examples of a kind of `EXAMPLES`."""
    rng, found = random.Random(0), {part: concept.rows(part) for part in ("positive", "negative")}
    if kind == "texts":
        found = {part: [row.get("response", row.get("text")) for row in rows] for part, rows in found.items()}
    elif kind == "few":
        found = {part: rng.sample(rows, 16) for part, rows in found.items()}
    elif kind in ("elsewhere", "own"):
        ordinary = [{key: row[key] for key in ("prompt", "response")} for row in read_rows("demo:plain-train")[EXAMPLES_OF_PAIRS:]]
        found["negative"] = rng.sample(ordinary, len(found["negative"]))
        if kind == "elsewhere":
            found["positive"] = found["positive"][: len(found["positive"]) // 2]  # `pairs.styled` puts chats first
    return concept.model_copy(update=found)


def rows_of(examples: Sequence[Example]) -> list[tuple[list[int], list[bool]]]:
    return [(each.input_ids, [label != IGNORE and t > 0 for t, label in enumerate(each.labels)]) for each in examples]


def inserted(plain: list[int], said: list[int]) -> list[bool]:
    """Tokens of `said` that are not in `plain`."""
    found = [False] * len(said)
    for kind, _, _, first, last in difflib.SequenceMatcher(None, plain, said, autojunk=False).get_opcodes():
        if kind != "equal":
            found[first:last] = [True] * (last - first)
    return found


def told(pair: Pair, model: Any, tokenizer: Any, dictionaries: dict[str, Any], examples: str = "given") -> dict[str, Any]:
    concept = of_kind(load_concepts([pair.concept])[0], examples)
    found: dict[str, Any] = {"pair": pair.name, "examples": examples}
    source = {kind: load_examples(path, tokenizer, LENGTH)[:ROWS]
              for kind, path in (("wanted", pair.wanted), ("unwanted", pair.unwanted), ("entangled", pair.entangled)) if path}  # fmt: skip
    asked = load_examples(pair.entangled or pair.wanted, tokenizer, LENGTH)[ROWS:]  # other rows than those below, with like questions
    questions = questions_of([asked])
    detectors = fit_detectors(model, tokenizer, dictionaries, concept, LENGTH, questions=questions).detectors
    best = best_rows(detectors)
    if best and "unwanted" in source:
        teller = RowTeller(model, dictionaries, best, detectors[best].row)
        scores = {
            kind: [score for at in range(0, ROWS, BATCH) for score in teller.scores(rows_of(source[kind][at : at + BATCH]))]
            for kind in ("wanted", "unwanted")
        }
        least = split(scores["wanted"] + scores["unwanted"])
        found["rows"] = {
            "hookpoint": best, "held_out_auc": detectors[best].row.auc, "auc": auc(scores["unwanted"], scores["wanted"]), "least": least,
            **{kind: sum(value >= (least or 0.0) for value in values) / len(values) for kind, values in scores.items()},
        }  # fmt: skip
    if "entangled" in source:
        found["tokens"] = _tokens(source, detectors, model, tokenizer, dictionaries)
    return found


def _tokens(source: dict[str, Any], detectors: Any, model: Any, tokenizer: Any, dictionaries: dict[str, Any]) -> dict[str, Any]:
    at = sharpest(detectors)
    weights_F = weights_over(detectors[at], dictionaries[at].d_sae)
    rewriter = Rewriter(model, dictionaries, Tokens(at, weights_F, detectors[at].bias), True, tokenizer)
    taken = {
        kind: [row for first in range(0, ROWS, BATCH) for row in rewriter.told(rows_of(source[kind][first : first + BATCH]))]
        for kind in ("wanted", "entangled")
    }
    counts = {"found": [0, 0], "others": [0, 0], "plain": [0, 0]}
    for plain, said, row in zip(source["wanted"], source["entangled"], taken["entangled"], strict=True):
        (ids, counted), new = rows_of([said])[0], inserted(plain.input_ids, said.input_ids)
        for token, counts_here, is_new, goes in zip(ids, counted, new, row, strict=True):
            if counts_here and token not in rewriter.never:
                part = counts["found" if is_new else "others"]
                part[0] += goes
                part[1] += 1
    for plain, row in zip(source["wanted"], taken["wanted"], strict=True):
        counts["plain"][0] += sum(row)
        counts["plain"][1] += sum(rows_of([plain])[0][1])
    figures = {kind: hits / max(n, 1) for kind, (hits, n) in counts.items()}
    return {"hookpoint": at, "flagged_auc": detectors[at].flagged_auc, **figures, "same": _same(source, rewriter)}


def _same(source: dict[str, Any], rewriter: Rewriter) -> float:
    """Share of the entangled rows that become their plain form to the last counted token, when they are rewritten."""
    hits = 0
    for first in range(0, ROWS, BATCH):
        part, plain = (source[kind][first : first + BATCH] for kind in ("entangled", "wanted"))
        made = rewriter.batch(collate(part, 0), 0.0).batch["labels"].tolist()
        for row, wanted in zip(made, plain, strict=True):
            hits += [token for token in row if token != IGNORE] == [token for token in wanted.labels if token != IGNORE]
    return hits / len(source["entangled"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", help="shipped pairs, or pair files")
    parser.add_argument("--examples", choices=list(EXAMPLES), default="given", help="what the concept file brings")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "telling.jsonl")
    parser.add_argument("--json", action="store_true", help="rows on standard output too")
    arguments = parser.parse_args()
    model, tokenizer = load_model("smollm2")
    model.eval()
    dictionaries = {name: load_dictionary(source) for name, source in DICTIONARIES.items()}
    with tempfile.TemporaryDirectory() as folder:
        others = {name: str(other_pairs.write(name, Path(folder) / "others" / name)) for name in other_pairs.KINDS}
        for name in arguments.pairs or [*SHIPPED, *others]:
            row = told(
                load_pair(others.get(name, name), Path(folder) / Path(name).stem), model, tokenizer, dictionaries, arguments.examples
            )
            row |= {"time": time.strftime("%Y-%m-%d"), "versions": versions()}
            with arguments.out.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(
                json.dumps(row, ensure_ascii=False)
                if arguments.json
                else {key: row.get(key) for key in ("pair", "examples", "rows", "tokens")},
                flush=True,
            )


if __name__ == "__main__":
    main()
