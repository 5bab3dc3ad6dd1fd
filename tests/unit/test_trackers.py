"""Curves in other trackers than W&B: the same keys, from a thread of their own, and nothing of theirs reaches training."""

import struct
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import tracking
from conftest import tiny_batch, tiny_dictionary, tiny_model
from tensorboardX.proto.event_pb2 import Event

import gradlens
from gradlens.config import RunConfig
from gradlens.errors import ConfigError
from gradlens.recording.curve_keys import headed
from gradlens.recording.recorder import ThreadRecorder
from gradlens.recording.store import RunReader, RunWriter
from gradlens.recording.trackers import TrackerSink, check_trackers, host_run
from gradlens.training.preflight import check

HOOK = "layers.2"


def curves(folder):
    """Key -> {step: value} of the TensorBoard event files below a folder."""
    found = {}
    for path in folder.rglob("*tfevents*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


class Probe(tracking.GeneralTracker):
    """A tracker of our own in the place of one of accelerate's."""

    name, requires_logging_directory, tracker = "mlflow", False, None

    def __init__(self, *args, **kwargs):
        self.logged, self.ended, self.thread = [], False, None
        type(self).latest = self

    def start(self):
        self.thread = threading.current_thread()

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, dict(values)))

    def finish(self):
        self.ended = True


@pytest.fixture
def probe(monkeypatch):
    def install(kind):
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", kind)
        monkeypatch.setattr(tracking, "_available_trackers", [*tracking._available_trackers, "mlflow"])
        return kind

    return install


def feed(tmp_path, records, timeout=10.0):
    writer = RunWriter.create(tmp_path, "run", {})
    recorder = ThreadRecorder(writer, [TrackerSink("mlflow", writer.run_dir)])
    for record in records:
        recorder.record(record)
    began = time.monotonic()
    recorder.close(timeout)
    return RunReader(writer.run_dir).events, time.monotonic() - began


def test_tensorboard_shows_the_curves_of_the_run_folder_under_wandb_keys(tmp_path):
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {"concepts": {"c": {HOOK: [1, 2]}}, "runs_dir": tmp_path, "trackers": ["tensorboard"], "probe": [tiny_batch(50)]}
    with gradlens.watch(model, optimizer, {HOOK: tiny_dictionary()}, **options) as lens:
        for step in range(3):
            model(**tiny_batch(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    found, reader = curves(lens.run_dir), RunReader(lens.run_dir)
    for key in ("concept/c/layers.2/push", "layers.2/unexplained", "concept/c/layers.2/uptake"):
        steps, values = reader.curve(key)
        assert list(found[headed(key)]) == list(steps) and len(steps)
        np.testing.assert_allclose(list(found[headed(key)].values()), values, rtol=1e-5)
    assert {"kind": "tracker", "tracker": "tensorboard", "mode": "own"}.items() <= next(
        e for e in reader.events if e["kind"] == "tracker"
    ).items()


def test_values_of_one_step_go_out_together_and_the_key_is_one_that_trackers_take(tmp_path, probe):
    kind = probe(Probe)
    records = [
        {"step": 1, "scalars": {"train/loss": 2.0}},
        {"step": 1, "scalars": {"layers.2#probes/l0": 3.0, "bad": float("nan")}},
        {"step": 2, "scalars": {"train/loss": 1.0}},
    ]
    feed(tmp_path, records)
    assert kind.latest.logged == [
        (1, {"gradlens/train/loss": 2.0, "gradlens_details/layers.2_probes/l0": 3.0}),
        (2, {"gradlens/train/loss": 1.0}),
    ]
    assert kind.latest.ended and kind.latest.thread is not threading.main_thread()


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_tracker_that_fails_costs_its_curves_and_nothing_else(tmp_path, probe, where, caplog):
    def fail(self, *args, **kwargs):
        raise SystemExit("no server")

    probe(type("Failing", (Probe,), {where: fail}))
    events, _ = feed(tmp_path, [{"step": step, "scalars": {"train/loss": 1.0}} for step in range(1, 4)])
    assert [event["reason"] for event in events if event["kind"] == "tracker_failed"] == [
        "SystemExit: no server; the run folder has everything"
    ]
    assert list(RunReader(next(tmp_path.iterdir())).curve("train/loss")[0]) == [1, 2, 3]
    assert "SystemExit: no server" in caplog.text  # also where nobody looks at events


def test_a_tracker_that_hangs_holds_nobody_up(tmp_path, probe):
    release = threading.Event()
    probe(type("Hanging", (Probe,), {"log": lambda self, *args, **kwargs: release.wait(60)}))
    events, took = feed(tmp_path, [{"step": step, "scalars": {"train/loss": 1.0}} for step in range(1, 4)], timeout=1.0)
    release.set()
    assert took < 20 and any("did not finish" in event["reason"] for event in events if event["kind"] == "tracker_failed")


def test_a_run_that_the_program_has_begun_is_found_and_one_that_has_ended_is_none(monkeypatch):
    def none_began():
        raise RuntimeError("no active run")

    run = SimpleNamespace(ended=False)
    for name, module, expected in (
        ("swanlab", {"has_run": lambda: False, "get_run": none_began}, None),
        ("swanlab", {"has_run": lambda: True, "get_run": lambda: run}, run),
        ("swanlab", {"get_run": lambda: None}, None),  # before SwanLab 0.10
        ("comet_ml", {"get_running_experiment": lambda: None}, None),
        ("comet_ml", {"get_running_experiment": lambda: run}, run),
        ("comet_ml", {"get_running_experiment": lambda: SimpleNamespace(ended=True)}, None),
    ):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**module))
        assert host_run(name) is expected, (name, module)


def test_a_tracker_that_is_not_there_is_one_clear_line_at_start(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean mlflow"):
        check_trackers(["mlfow"])
    with pytest.raises(ConfigError, match="set wandb"):
        check_trackers(["wandb"])
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(ConfigError, match="swanlab is not installed; pip install swanlab"):
        check_trackers(["swanlab"])
    model = tiny_model()
    with pytest.raises(ConfigError, match="aim is not installed"):
        gradlens.watch(model, torch.optim.SGD(model.parameters()), {HOOK: tiny_dictionary()}, trackers=["aim"], runs_dir=tmp_path)
    config = RunConfig.model_validate({"data": {"train": ["demo:plain-train"]}, "trackers": ["comet_ml"]})
    with pytest.raises(ConfigError, match="comet_ml is not installed"):
        check(config)
    assert not list(tmp_path.iterdir())
