"""What the model was when its run began, with adapters that start at something and with more that is trained than an adapter."""

import copy

import peft
import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model

import gradlens
from gradlens.model.start import remember, remembered
from gradlens.readings.own import before_training

HOOK = "layers.2"


def lora(**settings) -> peft.PeftModel:
    return peft.get_peft_model(
        tiny_model(), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **settings)
    )


def continued(folder) -> peft.PeftModel:
    first = lora()
    for name, parameter in first.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    first.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(tiny_model(), folder, is_trainable=True)


def norms_beside(_) -> peft.PeftModel:
    model = lora()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "layernorm" in name)
    return model


KINDS = {
    "LoRA": lambda _: lora(),
    "saved beside": lambda _: lora(modules_to_save=["lm_head"]),
    "PiSSA": lambda _: lora(init_lora_weights="pissa"),
    "DoRA": lambda _: lora(use_dora=True),
    "continued": continued,
    "norms beside": norms_beside,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_before_training_is_the_one_that_training_began_with(kind, tmp_path):
    torch.manual_seed(0)
    model = KINDS[kind](tmp_path).train()
    first = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = {key: value for key, value in tiny_batch(5).items() if key != "labels"}
    rule = {"mode": "penalty", "features": {HOOK: list(range(80))}, "strength": 5.0}
    with gradlens.watch(model, optimizer, dictionaries={HOOK: tiny_dictionary(activation="relu")}, run=None, rules=[rule]) as lens:
        assert bool(remembered(model).weights) == (kind not in ("LoRA", "saved beside"))  # these need no copy
        for step in range(3):
            model(**tiny_batch(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        trained = {name: parameter.clone() for name, parameter in model.named_parameters()}
        with torch.no_grad(), before_training(model) as known:
            assert known
            torch.testing.assert_close(model(**batch).logits, first(**batch).logits, rtol=0, atol=1e-6)
        assert all(parameter.equal(trained[name]) for name, parameter in model.named_parameters())
        with torch.no_grad():
            assert not torch.allclose(model(**batch).logits, first(**batch).logits, atol=1e-3)
    key = "rule/penalty:features/share"
    shares = [record["scalars"][key] for record in lens.recorder.records if key in record["scalars"]]
    assert shares[0] == 0 and max(shares) > 0  # nothing has risen before the first step
    assert remembered(model) is None


def test_gradients_are_those_without_a_look_back_in_between(tmp_path):
    found = []
    for looks in (False, True):
        torch.manual_seed(0)
        model = continued(tmp_path).eval()
        remember(model)
        loss = model(**tiny_batch()).loss
        if looks:
            with torch.no_grad(), before_training(model):
                model(**tiny_batch(1))
        loss.backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert found[0] and all(map(torch.equal, *found))


def test_of_a_run_that_goes_on_only_the_adapters_switch_leads_back(tmp_path):
    model = continued(tmp_path)
    remember(model, resumed=True)
    with before_training(model) as known:
        assert known and not remembered(model).weights
        assert not any(module.disable_adapters is False for module in model.modules() if hasattr(module, "enable_adapters"))
    beside = norms_beside(tmp_path)
    remember(beside, resumed=True)
    with before_training(beside) as known:
        assert not known
    other = lora(init_lora_weights="pissa")
    remember(other, resumed=True)
    with before_training(other) as known:
        assert not known
    remember(tiny_model())  # without an adapter there is nothing to go back to
