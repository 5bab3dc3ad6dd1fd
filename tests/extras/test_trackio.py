"""Curves in Trackio's own database."""

import pytest
from needs import needs
from tracked_run import KEY, tracked_run

from gradlens.recording.curve_keys import headed


def test_trackio_shows_the_curve_of_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before Trackio is imported
    needs("trackio", "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    reader, curve = tracked_run(tmp_path / "runs", "trackio")
    rows = SQLiteStorage.get_logs("gradlens", reader.run_dir.name)
    assert {row["step"]: row[headed(KEY)] for row in rows if headed(KEY) in row} == pytest.approx(curve, rel=1e-5)
