"""The services without Ray: what their clients do when they are away, come back, or never do."""

import errno
import os
import shutil

import numpy as np
import pytest
from gradlens_services import controller as control
from gradlens_services.controller import ControllerService, PolicyClient, first_state
from gradlens_services.job import Alarms, _new, _resumed, _summaries
from gradlens_services.lens import deal
from gradlens_services.recorder import Lost, RecorderClient, RecorderService
from gradlens_services.trainer import _failure, _resume_step, read_outcome, written

from gradlens.config import RunConfig
from gradlens.control import policies
from gradlens.control.policies import Conflict, check_rules, dump_rules, history, put, read_state, settle, undo
from gradlens.control.rules import Policy, Rule, load_rules
from gradlens.errors import ConfigError, InputError, RunError
from gradlens.files import append_line, read_lines
from gradlens.recording.lookup import find_run, list_runs
from gradlens.recording.recorder import MemoryRecorder
from gradlens.recording.segments import SCHEMAS
from gradlens.recording.store import RunReader, RunWriter

CONFIG = {"data": {"train": ["a.jsonl"]}}


def record(step):
    dense = {"layers.1": {name: np.full(3, step, np.float32) for name in ("push", "attribution", "energy", "drift")}}
    features = {"layers.1": {"feature": np.arange(2, dtype=np.int32), "push": np.full(2, step, np.float32)}}
    whole = {"step": step, "scalars": {"train/loss": 1 / step}, "features": features}
    return {**whole, "dense": dense} if step % 2 == 0 else whole


class Line:
    """The way to a recorder: may be cut, and have another process at its end."""

    def __init__(self, folder):
        self.folder, self.service, self.cut, self.final, self.calls = folder, self.new(folder), False, False, 0
        self.lose_answer_of = None

    @staticmethod
    def new(folder):
        return RecorderService({folder.name: str(folder)})

    def restart(self):
        for writer in self.service._writers.values():
            writer._lock.close()  # what the end of a process does
        self.service = self.new(self.folder)

    def __call__(self, run_id, session, messages, status):
        self.calls += 1
        if self.cut:
            raise Lost(self.final)
        last = self.service.write(run_id, session, messages, status)
        if self.lose_answer_of is not None and last >= self.lose_answer_of:
            self.lose_answer_of = None
            self.restart()
            raise Lost(False)
        return last


@pytest.fixture
def line(tmp_path):
    RunWriter(tmp_path / "run", CONFIG).close()
    return Line(tmp_path / "run")


def stored(line):
    reader = RunReader(line.folder)
    return list(reader.curve("train/loss")[0]), reader.features("layers.1").num_rows, reader.dense_steps("layers.1")


def client_of(line, **options):
    return RecorderClient(line, line.folder, retry_seconds=0.01, **options)


def test_everything_is_written_once_and_in_order(line):
    client = client_of(line)
    for step in range(1, 8):
        client.record(record(step))
    client.event("policy", step=3, version=2)
    assert client.close(20)
    assert stored(line) == (list(range(1, 8)), 14, [2, 4, 6])
    assert [event["version"] for event in RunReader(line.folder).events if event["kind"] == "policy"] == [2]


def test_a_run_that_begins_again_has_what_was_before_its_first_step_once(line):
    start = {"step": 0, "scalars": {"own/some/rate": 0.0}}
    for session, resume_step in (("one", None), ("another", 0)):
        line.service.write("run", session, [(0, "open", resume_step), (1, "record", start)])
        line.restart()
    assert RunReader(line.folder).curve("own/some/rate")[0].tolist() == [0]


def test_an_outage_is_bridged_and_noted(line):
    client = client_of(line)
    client.record(record(1))
    line.cut = True
    for step in range(2, 30):
        client.record(record(step))
    line.restart()
    line.cut = False
    assert client.close(20)
    assert stored(line)[0] == list(range(1, 30))


@pytest.mark.parametrize("number", range(1, 8))
def test_what_a_dying_recorder_had_already_written_is_not_written_twice(line, number):
    line.lose_answer_of = number
    client = client_of(line)
    client.event("phase", name="x")
    for step in range(1, 5):
        client.record(record(step))
    client.event("end")
    assert client.close(20)
    assert stored(line) == ([1, 2, 3, 4], 8, [2, 4])
    kinds = [event["kind"] for event in RunReader(line.folder).events]
    assert kinds.count("end") == kinds.count("phase") == 1


