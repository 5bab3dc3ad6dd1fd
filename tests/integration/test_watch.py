"""`gradlens.watch` around a plain loop, and `GradLensCallback` in transformers' Trainer."""

import copy

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from words import word_tokenizer

import gradlens
from gradlens.config import ObserveSettings
from gradlens.dictionaries.formats import save_dictionary
from gradlens.errors import ConfigError, InputError
from gradlens.recording.recorder import MemoryRecorder
from gradlens.recording.store import RunReader

HOOK = "layers.2"


@pytest.fixture
def saved(tmp_path):
    return str(save_dictionary(tiny_dictionary(), tmp_path / "sae"))


def loop(model, optimizer, steps=3):
    for step in range(steps):
        model(**tiny_batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_three_lines_leave_a_run_folder_and_a_table(saved, tmp_path):
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with gradlens.watch(
        model, optimizer, {"blocks.2.hook_resid_post": saved}, runs_dir=tmp_path / "runs", concepts={"c": {HOOK: [1, 2]}}
    ) as lens:
        loop(model, optimizer)
    top = lens.top(5)
    assert len(top) == 5 and abs(top[0]["uptake"]) >= abs(top[4]["uptake"]) > 0
    assert "layers.2" in str(top) and list(top.df["feature"]) == [row["feature"] for row in top]
    head = next(line for line in str(top).splitlines() if "feature" in line)
    assert [name.strip() for name in head.split("┃")[4:-1]] == ["uptake", "drift", "taught", "push"]
    assert f"{top[0]['uptake']:+.4g}" in str(top) and f"{top[0]['taught']:+.4g}" in str(top)
    reader = RunReader(lens.run_dir)
    assert reader.summary["status"] == "done" and reader.summary["steps"] == 3
    steps, values = reader.curve("concept/c/layers.2/push")
    assert list(steps) == [1, 2, 3] and abs(values).max() > 0


def test_a_run_that_fails_is_recorded_as_failed_and_stays_readable(saved, tmp_path):
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    lens = gradlens.watch(model, optimizer, {HOOK: saved}, runs_dir=tmp_path)
    with pytest.raises(ZeroDivisionError), lens:
        loop(model, optimizer)
        raise ZeroDivisionError
    assert RunReader(lens.run_dir).summary["status"] == "failed"
    assert not any(module._forward_hooks for module in model.modules())


def rows():
    out = []
    for seed in range(6):
        batch = tiny_batch(seed)
        out += [{key: value[i] for key, value in batch.items()} for i in range(3)]
    return out


def trainer(model, folder, callbacks, **options):
    arguments = TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=3, learning_rate=1e-2, logging_steps=1, save_strategy="no", report_to=[],
        use_cpu=True, seed=1, disable_tqdm=True, remove_unused_columns=False, **options,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows(), callbacks=callbacks)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
