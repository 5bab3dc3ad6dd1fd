"""Curves in TensorBoard, read back with TensorBoard's own reader."""

import pytest
from needs import needs
from tracked_run import KEY, tracked_run

from gradlens.recording.curve_keys import headed

tensorboard = needs("tensorboard", "tensorboard")


def test_tensorboard_shows_the_curve_of_the_run_folder(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader, curve = tracked_run(tmp_path, "tensorboard")
    events = EventAccumulator(str(next((reader.run_dir / "tensorboard").iterdir()))).Reload()
    assert {event.step: event.value for event in events.Scalars(headed(KEY))} == pytest.approx(curve, rel=1e-5)