@pytest.mark.parametrize("tables", range(1, 6))
def test_a_recorder_that_dies_in_the_midst_of_a_record_leaves_no_table_without_its_rows(line, tables):
    """`tables` of the record's five are on disk."""
    examples = [{"row_id": 1, "concept": "some", "hookpoint": "layers.1", "taught": 1.0, "push": 1.0, "activation": 1.0}]
    lessons = [{"row_id": 1, "hookpoint": "layers.1", "features": [1], "taught": [1.0]}]
    whole = {**record(2), "examples": examples, "lessons": lessons}
    line.service.write("run", "before", [(0, "open", None), (1, "record", {**record(1), "examples": examples, "lessons": lessons})])
    line.service.write("run", "before", [(2, "record", {key: whole[key] for key in ["step", *list(SCHEMAS)[:tables]]})])
    line.restart()
    line.service.write("run", "after", [(2, "record", whole), (3, "record", {"step": 2, "scalars": {"eval/nll/x": 1.0}})])
    line.service.close()
    reader = RunReader(line.folder)
    assert stored(line) == ([1, 2], 4, [2]) and reader.curve("eval/nll/x")[0].tolist() == [2]
    assert reader.examples()["step"].to_pylist() == reader.lessons()["step"].to_pylist() == [1, 2]


def test_what_does_not_fit_in_memory_is_lost_and_counted(line):
    line.cut = True
    client = client_of(line, capacity=10)
    for step in range(1, 31):
        client.record(record(step))
    line.cut = False
    assert client.close(20)
    (gap,) = [event for event in RunReader(line.folder).events if event["kind"] == "gap"]
    assert (gap["service"], gap["from_step"], gap["to_step"], gap["count"]) == ("recorder", 1, 20, 20)
    assert stored(line)[0] == list(range(21, 31))


def test_a_recorder_that_is_gone_for_good_is_replaced_at_the_end(line):
    client = client_of(line)
    client.record(record(1))
    with client._changed:
        client._changed.wait_for(lambda: not client._waiting, 20)
    line.restart()
    line.cut = line.final = True
    for step in range(2, 6):
        client.record(record(step))
    assert client.close(20)
    assert stored(line)[0] == [1, 2, 3, 4, 5]
    kinds = [event["kind"] for event in RunReader(line.folder).events]
    assert {"service_lost", "gap"} <= set(kinds)


def test_recording_never_waits_for_the_recorder(line):
    line.cut = True
    client = client_of(line)
    for step in range(1, 500):
        client.record(record(step))  # returns although nobody listens
    assert len(client._waiting) >= 499
    assert not client.close(0.05)


def test_a_failing_view_is_let_go_and_the_record_goes_on(tmp_path):
    class Broken:
        def start(self, report):
            report("sink_note", text="hello")

        def record(self, record):
            raise OSError("no server")

        def close(self, timeout):
            raise AssertionError("was let go")

    RunWriter(tmp_path / "run", CONFIG).close()
    service = RecorderService({"run": str(tmp_path / "run")}, make_sinks=lambda config, folder: [Broken()])
    service.write("run", "s", [(0, "open", None), (1, "record", record(1)), (2, "record", record(2)), (3, "close", None)])
    reader = RunReader(tmp_path / "run")
    assert list(reader.curve("train/loss")[0]) == [1, 2]
    assert [event["kind"] for event in reader.events] == ["sink_note", "recorder_error"]


def test_a_view_that_cannot_be_made_is_left_out_and_the_record_goes_on(tmp_path):
    def make(config, folder):
        raise ConfigError("trackers: aim is not installed")

    RunWriter(tmp_path / "run", CONFIG).close()
    service = RecorderService({"run": str(tmp_path / "run")}, make_sinks=make)
    service.write("run", "s", [(0, "open", None), (1, "record", record(1)), (2, "close", None)])
    reader = RunReader(tmp_path / "run")
    assert list(reader.curve("train/loss")[0]) == [1]
    assert [(event["kind"], event["error"]) for event in reader.events] == [("recorder_error", "trackers: aim is not installed")]


class Seen:
    """A view that keeps what it is shown, and may fail at events."""

    def __init__(self, fails=False):
        self.fails, self.events = fails, []

    def start(self, report):
        report("sink_note", text="hello")

    def record(self, record):
        pass

    def event(self, event):
        self.events.append(event)
        if self.fails:
            raise OSError("no server")

    def close(self, timeout):
        pass


def alarm(step):
    return {"kind": "alarm", "time": float(step), "step": step, "about": "concept", "name": "pirate", "text": "pirate is being learned"}


