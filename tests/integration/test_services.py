"""Whole jobs on Ray with a tiny model: the same Ray instance for every test of this file."""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_job import tiny_config, write_inputs

from gradlens.control.policies import put
from gradlens.errors import ConfigError, InputError, RunError
from gradlens.files import append_line
from gradlens.recording.store import RunReader

psutil = pytest.importorskip("psutil")
ray = pytest.importorskip("ray")

from gradlens_services.cluster import NAMESPACE, ray_session  # noqa: E402
from gradlens_services.job import run_arms, run_job  # noqa: E402

QUICK = {"drift_every": 0, "probe_rows": 4, "own_prompts": 0}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", autouse=True)
def session(inputs, tmp_path_factory):
    with ray_session(tiny_config(inputs).ray, 2, tmp_path_factory.mktemp("ray") / "ray.log"):
        yield


class Watcher:
    """A progress callback that does something once, when training reaches a step."""

    def __init__(self, at=None, do=None):
        self.at, self.do, self.heard = at, do, []

    def __call__(self, event):
        self.heard.append(event)
        if self.do and event["phase"] == "training" and event["done"] >= self.at:
            do, self.do = self.do, None
            do(event["run"])


def curve(summary, key):
    return RunReader(summary["run_dir"]).curve(key)


def events(summary, kind):
    return [event for event in RunReader(summary["run_dir"]).events if event["kind"] == kind]


@pytest.fixture(scope="module")
def one_rank(inputs):
    watcher = Watcher()
    summary = run_job(tiny_config(inputs, rules=[{"concept": "some", "gain": 0.0}]), progress=watcher)
    return summary, watcher


def test_a_run_ends_with_a_summary_and_a_whole_run_folder(one_rank):
    summary, watcher = one_rank
    assert (summary["status"], summary["steps"], summary["gaps"]) == ("done", 6, [])
    assert summary["loss_last"] < summary["loss_first"]
    assert (summary["hookpoints"], summary["policy_version"]) == (["layers.2"], 1)
    assert {"hookpoint", "feature", "label", "uptake", "drift", "push", "attribution"} == set(summary["top_features"][0])
    reader = RunReader(summary["run_dir"])
    assert reader.status == "done"
    assert list(curve(summary, "train/loss")[0]) == [1, 2, 3, 4, 5, 6]
    assert "damaged" not in {row["state"] for row in reader.verify()}
    phases = list(dict.fromkeys(event["phase"] for event in watcher.heard))
    assert phases[0].startswith("checking")
    assert {"starting Ray", "starting ranks"} <= set(phases)


def test_two_ranks_give_the_curves_of_one(inputs, one_rank):
    one, _ = one_rank
    two = run_job(tiny_config(inputs, rules=[{"concept": "some", "gain": 0.0}], train__num_workers=2))
    keys = ["train/loss", "train/grad_norm", "rule/route:some/share", "layers.2/unexplained", "layers.2/gradient_norm"]
    keys += [f"concept/some/layers.2/{name}" for name in ("push", "attribution", "energy", "drift")]
    for key in keys:
        (steps, first), (others, second) = curve(one, key), curve(two, key)
        assert list(steps) == list(others), key
        assert second == pytest.approx(first, rel=2e-3, abs=1e-6), key
    columns = ("step", "row_id", "taught")
    tables = [RunReader(run["run_dir"]).examples("some") for run in (one, two)]
    rows = [sorted(zip(*(table[name].to_pylist() for name in columns), strict=True)) for table in tables]
    assert rows[0] and rows[1] == [(step, row, pytest.approx(push, rel=2e-3, abs=1e-6)) for step, row, push in rows[0]]


def test_two_ranks_leave_out_the_rows_that_one_does(inputs, tmp_path):
    """Of some batches a rank has no row left, and counts nothing."""
    low, high = inputs["data"]["train"]
    path = tmp_path / "high.yaml"
    path.write_text(yaml.safe_dump({"name": "high", "positive": high, "negative": low, "checker": {"pattern": ["w5"]}}))
    rule, observe = {"concept": "high", "mode": "reweight", "rows": 0.0}, {**inputs["observe"], "estimators": ["push"]}
    configs = [
        tiny_config(inputs, concepts=[str(path)], rules=[rule], observe=observe, train__num_workers=ranks, train__batch_size=4)
        for ranks in (1, 2)
    ]
    one, two = (run_job(config) for config in configs)
    for key in ("train/loss", "train/tokens", "train/grad_norm", "rule/reweight:high/share", "concept/high/layers.2/push"):
        (steps, first), (others, second) = curve(one, key), curve(two, key)
        assert list(steps) == list(others) and second == pytest.approx(first, rel=2e-3, abs=1e-6), key
    assert 0 < curve(one, "rule/reweight:high/share")[1].mean() < 1


