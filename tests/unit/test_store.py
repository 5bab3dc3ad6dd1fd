"""The run folder: what was recorded can be read, live, after a crash, after damage."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradlens.errors import ConfigError, InputError, RunError
from gradlens.recording import segments
from gradlens.recording.lookup import find_run, list_runs, runs_table
from gradlens.recording.runfolder import is_running
from gradlens.recording.store import RunReader, RunWriter


def a_record(step, features=4, dense=0, hookpoints=("layers.1", "layers.3")):
    rng = np.random.default_rng(step)
    record = {
        "step": step,
        "time": 0.0,
        "scalars": {"train/loss": 5.0 / step, "layers.1/unexplained": 0.25},
        "features": {
            hookpoint: {
                "feature": rng.permutation(100)[:features].astype(np.int32),
                **{name: rng.standard_normal(features).astype(np.float32) for name in ("push", "attribution", "energy")},
            }
            for hookpoint in hookpoints
        },
        "examples": [
            {"row_id": step, "concept": "pirate", "hookpoint": "layers.1", "push": 0.5, "activation": 2.0}
            | ({"taught": 0.75, "positions": [3, 1], "token_taught": [0.5, 0.25]} if step % 2 else {})
        ],
        "lessons": [
            {"row_id": step, "hookpoint": hookpoint, "features": [7, 3][: step % 3], "taught": [0.5, 0.25][: step % 3]}
            for hookpoint in hookpoints
        ],
    }
    if dense:
        names = ("push", "attribution", "energy", "drift", "drift_direction", "probe_rate")
        record["dense"] = {h: {name: rng.standard_normal(dense).astype(np.float32) for name in names} for h in hookpoints}
    return record


def test_what_was_recorded_is_read_back_exactly(tmp_path):
    with RunWriter(tmp_path / "run", {"name": "demo"}, seal_every=3) as writer:
        records = [a_record(step, dense=7 if step % 4 == 0 else 0) for step in range(1, 11)]
        for record in records:
            writer.record(record)
    reader = RunReader(tmp_path / "run")
    assert reader.config == {"name": "demo"}
    steps, losses = reader.curve("train/loss")
    assert steps.tolist() == list(range(1, 11))
    assert losses.tolist() == [5.0 / step for step in range(1, 11)]
    assert reader.keys() == ["layers.1/unexplained", "train/loss"]
    assert reader.hookpoints == ["layers.1", "layers.3"]
    rows = reader.features("layers.3").to_pydict()
    for name in ("feature", "push", "attribution", "energy"):
        np.testing.assert_array_equal(rows[name], np.concatenate([record["features"]["layers.3"][name] for record in records]))
    assert reader.dense_steps("layers.1") == [4, 8]
    last = reader.dense("layers.1")
    assert last["step"].to_pylist() == [8] * 7
    assert last["feature"].to_pylist() == list(range(7))
    np.testing.assert_array_equal(last["drift"].to_numpy(), records[7]["dense"]["layers.1"]["drift"])
    np.testing.assert_array_equal(reader.dense("layers.1", step=4)["push"].to_numpy(), records[3]["dense"]["layers.1"]["push"])
    assert reader.examples("pirate")["row_id"].to_pylist() == list(range(1, 11))
    assert reader.examples("nothing").num_rows == 0
    assert reader.examples("pirate")["taught"].to_pylist() == [0.75, None] * 5
    assert reader.examples("pirate")["token_taught"].to_pylist() == [[0.5, 0.25], None] * 5
    assert reader.lessons("layers.3").select(["step", "row_id", "features", "taught"]).to_pylist()[:3] == [
        {"step": 1, "row_id": 1, "features": [7], "taught": [0.5]},
        {"step": 2, "row_id": 2, "features": [7, 3], "taught": [0.5, 0.25]},
        {"step": 3, "row_id": 3, "features": [], "taught": []},
    ]
    assert reader.lessons().num_rows == 20 and reader.lessons("layers.9").num_rows == 0


def test_the_folder_holds_versions_and_a_config_that_loads_again(tmp_path):
    from gradlens.config import RunConfig, load_config

    config = RunConfig.model_validate({"data": {"train": ["a.jsonl"]}, "rules": [{"concept": "pirate"}]})
    RunWriter(tmp_path / "run", config).close()
    assert load_config(tmp_path / "run" / "config.yaml", environ={}) == config
    versions = RunReader(tmp_path / "run").versions
    assert versions["python"] == sys.version.split()[0]
    assert versions["torch"] and versions["gpus"] == [] or isinstance(versions["gpus"], list)


def test_a_run_is_readable_while_it_is_written(tmp_path):
    writer = RunWriter(tmp_path / "run", seal_every=3)
    reader = RunReader(tmp_path / "run")
    assert reader.curve("train/loss")[0].tolist() == []
    for step in range(1, 8):  # over sealed and open segments
        writer.record(a_record(step))
        assert reader.curve("train/loss")[0].tolist() == list(range(1, step + 1))
    assert reader.status == "running"
    assert reader.summary is None
    writer.write_json("summary.json", {"status": "done", "loss_last": float("nan")})
    writer.close()
    assert reader.status == "done"
    assert reader.summary == {"status": "done", "loss_last": None}


def test_nan_and_infinite_numbers_are_kept(tmp_path):
    with RunWriter(tmp_path / "run") as writer:
        part = {"feature": np.array([1, 2]), "push": np.array([np.nan, np.inf])}
        writer.record({"step": 1, "scalars": {"a": float("nan"), "b": float("-inf")}, "features": {"layers.1": part}})
        writer.event("alarm", value=float("nan"), values=np.array([1.0, np.inf]))
    reader = RunReader(tmp_path / "run")
    assert np.isnan(reader.curve("a")[1][0]) and reader.curve("b")[1][0] == -np.inf
    rows = reader.features("layers.1")
    np.testing.assert_array_equal(rows["push"].to_numpy(), np.array([np.nan, np.inf], np.float32))
    assert rows["energy"].null_count == 2  # not recorded is not NaN
    assert reader.events[0]["value"] is None and reader.events[0]["values"] == [1.0, None]


def test_a_record_of_nothing_but_a_step_is_fine_and_a_wrong_length_is_named(tmp_path):
    with RunWriter(tmp_path / "run") as writer:
        writer.record({"step": 0})
        with pytest.raises(ValueError, match=r"step 1: features\.layers\.1\.push has 2 rows, expected 3"):
            writer.record({"step": 1, "features": {"layers.1": {"feature": np.arange(3), "push": np.zeros(2)}}})
        writer.record({"step": 2, "dense": {"layers.1": {"push": np.zeros(2), "charm": np.ones(2)}}})
    assert [(event["kind"], event["column"]) for event in RunReader(tmp_path / "run").events] == [("not_stored", "charm")]


def test_sql_sees_sealed_and_open_segments_alike(tmp_path):
    with RunWriter(tmp_path / "run", seal_every=4) as writer:
        for step in range(1, 7):
            writer.record(a_record(step, dense=3))
        reader = RunReader(tmp_path / "run")
        assert reader.query("SELECT count(*) AS n, max(step) AS last FROM features").to_pylist() == [{"n": 48, "last": 6}]
        joined = (
            "SELECT s.value FROM scalars s JOIN dense d USING (step) WHERE key = 'train/loss' AND feature = 0 AND hookpoint = 'layers.1'"
        )
        assert reader.query(joined).num_rows == 6
        lessons = "SELECT feature, count(*) AS n FROM (SELECT unnest(features) AS feature FROM lessons) GROUP BY ALL ORDER BY n"
        assert reader.query(lessons).to_pylist() == [{"feature": 3, "n": 4}, {"feature": 7, "n": 8}]
        with pytest.raises(InputError, match="query: .*nowhere"):
            reader.query("SELECT * FROM nowhere")


WRITE_FOREVER = """
import sys
import numpy as np
from gradlens.recording.store import RunWriter
writer = RunWriter(sys.argv[1], seal_every=7)
for step in range(1, 100_000):
    part = {"feature": np.arange(50), "push": np.full(50, step, np.float32)}
    writer.record({"step": step, "scalars": {"train/loss": float(step)}, "features": {"layers.1": part}})
    writer.event("tick", step=step)
    print(step, flush=True)
