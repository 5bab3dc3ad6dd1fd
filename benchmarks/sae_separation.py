"""How well single features, and sums of 24, tell styles apart on held-out texts: AUC per shipped dictionary, appended to a JSONL file.

A text's score is the mean over its response tokens of a feature's activation (or of the sum over 24 features). Features are chosen by
contrast on the training texts alone: the largest difference of mean activation over its pooled standard deviation.

    python benchmarks/sae_separation.py --model smollm2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from gradlens.data.rows import collate, load_examples
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import load_dictionary, shipped
from gradlens.model.capture import counted_tokens, read_activations
from gradlens.model.loading import load_model
from gradlens.readings.ranking import auc

CONTRASTS = {"pirate": ("pirate", "plain"), "arithmetic": ("arithmetic", "plain")}
SUM = 24


def text_scores(model, tokenizer, dictionaries: dict[str, Dictionary], source: str, rows: int) -> dict[str, torch.Tensor]:
    """Mean feature activation over the response tokens of each text, `[texts, F]` per hookpoint."""
    examples = load_examples(source, tokenizer, 128)[:rows]
    found: dict[str, list[torch.Tensor]] = {name: [] for name in dictionaries}
    for start in range(0, len(examples), 8):
        batch = collate(examples[start : start + 8], tokenizer.pad_token_id)
        keep = counted_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"])
        for name, h in read_activations(model, list(dictionaries), batch).items():
            found[name] += [dictionaries[name].encode(h[row][keep[row]]).mean(0) for row in range(len(h))]
    return {name: torch.stack(scores) for name, scores in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dictionaries", nargs="*", default=None, help="default: all that are shipped")
    parser.add_argument("--rows", type=int, default=120, help="texts of each training set")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "sae_separation.jsonl"))
    arguments = parser.parse_args()
    names = arguments.dictionaries or shipped()
    dictionaries = {(d := load_dictionary(name)).hookpoint: d for name in names}
    model, tokenizer = load_model(arguments.model)
    scores = {
        f"{style}-{split}": text_scores(model, tokenizer, dictionaries, f"demo:{style}-{split}", arguments.rows)
        for style in ("pirate", "plain", "arithmetic")
        for split in ("train", "heldout")
    }
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.out, "a", encoding="utf-8") as lines:
        for name, source in zip(dictionaries, names, strict=True):
            for concept, (positive, negative) in CONTRASTS.items():
                a, b = scores[f"{positive}-train"][name], scores[f"{negative}-train"][name]
                contrast = (a.mean(0) - b.mean(0)) / (a.var(0) + b.var(0) + 1e-8).sqrt()
                order = contrast.argsort(descending=True)[:SUM]
                held = [scores[f"{style}-heldout"][name] for style in (positive, negative)]
                row = {
                    "dictionary": source,
                    "concept": concept,
                    "texts": [len(x) for x in held],
                    "best_feature": int(order[0]),
                    "auc_best": round(auc(*(x[:, order[0]].numpy() for x in held)), 4),
                    f"auc_sum{SUM}": round(auc(*(x[:, order].sum(1).numpy() for x in held)), 4),
                    "health": dictionaries[name].metadata.get("health"),
                    "torch": torch.__version__,
                }
                print(json.dumps(row))
                lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
