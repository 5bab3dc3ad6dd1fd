"""A run that Lightning's trainer takes up from its own checkpoint, as one of transformers' Trainer: see test_trainer_runs for that."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from peft import LoraConfig, get_peft_model

from gradlens.config import ObserveSettings
from gradlens.errors import ConfigError
from gradlens.readings.probe import read_probe

HOOK = "layers.2"


@pytest.fixture
def lightnings(monkeypatch):
    """`GradLensLightning` without Lightning."""
    stand_in = ModuleType("lightning.pytorch")
    stand_in.Callback = object
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, stand_in)
    spec = importlib.util.find_spec("gradlens.lightning_callback")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GradLensLightning


class Module(torch.nn.Module):
    """What a LightningModule is to the callback."""

    automatic_optimization = True

    def __init__(self, adapter):
        super().__init__()
        self.model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"])) if adapter else tiny_model()
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)  # as after some steps


def fit(callback, module, first, last):
    """Lightning's steps from `first`, which a checkpoint has brought it to, to `last`."""
    optimizer = torch.optim.SGD([parameter for parameter in module.train().parameters() if parameter.requires_grad], lr=0.1)
    trainer = SimpleNamespace(
        optimizers=[optimizer], train_dataloader=None, precision_plugin=None, loggers=[], global_step=first, max_steps=last,
        log_every_n_steps=1, is_global_zero=True,
    )  # fmt: skip
    callback.on_train_start(trainer, module)
    for step in range(first, last):
        loss = module.model(**tiny_batch(step)).loss
        loss.backward()
        callback.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, loss, None, step)
    callback.on_train_end(trainer, module)
    return callback.lens


def callback_of(lightnings, **given):
    settings = {"run": None, "probe": [tiny_batch(9)], "observe": ObserveSettings(drift_every=1), "concepts": {"c": {HOOK: [1, 2, 3]}}}
    return lightnings({HOOK: tiny_dictionary()}, **settings | given)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_resumed_training_says_what_it_is_compared_with(lightnings, adapter):
    module, dictionaries = Module(adapter), {HOOK: tiny_dictionary()}
    now = read_probe(module.model, dictionaries, [tiny_batch(9)])[HOOK].acts
    lens = fit(callback_of(lightnings), module, 3, 5)
    before = read_probe(tiny_model(), dictionaries, [tiny_batch(9)])[HOOK].acts
    torch.testing.assert_close(lens.start[HOOK].acts, before if adapter else now, rtol=1e-5, atol=1e-6)
    assert adapter == ((before - now).abs().max() > 1e-2).item()
    (told,) = [event for event in lens.recorder.events if event["kind"] == "not_read"]
    since = "the model without its adapter" if adapter else "step 3, not with the model before training"
    assert told["step"] == 3 and f"compared with {since}; sums" in told["reason"]
    assert [record["step"] for record in lens.recorder.records if "features" in record] == [4, 5]
    fresh = fit(callback_of(lightnings), Module(adapter), 0, 1)
    assert not any(event["kind"] == "not_read" for event in fresh.recorder.events)


def test_a_ramp_of_a_resumed_training_is_as_far_as_it_was(lightnings):
    rule = {"mode": "ablate", "features": {HOOK: [1, 2]}, "gain": 0.0, "ramp": 4}
    lens = fit(callback_of(lightnings, rules=[rule]), Module(True), 2, 5)
    gains = [record["scalars"]["rule/ablate:features/gain"] for record in lens.recorder.records if "features" in record]
    assert gains == pytest.approx([0.4, 0.2, 0.0])


@pytest.mark.parametrize(("fields", "what"), [({"target": {"value": 0.1}}, "a target"), ({"mode": "constrain"}, "mode constrain")])
def test_rules_that_measure_against_what_is_not_there_are_refused(lightnings, fields, what):
    rule = {"concept": "c", **fields}
    with pytest.raises(ConfigError, match=f"{what} measures against the model before training, .*: train an adapter"):
        fit(callback_of(lightnings, rules=rule), Module(False), 3, 4)
    if "target" in fields:
        assert fit(callback_of(lightnings, rules=rule), Module(True), 3, 4).step == 4
