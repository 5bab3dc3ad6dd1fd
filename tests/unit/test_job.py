"""A run as a command carries it out: one at a time, what is told on the way, rules that are sent to it."""

import pytest
from gradlens_services.controller import first_state
from gradlens_services.job import Alarms, _new, _resumed, lacking_room, trouble_in_words

from gradlens.config import RunConfig
from gradlens.control.policies import check_rules
from gradlens.control.rules import load_rules
from gradlens.errors import ConfigError
from gradlens.files import append_line
from gradlens.recording.runfolder import give_lock, is_running

CONFIG = {"data": {"train": ["a.jsonl"]}, "dictionaries": {}}


def test_one_command_at_a_time_carries_a_run_out(tmp_path):
    run = _new(RunConfig(**CONFIG, runs_dir=str(tmp_path)))
    assert is_running(run.folder)  # though nothing writes it yet
    with pytest.raises(ConfigError, match="is still running"):
        _resumed(run.config, run.folder)
    give_lock(run.lock)
    assert not is_running(run.folder)


def test_what_is_not_saved_or_not_trained_on_is_told_while_the_run_goes_on(tmp_path):
    alarms = Alarms([tmp_path])
    append_line(tmp_path / "events.jsonl", {"kind": "storage_error", "step": 4, "file": "step-4", "error": "No space left on device"})
    append_line(tmp_path / "events.jsonl", {"kind": "rows_left_out", "step": 0, "text": "d.jsonl: 2 of 9 rows are not trained on"})
    told = [trouble_in_words(event) for _, event in alarms.new()]
    assert told[0] == "step 4: step-4 could not be written: No space left on device; training goes on without"
    assert told[1] == "d.jsonl: 2 of 9 rows are not trained on"


def test_rules_at_a_hookpoint_without_a_dictionary_are_not_sent(tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    first_state(folder, load_rules([]), resume=False)
    (folder / "config.yaml").write_text("dictionaries: {'2': some}\n")
    for rule in ({"concept": "c", "hookpoints": ["layers.9"]}, {"features": {"layers.9": [1]}}):
        with pytest.raises(ConfigError, match="no dictionary at layers.9; this run has layers.2"):
            check_rules(folder, [rule])
    assert check_rules(folder, [{"concept": "c", "hookpoints": ["layers.2"]}, {"features": {"2": [1]}}])


@pytest.mark.parametrize(
    ("there", "free", "state", "said"),
    [
        (1, 1, "PENDING", "of this Ray cluster's 1 1 are free"),
        (4, 0, "PENDING", "of this Ray cluster's 4 0 are free"),
        (4, 2, "CREATED", ""),
        (16, 10, "PENDING", ""),  # somebody else waits, for more
    ],
)
def test_why_ranks_do_not_begin_is_said(monkeypatch, there, free, state, said):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": there})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": free})
    monkeypatch.setattr(ray.util, "placement_group_table", lambda: {"a": {"state": state}})
    text = lacking_room(RunConfig(**CONFIG, train={"num_workers": 2, "device": "cpu"}))
    assert said in text and bool(text) == bool(said)