@pytest.mark.parametrize("restart", [True, False], ids=["and come back", "for good"])
def test_services_that_die_cost_nothing_but_a_note(inputs, restart):
    def kill(run_id):
        for service in ("controller", "recorder"):
            ray.kill(ray.get_actor(f"{service}:{run_id}", namespace=NAMESPACE), no_restart=not restart)

    config = tiny_config(inputs, train__steps=400, observe={**QUICK, "drift_every": 100})
    summary = run_job(config, progress=Watcher(20, kill))
    assert (summary["status"], summary["steps"]) == ("done", 400)
    assert list(curve(summary, "train/loss")[0]) == list(range(1, 401))
    assert sorted(gap["service"] for gap in summary["gaps"]) == ["controller", "recorder"]
    if restart:
        assert {event["service"] for event in events(summary, "service_back")} == {"controller", "recorder"}
    seconds = curve(summary, "train/step_seconds")[1]
    assert seconds[5:].max() < 1.5, "a step waited for a service"


def two_hookpoints(inputs, **changes):
    return {**inputs, "dictionaries": dict.fromkeys(("layers.2", "layers.3"), inputs["dictionaries"]["layers.2"]), **changes}


def test_lens_actors_give_the_readings_of_the_ranks(inputs, one_rank):
    here = RunReader(one_rank[0]["run_dir"])
    rules = [{"concept": "some", "gain": 0.0}]
    summary = run_job(tiny_config(inputs, name="lens", rules=rules, ray__lens_actors=2, train__num_workers=2))
    there = RunReader(summary["run_dir"])
    assert here.keys() == there.keys() and summary["gaps"] == []
    for key in here.keys():
        if not key.endswith("_seconds"):
            (steps, first), (others, second) = here.curve(key), there.curve(key)
            assert list(steps) == list(others), key
            assert second == pytest.approx(first, rel=2e-3, abs=1e-6, nan_ok=True), key
    columns = ("step", "row_id", "taught")
    rows = [sorted(zip(*(reader.examples("some")[name].to_pylist() for name in columns), strict=True)) for reader in (here, there)]
    assert rows[0] and rows[1] == [(step, row, pytest.approx(push, rel=2e-3, abs=1e-6)) for step, row, push in rows[0]]
    assert here.dense_steps("layers.2") == there.dense_steps("layers.2") == [2, 4, 6]
    for step in (2, 4, 6):
        for name in ("uptake", "taught", "push", "attribution", "energy", "drift"):
            first, second = (reader.dense("layers.2", step)[name].to_numpy() for reader in (here, there))
            assert second == pytest.approx(first, rel=2e-3, abs=1e-5), (step, name)


def test_lens_actors_rank_rows_by_what_tells_the_texts(inputs, tmp_path):
    low, high = inputs["data"]["train"]
    path = tmp_path / "high.yaml"
    path.write_text(yaml.safe_dump({"name": "high", "positive": high, "negative": low, "checker": {"pattern": ["w5"]}}))
    by_features = tmp_path / "features.yaml"
    tables = {}
    for name, concept, actors in (("here", path, 0), ("there", path, 1), ("features", by_features, 0)):
        if concept is by_features:  # of the same features, without what tells the texts
            found = yaml.safe_load((Path(tables["run"]) / "concepts.yaml").read_text())
            [found] = found if isinstance(found, list) else [found]
            assert found.pop("row_detectors")
            by_features.write_text(yaml.safe_dump({"name": "high", "features": found["features"]}))
        summary = run_job(tiny_config(inputs, name=name, concepts=[str(concept)], ray__lens_actors=actors))
        tables["run"] = summary["run_dir"]
        table = RunReader(summary["run_dir"]).examples("high")
        tables[name] = sorted(zip(*(table[column].to_pylist() for column in ("step", "row_id", "taught")), strict=True))
    assert any(taught for _, _, taught in tables["here"])
    assert tables["there"] == [(step, row, pytest.approx(taught, rel=2e-3, abs=1e-6)) for step, row, taught in tables["here"]]
    assert tables["features"] != [(step, row, pytest.approx(taught, rel=0.05)) for step, row, taught in tables["here"]]