def test_trainer_with_callback_is_bit_identical_to_trainer_without(saved, tmp_path, options):
    bare = tiny_model()
    watched = copy.deepcopy(bare)
    trainer(bare, tmp_path / "a", [], **options).train()
    callback = gradlens.GradLensCallback({HOOK: saved}, runs_dir=tmp_path / "runs")
    trainer(watched, tmp_path / "b", [callback], **options).train()
    for (name, a), (_, b) in zip(bare.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    reader = RunReader(callback.lens.run_dir)
    assert list(reader.curve("train/loss")[0]) == [1, 2, 3, 4]
    assert reader.summary["steps"] == 4 and callback.top(3)[0]["drift"] != 0


def test_trainer_readings_equal_those_of_a_plain_loop(saved, tmp_path):
    observe = ObserveSettings(estimators=["taught", "push", "attribution", "energy"])
    callback = gradlens.GradLensCallback({HOOK: saved}, run=None, observe=observe)
    model = tiny_model()
    job = trainer(model, tmp_path, [callback], lr_scheduler_type="constant", max_grad_norm=0.0, optim="adamw_torch")
    job.train()
    plain = tiny_model().train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    lens = gradlens.watch(plain, optimizer, {HOOK: saved}, run=None, observe=observe)
    with lens:
        for batch in _batches_of(job):
            plain(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert isinstance(callback.lens.recorder, MemoryRecorder)
    for key in ("taught", "push", "attribution", "energy"):
        torch.testing.assert_close(callback.lens.totals[HOOK][key], lens.totals[HOOK][key], rtol=1e-4, atol=1e-6)


def _batches_of(job):
    """The batches that the Trainer drew, drawn again with its seed."""
    from transformers import set_seed

    set_seed(job.args.seed)
    loader = iter(job.get_train_dataloader())
    return [next(loader) for _ in range(4)]


def test_rules_act_under_the_trainer(saved, tmp_path):
    rule = {"mode": "route", "features": {HOOK: list(range(80))}, "gain": 0.0}
    model = tiny_model()
    before = copy.deepcopy(model)
    callback = gradlens.GradLensCallback({HOOK: saved}, rules=[rule], run=None)
    trainer(model, tmp_path, [callback]).train()
    # every counted token expresses some feature, so nothing may be learned
    assert callback.lens.recorder.records[0]["scalars"]["rule/route:features/share"] == 1.0
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_the_trainers_rules_may_be_a_file_and_its_settings_a_mapping(saved, tmp_path):
    (tmp_path / "rules.yaml").write_text(f"- {{mode: route, features: {{{HOOK}: [1]}}, gain: 0.0}}\n")
    callback = gradlens.GradLensCallback({HOOK: saved}, rules=str(tmp_path / "rules.yaml"), observe={"drift_every": 2}, run=None)
    trainer(tiny_model(), tmp_path, [callback]).train()
    assert [rule.mode for rule in callback.lens.policy.rules] == ["route"] and callback.lens.observe.drift_every == 2


def test_rules_are_refused_where_the_trainer_takes_the_labels_away(saved, tmp_path):
    rule = {"mode": "route", "features": {HOOK: [1]}, "gain": 0.0}
    for rules in ([], [rule]):
        job = trainer(tiny_model(), tmp_path, [gradlens.GradLensCallback({HOOK: saved}, rules=rules, run=None)], label_smoothing_factor=0.1)
        if rules:
            with pytest.raises(ConfigError, match="label_smoothing_factor"):
                job.train()
        else:
            job.train()


def test_a_summary_that_cannot_be_written_does_not_end_the_program(saved, tmp_path, caplog):
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with gradlens.watch(model, optimizer, {HOOK: saved}, runs_dir=tmp_path) as lens:
        loop(model, optimizer, 1)
        (lens.run_dir / "summary.json").mkdir()  # as good as a full disk
    assert "summary.json" in caplog.text and RunReader(lens.run_dir).keys() and len(lens.top(5)) == 5


@pytest.mark.parametrize("clip", [0.0, 0.05, 1.0, 1000.0])
def test_the_trainer_trains_on_the_mean_over_what_is_left_as_a_loop_does_that_balances_before_clipping(saved, tmp_path, clip):
    rule = {"mode": "route", "features": {HOOK: list(range(12))}, "gain": 0.0, "window": 1, "quorum": 0.6}
    callback, model = gradlens.GradLensCallback({HOOK: saved}, rules=[rule], run=None), tiny_model()
    job = trainer(model, tmp_path, [callback], lr_scheduler_type="constant", max_grad_norm=clip, optim="sgd")
    job.train()
    plain = tiny_model().train()
    optimizer, factors = torch.optim.SGD(plain.parameters(), lr=1e-2), []
    with gradlens.watch(plain, optimizer, {HOOK: saved}, rules=[rule], run=None) as lens:
        for batch in _batches_of(job):
            plain(**batch).loss.backward()
            factors.append(lens.balance())
            torch.nn.utils.clip_grad_norm_(plain.parameters(), clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
    assert max(factors) > 1.1
    for a, b, begun in zip(model.parameters(), plain.parameters(), tiny_model().parameters(), strict=True):
        assert (a - b).abs().max() <= 1e-3 * (b - begun).abs().max() + 2e-7  # and rounding of weights of 1


def test_what_is_missing_is_said_at_once(saved, tmp_path):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(gradlens.InputError, match="no-such"):
        gradlens.watch(model, optimizer, {HOOK: str(tmp_path / "no-such")}, run=None)
    with pytest.raises(gradlens.ConfigError, match="tokenizer"):
        gradlens.watch(model, optimizer, {HOOK: saved}, run=None, probe=["a text"])


def test_a_model_is_watched_once_at_a_time(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dictionary = tiny_dictionary()
    options = {"run": "second", "runs_dir": tmp_path, "observe": ObserveSettings(own_prompts=0, reference=None, update_every=0)}
    with gradlens.watch(model, optimizer, {"layers.2": dictionary}, **{**options, "run": None}) as lens:
        with pytest.raises(ConfigError, match="watched already: give all dictionaries to one watch"):
            gradlens.watch(model, optimizer, {"layers.1": dictionary}, **options).__enter__()
        model(**tiny_batch()).loss.backward()
        optimizer.step()
    assert [record["step"] for record in lens.recorder.records if "features" in record] == [1]
    assert not list(tmp_path.iterdir())  # nothing is left of what did not begin
    with gradlens.watch(model, optimizer, {"layers.1": dictionary}, **options):
        pass


def test_a_watch_is_entered_once_and_its_run_stays(saved, tmp_path):
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with gradlens.watch(model, optimizer, {HOOK: saved}, runs_dir=tmp_path) as lens:
        loop(model, optimizer, 1)
        with pytest.raises(ConfigError, match="make another one"):
            lens.__enter__()
        loop(model, optimizer, 1)
    with pytest.raises(ConfigError, match="make another one"):
        lens.__enter__()
    assert RunReader(lens.run_dir).summary["steps"] == 2


def test_a_training_that_ended_in_an_exception_does_not_stand_in_the_way(tmp_path):
    class Breaks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    model, data = tiny_model(), [{name: value[0] for name, value in tiny_batch().items()}] * 4
    arguments = TrainingArguments(tmp_path, max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True)
    options = {"run": None, "observe": ObserveSettings(own_prompts=0, reference=None, update_every=0)}
    first, second = (gradlens.GradLensCallback(dictionaries={"layers.2": tiny_dictionary()}, **options) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[first, Breaks()]).train()
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[second]).train()
    assert second.lens.step == 2 and first.lens.step == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_to_read_is_refused():
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="no dictionaries"):
        gradlens.watch(model, optimizer, dictionaries={}, run=None)
    with pytest.raises(InputError, match="a folder, a file or a name, not 5"):
        gradlens.watch(model, optimizer, dictionaries={"layers.1": 5}, run=None)
    silent = tiny_batch()
    silent["labels"][:] = -100
    with (
        pytest.raises(InputError, match="no token that counts"),
        gradlens.watch(model, optimizer, dictionaries={"layers.1": tiny_dictionary()}, probe=[silent], run=None),
    ):
        pass


def test_what_does_not_fit_is_told_in_one_message_and_leaves_no_run(saved, tmp_path):
    model, runs = tiny_model(), tmp_path / "runs"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    elsewhere = str(save_dictionary(tiny_dictionary(hookpoint="layers.3"), tmp_path / "elsewhere"))
    narrow, tokenizer = str(save_dictionary(tiny_dictionary(D=16), tmp_path / "narrow")), word_tokenizer(chat=True)
    (tmp_path / "file").touch()
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1)
    for options, error, message in (
        ({"dictionaries": [saved]}, ConfigError, r"which dictionary is read where, for instance .*; found list"),
        ({"dictionaries": {HOOK: saved, "2": saved}}, ConfigError, r"dictionaries=...\): layers.2 and 2 both mean layers.2; keep one"),
        ({"concepts": {"c": {HOOK: [1], "2": [3]}}}, ConfigError, "concept c: layers.2 and 2 both mean layers.2"),
        ({"dictionaries": {"layers.99": saved}}, InputError, "the model has blocks layers.0 to layers.3"),
        ({"dictionaries": {"layers.1": elsewhere}}, ConfigError, "was trained at layers.3; use it there"),
        ({"dictionaries": {"layers.1": narrow}}, InputError, "vectors of width 16, but layers.1 of this model has width 32"),
        ({"optimizer": other}, ConfigError, "the optimizer trains none of this model's parameters"),
        ({"probe": [{"foo": 1}]}, InputError, r"probe\[0\]: no known key \(found foo\)"),
        ({"probe": [5]}, InputError, r"probe\[0\]: found int, expected an object"),
        ({"probe": []}, ConfigError, r"watch\(probe=...\) is empty; give rows, or leave it out"),
        ({"probe": str(tmp_path / "held.jsonl")}, InputError, "held.jsonl: no such file"),
        ({"rules": [{"concept": "nobody"}]}, ConfigError, "unknown concept 'nobody'"),
        ({"rules": str(tmp_path / "rules.yaml")}, ConfigError, "rules.yaml: no such file"),
        ({"concepts": str(tmp_path / "pirate.yaml")}, ConfigError, "pirate.yaml: no such file"),
        ({"observe": {"drift_evry": 1}}, ConfigError, r"watch\(observe=...\): unknown key drift_evry; did you mean drift_every"),
        ({"observe": [1]}, ConfigError, r"watch\(observe=...\)"),
        ({"run": "mine/today"}, ConfigError, r"first part of a folder's name, .*; found 'mine/today'"),
        ({"trackers": ["nothing"]}, ConfigError, "nothing"),
        ({"runs_dir": tmp_path / "file" / "runs"}, ConfigError, "file/runs: no run folder can be made there .*runs_dir"),
    ):
        given = {"dictionaries": {HOOK: saved}, "optimizer": optimizer, "runs_dir": runs, "tokenizer": tokenizer} | options
        with pytest.raises(error, match=message), gradlens.watch(model, **given):
            pass
    assert not runs.exists() or not list(runs.iterdir())
    assert not any(module._forward_hooks for module in model.modules())


def test_one_file_of_rules_or_concepts_needs_no_list_and_settings_are_a_mapping(saved, tmp_path):
    (tmp_path / "concept.yaml").write_text("name: c\nfeatures: {layers.2: [1, 2]}\n")
    (tmp_path / "rules.yaml").write_text("- {concept: c, mode: grad, gain: 0.0}\n")
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"rules": tmp_path / "rules.yaml", "concepts": str(tmp_path / "concept.yaml"), "observe": {"drift_every": 7}}
    with gradlens.watch(model, optimizer, {HOOK: saved}, run=None, **given) as lens:
        loop(model, optimizer, 1)
    assert (
        lens.observe.drift_every == 7 and [rule.mode for rule in lens.policy.rules] == ["grad"] and lens.concepts == {"c": {HOOK: [1, 2]}}
    )


def test_a_probe_can_be_a_file_of_rows_or_one_batch(saved, tmp_path):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (tmp_path / "held.jsonl").write_text('{"text": "w5 w6 w7"}\n{"prompt": "w8", "response": "w9 w10"}\n')
    tokenizer = word_tokenizer(chat=True)
    with_lengths = tiny_batch() | {"length": torch.tensor([10, 8, 6])}  # as tokenizers give it: one number a row
    files = tmp_path / "held.jsonl", str(tmp_path / "held.jsonl")
    for probe, rows in ((files[0], 2), (files[1], 2), (["w5 w6"] * 9, 9), (tiny_batch(), 3), (with_lengths, 3)):
        lens = gradlens.watch(model, optimizer, {HOOK: saved}, run=None, probe=probe, tokenizer=tokenizer)
        assert sum(len(batch["input_ids"]) for batch in lens.probe) == rows
    with lens:
        loop(model, optimizer, 1)
    assert lens.drift(HOOK)[0].abs().sum() > 0
