"""Every architecture of docs/models.md, each examined anew: the table says what is so. See `tests/architectures.py`."""

import sys
from pathlib import Path

import pytest
import torch
from tiny_job import tiny_config, write_inputs
from transformers import MambaConfig, MambaForCausalLM, MixtralConfig, MixtralForCausalLM

from gradlens.recording.recorder import MemoryRecorder
from gradlens.training.preflight import check
from gradlens.training.rank import FixedPolicies, Rank
from gradlens.training.train import train_rank

sys.path.insert(0, str(Path(__file__).parent.parent))
import architectures

WRITE = "run `python tests/architectures.py` and look at what changed"


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_the_table_says_what_works(architecture):
    row = architectures.examine(architecture)
    assert [row[key] for key in ("attribution", "route", "ablate", "grad", "param", "update")] == ["exact"] * 6
    assert architectures.committed().get(architecture.name) == architectures.table([row]).splitlines()[-1], WRITE


def test_the_table_has_no_architecture_that_is_not_examined():
    assert set(architectures.committed()) - {"architecture", "---"} == {architecture.name for architecture in architectures.ARCHITECTURES}


def small(kind):
    usual = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "mamba":
        return MambaForCausalLM(MambaConfig(**usual, state_size=4, conv_kernel=2, time_step_rank=4))
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    return MixtralForCausalLM(MixtralConfig(**usual, **heads, num_local_experts=4, num_experts_per_tok=2))


@pytest.mark.parametrize(("kind", "method"), [("mamba", "lora"), ("mamba", "full"), ("mixtral", "lora"), ("mixtral", "full")])
def test_a_config_trains_it_from_a_folder_with_a_rule(kind, method, tmp_path):
    inputs = write_inputs(tmp_path)
    small(kind).save_pretrained(tmp_path / "model")
    rule = {"mode": "route" if method == "lora" else "update", "concept": "some", "gain": 0.5}
    config = tiny_config(inputs, model__method=method, rules=[rule], train__steps=4)
    check(config)
    recorder = MemoryRecorder()
    assert train_rank(Rank(config, tmp_path, recorder, FixedPolicies())) == "done"
    scalars = recorder.records[-1]["scalars"]
    assert {"layers.2/fvu", "concept/some/layers.2/uptake", "train/loss"} <= set(scalars)
    assert any(key.startswith("rule/") and key.endswith("/share") for record in recorder.records for key in record["scalars"])
    assert ("router/layers.2/entropy" in scalars) == ("router/concept/some/focus" in scalars) == (kind == "mixtral")
    assert any(event["kind"] == "learned" for event in recorder.events)


@pytest.mark.parametrize("name", ["Llama", "Mamba"])  # Mamba keeps its residual stream in float32 beside weights in half precision
def test_rules_act_in_half_precision(name):
    model = architectures.build(next(entry for entry in architectures.ARCHITECTURES if entry.name == name)).bfloat16()
    assert architectures.ablate_error(model, torch.float32) < 0.01
    assert architectures.grad_error(model, torch.float32) < 0.01
