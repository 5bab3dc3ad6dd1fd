"""Every ready config runs, before anything is downloaded, on a stand-in: a tiny random model of the same architecture, and dictionaries in
the same kind of files at the same sub-paths of a hub cache made for the test. Only sizes, data and steps differ from the config."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from words import sentences, word_tokenizer

from gradlens.config import load_config
from gradlens.files import append_line
from gradlens.recording.recorder import MemoryRecorder
from gradlens.training.preflight import check
from gradlens.training.rank import Rank
from gradlens.training.train import train_rank

CONFIGS = Path(__file__).parents[2] / "configs"
D, F = 32, 24
SIZES = {"vocab_size": 96, "hidden_size": D, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
STEPS = 2


def llama(layers: int):
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SIZES))


MODELS = {
    "gemma-2-2b": lambda: Gemma2ForCausalLM(Gemma2Config(num_hidden_layers=26, **SIZES)),
    "gemma-3-1b": lambda: Gemma3ForCausalLM(Gemma3TextConfig(num_hidden_layers=26, **SIZES)),
    "llama-3.1-8b": lambda: llama(32),
    "qwen3-8b": lambda: Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=36, **SIZES)),
    "gpt2-small": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=D, n_layer=12, n_head=2, n_positions=64)),
    "smollm2-135m": lambda: llama(30),
}


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def gemma_scope(at: Path) -> None:
    at.mkdir(parents=True)
    arrays = {"W_enc": randn(D, F), "W_dec": randn(F, D), "b_enc": randn(F), "b_dec": randn(D), "threshold": 0.1 + randn(F).abs()}
    np.savez(at / "params.npz", **{name: value.numpy() for name, value in arrays.items()})


def gemma_scope_2(at: Path) -> None:
    at.mkdir(parents=True)
    tensors = {"w_enc": randn(D, F), "w_dec": randn(F, D), "b_enc": randn(F), "b_dec": randn(D), "threshold": 0.1 + randn(F).abs()}
    save_file(tensors, at / "params.safetensors")
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-it",
        "width": F,
        "l0": 60,
        "hf_hook_point_in": "model.layers.13.output",
    }
    (at / "config.json").write_text(json.dumps(config))


def llama_scope(at: Path) -> None:
    (at / "checkpoints").mkdir(parents=True)
    tensors = {"encoder.weight": randn(F, D), "encoder.bias": randn(F), "decoder.weight": randn(D, F), "decoder.bias": randn(D)}
    save_file(tensors, at / "checkpoints" / "final.safetensors")
    hook = f"blocks.{at.name.split('-L')[-1].removesuffix('R-8x')}.hook_resid_post"
    config = {"hook_point_in": hook, "hook_point_out": hook, "d_model": D, "d_sae": F, "act_fn": "jumprelu", "jump_relu_threshold": 0.4,
              "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 5.0, "out": 5.0}}  # fmt: skip
    (at / "hyperparams.json").write_text(json.dumps(config))


def qwen_scope(at: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    size = 64  # more than the 50 that its name says are chosen; but only F of them ever fire, fewer than there are dimensions
    b_enc = randn(size)
    b_enc[F:] = -1000
    torch.save({"W_enc": randn(size, D), "W_dec": randn(D, size), "b_enc": b_enc, "b_dec": randn(D)}, at)


def saelens_3(at: Path) -> None:
    at.mkdir(parents=True)
    save_file({"W_enc": randn(D, F), "W_dec": randn(F, D), "b_enc": randn(F), "b_dec": randn(D)}, at / "sae_weights.safetensors")
    config = {"model_name": "gpt2-small", "hook_point": at.name, "hook_point_layer": 8, "d_in": D, "d_sae": F, "dtype": "torch.float32"}
    (at / "cfg.json").write_text(json.dumps(config))


def sparsify(at: Path) -> None:
    at.mkdir(parents=True)
    tensors = {"encoder.weight": randn(F, D), "encoder.bias": randn(F), "W_dec": randn(F, D), "b_dec": randn(D), "W_skip": randn(D, D)}
    save_file(tensors, at / "sae.safetensors")
    config = {"activation": "topk", "expansion_factor": 1, "normalize_decoder": True, "num_latents": F, "k": 8, "multi_topk": False,
              "skip_connection": True, "transcode": True, "d_in": D}  # fmt: skip
    (at / "cfg.json").write_text(json.dumps(config))


WRITERS = {
    "google/gemma-scope-2b-pt-res": gemma_scope,
    "google/gemma-scope-2-1b-it": gemma_scope_2,
    "fnlp/Llama3_1-8B-Base-LXR-8x": llama_scope,
    "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50": qwen_scope,
    "jbloom/GPT2-Small-SAEs-Reformatted": saelens_3,
    "EleutherAI/skip-transcoder-SmolLM2-135M-128x": sparsify,
}


def fill_cache(cache: Path, source: str) -> None:
    """A dictionary in the hub's cache, as a download would leave it."""
    owner, name, inner = source.split("/", 2)
    folder = cache / f"models--{owner}--{name}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    WRITERS[f"{owner}/{name}"](folder / "snapshots" / ("0" * 40) / inner)