"""


@pytest.mark.parametrize("after", [3, 20, 61])
def test_everything_acknowledged_is_readable_after_kill_9(tmp_path, after):
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged == after:
            os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and acknowledged >= after
    reader = RunReader(tmp_path / "run")
    assert reader.status == "stopped"
    steps, losses = reader.curve("train/loss")
    # It may have got one step further than it could say.
    assert steps.tolist()[:acknowledged] == list(range(1, acknowledged + 1)) and len(steps) <= acknowledged + 1
    assert losses.tolist() == steps.tolist()
    assert reader.query(f"SELECT count(*) AS n FROM features WHERE step <= {acknowledged}")["n"][0].as_py() == 50 * acknowledged
    assert [event["step"] for event in reader.events][:acknowledged] == list(range(1, acknowledged + 1))
    # And it can be gone on with.
    with RunWriter.open_existing(tmp_path / "run", resume_step=acknowledged) as writer:
        writer.record({"step": acknowledged + 1, "scalars": {"train/loss": -1.0}})
    assert reader.curve("train/loss")[1].tolist() == [*map(float, range(1, acknowledged + 1)), -1.0]
    assert all(row["state"] in ("sealed", "whole") for row in reader.verify())


def test_a_torn_tail_loses_only_what_was_torn(tmp_path):
    writer = RunWriter(tmp_path / "run")
    for step in range(1, 6):
        writer.record(a_record(step))
        writer.event("tick")
    segment = next((tmp_path / "run" / "statistics").glob("scalars-*.arrow"))
    whole = segment.read_bytes()
    events = (tmp_path / "run" / "events.jsonl").read_bytes()
    (tmp_path / "run" / "events.jsonl").write_bytes(events[:-5])
    assert [event["step"] for event in RunReader(tmp_path / "run").events] == [1, 2, 3, 4]
    writer.event("after")
    read = RunReader(tmp_path / "run").events
    assert [event["kind"] for event in read] == ["tick"] * 4 + ["unreadable", "after"]
    counts = set()
    for cut in range(0, len(whole), 7):
        segment.write_bytes(whole[:cut])
        steps = RunReader(tmp_path / "run").curve("train/loss")[0].tolist()
        assert steps == list(range(1, len(steps) + 1))
        counts.add(len(steps))
    assert counts == {0, 1, 2, 3, 4}


def test_resume_drops_rows_past_the_checkpoint_in_sealed_and_open_segments(tmp_path):
    writer = RunWriter(tmp_path / "run", seal_every=4)
    for step in range(1, 11):
        writer.record(a_record(step, dense=3))
    writer.write_json("summary.json", {"status": "interrupted"})
    writer._lock.close()  # died: sealed 1-4, 5-8; open 9-10
    with RunWriter.open_existing(tmp_path / "run", resume_step=6) as writer:
        reader = RunReader(tmp_path / "run")
        assert reader.summary is None
        assert reader.curve("train/loss")[0].tolist() == [1, 2, 3, 4, 5, 6]
        assert reader.dense_steps() == [1, 2, 3, 4, 5, 6]
        for step in (7, 8):
            writer.record({"step": step, "scalars": {"train/loss": 0.0}})
    reader = RunReader(tmp_path / "run")
    assert reader.curve("train/loss")[1].tolist() == [5.0 / step for step in range(1, 7)] + [0.0, 0.0]
    assert reader.events[-1]["kind"] == "resumed" and reader.events[-1]["step"] == 6
    listed = {entry["file"] for entry in json.loads((tmp_path / "run/statistics/manifest.json").read_text())["segments"]}
    assert {path.name for path in (tmp_path / "run/statistics").iterdir()} == listed | {"manifest.json"}


def test_steps_of_a_checkpoint_that_were_never_recorded_are_told_of(tmp_path):
    writer = RunWriter(tmp_path / "run")
    writer.record(a_record(1))
    writer._lock.close()  # died while the records of steps 2 to 4 were on their way
    for step in (4, 4):
        RunWriter.open_existing(tmp_path / "run", resume_step=step).close()
    (gap, _) = [event for event in RunReader(tmp_path / "run").events if event["kind"] == "gap"]
    assert (gap["from_step"], gap["to_step"], gap["count"]) == (2, 4, 3)
    with RunWriter.open_existing(tmp_path / "run", resume_step=1):
        assert [event["kind"] for event in RunReader(tmp_path / "run").events][-1] == "resumed"


def test_a_run_that_begins_again_keeps_no_row_not_even_of_before_its_first_step(tmp_path):
    writer = RunWriter(tmp_path / "run", seal_every=2)
    for step in range(4):
        writer.record({"step": step, "scalars": {"own/some/rate": 0.0}})
    writer._lock.close()  # died without a checkpoint
    with RunWriter.open_existing(tmp_path / "run", resume_step=0, begins_again=True) as writer:
        assert not RunReader(tmp_path / "run").keys()
        writer.record({"step": 0, "scalars": {"own/some/rate": 0.5}})
    assert RunReader(tmp_path / "run").curve("own/some/rate")[1].tolist() == [0.5]


def test_a_crash_between_sealing_and_the_manifest_counts_no_row_twice(tmp_path):
    writer = RunWriter(tmp_path / "run")
    writer.record(a_record(1))
    open_files = {path: path.read_bytes() for path in (tmp_path / "run/statistics").glob("*.arrow")}
    writer.close()
    for path, data in open_files.items():  # sealed and listed, the Arrow file not yet removed
        path.write_bytes(data)
    assert RunReader(tmp_path / "run").curve("train/loss")[0].tolist() == [1]
    (tmp_path / "run/statistics/manifest.json").unlink()  # sealed, but not listed
    assert RunReader(tmp_path / "run").curve("train/loss")[0].tolist() == [1]
    RunWriter.open_existing(tmp_path / "run").close()
    assert RunReader(tmp_path / "run").curve("train/loss")[0].tolist() == [1]
    assert not list((tmp_path / "run/statistics").glob("*.arrow"))


@pytest.mark.parametrize("where", [0.3, 0.6, 0.98])
def test_a_flipped_bit_is_found_and_the_rest_stays_readable(tmp_path, where):
    with RunWriter(tmp_path / "run", seal_every=2) as writer:
        for step in range(1, 5):
            writer.record(a_record(step))
    damaged = sorted((tmp_path / "run/statistics").glob("features-*.parquet"))[0]
    data = bytearray(damaged.read_bytes())
    data[int(where * len(data))] ^= 4
    damaged.write_bytes(data)
    reader = RunReader(tmp_path / "run")
    with pytest.raises(InputError, match=damaged.name):
        reader.features("layers.1")
    with pytest.raises(InputError, match=damaged.name):
        reader.query("SELECT * FROM Features")
    assert reader.query("SELECT count(*) AS n FROM scalars")["n"].to_pylist() == [8]
    assert reader.curve("train/loss")[0].tolist() == [1, 2, 3, 4]
    rest = RunReader(tmp_path / "run", skip_damaged=True)
    assert set(rest.features("layers.1")["step"].to_pylist()) == {3, 4}
    states = {row["file"]: row["state"] for row in reader.verify()}
    assert states.pop(damaged.name) == "damaged"
    assert set(states.values()) == {"sealed", "whole"}
    with RunWriter.open_existing(tmp_path / "run", resume_step=1):
        pass
    assert [event["kind"] for event in RunReader(tmp_path / "run").events] == ["segment_damaged", "resumed"]
    assert RunReader(tmp_path / "run").curve("train/loss")[0].tolist() == [1]


LIMITED = """
import resource, signal, sys
import numpy as np
from gradlens.recording.store import RunWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = RunWriter(sys.argv[1], seal_every=1000)
rng = np.random.default_rng(0)
def record(step):
    part = {"feature": np.arange(200), "push": rng.standard_normal(200).astype(np.float32)}
    writer.record({"step": step, "scalars": {"train/loss": float(step)}, "features": {"layers.1": part}})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for step in range(1, 101):
    record(step)