def test_views_see_the_events_of_a_run_and_a_failing_one_is_let_go(tmp_path):
    RunWriter(tmp_path / "run", CONFIG).close()
    good, bad = Seen(), Seen(fails=True)
    service = RecorderService({"run": str(tmp_path / "run")}, make_sinks=lambda config, folder: [bad, good])
    service.write("run", "s", [(0, "open", None), (1, "event", alarm(4)), (2, "event", alarm(8)), (3, "close", None)])
    assert good.events == [alarm(4), alarm(8)] and bad.events == [alarm(4)]
    kinds = [event["kind"] for event in RunReader(tmp_path / "run").events]
    assert kinds == ["sink_note", "sink_note", "alarm", "recorder_error", "alarm"]


def test_a_view_of_a_recorder_that_came_back_is_not_shown_events_twice(tmp_path):
    RunWriter(tmp_path / "run", CONFIG).close()
    seen = []

    def service():
        seen.append(Seen())
        return RecorderService({"run": str(tmp_path / "run")}, make_sinks=lambda config, folder: [seen[-1]])

    first = service()
    first.write("run", "s", [(0, "open", None), (1, "event", alarm(4))])
    first._writers["run"]._lock.close()  # what the end of its process does
    again = service()
    again.write("run", "s", [(1, "event", alarm(4)), (2, "event", alarm(8)), (3, "close", None)])
    assert [[event["step"] for event in sink.events] for sink in seen] == [[4], [8]]
    assert [event["step"] for event in RunReader(tmp_path / "run").events if event["kind"] == "alarm"] == [4, 8]


def append(path, data):
    with open(path, "ab") as file:
        file.write(data)


def test_alarms_are_told_once_as_they_come_and_not_those_of_before(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    append_line(old / "events.jsonl", alarm(2))  # of the part of the run that is resumed
    alarms = Alarms([old, new])
    assert alarms.new() == []
    append_line(new / "events.jsonl", {"kind": "learned", "step": 4, "clusters": []})
    append_line(new / "events.jsonl", alarm(4))
    append_line(old / "events.jsonl", alarm(6))
    assert alarms.new() == [("old", alarm(6)), ("new", alarm(4))]
    assert alarms.new() == []
    append(new / "events.jsonl", b'{"kind": "alarm", "st')  # being written
    assert alarms.new() == []
    append(new / "events.jsonl", b'ep": 8}\n[1]\n{torn\n')
    append_line(new / "events.jsonl", alarm(9))
    assert alarms.new() == [("new", {"kind": "alarm", "step": 8}), ("new", alarm(9))]
    (new / "events.jsonl").unlink()
    assert alarms.new() == []
    append_line(new / "events.jsonl", alarm(10))  # another file in the place of one that was removed
    assert alarms.new() == [("new", alarm(10))]


def test_what_is_written_to_a_folder_that_was_removed_counts_as_lost_and_the_job_hears_of_it(line):
    line.service.write("run", "one", [(0, "open", None)], {"phase": "training"})
    writer = line.service._writers["run"]
    assert line.service.status()["run"] == {"phase": "training", "unwritten": None}
    writer.record(record(1))
    shutil.rmtree(line.folder)
    writer.record(record(2))
    found = line.service.status()["run"]["unwritten"]
    assert (found["from_step"], found["to_step"], found["rows"]) == (2, 2, 6) and "No such file" in found["error"]
    writer.record(record(3))
    assert line.service.status()["run"]["unwritten"]["to_step"] == 3
    os.makedirs(line.folder / "statistics")  # somebody has put it back
    writer.record(record(4))
    assert line.service.status()["run"]["unwritten"] is None
    assert [event["kind"] for event in read_lines(line.folder / "events.jsonl")] == ["storage_error"]


def test_an_interrupted_study_tells_of_the_arms_that_were_begun_and_of_no_others(tmp_path):
    runs = [_new(RunConfig(**CONFIG, name=arm, arm=arm, runs_dir=str(tmp_path))) for arm in ("none", "rules", "oracle")]
    with RunWriter.open_existing(runs[1].folder) as writer:
        writer.record(record(1))
    assert [summary["arm"] for summary in _summaries(runs, None)] == ["none", "rules"]
    assert list_runs(tmp_path) == [run.folder for run in runs[:2]] and find_run(tmp_path, "last") == runs[1].folder
    (tmp_path / "other").mkdir()
    runs = [_new(RunConfig(**CONFIG, name=arm, arm=arm, runs_dir=str(tmp_path / "other"))) for arm in ("none", "rules")]
    assert [summary["arm"] for summary in _summaries(runs, None)] == ["none"]  # stopped while the first was being prepared
    runs = [_new(RunConfig(**CONFIG, name=arm, arm=arm, runs_dir=str(tmp_path / "other"))) for arm in ("none", "rules")]
    with pytest.raises(RunError, match="could not go on"):
        _summaries(runs, RuntimeError("a rank died"))
    assert not runs[1].folder.exists()


def test_a_run_folder_that_was_removed_is_said_to_be_and_what_is_left_of_it(tmp_path):
    run = _new(RunConfig(**CONFIG, runs_dir=str(tmp_path)))
    shutil.rmtree(run.folder)
    with pytest.raises(RunError, match=f"{run.folder} was removed while the run went on; nothing of it is left"):
        _summaries([run], None)
    (run.folder / "model").mkdir(parents=True)
    with pytest.raises(RunError, match=f"what is left of it is the model in {run.folder / 'model'}"):
        _summaries([run], RuntimeError("no outcome"))


def test_a_run_that_has_begun_begins_again_also_where_nothing_is_recorded_yet(tmp_path):
    run = _new(RunConfig(**CONFIG, runs_dir=str(tmp_path)))
    assert _resume_step(run.folder) is None
    append_line(run.folder / "events.jsonl", {"kind": "started", "step": 0})  # killed while it was fitting concepts
    assert _resume_step(run.folder) == 0


def test_a_run_whose_folder_is_full_ends_in_one_message(tmp_path, monkeypatch):
    run = _new(RunConfig(**CONFIG, runs_dir=str(tmp_path)))

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    problem = _failure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.folder / "model")), run.config, final=True)
    assert problem["kind"] == "RunError" and "trace" not in problem
    assert problem["error"] == f"{run.folder / 'model'}: No space left on device; make room, and resume the run"
    written(run.folder / "outcome.json", problem)
    monkeypatch.setattr(os, "fsync", full)
    written(run.folder / "other.json", problem)
    with pytest.raises(RunError, match="model: No space left on device; make room"):
        _summaries([run], None)
    assert read_outcome(run.folder) == problem and not (run.folder / "summary.json").exists()