def test_there_is_a_stand_in_for_every_ready_config():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*MODELS, "quickstart", "sae-smollm2"}


@pytest.mark.parametrize("name", MODELS)
def test_a_ready_config_runs_on_its_stand_in(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for source in written["dictionaries"].values():
        fill_cache(tmp_path / "hub", source)
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(tmp_path / "model")
    word_tokenizer(chat=name == "gemma-3-1b").save_pretrained(tmp_path / "model")
    random = np.random.default_rng(0)
    for question, answer in zip(sentences(random, range(4, 10), 40, 3), sentences(random, range(10, 90), 40, 6), strict=True):
        append_line(tmp_path / "rows.jsonl", {"prompt": question, "response": answer})
    concepts = [
        {"name": concept, "features": {hook: ids for hook in written["dictionaries"]}, "checker": {"pattern": ["w5"]}}
        for concept, ids in (("pirate", list(range(0, F, 2))), ("arithmetic", [1, 3]))
    ]
    (tmp_path / "concepts.yaml").write_text(yaml.safe_dump(concepts))
    rows = str(tmp_path / "rows.jsonl")
    changes = {
        "model.name": str(tmp_path / "model"), "data.train": [rows], "data.wanted": [rows], "concepts": [str(tmp_path / "concepts.yaml")],
        "evaluate.heldout": {}, "evaluate.prompts": {}, "observe.reference": rows, "observe.probe_rows": 4, "observe.own_prompts": 0,
        "train.steps": STEPS, "train.batch_size": 4, "train.micro_batch_size": 2, "train.device": "cpu", "train.threads": 1,
        "train.save_model": False, "rules": [{**written["rules"][0], "start": 1}],  # a step without it, a step with it
    }  # fmt: skip
    config = load_config(CONFIGS / f"{name}.yaml", [f"{key}={json.dumps(value)}" for key, value in changes.items()], {})
    assert dict(config.dictionaries) == written["dictionaries"]
    check(config)
    (tmp_path / "run").mkdir()
    recorder = MemoryRecorder()
    assert train_rank(Rank(config, tmp_path / "run", recorder)) == "done"
    first, last = (next(record["scalars"] for record in recorder.records if record["step"] == step) for step in (1, STEPS))
    for at in written["dictionaries"]:
        assert first[f"{at}/gradient_norm"] > 0 and 0 <= first[f"{at}/unexplained"] <= 1, at
        assert np.isfinite(first[f"concept/pirate/{at}/taught"]) and np.isfinite(first[f"concept/pirate/{at}/push"])
    assert "rule/route:pirate/share" not in first and last["rule/route:pirate/share"] > 0