lost = writer.lost
assert 0 < lost < 201 * 100, lost
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for step in range(101, 111):
    record(step)
assert writer.lost == lost
writer.close()
print(lost)
"""


def test_a_full_disk_costs_rows_but_never_an_exception(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lost = int(done.stdout)
    reader = RunReader(tmp_path / "run")
    kept = set(reader.features("layers.1")["step"].to_pylist())
    assert reader.features("layers.1").num_rows + reader.scalars().num_rows == 110 * 201 - lost
    assert {1, *range(101, 111)} <= kept
    assert reader.curve("train/loss")[0].tolist()[-10:] == list(range(101, 111))
    errors = [event for event in reader.events if event["kind"] == "storage_error"]
    assert sum(event["rows"] for event in errors) == lost
    assert "File too large" in errors[0]["error"]
    assert len(errors) <= 3  # not one for each of a hundred steps: they take up room, and are told on the screen
    assert all(row["state"] in ("sealed", "whole") for row in reader.verify())


def test_a_run_that_was_moved_is_shown_where_it_is(tmp_path):
    with RunWriter(tmp_path / "run") as writer:
        writer.write_json("summary.json", {"status": "done", "run_dir": str(tmp_path / "run")})
    (tmp_path / "run").rename(tmp_path / "moved")
    assert RunReader(tmp_path / "moved").summary == {"status": "done", "run_dir": str(tmp_path / "moved")}


def test_one_writer_at_a_time_and_no_run_over_another(tmp_path):
    writer = RunWriter(tmp_path / "run")
    writer.record(a_record(1))
    with pytest.raises(RunError, match="another process is writing"):
        RunWriter.open_existing(tmp_path / "run", 1)
    writer.close()
    with pytest.raises(ConfigError, match="already holds a run"):
        RunWriter(tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume"):
        RunWriter.open_existing(tmp_path / "nothing", 1)
    RunWriter.open_existing(tmp_path / "run").close()


def test_a_run_that_has_ended_is_not_going_on_though_a_process_forked_meanwhile_lives(tmp_path):
    writer = RunWriter(tmp_path / "run")
    forked = os.dup(writer._lock.fileno())  # what a worker of a DataLoader holds
    assert is_running(tmp_path / "run")
    writer.close()
    assert not is_running(tmp_path / "run")
    os.close(forked)


def test_runs_are_found_by_path_id_beginning_and_last(tmp_path):
    for age, name in enumerate(["pirate-1", "pirate-2", "arithmetic-1"]):
        RunWriter(tmp_path / name, {"name": name.split("-")[0]}).close()
        os.utime(tmp_path / name / "config.yaml", (age, age))
    assert [path.name for path in list_runs(tmp_path)] == ["pirate-1", "pirate-2", "arithmetic-1"]
    for query in ("arithmetic-1", "arith", "last", "latest", tmp_path / "arithmetic-1"):
        assert find_run(tmp_path, query) == tmp_path / "arithmetic-1"
    with pytest.raises(InputError, match="2 runs begin so: pirate-1, pirate-2"):
        find_run(tmp_path, "pirate")
    with pytest.raises(InputError, match="not found .* near: pirate-2"):
        find_run(tmp_path, "pirat-2")
    with pytest.raises(InputError, match="no runs in"):
        find_run(tmp_path / "empty", "last")


def test_the_table_of_runs_says_how_each_of_them_ended(tmp_path):
    with RunWriter(tmp_path / "done", {"name": "a", "rules": [{"mode": "route", "concept": "pirate"}, "more/rules.yaml"]}) as writer:
        writer.write_json("summary.json", {"status": "done", "steps": 9, "loss_first": 2.0, "loss_last": 1.0, "seconds": 3.0})
    with RunWriter(tmp_path / "killed") as writer:
        writer.record(a_record(1))
        writer.record(a_record(2))
    RunWriter(tmp_path / "broken").close()
    (tmp_path / "broken/config.yaml").write_text("a: [")
    rows = {row["run_id"]: row for row in runs_table(tmp_path)}
    assert rows["done"]["status"] == "done" and rows["done"]["rules"] == ["route:pirate", "rules"]
    assert (rows["killed"]["status"], rows["killed"]["steps"], rows["killed"]["loss_last"]) == ("stopped", 2, 2.5)
    assert rows["broken"]["status"] == "unreadable" and "not valid YAML" in rows["broken"]["error"]


def test_a_run_of_somebody_else_that_cannot_be_read_is_no_trouble(tmp_path, monkeypatch):
    for name in ("mine", "closed", "secret"):
        RunWriter(tmp_path / name, {"name": name}).close()
    plain_stat, plain_open = os.stat, Path.open  # root, as whom tests may run, is refused nothing

    def refuse(path, *arguments, **more):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return plain_stat(path, *arguments, **more)

    def refuse_open(path, *arguments, **more):
        if "secret" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return plain_open(path, *arguments, **more)

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(Path, "open", refuse_open)
    assert find_run(tmp_path, "mine") == tmp_path / "mine"
    rows = {row["run_id"]: row for row in runs_table(tmp_path)}
    assert set(rows) == {"mine", "secret"} and rows["mine"]["status"] == "stopped"
    assert rows["secret"]["status"] == "unreadable" and "Permission denied" in rows["secret"]["error"]


def test_a_segment_sealed_between_being_listed_and_being_read_is_there_once(tmp_path, monkeypatch):
    writer, reader, listed = RunWriter(tmp_path / "run"), RunReader(tmp_path / "run"), segments.list_segments

    def then_sealed(folder):
        found = listed(folder)
        monkeypatch.setattr(segments, "list_segments", listed)
        writer.seal()
        return found

    for step, read in enumerate((reader.verify, reader.scalars), 1):
        writer.record({"step": step, "scalars": {"train/loss": 1.0}})
        monkeypatch.setattr(segments, "list_segments", then_sealed)
        found = read()
    assert found["step"].to_pylist() == [1, 2]
    assert [row["state"] for row in reader.verify()] == ["sealed", "sealed", "whole"]
    writer.close()


def test_segments_of_a_version_with_fewer_columns_are_read(tmp_path, monkeypatch):
    old = segments.SCHEMAS["examples"]
    for name in ("taught", "positions", "token_taught"):
        old = old.remove(old.get_field_index(name))
    with monkeypatch.context() as patch:
        patch.setitem(segments.SCHEMAS, "examples", old)
        with RunWriter(tmp_path / "run", {}) as writer:
            writer.record(a_record(1))
    with RunWriter.open_existing(tmp_path / "run") as writer:
        writer.record(a_record(3))
        reader = RunReader(tmp_path / "run")
        for _ in ("open", "sealed"):
            assert reader.examples("pirate")["positions"].to_pylist() == [None, [3, 1]]
            rows = reader.query("SELECT row_id, token_taught FROM examples ORDER BY row_id").to_pylist()
            assert [row["row_id"] for row in rows] == [1, 3] and rows[0]["token_taught"] is None
            writer.seal()


def test_a_manifest_that_names_files_elsewhere_is_refused_and_they_stay(tmp_path):
    with RunWriter(tmp_path / "run") as writer:
        writer.record(a_record(1))
    manifest = tmp_path / "run" / "statistics" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"scalars-', '"../../scalars-'))
    (tmp_path / "scalars-000001.parquet").touch()
    with pytest.raises(InputError, match="not a manifest .*scalars-000001.parquet is not the name of a segment"):
        RunWriter.open_existing(tmp_path / "run", 0)
    assert (tmp_path / "scalars-000001.parquet").exists()
