"""The training loop of one rank, on a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_batch, tiny_model
from safetensors.torch import load_file
from tiny_job import tiny_config, write_inputs
from transformers import GPT2Config, GPT2LMHeadModel
from words import word_tokenizer

from gradlens.control.rules import Policy, Rule
from gradlens.data.rows import Example
from gradlens.errors import ConfigError, InputError, RunError
from gradlens.files import read_lines
from gradlens.recording.recorder import MemoryRecorder
from gradlens.training import checkpoint, train
from gradlens.training.checkpoint import last_checkpoint
from gradlens.training.rank import FixedPolicies, Rank, Shared
from gradlens.training.run_inputs import hold_out
from gradlens.training.train import LossFunction, RowLog, learning_rate, train_rank


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


class Told:
    """Policies that say what a script tells them at a step."""

    def __init__(self, policies=None, stop_at=None):
        self.policies, self.stop_at = policies or {}, stop_at

    def poll(self, step):
        return self.policies.get(step), step == self.stop_at

    def settle(self, policy, by="auto"):
        self.settled = policy, by


def trained(config, run_dir, policies=None, shared=None, policy=None):
    run_dir.mkdir(parents=True, exist_ok=True)
    recorder = MemoryRecorder()
    rank = Rank(config, run_dir, recorder, policies or FixedPolicies(), shared=shared or Shared(), initial_policy=policy)
    return train_rank(rank), recorder


def curve(recorder, key):
    return [record["scalars"][key] for record in recorder.records if key in record["scalars"]]


def weights(run_dir):
    return load_file(last_checkpoint(run_dir)[1] / "weights.safetensors")


def test_a_run_leaves_curves_rows_checkpoint_model_and_evaluation(inputs, tmp_path):
    heldout = {"high": inputs["data"]["train"][1]}
    config = tiny_config(inputs, evaluate={"heldout": heldout, "prompts": heldout, "max_new_tokens": 2, "max_rows": 4})
    status, recorder = trained(config, tmp_path)
    assert status == "done"
    (before, own, *steps, after) = recorder.records
    assert (before["step"], own["step"], after["step"]) == (0, 0, 6)  # step 0: what the model says before training
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert set(own["scalars"]) == {"own/some/rate"}
    losses = curve(recorder, "train/loss")
    assert losses[-1] < losses[0]
    assert {"train/lr", "train/grad_norm", "train/tokens", "train/step_seconds"} <= set(steps[0]["scalars"])
    assert steps[0]["features"]["layers.2"]["push"].any()
    assert len(steps[-1]["dense"]["layers.2"]["drift"]) == 80
    rows = read_lines(tmp_path / "rows.jsonl")
    assert len({row["row_id"] for row in rows}) == len(rows) == 24
    assert {example["row_id"] for record in steps for example in record["examples"]} == {row["row_id"] for row in rows}
    assert last_checkpoint(tmp_path)[0] == 6
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["after"]["nll"]["high"] < evaluation["before"]["nll"]["high"]
    assert len(evaluation["after"]["answers"]["high"]) == 4
    for record, found in ((before, evaluation["before"]), (after, evaluation["after"])):  # as curves too
        assert record["scalars"] == {"eval/nll/high": found["nll"]["high"], "eval/rate/high/some": found["rates"]["high"]["some"]}


def test_micro_batches_give_the_same_loss_and_attribution(inputs, tmp_path):
    _, whole = trained(tiny_config(inputs), tmp_path / "whole")
    _, parts = trained(tiny_config(inputs, train__micro_batch_size=1), tmp_path / "parts")
    assert curve(parts, "train/loss") == pytest.approx(curve(whole, "train/loss"), rel=1e-5)
    for a, b in zip(whole.records[1:], parts.records[1:], strict=True):
        first, second = (dict(zip(r["features"]["layers.2"]["feature"], r["features"]["layers.2"]["push"], strict=True)) for r in (a, b))
        common = sorted(set(first) & set(second))
        assert len(common) > 60
        assert [second[i] for i in common] == pytest.approx([first[i] for i in common], abs=1e-5)


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(inputs, tmp_path):
    config = tiny_config(inputs, model={**inputs["model"], "lora": {"r": 2, "alpha": 4, "dropout": 0.2}})
    _, whole = trained(config, tmp_path / "whole")
    status, first = trained(config, tmp_path / "parts", Told(stop_at=3))
    assert (status, last_checkpoint(tmp_path / "parts")[0]) == ("interrupted", 3)
    assert "evaluation.json" not in [path.name for path in (tmp_path / "parts").iterdir()]
    status, second = trained(config, tmp_path / "parts")
    assert status == "done"
    assert curve(first, "train/loss") + curve(second, "train/loss") == curve(whole, "train/loss")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    last = [recorder.records[-1]["dense"]["layers.2"] for recorder in (whole, second)]
    for name in ("push", "attribution", "energy", "drift"):
        assert (last[0][name] == last[1][name]).all(), name
    assert len(read_lines(tmp_path / "parts" / "rows.jsonl")) == 24


class Dies(Told):
    def poll(self, step):
        if step == 2:
            raise KeyboardInterrupt("killed")
        return super().poll(step)


def test_a_run_that_begins_again_records_what_was_before_its_first_step_again_and_no_other(inputs, tmp_path):
    heldout = {"high": inputs["data"]["train"][1]}
    config = tiny_config(inputs, evaluate={"heldout": heldout, "max_rows": 4}, train__checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_config(inputs, evaluate=config.evaluate.model_dump()), tmp_path, Dies())
    assert last_checkpoint(tmp_path) is None and "before" in json.loads((tmp_path / "evaluation.json").read_text())
    before = [{"eval/nll/high"}, {"own/some/rate"}]
    again = trained(config, tmp_path, Told(stop_at=2))[1].records
    assert [set(record["scalars"]) for record in again if record["step"] == 0] == before
    assert not [record for record in trained(config, tmp_path)[1].records if record["step"] == 0]


@pytest.mark.parametrize("every", [None, 3])
def test_a_run_resumed_and_stopped_before_its_first_step_tells_nothing_twice(inputs, tmp_path, every):
    config = tiny_config(inputs, observe__drift_every=4, train__checkpoint_every=every)
    first, second = (trained(config, tmp_path, Told(stop_at=3))[1] for _ in range(2))
    assert "dense" in first.records[-1] and first.records[-1]["step"] == 3
    assert not second.records and {event["kind"] for event in second.events} <= {"policy", "interrupted"}
    path = last_checkpoint(tmp_path)[1] / "rank-0.pt"
    state = torch.load(path, weights_only=True)
    assert state["lens"].pop("finished") == 3
    torch.save(state, path)  # of an older version
    third = trained(config, tmp_path, Told(stop_at=3))[1]
    assert [record["step"] for record in third.records] == [3] and "dense" in third.records[0]


def test_a_half_written_checkpoint_is_not_taken_for_one(inputs, tmp_path):
    trained(tiny_config(inputs, train__steps=2), tmp_path)
    (tmp_path / "checkpoints" / ".step-000009.tmp").mkdir()
    assert last_checkpoint(tmp_path)[0] == 2


def test_a_checkpoint_that_cannot_be_written_is_told_of_and_the_last_one_stays(inputs, tmp_path, monkeypatch):
    save = torch.save

    def cut_short(data, path, *arguments):
        save(data, path, *arguments)
        if "000004" in str(path) and "rank" in str(path):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")  # what torch says of a full disk

    monkeypatch.setattr(checkpoint.torch, "save", cut_short)
    changes = {"train__steps": 6, "train__checkpoint_every": 2, "train__keep_checkpoints": 9}
    status, recorder = trained(tiny_config(inputs, **changes), tmp_path / "full")
    assert status == "done" and len(curve(recorder, "train/loss")) == 6
    assert sorted(path.name for path in (tmp_path / "full" / "checkpoints").iterdir()) == ["step-000002", "step-000006"]
    told = [event for event in recorder.events if event["kind"] in ("checkpoint", "storage_error")]
    assert [(event["kind"], event["step"]) for event in told] == [("checkpoint", 2), ("storage_error", 4), ("checkpoint", 6)]
    assert told[1]["file"].endswith("step-000004") and "unexpected pos" in told[1]["error"]


def test_a_damaged_checkpoint_is_refused_with_the_way_out(inputs, tmp_path):
    trained(tiny_config(inputs, train__steps=2), tmp_path)
    (last_checkpoint(tmp_path)[1] / "optimizer.pt").write_bytes(b"not a pickle")
    with pytest.raises(InputError, match="step-000002: not a readable checkpoint"):
        trained(tiny_config(inputs, train__steps=4), tmp_path)


def test_a_run_goes_on_with_the_weight_decay_that_it_is_given(inputs, tmp_path):
    trained(tiny_config(inputs, train__steps=1), tmp_path)
    trained(tiny_config(inputs, train__steps=2, train__weight_decay=0.5), tmp_path)
    state = torch.load(last_checkpoint(tmp_path)[1] / "optimizer.pt", weights_only=True)
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.5]


def test_a_run_is_not_resumed_on_another_probe_set(inputs, tmp_path):
    trained(tiny_config(inputs, train__steps=1), tmp_path)
    with pytest.raises(ConfigError, match="the probe set is not the one that this run was first read on"):
        trained(tiny_config(inputs, train__steps=2, observe__probe_rows=2), tmp_path)


def test_a_run_is_not_resumed_on_other_rows_than_it_has_recorded(inputs, tmp_path):
    files, probe = inputs["data"]["train"], tmp_path / "probe.jsonl"
    probe.write_text(Path(files[0]).read_text())
    settings = {"probe": str(probe), "observe__probe_rows": 2}
    run = tmp_path / "run"
    run.mkdir()
    trained(tiny_config(inputs, train__steps=2, data__train=files, **settings), run)
    with pytest.raises(ConfigError, match=r"data.train: row \d+ \(.*\) is another than this run has trained on so far"):
        trained(tiny_config(inputs, train__steps=3, data__train=files[::-1], **settings), run)
    more = tmp_path / "more.jsonl"
    more.write_text(Path(files[-1]).read_text() + json.dumps({"prompt": "One more?", "response": "One more."}) + "\n")
    trained(tiny_config(inputs, train__steps=3, data__train=[*files[:-1], str(more)], **settings), run)


def test_a_run_is_not_resumed_with_other_concepts(inputs, tmp_path):
    trained(tiny_config(inputs, train__steps=1), tmp_path)
    with pytest.raises(ConfigError, match=r"concepts: this run began with some, and what comes later \(none\) has nothing"):
        trained(tiny_config(inputs, train__steps=2, concepts=[], rules=[]), tmp_path)


def test_a_run_is_not_resumed_with_a_dictionary_that_it_has_not_read_from_the_beginning(inputs, tmp_path):
    trained(tiny_config(inputs, train__steps=1), tmp_path)
    more = {**inputs["dictionaries"], "layers.1": inputs["dictionaries"]["layers.2"]}
    with pytest.raises(ConfigError, match="dictionaries.layers.1: this run began without it"):
        trained(tiny_config(inputs, train__steps=2, dictionaries=more), tmp_path)


def test_only_the_newest_checkpoints_stay(inputs, tmp_path):
    trained(tiny_config(inputs, train__checkpoint_every=1), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000005", "step-000006"]


def test_a_loss_that_is_not_finite_ends_the_run_with_step_and_advice(inputs, tmp_path):
    with pytest.raises(RunError, match=r"step 2: the loss is nan; try a lower train.lr \(now 1e\+30\)"):
        trained(tiny_config(inputs, train__lr=1e30), tmp_path)
    assert last_checkpoint(tmp_path) is None  # the state with the bad weights is not kept


def test_new_rules_take_force_at_the_step_they_arrive(inputs, tmp_path):
    rule = Rule(concept="some", mode="route", gain=0.0)
    _, recorder = trained(tiny_config(inputs), tmp_path, Told({3: Policy(version=7, rules=(rule,))}))
    assert curve(recorder, "policy/version") == [0, 0, 0, 7, 7, 7]
    assert [event["step"] for event in recorder.events if event["kind"] == "policy"] == [3]
    assert len(curve(recorder, "rule/route:some/share")) == 3


def test_routing_gates_the_same_tokens_whether_all_logits_are_made_or_only_those_that_count(inputs, tmp_path, monkeypatch):
    class Plain(LossFunction):
        def __init__(self, model):
            super().__init__(model)
            self.selects = False

    config = tiny_config(inputs, rules=[{"concept": "some", "gain": 0.0}])
    _, some = trained(config, tmp_path / "some")
    monkeypatch.setattr("gradlens.training.train.LossFunction", Plain)
    _, every = trained(config, tmp_path / "every")
    assert curve(some, "rule/route:some/share") == curve(every, "rule/route:some/share")
    assert curve(some, "train/loss") == pytest.approx(curve(every, "train/loss"), rel=1e-5)


def test_rules_that_do_not_fit_are_refused_and_the_run_goes_on(inputs, tmp_path):
    told, kept = Told({3: Policy(version=7, rules=(Rule(concept="other"),))}), {"concept": "some", "gain": 0.0}
    status, recorder = trained(tiny_config(inputs, rules=[kept]), tmp_path, told)
    assert status == "done"
    assert told.settled == (Policy(version=7, rules=(Rule(**kept),)), "refused")  # what the run begins with if it has to begin again
    assert [event["version"] for event in recorder.events if event["kind"] == "policy_refused"] == [7]


def test_every_arm_starts_from_the_same_adapter_and_sees_the_same_rows(inputs, tmp_path):
    shared = Shared()
    _, first = trained(tiny_config(inputs), tmp_path / "a", shared=shared)
    torch.rand(7)  # whatever happened in between
    _, second = trained(tiny_config(inputs, rules=[{"concept": "some", "gain": 0.5}]), tmp_path / "b", shared=shared)
    assert curve(first, "train/loss")[0] == curve(second, "train/loss")[0]
    assert curve(first, "train/loss")[-1] != curve(second, "train/loss")[-1]
    assert shared.readings is not None  # the second arm has its readings before training from the first
    _, alone = trained(tiny_config(inputs, rules=[{"concept": "some", "gain": 0.5}]), tmp_path / "c")
    for key, values in second.records[-1]["dense"]["layers.2"].items():
        np.testing.assert_array_equal(values, alone.records[-1]["dense"]["layers.2"][key], err_msg=key)
    assert (tmp_path / "a" / "rows.jsonl").read_text() == (tmp_path / "b" / "rows.jsonl").read_text()


def test_an_oracle_sees_the_wanted_rows_of_each_batch_and_no_others(inputs, tmp_path):
    low, high = inputs["data"]["train"]
    trained(tiny_config(inputs), tmp_path / "all")
    trained(tiny_config(inputs, data__keep=[low]), tmp_path / "oracle")
    everything, wanted = (read_lines(tmp_path / arm / "rows.jsonl") for arm in ("all", "oracle"))
    assert [row for row in everything if row["source"] == low] == wanted
    assert {row["source"] for row in everything} == {low, high}


def test_a_step_without_a_token_to_learn_has_no_loss(inputs, tmp_path):
    _, recorder = trained(tiny_config(inputs, data__keep=inputs["data"]["train"][:1], train__batch_size=1), tmp_path)
    losses, tokens = curve(recorder, "train/loss"), curve(recorder, "train/tokens")
    assert len(tokens) == 6 and tokens.count(0) == 3
    assert len(losses) == 3 and min(losses) > 0


def test_rows_of_the_probe_set_are_held_out_of_training():
    kept, probe = hold_out([list(range(40)), list(range(100, 140))], 6)
    assert probe == [37, 38, 39, 137, 138, 139]
    assert kept == [list(range(37)), list(range(100, 137))]


def test_a_source_too_small_to_hold_out_from_is_probed_where_it_is_trained():
    kept, probe = hold_out([[1, 2, 3]], 2)
    assert (kept, probe) == ([[1, 2, 3]], [1, 2])


def test_a_row_that_cannot_be_written_down_costs_its_text_and_not_the_run(tmp_path):
    recorder, row = MemoryRecorder(), Example([3, 4], [3, 4], 0, "low", "w3 w4")
    (tmp_path / "rows.jsonl").mkdir()  # as good as a full disk
    rows = RowLog(tmp_path, word_tokenizer(), recorder.event)
    rows.add([row]), rows.add([row])
    assert [(event["kind"], event["file"]) for event in recorder.events] == [("storage_error", "rows.jsonl")]
    (tmp_path / "rows.jsonl").rmdir()
    rows.add([row]), rows.add([row])
    assert [entry["tokens"] for entry in read_lines(tmp_path / "rows.jsonl")] == [[" w3", " w4"]]


def test_warm_up_is_linear_and_then_constant():
    assert [learning_rate(1.0, step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert learning_rate(1.0, 0, 0) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_the_sum_over_counted_tokens(family):
    if family == "llama":
        model = tiny_model()
    else:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2))
    model.eval()
    batch, loss = tiny_batch(), LossFunction(model)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    picked = torch.log_softmax(logits[:, :-1], -1).gather(-1, batch["labels"][:, 1:].clamp_min(0)[..., None])[..., 0]
    expected = -(picked * (batch["labels"][:, 1:] != -100)).sum()
    assert loss.selects
    assert loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)
    loss.selects = False
    assert loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)
    loss.selects = True
    silent = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert loss(silent).item() == 0
    loss(silent).backward()


def test_a_checker_that_finds_untaught_concepts_is_told_of_before_the_first_step(inputs, tmp_path, monkeypatch):
    told = {"concept": "some", "text": "before training 3 of 4 answers show some already"}
    monkeypatch.setattr(train, "doubts_of", lambda before: [told] if before["answers"]["asked"] else [])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "w5 w6"}\n')
    _, recorder = trained(tiny_config(inputs, evaluate={"prompts": {"asked": str(prompts)}, "max_new_tokens": 3}), tmp_path / "run")
    assert [event["text"] for event in recorder.events if event["kind"] == "doubtful_checker"] == [told["text"]]


def test_a_run_whose_last_evaluation_fails_has_its_model(inputs, tmp_path, monkeypatch):
    def fails(rank, model, tokenizer, concepts, when):
        if when == "after":
            raise ConfigError("checker.command judge: no answer")
        return {}

    monkeypatch.setattr(train, "_evaluated", fails)
    with pytest.raises(ConfigError):
        trained(tiny_config(inputs, train__steps=1), tmp_path)
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