def test_a_controller_keeps_versions_and_finds_them_again_after_a_restart(tmp_path):
    first_state(tmp_path, [Rule(concept="a", gain=0.5)], resume=False)
    controller = ControllerService({"run": str(tmp_path)})
    assert controller.get("run", 0)["rules"] == [{"concept": "a", "gain": 0.5}]
    assert controller.get("run", 1)["rules"] is None
    assert controller.set_rules("run", [{"concept": "b"}], 1) == 2
    with pytest.raises(Conflict, match="at version 2, not 1"):
        controller.set_rules("run", [], 1)
    with pytest.raises(ConfigError, match="gian"):
        controller.set_rules("run", [{"concept": "b", "gian": 0}], 2)
    controller.stop()
    again = ControllerService({"run": str(tmp_path)})
    state = again.get("run", 1)
    assert (state["version"], state["stop"], state["rules"]) == (2, True, [{"concept": "b"}])


def test_what_another_process_puts_in_force_is_heard_of_and_undone_step_by_step(tmp_path):
    first_state(tmp_path, [Rule(concept="a")], resume=False)
    controller = ControllerService({"run": str(tmp_path)})
    assert controller.get("run", 1)["rules"] is None
    assert put(tmp_path, [{"concept": "b"}], "set")["version"] == 2
    assert controller.get("run", 1)["rules"] == [{"concept": "b"}]
    assert controller.set_rules("run", [{"concept": "c"}], 2) == 3
    put(tmp_path, [], "off")
    assert controller.get("run", 3)["rules"] == []
    back = [undo(tmp_path)["rules"] for _ in range(3)]
    assert back == [[{"concept": "c"}], [{"concept": "b"}], [{"concept": "a"}]]
    with pytest.raises(ConfigError, match="no change of rules to undo"):
        undo(tmp_path)
    put(tmp_path, [{"concept": "d"}], "set")
    assert undo(tmp_path)["rules"] == [{"concept": "a"}]
    found = [(entry["version"], entry["by"], entry.get("restores")) for entry in history(tmp_path)]
    assert found == [(1, "config", None), (2, "set", None), (3, "set", None), (4, "off", None), (5, "undo", 3), (6, "undo", 2),
                     (7, "undo", 1), (8, "set", None), (9, "undo", 1)]  # fmt: skip
    assert controller.get("run", 4)["version"] == 9
    controller.stop()
    assert read_state(tmp_path)["stop"] and controller.get("run", 9)["stop"]


