"""What tests of the SAE trainer share: a small corpus, settings of a job on it, the tiny model."""

import json

import numpy as np
from conftest import tiny_model
from words import sentences, word_tokenizer

from gradlens.sae.config import SaeConfig


def corpus(tmp_path, rows=60, length=20, name="text.jsonl", seed=0):
    texts = sentences(np.random.default_rng(seed), np.arange(3, 96), rows, length)
    path = tmp_path / name
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def settings(tmp_path, **extra):
    fields = {
        "model": "tiny", "hookpoints": ["layers.1", "blocks.2.hook_resid_post"], "text": [corpus(tmp_path)], "context_length": 16,
        "d_sae": 48, "k": 4, "batch_size": 128, "epochs": 20, "lr": 1e-2, "warmup": 5, "dead_after": 2000, "aux_k": 16,
        "out": str(tmp_path / "out"), "checkpoint_every": 10,
    }  # fmt: skip
    return SaeConfig(**(fields | extra))


def loader():
    return tiny_model(), word_tokenizer()
