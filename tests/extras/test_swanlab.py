"""Curves in SwanLab (offline), read back from its run file, as a run of its own and in the run that the program has begun."""

import pytest
from needs import needs
from tracked_run import KEY, assert_all_curves, tracked_run

from gradlens.recording.curve_keys import headed

swanlab = needs("swanlab", "swanlab")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.chdir(tmp_path)


def curves_below(folder):
    """Key -> {step: value} of the one run file below a folder."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = folder.rglob("*.swanlab")
    reader, found = DataStoreReader(), {}
    reader.open(path)
    for data in reader:
        record = Record.FromString(data)
        if record.HasField("scalar"):
            found.setdefault(record.scalar.key, {})[record.scalar.step] = record.scalar.value.number
    reader.close()
    return found


def test_swanlab_shows_the_curves_of_the_run_folder(tmp_path):
    assert not swanlab.has_run()  # imported, but nothing begun: ours is a run of its own
    reader, _ = tracked_run(tmp_path / "runs", "swanlab")
    found = curves_below(reader.run_dir / "swanlab")
    assert_all_curves(found, reader)
    assert not swanlab.has_run()


def test_a_run_that_the_program_has_begun_is_joined_and_left_open(tmp_path):
    mine = swanlab.init(project="mine", log_dir=str(tmp_path / "mine"))
    reader, curve = tracked_run(tmp_path / "runs", "swanlab")
    assert [event["mode"] for event in reader.events if event["kind"] == "tracker"] == ["joined"]
    assert swanlab.get_run() is mine and swanlab.has_run()
    mine.log({"mine": 1.0}, step=9)
    swanlab.finish()
    found = curves_below(tmp_path / "mine")
    assert found[headed(KEY)] == pytest.approx(curve, rel=1e-5) and found["mine"] == {9: 1.0}
