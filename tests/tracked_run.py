"""A small watched run whose curves go to a tracker as well."""

import math

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model

import gradlens
from gradlens.recording.curve_keys import headed
from gradlens.recording.store import RunReader

KEY = "concept/c/layers.2/push"


def tracked_run(folder, tracker: str) -> tuple[RunReader, dict[int, float]]:
    """The run folder, and the curve of `KEY` there."""
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {"concepts": {"c": {"layers.2": [1, 2]}}, "runs_dir": folder, "trackers": [tracker], "probe": [tiny_batch(50)]}
    with gradlens.watch(model, optimizer, {"layers.2": tiny_dictionary()}, **options) as lens:
        for step in range(3):
            model(**tiny_batch(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    reader = RunReader(lens.run_dir)
    failed = [event["reason"] for event in reader.events if event["kind"] == "tracker_failed"]
    assert not failed, failed
    steps, values = reader.curve(KEY)
    return reader, dict(zip(map(int, steps), map(float, values), strict=True))


def assert_all_curves(found: dict[str, dict[int, float]], reader: RunReader) -> None:
    """That a tracker has every curve of the run folder, on the same steps, under W&B's keys, and no other of ours."""
    curves = {headed(key): zip(*reader.curve(key), strict=True) for key in reader.keys()}
    expected = {key: {int(step): float(value) for step, value in curve if math.isfinite(value)} for key, curve in curves.items()}
    expected = {key: curve for key, curve in expected.items() if curve}
    ours = {key: curve for key, curve in found.items() if key.startswith(("gradlens/", "gradlens_details/"))}
    assert len(expected) > 10 and ours.keys() == expected.keys()
    for key, curve in expected.items():
        assert ours[key] == pytest.approx(curve, rel=1e-5), key
