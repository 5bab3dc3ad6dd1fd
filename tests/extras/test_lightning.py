"""Lightning's Trainer: the callback's readings are those of a plain loop."""

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from needs import needs

import gradlens
from gradlens.config import ObserveSettings
from gradlens.recorder import MemoryRecorder
from gradlens.store import RunReader

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