@pytest.mark.parametrize("restarted", [False, True])
def test_where_a_run_folder_is_removed_the_last_rules_stay_and_the_run_can_be_stopped(tmp_path, restarted):
    folder = tmp_path / "run"
    folder.mkdir()
    first_state(folder, [Rule(concept="a")], resume=False)
    desk = Desk(ControllerService({"run": str(folder)}))
    client = PolicyClient(desk, MemoryRecorder(), 1)
    assert [client.poll(step) for step in range(2)] == [(None, False)] * 2
    shutil.rmtree(folder)
    if restarted:
        desk.service = ControllerService({"run": str(folder)})
    assert [client.poll(step) for step in range(2, 5)] == [(None, False)] * 3
    desk.service.stop()
    assert client.poll(5) == (None, True)


def test_the_wish_to_stop_is_heard_where_there_is_no_room_to_write_it_down(desk, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(policies, "write_json", full)
    client = PolicyClient(desk, MemoryRecorder(), 0)
    client.poll(0)
    desk.service.stop()
    assert client.poll(1) == (None, True)


def test_a_run_whose_record_is_damaged_is_not_resumed_since_nothing_could_be_recorded(tmp_path):
    config = RunConfig.model_validate({"data": {"train": ["demo:arithmetic-train"]}})
    with RunWriter(tmp_path / "run", config.model_dump(mode="json")):
        pass
    (tmp_path / "run" / "statistics" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="manifest.json"):
        _resumed(config, tmp_path / "run")


def test_a_resumed_run_keeps_the_rules_that_were_in_force(tmp_path):
    first_state(tmp_path, [], resume=False)
    controller = ControllerService({"run": str(tmp_path)})
    controller.set_rules("run", [{"concept": "b"}], 0)
    controller.stop()
    policy = first_state(tmp_path, [], resume=True)
    assert (policy.version, policy.rules[0].concept) == (1, "b")
    assert read_state(tmp_path)["stop"] is False


def test_a_rule_of_mode_auto_stays_in_the_policy_as_what_it_has_become(tmp_path):
    first_state(tmp_path, [Rule(concept="c", mode="auto")], resume=False)
    service = ControllerService({"run": str(tmp_path)})
    client = PolicyClient(lambda version: lambda: None, None, 1, lambda *told: service.settle("run", *told))
    client.settle(Policy(version=1, rules=(Rule(concept="c", mode="rewrite"),)))
    assert service.get("run", 0)["rules"] == read_state(tmp_path)["rules"] == [{"concept": "c", "mode": "rewrite"}]
    assert service.get("run", 1)["rules"] is None  # the version is the one that the ranks have
    service.set_rules("run", [], 1)
    service.settle("run", 1, [{"concept": "c", "mode": "route"}])  # too late: other rules are in force
    assert read_state(tmp_path)["rules"] == []
    with pytest.raises(ConfigError, match="auto is settled before"):
        service.set_rules("run", [{"concept": "c", "mode": "auto"}], 2)


def test_inoculate_is_no_rule_to_send_to_a_run_that_began_without_it(tmp_path):
    rule = {"concept": "c", "mode": "inoculate", "prompt": "Be rude."}
    begun, other = tmp_path / "begun", tmp_path / "other"
    for folder, rules in ((begun, [rule]), (other, [{"concept": "c"}])):
        folder.mkdir()
        first_state(folder, load_rules(rules), resume=False)
        for sent in ([], [{"concept": "c", "gain": 0.5}]):
            put(folder, dump_rules(check_rules(folder, sent)), "set")
    assert dump_rules(check_rules(begun, [rule])) == [rule]
    for folder, changed in ((other, rule), (begun, {**rule, "prompt": "Be kind."})):
        with pytest.raises(ConfigError, match=f"inoculate acts on the rows with which a run begins, and {folder.name} began without it"):
            check_rules(folder, [changed])


class Desk:
    """A controller that may not answer."""

    def __init__(self, service):
        self.service, self.away, self.final, self.slow = service, False, False, False

    def __call__(self, known):
        def answer():
            if self.away:
                raise control.Lost(self.final)
            return None if self.slow else self.service.get("run", known)

        return answer


@pytest.fixture
def desk(tmp_path):
    first_state(tmp_path, [], resume=False)
    return Desk(ControllerService({"run": str(tmp_path)}))


def test_new_rules_and_the_wish_to_stop_reach_the_client(desk):
    client = PolicyClient(desk, MemoryRecorder(), 0)
    assert client.poll(0) == (None, False)  # only asks
    desk.service.set_rules("run", [{"concept": "a"}], 0)
    policy, stop = client.poll(1)
    assert (policy.version, policy.rules[0].concept, stop) == (1, "a", False)
    desk.service.stop()
    assert client.poll(2) == (None, True)


def test_rules_that_cannot_be_read_are_refused_and_training_goes_on(desk, tmp_path):
    recorder = MemoryRecorder()
    client = PolicyClient(desk, recorder, 0)
    client.poll(0)
    put(tmp_path, [{"concept": "a", "mode": "of a later version"}], "set")
    assert client.poll(1) == (None, False) and client.poll(2) == (None, False)
    assert [(event["kind"], event["version"]) for event in recorder.events] == [("policy_refused", 1)]
    desk.service.set_rules("run", [{"concept": "a"}], 1)
    assert client.poll(3)[0].version == 2


def test_a_slow_controller_is_not_waited_for(desk):
    client = PolicyClient(desk, MemoryRecorder(), 0)
    desk.slow = True
    desk.service.set_rules("run", [{"concept": "a"}], 0)
    assert [client.poll(step) for step in range(5)] == [(None, False)] * 5
    desk.slow = False
    assert client.poll(5)[0].version == 1


def test_an_outage_of_the_controller_is_noted_with_its_steps(desk):
    recorder = MemoryRecorder()
    client = PolicyClient(desk, recorder, 0)
    client.poll(0), client.poll(1)
    desk.away = True
    client.poll(2), client.poll(3), client.poll(4)
    desk.away = False
    client.poll(5), client.poll(6)
    gap = recorder.events[-1]
    assert [event["kind"] for event in recorder.events] == ["service_lost", "service_back", "gap"]
    assert (gap["service"], gap["from_step"], gap["to_step"] >= 5) == ("controller", 2, True)


def test_a_controller_that_came_back_between_two_questions_is_noted_too(desk, tmp_path):
    recorder = MemoryRecorder()
    client = PolicyClient(desk, recorder, 0)
    client.poll(0), client.poll(1)
    desk.service = ControllerService({"run": str(tmp_path)})
    client.poll(2)
    assert [event["kind"] for event in recorder.events] == ["service_back", "gap"]


def test_a_controller_that_is_gone_for_good_leaves_the_last_rules(desk):
    recorder = MemoryRecorder()
    client = PolicyClient(desk, recorder, 0)
    client.poll(0)
    desk.away = desk.final = True
    assert [client.poll(step) for step in range(1, 4)] == [(None, False)] * 3
    client.close()
    assert [event["kind"] for event in recorder.events] == ["service_lost", "gap"]


def test_hookpoints_are_dealt_out_among_the_lens_actors():
    hooks = ["layers.1", "layers.2", "layers.3"]
    assert deal(hooks, 2) == [["layers.1", "layers.3"], ["layers.2"]]
    assert deal(hooks, 5) == [[hook] for hook in hooks] and deal([], 2) == []


def test_rules_that_the_run_refused_are_not_what_it_begins_with_again(tmp_path):
    first_state(tmp_path, [Rule(concept="c")], resume=False)
    service = ControllerService({"run": str(tmp_path)})
    version = service.set_rules("run", [{"concept": "c", "gain": 0.5}, {"concept": "other"}], 1)
    client = PolicyClient(lambda version: lambda: None, None, version, lambda *told: service.settle("run", *told))
    client.settle(Policy(version=version, rules=(Rule(concept="c"),)), "refused")
    assert first_state(tmp_path, [], resume=True).rules == (Rule(concept="c"),)
    assert [entry["by"] for entry in history(tmp_path)] == ["config", "set", "refused"]
    with pytest.raises(ConfigError, match="no change of rules to undo"):
        undo(tmp_path)


def test_undo_passes_over_a_change_that_the_run_refused(tmp_path):
    first_state(tmp_path, [Rule(concept="a")], resume=False)
    put(tmp_path, [{"concept": "b"}], "set")
    put(tmp_path, [{"concept": "nonsense"}], "set")
    settle(tmp_path, 3, [{"concept": "b"}], by="refused")
    assert undo(tmp_path)["rules"] == [{"concept": "a"}]
