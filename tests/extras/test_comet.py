"""Curves in Comet (offline), read back from the archive that `comet upload` takes, as an experiment of its own and in the program's."""

import json
import zipfile

import pytest
from needs import needs
from tracked_run import KEY, assert_all_curves, tracked_run

from gradlens.recording.curve_keys import headed

comet_ml = needs("comet_ml", "comet")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "comet"))


def messages(folder):
    """What the one archive in a folder holds, in order."""
    (path,) = folder.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        return [json.loads(line) for line in archive.read("messages.json").splitlines()]


def curves_of(found):
    """Key -> {step: value}."""
    curves = {}
    for message in found:
        if message["type"] == "metric_msg":
            metric = message["payload"]["metric"]
            curves.setdefault(metric["metricName"], {})[metric["step"]] = float(metric["metricValue"])
    return curves


def test_comet_shows_the_curves_of_the_run_folder(tmp_path):
    reader, _ = tracked_run(tmp_path / "runs", "comet_ml")
    assert comet_ml.get_running_experiment().ended
    found = messages(tmp_path / "comet")
    curves = curves_of(found)
    assert_all_curves(curves, reader)
    assert reader.run_dir.name in json.dumps(found)


def test_an_experiment_that_the_program_has_begun_is_joined_and_left_open(tmp_path):
    mine = comet_ml.start(project_name="mine")
    reader, curve = tracked_run(tmp_path / "runs", "comet_ml")
    assert [event["mode"] for event in reader.events if event["kind"] == "tracker"] == ["joined"]
    assert comet_ml.get_running_experiment() is mine and not mine.ended
    mine.log_metric("mine", 1.0, step=9)
    mine.end()
    curves = curves_of(messages(tmp_path / "comet"))
    assert curves[headed(KEY)] == pytest.approx(curve, rel=1e-5) and curves["mine"] == {9: 1.0}
