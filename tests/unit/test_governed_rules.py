"""Rules with targets, budgets, dry runs, kill switch and rollback, through the training loop on a tiny model."""

import json
import shutil

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from test_train import Told, curve, trained, weights
from tiny_job import tiny_config, write_inputs
from typer.testing import CliRunner

import gradlens
from gradlens.cli.app import app
from gradlens.config import ObserveSettings
from gradlens.control.edits import within_budget
from gradlens.control.policies import begin
from gradlens.control.rollback import roll_back
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError, RunError
from gradlens.files import read_lines
from gradlens.lens import Lens
from gradlens.recording.recorder import MemoryRecorder, ThreadRecorder
from gradlens.recording.store import RunReader, RunWriter
from gradlens.training.checkpoint import checkpoints
from gradlens.training.rank import Rank
from gradlens.training.train import train_rank

MODES = ("route", "grad", "ablate", "mean-ablate", "steer", "param", "update")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    found = write_inputs(tmp_path_factory.mktemp("inputs"))
    return {**found, "observe": {"drift_every": 1, "probe_rows": 4, "own_prompts": 0, "update_every": 0, "reference": None}}


def rule(**fields):
    return {"concept": "some", **fields}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def events(recorder, kind):
    return [event for event in recorder.events if event["kind"] == kind]


