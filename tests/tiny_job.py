"""A whole job in miniature, as files: model folder with tokenizer, dictionary folder, data, a concept, and a config of them."""

from pathlib import Path
from typing import Any

import numpy as np
from conftest import tiny_dictionary, tiny_model
from words import sentences, word_tokenizer

from gradlens.config import RunConfig
from gradlens.dictionaries.formats import save_dictionary
from gradlens.files import append_line


def write_inputs(folder: Path) -> dict[str, Any]:
    """Files of a job in `folder`; returns its config as data: two sources, a dictionary at layers.2, a concept with given features."""
    tiny_model(seed=1).save_pretrained(folder / "model")
    word_tokenizer(chat=True).save_pretrained(folder / "model")
    save_dictionary(tiny_dictionary(seed=2), folder / "dictionary")
    random = np.random.default_rng(0)
    for name, words in (("low", range(10, 40)), ("high", range(50, 90))):
        questions, answers = sentences(random, range(4, 10), 40, 3), sentences(random, list(words), 40, 6)
        for question, answer in zip(questions, answers, strict=True):
            append_line(folder / f"{name}.jsonl", {"prompt": question, "response": answer})
    (folder / "concept.yaml").write_text("name: some\nfeatures: {layers.2: [1, 2, 3, 5, 8]}\nchecker: {pattern: [w5]}\n")
    return {
        "name": "tiny",
        "model": {"name": str(folder / "model"), "lora": {"r": 2, "alpha": 4}},
        "data": {"train": [str(folder / "low.jsonl"), str(folder / "high.jsonl")], "max_length": 24, "wanted": [str(folder / "low.jsonl")]},
        "dictionaries": {"layers.2": str(folder / "dictionary")},
        "concepts": [str(folder / "concept.yaml")],
        "train": {"steps": 6, "batch_size": 4, "lr": 0.01, "warmup": 2, "threads": 1, "device": "cpu"},
        "observe": {
            "estimators": ["taught", "push", "attribution", "energy", "unexplained"],
            "drift_every": 2,
            "probe_rows": 4,
            "own_tokens": 3,
        },  # fmt: skip
        "runs_dir": str(folder / "runs"),
    }


def tiny_config(inputs: dict[str, Any], **changes: Any) -> RunConfig:
    """The config with `section__key=value` (or `key=value`) replaced."""
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in inputs.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            data.setdefault(section, {})[key] = value
        else:
            data[section] = value
    return RunConfig.model_validate(data)