def test_a_lens_actor_that_dies_costs_readings_of_some_steps_and_no_time(inputs):
    def kill(run_id):
        ray.kill(ray.get_actor(f"lens:0:{run_id}", namespace=NAMESPACE), no_restart=False)

    steps = 1500  # an actor needs seconds to come back, and these steps take milliseconds
    config = tiny_config(two_hookpoints(inputs, name="killed"), ray__lens_actors=1, train__steps=steps, observe={**QUICK})
    summary = run_job(config, progress=Watcher(20, kill))
    assert (summary["status"], summary["steps"]) == ("done", steps)
    assert list(curve(summary, "train/loss")[0]) == list(range(1, steps + 1))
    gaps = [gap for gap in summary["gaps"] if gap["service"] == "lens"]
    read = set(curve(summary, "layers.3/gradient_norm")[0])
    assert gaps and sum(gap["count"] for gap in gaps) == steps - len(read)
    assert steps in read, "it came back"
    assert curve(summary, "train/step_seconds")[1][5:].max() < 1.5, "a step waited for a service"


def test_rules_sent_to_a_running_job_take_force_on_every_rank(inputs):
    answers = []

    def send(run_id):
        controller = ray.get_actor(f"controller:{run_id}", namespace=NAMESPACE)
        rule = {"concept": "some", "mode": "grad", "gain": 0.5}
        answers.append(ray.get(controller.set_rules.remote(run_id, [rule], 0)))
        with pytest.raises(ConfigError, match="version 1, not 0"):
            ray.get(controller.set_rules.remote(run_id, [], 0))
        with pytest.raises(ConfigError, match="unknown concept 'nobody'"):
            ray.get(controller.set_rules.remote(run_id, [{"concept": "nobody"}], 1))

    summary = run_job(tiny_config(inputs, train__steps=300, train__num_workers=2, observe=QUICK), progress=Watcher(20, send))
    assert answers == [1]
    assert summary["policy_version"] == 1
    versions = curve(summary, "policy/version")[1]
    assert set(versions) == {0, 1} and (np.diff(versions) >= 0).all()
    share = curve(summary, "rule/grad:some/share")
    assert len(share[0]) == (versions == 1).sum()


def test_rules_switched_off_by_another_process_act_no_more(inputs):
    def off(run_id):
        put(Path(inputs["runs_dir"]) / run_id, [], "off")

    config = tiny_config(inputs, train__steps=300, rules=[{"concept": "some", "mode": "grad", "gain": 0.5}], observe=QUICK)
    summary = run_job(config, progress=Watcher(20, off))
    versions = curve(summary, "policy/version")[1]
    assert set(versions) == {1, 2} and (np.diff(versions) >= 0).all()
    assert len(curve(summary, "rule/grad:some/share")[0]) == (versions == 1).sum()
    assert [(event["version"], len(event["rules"])) for event in events(summary, "policy")] == [(1, 1), (2, 0)]


def test_a_stopped_run_is_readable_and_goes_on_where_it_stopped_and_its_alarms_are_told_once(inputs):
    alarm = {"kind": "alarm", "step": 20, "about": "concept", "name": "some", "text": "some is being learned, they say"}

    def raise_alarm(run_id):
        append_line(Path(inputs["runs_dir"]) / run_id / "events.jsonl", alarm)

    before, after = Watcher(20, raise_alarm), Watcher()

    def stop_at_alarm(event):
        before(event)
        if event.get("text") == alarm["text"]:  # told while the run is going on
            ray.get_actor(f"controller:{event['run']}", namespace=NAMESPACE).stop.remote()

    first = run_job(tiny_config(inputs, train__steps=3000, observe=QUICK), progress=stop_at_alarm)
    assert first["status"] == "interrupted"
    assert 20 <= first["steps"] < 3000
    steps = first["steps"] + 30
    second = run_job(tiny_config(inputs, train__steps=steps, observe=QUICK), resume=first["run_id"], progress=after)
    told = [[event for event in watcher.heard if event.get("text") == alarm["text"]] for watcher in (before, after)]
    assert told == [[{"run": first["run_id"], "arm": "", "phase": "alarm", "step": 20, "text": alarm["text"]}], []]
    assert (second["run_id"], second["status"], second["steps"]) == (first["run_id"], "done", steps)
    assert list(curve(second, "train/loss")[0]) == list(range(1, steps + 1))


def kill_a_rank(run_id):
    worker, *_ = [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]
    worker.kill()


def warnings(watcher):
    return [event["text"] for event in watcher.heard if event["phase"] == "warning"]


