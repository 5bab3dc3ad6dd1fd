"""`GradLensCallback` where a Trainer's run is not one straight run: resumed, stopped early, ended in an exception; or is one of TRL's."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from words import word_tokenizer

import gradlens
from gradlens import GradLensCallback
from gradlens.config import ObserveSettings
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError
from gradlens.readings.probe import read_probe
from gradlens.recording.store import RunReader
from gradlens.watching import _WATCHED

HOOK = "layers.2"
OBSERVE = ObserveSettings(drift_every=1, own_every=1, own_prompts=2, own_tokens=4)
DRIFT, OWN = (f"concept/c/{HOOK}/{kind}" for kind in ("drift", "own"))


def rows(seeds=range(6)):
    batches = [tiny_batch(seed) for seed in seeds]
    return [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(3)]


def adapted():
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))


def train(model, folder, steps, callbacks=(), resume=None, more=(), options=(), first=True, kind=TrainingArguments, **given):
    """The callback of a run of so many steps."""
    arguments = kind(
        str(folder), max_steps=steps, per_device_train_batch_size=3, learning_rate=2e-2, lr_scheduler_type="constant", report_to=[],
        use_cpu=True, seed=1, disable_tqdm=True, remove_unused_columns=False, logging_steps=1000,
        **{"save_strategy": "steps", "save_steps": 4, **dict(options)},
    )  # fmt: skip
    given = {
        "run": None,
        "probe": [tiny_batch(9)],
        "observe": ObserveSettings(drift_every=1, own_every=1, own_prompts=2, own_tokens=4),
        **given,
    }
    callback = GradLensCallback({HOOK: tiny_dictionary()}, concepts={"c": {HOOK: [1, 2, 3]}}, **given)
    ordered = [callback, *callbacks] if first else [*callbacks, callback]
    job = Trainer(model, arguments, train_dataset=rows(), callbacks=ordered, **dict(more))
    job.train(resume_from_checkpoint=resume)
    return callback


def curve(callback, key):
    records = callback.lens.recorder.records
    return {record["step"]: record["scalars"][key] for record in records if key in record["scalars"]}


def test_a_resumed_adapter_is_compared_with_the_model_before_training(tmp_path):
    spoken = {"more": {"processing_class": word_tokenizer(chat=True)}}
    whole = train(adapted(), tmp_path, 8, **spoken)
    rest = train(adapted(), tmp_path, 8, resume=str(tmp_path / "checkpoint-4"), **spoken)
    for key in (DRIFT, OWN):
        first, second = curve(whole, key), curve(rest, key)
        assert sorted(second) == [5, 6, 7, 8] and (key == OWN or abs(first[4]) > 1e-3)
        assert [second[step] for step in range(5, 9)] == pytest.approx([first[step] for step in range(5, 9)], abs=1e-4)
    assert rest.lens.learning.own_start.answers == whole.lens.learning.own_start.answers
    (told,) = [event for event in rest.lens.recorder.events if event["kind"] == "not_read"]
    assert told["step"] == 4 and "compared with the model without its adapter; sums" in told["reason"]
    assert not any(event["kind"] == "not_read" for event in whole.lens.recorder.events)


def test_so_it_is_on_a_first_batch_and_by_rules_with_a_target(tmp_path):
    train(adapted(), tmp_path, 4)
    rule = {"concept": "c", "target": {"kind": "at_most", "value": 0.0}}
    rest = train(adapted(), tmp_path, 8, resume=str(tmp_path / "checkpoint-4"), probe=None, rules=[rule])
    before = read_probe(tiny_model(), {HOOK: tiny_dictionary()}, rest.lens.probe)[HOOK].acts
    torch.testing.assert_close(rest.lens.start[HOOK].acts, before, rtol=1e-5, atol=1e-6)
    assert curve(rest, "rule/route:c/gain")[8] < 1


def test_full_fine_tuning_that_is_resumed_says_since_when_it_is_read_and_refuses_what_it_cannot_hold(tmp_path):
    train(tiny_model(), tmp_path, 4)
    resume = str(tmp_path / "checkpoint-4")
    rest = train(tiny_model(), tmp_path, 8, resume=resume, rules=[{"concept": "c", "gain": 0.5}])
    (told,) = [event for event in rest.lens.recorder.events if event["kind"] == "not_read"]
    assert "compared with step 4, not with the model before training; sums" in told["reason"]
    for rule, what in (({"target": {"value": 0.1}}, "a target"), ({"mode": "constrain"}, "mode constrain")):
        with pytest.raises(ConfigError, match=f"{what} measures against the model before training, .*: train an adapter"):
            train(tiny_model(), tmp_path, 8, resume=resume, rules=[{"concept": "c", **rule}])


def test_a_ramp_is_as_far_as_in_an_unbroken_run_when_a_training_is_resumed(tmp_path):
    rule = {"mode": "ablate", "features": {HOOK: [1, 2, 3, 4]}, "gain": 0.0, "ramp": 6}
    whole, resume = train(adapted(), tmp_path, 8, rules=[rule]), str(tmp_path / "checkpoint-4")
    rest = train(adapted(), tmp_path, 8, resume=resume, rules=[rule])
    first, second = (curve(callback, "rule/ablate:features/gain") for callback in (whole, rest))
    assert [second[step] for step in range(5, 9)] == [first[step] for step in range(5, 9)] == pytest.approx([2 / 7, 1 / 7, 0.0, 0.0])
    torch.testing.assert_close(dict(rest.lens.model.named_parameters()), dict(whole.lens.model.named_parameters()), rtol=0, atol=1e-6)


def test_two_callbacks_in_one_trainer_are_refused_and_one_in_the_next_is_not(tmp_path):
    model, first = tiny_model(), GradLensCallback({HOOK: tiny_dictionary()}, run=None)
    with pytest.raises(ConfigError, match="watched already: .* first: give the trainer one GradLensCallback"):
        train(model, tmp_path, 2, [first])
    assert train(model, tmp_path, 2).lens.step == 2  # what had begun by then does not stand in its way


def own_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum") / num_items_in_batch


class Rules(TrainerCallback):
    """Puts a rule in force after the first step."""

    def __init__(self, rule):
        self.rule = rule

    def on_step_end(self, args, state, control, model=None, **kwargs):
        _WATCHED[model].set_policy(Policy(version=1, rules=(Rule(**self.rule),)))


def test_rules_are_refused_where_the_trainers_own_loss_takes_the_labels_away(tmp_path):
    """They would act on the questions as well. One that does not act, or where every token is learned, is let be."""
    rule, more = {"mode": "route", "features": {HOOK: [1]}, "gain": 0.0, "window": 1}, {"compute_loss_func": own_loss}
    with pytest.raises(ConfigError, match=r"without labels \(compute_loss_func\?\), and rules would act on the questions"):
        train(tiny_model(), tmp_path, 2, more=more, rules=[rule])
    for given in ({}, {"rules": [rule | {"start": 5}]}, {"rules": [rule], "observe": ObserveSettings(tokens="all")}):
        assert train(tiny_model(), tmp_path, 2, more=more, **given).lens.step == 2
    with pytest.raises(ConfigError, match="without labels"):  # one that comes later as well
        train(tiny_model(), tmp_path, 2, [Rules(rule)], more=more)


class Worse(TrainerCallback):
    """Every evaluation is worse than the one before; keeps how the probe set was read then."""

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        metrics["eval_loss"] = 5.0 + state.global_step
        self.last = read_probe(model, {HOOK: tiny_dictionary()}, [tiny_batch(9)])[HOOK]


@pytest.mark.parametrize("every", ["steps", "epoch"])
@pytest.mark.parametrize("before", [True, False])
def test_the_last_reading_is_of_the_last_step_where_the_best_checkpoint_takes_its_place(tmp_path, every, before):
    options = {
        "eval_strategy": every, "save_strategy": every, "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
    }  # fmt: skip
    more, observe = {"eval_dataset": rows([50])}, ObserveSettings(own_prompts=0, reference=None)
    worse, stop = Worse(), EarlyStoppingCallback(early_stopping_patience=1)
    callback = train(tiny_model(), tmp_path, 40, [worse, stop], options=options, more=more, observe=observe, first=before)
    lens = callback.lens
    assert lens.step == (2 if every == "steps" else 12) and list(curve(callback, DRIFT)) == [lens.step]
    torch.testing.assert_close(lens.last[HOOK].mean, worse.last.mean)
    assert (read_probe(lens.model, lens.dictionaries, lens.probe)[HOOK].mean - worse.last.mean).abs().max() > 1e-3  # the best is back


class Breaks(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_program_that_ends_in_an_exception_closes_its_run(tmp_path):
    program = f"""
        import test_trainer_runs as here

        options = {{"run": "short", "runs_dir": {str(tmp_path / "runs")!r}, "observe": here.ObserveSettings()}}
        here.train(here.tiny_model(), {str(tmp_path)!r}, 6, [here.Breaks()], **options)
    """
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ended.returncode and ended.stderr.strip().splitlines()[-1] == "KeyboardInterrupt"
    reader = RunReader(next((tmp_path / "runs").iterdir()))
    assert reader.summary["status"] == "interrupted" and list(reader.curve(f"concept/c/{HOOK}/push")[0]) == [1, 2, 3]


def test_what_a_broken_training_left_open_is_named_and_closed(tmp_path):
    model = tiny_model()
    callback = GradLensCallback({HOOK: tiny_dictionary()}, run="broken", runs_dir=tmp_path / "runs", probe=[tiny_batch(9)])
    arguments = TrainingArguments(str(tmp_path), max_steps=6, report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False)
    with pytest.raises(KeyboardInterrupt):
        Trainer(model, arguments, train_dataset=rows(), callbacks=[callback, Breaks()]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ConfigError, match=r"close the open one .*broken-.* first: where its training .*, call the GradLensCallback's close"
    ):
        gradlens.watch(model, optimizer, {HOOK: tiny_dictionary()}, run=None).__enter__()
    callback.close()
    assert RunReader(callback.lens.run_dir).summary["status"] == "failed"
    with gradlens.watch(model, optimizer, {HOOK: tiny_dictionary()}, run=None) as lens:
        callback.close()  # a second time: nothing of what is open now
        callback.lens.__exit__(None, None, None)
        with pytest.raises(ConfigError, match="close the open one .run=None. first: leave its `with` block"):
            gradlens.watch(model, optimizer, {HOOK: tiny_dictionary()}, run=None).__enter__()
        model.train()(**tiny_batch()).loss.backward()
        optimizer.step()
    assert lens.step == 1 and RunReader(callback.lens.run_dir).summary["status"] == "failed"


UNSAVED = {"save_strategy": "no"}


def trls(name, **fields):
    """A stand-in for the arguments of one of TRL's trainers, which transformers' own trainer takes too; it is not pickled."""
    return type(name, (TrainingArguments,), {"__module__": "trl.trainer", **fields})


@pytest.mark.parametrize(("loss", "read"), [("nll", True), ("dft", False)])
def test_a_loss_that_weighs_tokens_by_their_probability_is_not_read_as_theirs(tmp_path, loss, read):
    callback = train(tiny_model(), tmp_path, 2, kind=trls("SFTConfig", loss_type=loss), options=UNSAVED)
    told = [event["reason"] for event in callback.lens.recorder.events if event["kind"] == "not_read"]
    assert ("taught" in callback.lens.totals[HOOK]) == read == (not told) and callback.lens.totals[HOOK]["push"].abs().max() > 0
    assert read or told == ["the loss of SFT is not the tokens' -log p: each weighs as much as it is likely (dft)"]


@pytest.mark.parametrize(
    ("name", "fields", "refused"),
    [
        ("GRPOConfig", {}, False),
        ("GRPOConfig", {"num_iterations": 2}, True),
        ("GRPOConfig", {"steps_per_generation": 4}, True),
        ("GRPOConfig", {"use_vllm": True}, True),
        ("RLOOConfig", {}, True),
    ],
)
def test_rules_that_change_activations_are_refused_where_old_log_probabilities_are_taken_without(tmp_path, name, fields, refused):
    kind = trls(name, **{"num_iterations": 1, "steps_per_generation": 2, **fields})
    for mode in ("ablate", "steer", "route"):
        options = UNSAVED | {"gradient_accumulation_steps": 2}
        given = {"kind": kind, "options": options, "rules": [{"mode": mode, "features": {HOOK: [1]}, "gain": 0.0}]}
        if refused and mode != "route":
            with pytest.raises(ConfigError, match=f"change activations while training, and {name[:4]} compares with log-probabilities"):
                train(tiny_model(), tmp_path, 1, **given)
        else:
            assert train(tiny_model(), tmp_path, 1, **given).lens.step == 1
