"""Rules on parameters hold the directions out of what the matrices do, through an adapter too, or say that they cannot."""

import pytest
import torch
from conftest import read_positions, tiny_batch, tiny_dictionary, tiny_model
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    IA3Config,
    LoraConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)

from gradlens.config import ObserveSettings
from gradlens.control.edits import orthonormal_basis
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError
from gradlens.lens import Lens
from gradlens.recording.recorder import MemoryRecorder

AT = "layers.2"
TARGETS = ["q_proj", "o_proj", "down_proj"]
OBSERVE = ObserveSettings(own_prompts=0, reference=None, update_every=0)
DICTIONARY = tiny_dictionary(dtype=torch.float64)


def watched(model, optimizer, *rules: Rule) -> Lens:
    policy = Policy(version=len(rules), rules=rules)
    return Lens(model, optimizer, {AT: DICTIONARY}, observe=OBSERVE, recorder=MemoryRecorder(), probe=[tiny_batch()], policy=policy)


def adapted(config):
    torch.manual_seed(0)
    return get_peft_model(tiny_model(dtype=torch.float64), config).double().train()


def done(model, layer: int) -> list[torch.Tensor]:
    """The writing matrices of a block as they act now, adapter included: [D, I]."""
    block = model.get_base_model().model.layers[layer]
    with torch.no_grad():
        return [
            module(torch.eye(width, dtype=torch.float64)).T for module, width in ((block.self_attn.o_proj, 32), (block.mlp.down_proj, 48))
        ]


@pytest.mark.parametrize("mode", ["update", "param"])
@pytest.mark.parametrize("more", [{}, {"modules_to_save": ["lm_head"]}, {"use_rslora": True}, {"trainable_token_indices": [5, 6]}], ids=str)
def test_what_the_adapted_matrices_do_gets_nothing_along_the_directions(mode, more):
    model = adapted(LoraConfig(r=4, target_modules=TARGETS, **more))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01) if mode == "update" else torch.optim.SGD(parameters, lr=0.1)
    before = [matrix for layer in range(3) for matrix in done(model, layer)]
    with watched(model, optimizer, Rule(mode=mode, features={AT: [0, 1]})):
        for _ in range(3):
            model(**tiny_batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    Q = orthonormal_basis(DICTIONARY.W_dec[:2])
    for old, new in zip(before, (matrix for layer in range(3) for matrix in done(model, layer)), strict=True):
        change = new - old
        assert change.abs().max() > 1e-6 and (Q.T @ change).abs().max() < 1e-9 * change.abs().max()


@pytest.mark.parametrize("mode", ["update", "param"])
@pytest.mark.parametrize(
    ("config", "parameter"),
    [
        (LoraConfig(r=4, target_modules=TARGETS, use_dora=True), "lora_magnitude_vector"),
        (IA3Config(target_modules=["o_proj"], feedforward_modules=[]), "ia3_l"),
        (VeraConfig(r=4, target_modules=["o_proj"], save_projection=True), "vera_lambda_b"),
    ],
    ids=["dora", "ia3", "vera"],
)
def test_adapters_that_scale_what_is_written_are_refused(mode, config, parameter):
    model = adapted(config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ConfigError, match=f"layers.0.self_attn.o_proj.{parameter}.*use plain LoRA, or route"):
        watched(model, optimizer, Rule(mode=mode, features={AT: [0, 1]})).__enter__()


def test_an_adapter_of_the_embedding_is_read():
    model = adapted(LoraConfig(r=4, target_modules=[*TARGETS, "embed_tokens"]))
    optimizer, kept, data = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0), {}, tiny_batch()
    with watched(model, optimizer) as lens:
        block = model.get_base_model().model.layers[2]
        handle = block.register_forward_hook(lambda module, args, output: kept.update(h=output) or output.retain_grad())
        model(**data).loss.backward()
        handle.remove()
        optimizer.step()
    g_TD = kept["h"].grad[read_positions(data)]
    expected = -(g_TD @ DICTIONARY.unit_directions().T).sum(0)
    torch.testing.assert_close(lens.totals[AT]["push"], expected.to(lens.totals[AT]["push"].dtype))


def test_virtual_tokens_are_refused():
    model = adapted(PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="PromptTuningConfig: what it learns are tokens before the model.*use LoRA"):
        watched(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)).__enter__()


@pytest.mark.parametrize("mode", ["param", "update"])
def test_what_loras_a_carries_past_a_rule_is_told_of(mode):
    told = {}
    for case, fresh, fields in (("new", True, {}), ("half", True, {"gain": 0.5}), ("late", True, {"start": 2}), ("used", False, {})):
        model = adapted(LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=fresh))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        lens = watched(model, optimizer, Rule(mode=mode, features={AT: [0, 1]}, **fields))
        with lens:
            pass
        told[case] = sum(event["kind"] == "inexact" for event in lens.recorder.events)
    assert told == {"new": 0, "half": 1, "late": 1, "used": 1}


@pytest.mark.parametrize("kind", ["AdaLoRA", "Llama-Adapter"])
def test_adapters_that_call_the_model_s_forward_are_read_as_others(kind):
    """PEFT passes the hooks of the model itself by."""
    config = (
        AdaLoraConfig(target_modules=TARGETS, total_step=20, init_r=4, target_r=2, task_type="CAUSAL_LM")
        if kind == "AdaLoRA"
        else AdaptionPromptConfig(adapter_len=4, adapter_layers=3, task_type="CAUSAL_LM")
    )
    model, gradients = adapted(config), []
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)

    def look(module, args, output):
        output.register_hook(lambda g: gradients.append(g.detach()))

    with watched(model, optimizer, Rule(mode="route", features={AT: [0]}, gain=0.5, start=1)) as lens:
        handle = model.get_base_model().model.layers[2].register_forward_hook(look)
        model(**tiny_batch()).loss.backward()
        handle.remove()
        optimizer.step()
        totals = lens.totals[AT]["push"].clone()
        model(**tiny_batch(1)).loss.backward()
        optimizer.step()
    expected = -DICTIONARY.along(gradients[0][read_positions(tiny_batch())].sum(0))
    torch.testing.assert_close(totals, expected, rtol=1e-9, atol=1e-12)
    assert any("rule/route:features/share" in record["scalars"] for record in lens.recorder.records)  # it has seen the forward pass


def test_what_is_trained_at_some_tokens_alone_is_not_taken_for_a_hook_that_fails():
    torch.manual_seed(0)
    model = tiny_model(dtype=torch.float64)
    model.resize_token_embeddings(100)
    config = TrainableTokensConfig(token_indices=[97, 98], target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    model, batch = get_peft_model(model, config).train(), tiny_batch()
    batch["input_ids"][:, 2] = 97
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    with watched(model, optimizer) as lens:  # the start-up test's texts have neither token
        model(**batch).loss.backward()
        optimizer.step()
    assert lens.totals[AT]["push"].abs().max() > 0


def test_what_is_no_model_of_transformers_or_has_no_head_is_told_so():
    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model()

    for model, message in (
        (Around(), "Around is no model of transformers' own; give the language model inside"),
        (tiny_model().model, "no head"),
    ):
        with pytest.raises(ConfigError, match=message):
            watched(model, torch.optim.SGD(model.parameters(), lr=0.1))