def test_a_rank_that_is_killed_goes_on_from_the_last_checkpoint(inputs):
    config = tiny_config(inputs, train__steps=200, train__checkpoint_every=5, observe=QUICK)
    watcher = Watcher(20, kill_a_rank)
    summary = run_job(config, progress=watcher)
    (told,) = warnings(watcher)
    assert told.startswith("a rank died or failed, so the run goes on from its checkpoint of step ")
    assert (summary["status"], summary["steps"]) == ("done", 200)
    assert list(curve(summary, "train/loss")[0]) == list(range(1, 201))
    assert [event["step"] % 5 for event in events(summary, "resumed")] == [0]


def test_where_ranks_die_too_often_the_run_ends_in_one_line_and_can_be_resumed(inputs):
    config = tiny_config(
        inputs, name="mortal", train__steps=200, train__num_workers=2, train__checkpoint_every=5, ray__max_failures=0, observe=QUICK
    )
    with pytest.raises(
        RunError, match=r"could not go on \(ranks? [01, ]+ died, .*resume with `gradlens run --resume \S+`; details in"
    ) as caught:
        run_job(config, progress=Watcher(20, kill_a_rank))
    assert "\n" not in str(caught.value) and "gloo" not in str(caught.value)
    (folder,) = Path(inputs["runs_dir"]).glob("mortal-*")
    watcher = Watcher()
    summary = run_job(config, resume=folder, progress=watcher)
    assert list(curve(summary, "train/loss")[0]) == list(range(1, 201)) and not warnings(watcher)


def test_a_run_folder_that_is_removed_is_told_of_at_once_and_the_rules_stay(inputs, tmp_path):
    def remove(run_id):
        shutil.rmtree(tmp_path / run_id)

    rules = [{"concept": "some", "mode": "grad", "gain": 0.5}]
    config = tiny_config(inputs, train__steps=1200, runs_dir=str(tmp_path), rules=rules, observe=QUICK)
    watcher = Watcher(20, remove)
    with pytest.raises(RunError, match="was removed while the run went on; what is left of it is the model in"):
        run_job(config, progress=watcher)
    (first, *_) = [event for event in watcher.heard if event["phase"] == "warning"]
    assert re.match(r"step \d+: \d+ rows of its record could not be written", first["text"]) and "No such file" in first["text"]
    before = watcher.heard[: watcher.heard.index(first)]
    assert [event["done"] for event in before if event["phase"] == "training"][-1] < 1200, "it was told of while the run went on"


def test_a_loss_that_is_not_finite_is_one_clear_error(inputs):
    with pytest.raises(RunError, match="step 2: the loss is nan; try a lower train.lr") as caught:
        run_job(tiny_config(inputs, name="nan", train__lr=1e30))
    assert "Traceback" not in str(caught.value)
    (folder,) = Path(inputs["runs_dir"]).glob("nan-*")
    assert RunReader(folder).status == "failed"
    assert [event["step"] for event in RunReader(folder).events if event["kind"] == "not_finite"] == [2]


def test_arms_share_concepts_and_the_base_evaluation(inputs):
    heldout = {"low": inputs["data"]["train"][0]}
    base = tiny_config(inputs, evaluate={"heldout": heldout, "max_rows": 4}, rules=[{"concept": "some"}])
    arms = [base.model_copy(update={"arm": "rules"}), base.model_copy(update={"arm": "none", "rules": []})]
    summaries = run_arms(arms)
    assert [(summary["arm"], summary["status"]) for summary in summaries] == [("rules", "done"), ("none", "done")]
    before = [summary["evaluation"]["nll"]["low"]["before"] for summary in summaries]
    assert before[0] == before[1]
    for summary in summaries:
        steps, losses = curve(summary, "eval/nll/low")
        nll = summary["evaluation"]["nll"]["low"]
        assert list(steps) == [0, 6] and list(losses) == pytest.approx([nll["before"], nll["after"]])
    first = [curve(summary, "train/loss")[1][0] for summary in summaries]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dictionaries": {"layers.9": "X"}}, InputError, r"layers.9.*did you mean layers.3"),
        ({"data__train": ["nowhere.jsonl"]}, InputError, "nowhere.jsonl: no such file"),
        ({"rules": [{"concept": "som"}]}, ConfigError, "unknown concept 'som'; did you mean some"),
        ({"model__name": "/nowhere/model"}, InputError, "no such model folder"),
        ({"train__batch_size": 1, "train__num_workers": 2}, ConfigError, "less than train.num_workers"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(inputs, changes, error, message):
    if "dictionaries" in changes:
        changes = {"dictionaries": {"layers.9": inputs["dictionaries"]["layers.2"]}}
    started = time.monotonic()
    with pytest.raises(error, match=message):
        run_job(tiny_config(inputs, name="wrong", **changes))
    assert time.monotonic() - started < 5
    assert not list(Path(inputs["runs_dir"]).glob("wrong-*"))
