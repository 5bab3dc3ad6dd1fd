"""Lightning's Trainer: the callback's readings are those of a plain loop."""

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from needs import needs
from peft import LoraConfig, get_peft_model

import gradlens
from gradlens.config import ObserveSettings
from gradlens.readings.probe import read_probe
from gradlens.recording.recorder import MemoryRecorder
from gradlens.recording.store import RunReader

lightning = needs("lightning", "lightning")

HOOK, STEPS = "layers.2", 3
RULE = {"mode": "route", "features": {HOOK: [1, 2]}, "gain": 0.25}


class Module(lightning.LightningModule):
    def __init__(self, optimizers=1):
        super().__init__()
        self.model, self.optimizers_wanted = tiny_model().train(), optimizers

    def training_step(self, batch, index):
        return self.model(**batch).loss

    def configure_optimizers(self):
        made = [torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0) for _ in range(self.optimizers_wanted)]
        return made[0] if len(made) == 1 else made


class Loader(list):
    """Batches as they are."""


def fit(callback, module, accumulate=1, **options):
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, accumulate_grad_batches=accumulate, **options,
    )  # fmt: skip
    trainer.fit(module, Loader([tiny_batch(number) for number in range(STEPS * accumulate)]))
    return trainer


def plain(rules, accumulate, clip=None, autocast=False):
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    with gradlens.watch(model, optimizer, {HOOK: tiny_dictionary()}, run=None, rules=rules) as lens:
        for step in range(STEPS):
            total = 0.0
            for part in range(accumulate):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = model(**tiny_batch(step * accumulate + part)).loss / accumulate
                loss.backward()
                total += loss.item()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
    return lens, model, losses


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("rules", [[], [RULE]])
def test_readings_rules_and_weights_are_those_of_a_plain_loop(options, rules):
    callback, module = gradlens.GradLensLightning({HOOK: tiny_dictionary()}, run=None, rules=rules), Module()
    fit(callback, module, **options)
    lens, model, losses = plain(rules, options.get("accumulate", 1), options.get("gradient_clip_val"), "precision" in options)
    for key in ("taught", "push", "attribution"):
        mine, theirs = callback.lens.totals[HOOK][key], lens.totals[HOOK][key]
        assert theirs.abs().max() > 0
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max(), key
    for a, b in zip(module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    records = callback.lens.recorder.records
    assert [record["step"] for record in records if "features" in record] == [1, 2, 3]
    assert [record["scalars"]["train/loss"] for record in records if "train/loss" in record["scalars"]] == pytest.approx(losses, rel=1e-5)
    assert not [event for event in callback.lens.recorder.events if event["kind"] == "gap"]


def test_a_run_folder_comes_from_three_lines(tmp_path):
    callback = gradlens.GradLensLightning({HOOK: tiny_dictionary()}, runs_dir=tmp_path, observe=ObserveSettings(drift_every=1))
    fit(callback, Module())
    reader = RunReader(callback.lens.run_dir)
    assert reader.summary["steps"] == STEPS and reader.summary["status"] == "done"
    assert list(reader.curve("train/loss")[0]) == [1, 2, 3] and callback.top(3)[0]["uptake"] != 0


def test_a_run_that_fails_is_recorded_as_failed(tmp_path):
    class Broken(Module):
        def training_step(self, batch, index):
            if index == 1:
                raise ZeroDivisionError
            return super().training_step(batch, index)

    callback = gradlens.GradLensLightning({HOOK: tiny_dictionary()}, runs_dir=tmp_path)
    with pytest.raises(ZeroDivisionError):
        fit(callback, Broken())
    assert RunReader(callback.lens.run_dir).summary["status"] == "failed"


def test_what_does_not_fit_is_one_clear_line():
    class Two(Module):
        def __init__(self):
            super().__init__()
            self.teacher = tiny_model(seed=1).requires_grad_(False)

    with pytest.raises(gradlens.ConfigError, match="model, teacher"):
        fit(gradlens.GradLensLightning({HOOK: tiny_dictionary()}, run=None), Two())
    named = gradlens.GradLensLightning({HOOK: tiny_dictionary()}, model="model", run=None)
    fit(named, Two())
    assert isinstance(named.lens.recorder, MemoryRecorder) and named.lens.step == STEPS
    with pytest.raises(gradlens.ConfigError, match="no module of that name"):
        fit(gradlens.GradLensLightning({HOOK: tiny_dictionary()}, model="modle", run=None), Module())


class Adapted(Module):
    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(2)
        self.model = get_peft_model(self.model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **settings)).train()

    def configure_optimizers(self):
        return torch.optim.AdamW([parameter for parameter in self.parameters() if parameter.requires_grad], lr=1e-2, weight_decay=0.0)


def train(folder, make, steps, rules=()):
    """The callback and the module of a training that goes on from its last checkpoint, where there is one."""
    given = {"run": None, "probe": [tiny_batch(9)], "observe": ObserveSettings(drift_every=1), "concepts": {"c": {HOOK: [1, 2]}}}
    watched, module = gradlens.GradLensLightning({HOOK: tiny_dictionary()}, rules=rules, **given), make()
    save, last = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=1), folder / "last.ckpt"
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[watched, save], logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module, Loader([tiny_batch(number) for number in range(9)]), ckpt_path=last if last.exists() else None)
    return watched, module


def test_a_resumed_training_is_compared_with_the_model_without_its_adapter_and_ramps_go_on(tmp_path):
    rule = {"mode": "ablate", "features": {HOOK: [3, 4]}, "gain": 0.0, "ramp": 4}
    train(tmp_path, Adapted, 3, [rule])
    watched, module = train(tmp_path, Adapted, 6, [rule])
    before, now = (read_probe(model, {HOOK: tiny_dictionary()}, [tiny_batch(9)])[HOOK].acts for model in (tiny_model(), module.model))
    torch.testing.assert_close(watched.lens.drift(HOOK)[0], now - before, rtol=1e-4, atol=1e-6)
    (told,) = [event for event in watched.lens.recorder.events if event["kind"] == "not_read"]
    assert told["step"] == 3 and "compared with the model without its adapter" in told["reason"]
    read = [record for record in watched.lens.recorder.records if "features" in record]
    assert [record["step"] for record in read] == [4, 5, 6]
    assert [record["scalars"]["rule/ablate:features/gain"] for record in read] == pytest.approx([0.2, 0.0, 0.0])


def test_a_resumed_full_fine_tuning_refuses_what_it_cannot_hold(tmp_path):
    train(tmp_path, Module, 3)
    for fields, what in (({"target": {"value": 0.1}}, "a target"), ({"mode": "constrain"}, "mode constrain")):
        with pytest.raises(gradlens.ConfigError, match=f"{what} measures against the model before training"):
            train(tmp_path, Module, 6, [{"concept": "c", **fields}])


@pytest.mark.parametrize("make", [Module, lambda: Adapted(init_lora_weights=False)])
def test_half_precision_is_read_as_what_it_is(make):
    """`bf16-true` makes bfloat16 the default dtype of a forward pass, in which the first probe set is read."""
    watched, module, bare = gradlens.GradLensLightning({HOOK: tiny_dictionary()}, run=None), make(), make()
    fit(watched, module, precision="bf16-true")
    fit(lightning.Callback(), bare, precision="bf16-true")
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), bare.parameters(), strict=True))
    assert next(module.model.parameters()).dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32
    assert watched.lens.step == STEPS and watched.lens.totals[HOOK]["push"].abs().max() > 0