@pytest.fixture(scope="module")
def free(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("free")
    _, recorder = trained(tiny_config(inputs), folder)
    return folder, recorder


def test_a_target_is_measured_decided_and_recorded_at_every_reading(inputs, tmp_path, free):
    reached = curve(free[1], "concept/some/layers.2/drift")
    wanted = {"value": min(reached) / 2, "kind": "follow", "lead": 0, "gain_min": 0, "gain_max": 2, "rate": 0.3}
    _, recorder = trained(tiny_config(inputs, rules=[rule(target=wanted)]), tmp_path)
    gains, measured = curve(recorder, "rule/route:some/gain"), curve(recorder, "rule/route:some/measured")
    assert measured == curve(recorder, "concept/some/layers.2/drift") and measured[0] == reached[0] and measured[-1] != reached[-1]
    assert curve(recorder, "rule/route:some/target") == [wanted["value"]] * 6
    assert gains[0] == 1 and len(set(gains)) > 2 and all(abs(b - a) <= 0.3 + 1e-9 for a, b in zip(gains, gains[1:], strict=False))
    (end,) = events(recorder, "target")
    assert (end["rule"], end["measured"], end["held"]) == (
        "route:some",
        measured[-1],
        abs(measured[-1] - wanted["value"]) <= abs(wanted["value"]) / 10,
    )


def test_a_target_that_cannot_be_held_names_the_limit(inputs, tmp_path):
    _, recorder = trained(tiny_config(inputs, rules=[rule(target={"value": -100.0, "rate": 1.0})]), tmp_path)
    (limit,) = events(recorder, "limit")
    assert (limit["limit"], limit["gain"], limit["target"]) == ("gain_min", 0.0, -100.0)
    assert curve(recorder, "rule/route:some/gain")[1:] == [0.0] * 5
    assert events(recorder, "target")[0]["limit"] == "gain_min"


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_with_a_target_and_a_budget_goes_on_bit_for_bit(inputs, tmp_path, every):
    target = {"value": -100.0, "rate": 0.2, "gain_min": -1}
    rules = [rule(target=target), rule(name="second", mode="grad", gain=0.0, budget=0.01)]
    config = tiny_config(inputs, rules=rules, observe__drift_every=every, train__steps=8)
    _, whole = trained(config, tmp_path / "whole")
    _, first = trained(config, tmp_path / "parts", Told(stop_at=5))
    _, second = trained(config, tmp_path / "parts")
    if every == 2:  # the first part ends with a reading of its own, and with what that decides nobody trains on
        assert first.records[-1]["step"] == 5 and first.records.pop()["scalars"]["rule/route:some/measured"]
    for key in ("rule/route:some/gain", "rule/route:some/measured", "rule/second/gain", "train/loss"):
        assert curve(first, key) + curve(second, key) == curve(whole, key), key
    assert len(set(curve(whole, "rule/route:some/gain"))) > 3 and len(set(curve(whole, "rule/second/gain"))) > 3
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_dry_run_counts_and_changes_nothing(inputs, tmp_path, free):
    rules = [rule(mode=mode, gain=0.0, dry_run=True) for mode in MODES]
    _, recorder = trained(tiny_config(inputs, rules=rules), tmp_path / "dry")
    assert same(weights(tmp_path / "dry"), weights(free[0]))
    assert curve(recorder, "train/loss") == curve(free[1], "train/loss")
    assert all(len(curve(recorder, f"rule/{mode}:some/share")) == 6 for mode in MODES)
    for mode in ("route", "grad"):
        _, real = trained(tiny_config(inputs, train__steps=1, rules=[rule(mode=mode, gain=0.0)]), tmp_path / mode)
        key = f"rule/{mode}:some/share"  # the first step is the same: later ones learn something else
        assert curve(recorder, key)[0] == curve(real, key)[0] > 0


def test_a_dry_run_of_rewrite_counts_and_changes_nothing(inputs, tmp_path, free):
    low, high = inputs["data"]["train"]
    checker = "{pattern: ['w[5-8][0-9]']}"  # the tiny model's own answers are words at random
    (tmp_path / "high.yaml").write_text(f"name: high\npositive: {high}\nnegative: {low}\nchecker: {checker}\n")
    config = tiny_config(inputs, concepts=[str(tmp_path / "high.yaml")], rules=[{"concept": "high", "mode": "rewrite", "dry_run": True}])
    _, recorder = trained(config, tmp_path / "dry")
    assert same(weights(tmp_path / "dry"), weights(free[0]))
    assert sum(curve(recorder, "rule/rewrite:high/share")) > 0


def test_all_rules_switched_off_in_mid_run_go_on_as_a_run_without_rules_bit_for_bit(inputs, tmp_path):
    rules = [rule(gain=0.0), *(rule(mode=mode, gain=0.5) for mode in MODES[1:]), rule(name="held", target={"value": 0.0})]
    config = tiny_config(inputs, rules=rules)
    trained(config, tmp_path / "off", Told(stop_at=3))
    shutil.copytree(tmp_path / "off", tmp_path / "bare")
    _, off = trained(config, tmp_path / "off", Told({3: Policy(version=2)}))
    _, bare = trained(tiny_config(inputs), tmp_path / "bare")
    assert curve(off, "train/loss") == curve(bare, "train/loss") and len(curve(off, "train/loss")) == 3
    assert same(weights(tmp_path / "off"), weights(tmp_path / "bare"))
    _, on = trained(config, tmp_path / "on")
    assert curve(on, "train/loss")[3:] != curve(off, "train/loss")


def test_a_route_rule_leaves_the_tokens_beyond_its_budget_alone(inputs, tmp_path):
    every = {"features": {"layers.2": list(range(80))}, "gain": 0.0, "name": "all", "tokens": "own"}
    _, without = trained(tiny_config(inputs, rules=[every]), tmp_path / "without")
    _, recorder = trained(tiny_config(inputs, rules=[{**every, "budget": 0.25}]), tmp_path / "with")
    shares = curve(recorder, "rule/all/share")
    assert min(curve(without, "rule/all/share")) > 0.8 and all(0.15 < share <= 0.25 for share in shares)
    (event,) = events(recorder, "budget")
    assert event["wanted"] == pytest.approx(curve(without, "rule/all/share")[0]) and "left alone" in event["text"]


def test_tokens_within_a_budget_are_spread_evenly():
    gated = torch.tensor([[True, True, False, True, True], [True, True, True, False, True]])
    assert within_budget(gated, torch.tensor(4.0)).int().tolist() == [[0, 1, 0, 0, 1], [0, 1, 0, 0, 1]]
    assert torch.equal(within_budget(gated, torch.tensor(100.0)), gated)
    assert not within_budget(gated, torch.tensor(0.0)).any() and not within_budget(torch.zeros_like(gated), torch.tensor(3.0)).any()
    random = torch.Generator().manual_seed(0)
    for most in range(50):
        many = torch.rand(7, 13, generator=random) < 0.6
        kept = within_budget(many, torch.tensor(float(most)))
        assert int(kept.sum()) <= most and not (kept & ~many).any() and int(kept.sum()) >= min(most, int(many.sum())) - 1


def test_a_budget_of_gradient_energy_draws_the_gain_towards_one(inputs, tmp_path):
    _, recorder = trained(tiny_config(inputs, rules=[rule(mode="grad", gain=0.0, budget=0.01)]), tmp_path)
    gains, shares = curve(recorder, "rule/grad:some/gain"), curve(recorder, "rule/grad:some/share")
    assert gains[0] == pytest.approx(0.99)
    for step in range(1, 6):
        assert 1 - gains[step] == pytest.approx(min(1.0, 0.01 / (sum(shares[:step]) / step)))
    assert max(shares) > 0.01 and len(events(recorder, "budget")) == 1


def lens_on(rules, observe=None, lr=1e-2, batches=3, optimizer_type=torch.optim.SGD):
    """A plain loop without clipping; the norm of every step's gradient as the optimizer saw it."""
    model, recorder, norms = tiny_model(), MemoryRecorder(), []
    model.train()
    optimizer = optimizer_type(model.parameters(), lr=lr)
    observe = observe or ObserveSettings(drift_every=1, own_prompts=0, update_every=0)
    policy = Policy(version=1, rules=tuple(Rule(**fields) for fields in rules))
    options = {"policy": policy, "observe": observe, "recorder": recorder, "concepts": {"c": {"layers.2": [1, 2, 3]}}}
    with Lens(model, optimizer, {"layers.2": tiny_dictionary()}, **options):
        optimizer.register_step_pre_hook(
            lambda *_: norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
        )
        for step in range(batches):
            model(**tiny_batch(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return norms, recorder


def test_an_amplified_gradient_grows_to_three_times_what_it_was_and_the_run_says_so():
    every = {"features": {"layers.2": list(range(80))}, "mode": "route", "tokens": "own", "name": "loud"}
    bare, _ = lens_on([])
    uncapped, quiet = lens_on([{**every, "gain": 1.5, "start": 2}])
    assert uncapped[:2] == bare[:2] and uncapped[2] > bare[2] and not events(quiet, "norm_capped")
    norms, recorder = lens_on([{**every, "gain": 50.0, "start": 2}])
    reference = 0.95 * bare[0] + 0.05 * bare[1]
    assert norms[2] == pytest.approx(3 * reference, rel=1e-4)
    (event,) = events(recorder, "norm_capped")
    assert event["rules"] == ["loud"] and event["norm"] > 10 * reference and event["step"] == 2
    scales = curve(recorder, "policy/norm_scale")
    assert len(scales) == 1 and scales[0] == pytest.approx(3 * reference / event["norm"], rel=1e-4)


def test_a_rule_that_touches_nothing_leaves_the_gradient_its_size_but_in_the_first_step():
    bare, _ = lens_on([], batches=6)
    norms, recorder = lens_on([{"concept": "c", "mode": "route", "gain": 8.0, "threshold": 1e6}], batches=6)
    assert norms[0] == pytest.approx(bare[0] * 3 / 8, rel=1e-4)  # how much will be amplified is not known yet
    assert curve(recorder, "policy/norm_scale") == [pytest.approx(3 / 8, rel=1e-4)]
    assert set(curve(recorder, "rule/route:c/share")) == {0.0} and norms[1:] == pytest.approx(bare[1:], rel=0.05)


@pytest.mark.parametrize("mode", ["ablate", "grad", "param", "update"])
def test_a_rule_that_makes_numbers_infinite_is_named_and_ends_the_run(mode):
    with pytest.raises(RunError, match=rf"step 1: rule {mode}:c \(gain 1e\+39\) has made finite numbers infinite or NaN"):
        lens_on([{"concept": "c", "mode": mode, "gain": 1e39}])


def test_a_loss_that_is_not_finite_names_the_rules_that_acted(inputs, tmp_path):
    with pytest.raises(RunError, match=r"the loss is nan.*without the rules that acted: route:some \(gain 0.5\)"):
        trained(tiny_config(inputs, train__lr=1e30, rules=[rule(gain=0.5), rule(name="later", start=5)]), tmp_path)


def test_targets_that_no_reading_will_serve_are_refused(inputs):
    with pytest.raises(ConfigError, match=r"set observe.drift_every to 1 step or more"):
        lens_on([{"concept": "c", "target": {"value": 1}}], ObserveSettings(drift_every=0, own_prompts=0))
    with pytest.raises(ConfigError, match="concept c has no features at layers.3 to measure; it has some at layers.2"):
        lens_on([{"concept": "c", "target": {"value": 1, "hookpoint": "blocks.3.hook_resid_post"}}])


def recorded(config, folder, resume_step=None, alarm=None):
    """A run in a run folder of its own, as `gradlens run` does it but without Ray."""
    writer = RunWriter(folder, config) if resume_step is None else RunWriter.open_existing(folder, resume_step)
    if resume_step is None:
        begin(folder, [])
    raises = (lambda lens: lens.learning.alarmed.append(alarm)) if alarm else (lambda lens: None)
    with ThreadRecorder(writer) as recorder:
        if alarm:
            recorder.event("alarm", **alarm)
        return train_rank(Rank(config, folder, recorder, watching=raises))


def test_a_run_goes_back_before_its_alarm_and_on_from_there_and_nothing_is_lost(inputs, tmp_path):
    folder = tmp_path / "run"
    config = tiny_config(
        inputs, train__checkpoint_every=1, runs_dir=str(tmp_path), evaluate={"heldout": {"x": inputs["data"]["train"][0]}, "max_rows": 2}
    )
    alarm = {"step": 3, "about": "concept", "name": "some", "text": "some is being learned"}
    assert recorded(config, folder, alarm=alarm) == "done"
    assert [step for step, _ in checkpoints(folder)] == [2, 5, 6]  # the one before the alarm is kept
    before = RunReader(folder).curve("train/loss")[1]
    with pytest.raises(ConfigError, match="no checkpoint at step 4; checkpoints at steps 2, 5, 6; 0 is the beginning"):
        roll_back(folder, 4)
    told = CliRunner().invoke(app, ["runs", "rollback", "run", "--runs-dir", str(tmp_path)])
    assert told.exit_code == 0 and "back from step 6 to step 2" in told.output and "some is being learned" in told.output
    assert [step for step, _ in checkpoints(folder)] == [2]
    aside = folder / "set_aside" / "001"
    assert sorted(path.name for path in (aside / "checkpoints").iterdir()) == ["step-000005", "step-000006"]
    assert (aside / "model").is_dir() and "after" in (aside / "evaluation.json").read_text()
    assert "after" not in (folder / "evaluation.json").read_text()
    assert list(RunReader(folder).curve("train/loss")[0]) == [1, 2]
    (event,) = [event for event in read_lines(folder / "events.jsonl") if event["kind"] == "rolled_back"]
    assert (event["step"], event["from_step"], event["alarm_step"]) == (2, 6, 3)
    shutil.copy(folder / "config.yaml", aside / "config.yaml")
    assert list(RunReader(aside).curve("train/loss")[1]) == list(before)  # what was set aside can be read
    assert recorded(config, folder, resume_step=2) == "done"
    assert list(RunReader(folder).curve("train/loss")[1]) == list(before)  # without other rules: the same run again
    with pytest.raises(ConfigError, match="has raised no alarm"):
        roll_back(folder)
    assert roll_back(folder, 0).step == 0 and not checkpoints(folder)
    assert RunReader(folder).keys() == ["eval/nll/x"] and list(RunReader(folder).curve("eval/nll/x")[0]) == [0]  # before training
    assert (folder / "set_aside" / "002" / "checkpoints" / "step-000002").is_dir()


def test_rules_of_a_run_are_set_switched_off_undone_and_told_of(inputs, tmp_path):
    folder = tmp_path / "run"
    config = tiny_config(inputs, train__steps=1, runs_dir=str(tmp_path))
    recorded(config, folder)
    (tmp_path / "cap.yaml").write_text("- concept: some\n  target: {value: 0.5}\n  budget: 0.3\n")
    (tmp_path / "other.yaml").write_text("- concept: nobody\n")

    def run(*words):
        return CliRunner().invoke(app, ["rules", *words, "--runs-dir", str(tmp_path)])

    told = run("set", "run", str(tmp_path / "cap.yaml"))
    assert told.exit_code == 0 and "version 1, 1 rule; in force when it is resumed" in told.output
    refused = run("set", "run", str(tmp_path / "other.yaml"))
    assert isinstance(refused.exception, ConfigError) and "unknown concept 'nobody'" in str(refused.exception)
    assert "version 2, no rules" in run("off", "run").output
    assert "version 3, 1 rule" in run("undo", "run").output
    lines = run("history", "run").output.splitlines()
    assert len(lines) == 4 and "config, from step 0: no rules" not in lines[1]
    assert "route:some, drift at most 0.5, budget 30%" in lines[1] and "off, not in force yet: no rules" in lines[2]
    assert "undo (version 1)" in lines[3]


def test_the_rules_of_a_programs_own_loop_are_told_of_from_its_events(tmp_path):
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    given = {"features": {"layers.2": [1, 2]}, "gain": 0.25}
    with gradlens.watch(model, optimizer, {"layers.2": tiny_dictionary()}, rules=[given], run="loop", runs_dir=tmp_path) as lens:
        for step, policy in enumerate((None, Policy(version=2, rules=(Rule(mode="ablate", **given),)), Policy(version=3))):
            if policy:
                lens.set_policy(policy)
            model(**tiny_batch(step)).loss.backward()
            optimizer.step()
    history = ["rules", "history", "last", "--runs-dir", str(tmp_path)]
    lines = CliRunner().invoke(app, history).output.splitlines()
    assert len(lines) == 3 and lines[0].endswith("program, from step 0: route:features x 0.25")
    assert lines[1].endswith("program, from step 1: ablate:features x 0.25") and lines[2].endswith("program, from step 2: no rules")
    told = json.loads(CliRunner().invoke(app, [*history, "--json"]).output)["policies"]
    assert [(entry["version"], entry["by"], entry["in_force"], len(entry["rules"])) for entry in told] == [
        (version, "program", version - 1, version < 3) for version in (1, 2, 3)
    ]


def test_rules_are_not_set_where_nobody_would_take_them_over(tmp_path):
    begin(tmp_path, [])
    RunWriter(tmp_path / "loop", {"name": "loop", "model": {"name": "tiny"}}).close()  # of `gradlens.watch`
    (tmp_path / "rules.yaml").write_text("- {features: {layers.2: [1]}}\n")
    for words in (("set", "loop", str(tmp_path / "rules.yaml")), ("off", "loop"), ("undo", "loop")):
        refused = CliRunner().invoke(app, ["rules", *words, "--runs-dir", str(tmp_path)])
        assert isinstance(refused.exception, ConfigError) and "lens.set_policy" in str(refused.exception)
    assert not (tmp_path / "loop" / "policy.json").exists()
