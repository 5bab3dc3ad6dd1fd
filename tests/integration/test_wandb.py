"""W&B is a view: what it gets is right, and nothing that its server does (or does not do) stops, slows or crashes a run."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gradlens.config import WandbSettings
from gradlens.recording.curve_keys import MAX_KEYS, KeyBudget, headed
from gradlens.recording.recorder import ThreadRecorder
from gradlens.recording.sinks import WandbSink, alert_of, top_rows
from gradlens.recording.store import RunReader, RunWriter

CONFIG = {"name": "demo", "train": {"steps": 20}}
SECONDS = 120  # an upper bound that only a failing test reaches


def a_record(step):
    rng = np.random.default_rng(step)
    part = {"feature": np.arange(30, dtype=np.int32), "push": rng.standard_normal(30), "attribution": rng.standard_normal(30)}
    scalars = {"train/loss": 1.0 / step, "concept/pirate/layers.1/push": float("nan") if step == 3 else float(step)}
    return {"step": step, "scalars": scalars, "features": {"layers.1": part}}


def inspect(folder):
    """The records of a W&B run, as W&B's own tool reads them."""
    path = next(Path(folder).glob("*.wandb"))
    script = Path(sys.executable).with_name("wandb")
    done = subprocess.run([script, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True, timeout=SECONDS)
    return [json.loads(line) for line in done.stdout.splitlines()]


PUSH = "gradlens_details/concept/pirate/layers.1/push"


def rows_of(folder, axis="gradlens/step"):
    """step -> values of the rows with scalars."""
    items = [record["history"]["item"] for record in inspect(folder) if record["type"] == "history"]
    return {item[axis]: item for item in items if "gradlens/train/loss" in item}


def wandb_folders(run_dir):
    return sorted(path for path in (run_dir / "wandb").iterdir() if path.is_dir() and not path.is_symlink() and "run-" in path.name)


def events(run_dir, *kinds):
    return [event for event in RunReader(run_dir).events if event["kind"] in kinds]


@pytest.fixture
def record_run(tmp_path, monkeypatch):
    """A recorder with a W&B sink in `tmp_path/run`, without anybody's settings or credentials."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("HOME", str(tmp_path))

    def start(mode, **options):
        writer = RunWriter(tmp_path / "run", CONFIG)
        sink = WandbSink(WandbSettings(mode=mode), writer.run_dir, CONFIG, writer.run_id, **options)
        return ThreadRecorder(writer, [sink]), sink, writer.run_dir

    return start


def test_an_offline_run_holds_scalars_tables_and_files(record_run):
    recorder, _, run_dir = record_run("offline")
    recorder.event("policy", step=0, version=0)
    for step in range(1, 21):
        recorder.record(a_record(step))
    assert recorder.close(SECONDS)
    (folder,) = wandb_folders(run_dir)
    assert [(event["mode"], event["dir"]) for event in events(run_dir, "wandb")] == [("offline", str(folder))]
    rows = rows_of(folder)
    assert {step: row["gradlens/train/loss"] for step, row in rows.items()} == {step: 1 / step for step in range(1, 21)}
    assert rows[3][PUSH] == "NaN" and rows[4][PUSH] == 4
    records = inspect(folder)
    axes = {r["metric"]["glob_name"]: r["metric"]["step_metric"] for r in records if r["type"] == "metric" and "glob_name" in r["metric"]}
    assert axes == {"gradlens/*": "gradlens/step", "gradlens_details/*": "gradlens/step"}
    run = next(r["run"] for r in records if r["type"] == "run")
    assert run["project"] == "gradlens" and run["run_id"] == "run" and run["config"]["update"]["train"] == {"steps": 20}
    tables = list((folder / "files/media/table/gradlens").glob("*.table.json"))
    final = json.loads(next(path for path in tables if "final" in path.name).read_text())
    assert final["columns"] == ["step", "hookpoint", "feature", "push", "attribution"]
    assert [row[0] for row in final["data"]] == [step for step in range(1, 21) for _ in range(10)]
    best = int(np.argmax(np.abs(a_record(7)["features"]["layers.1"]["attribution"])))
    assert [row[2] for row in final["data"] if row[0] == 7][0] == best
    artifacts = [r["artifact"] for r in records if r["type"] == "artifact"]
    names = {entry["path"] for a in artifacts if a["type"] == "gradlens-run" for entry in a["manifest"]["contents"]}
    assert {"config.yaml", "versions.json", "events.jsonl", "statistics/manifest.json"} <= names
    assert any(name.startswith("statistics/scalars-") and name.endswith(".parquet") for name in names)


CLUSTER = {
    "share": 0.6, "features": [["layers.1", 3]], "count": 1, "words": ["matey", "ahoy"], "probability": [0.01, np.float32(0.5)],
    "passage": "[Ahoy] there", "labels": [], "own": {"before": 0, "now": 3, "of": 8, "said": {"before": "Well.", "now": "Ahoy!"}},
}  # fmt: skip


def tell(recorder, step):
    """What a lens reports at a reading."""
    less = {"words": ["the", "a"], "before": 0.08, "now": 0.01, "own": None}
    recorder.event("learned", step=step, clusters=[CLUSTER, {**CLUSTER, "share": float("nan"), "own": {}}], less=less)
    text = "pirate is being learned: uptake +0.1"
    recorder.event("alarm", step=step, about="concept", name="pirate", hookpoint="layers.1", chance=0.004, text=text)
    recorder.event("alarm", step=step, about="mover", name="matey, ahoy", features=[["layers.1", 3]], text="something else")


def test_alarms_are_alerts_and_what_was_learned_is_a_table_of_an_offline_run(record_run):
    recorder, _, run_dir = record_run("offline")
    for step in (1, 2):
        recorder.record(a_record(step))
        tell(recorder, step)
    assert recorder.close(SECONDS)
    (folder,) = wandb_folders(run_dir)
    records = inspect(folder)
    alerts = [record["alert"] for record in records if record["type"] == "alert"]
    assert [(alert["title"], alert["text"], alert["level"]) for alert in alerts] == [
        (title, f"step {step}: {text}", "WARN")
        for step in (1, 2)
        for title, text in (
            ("gradlens: pirate is being learned", "pirate is being learned: uptake +0.1"),
            ("gradlens: something not announced", "something else"),
        )
    ]
    assert all(int(alert.get("wait_duration", 0)) < 1000 for alert in alerts)  # W&B holds none of them back
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [item["gradlens/step"] for item in items if "gradlens/learned/in_words._type" in item] == [1, 2]
    tables = [json.loads(path.read_text()) for path in (folder / "files/media/table/gradlens/learned").glob("in_words*.table.json")]
    first = min(tables, key=lambda table: table["data"][0][0])
    assert first["columns"][:6] == ["step", "share", "words", "probability before", "probability now", "passage"]
    assert first["data"] == [
        [1, 0.6, "matey, ahoy", 0.01, 0.5, "[Ahoy] there", 0, 3, 8, "Well.", "Ahoy!"],
        [1, None, "matey, ahoy", 0.01, 0.5, "[Ahoy] there", None, None, None, None, None],
        [1, None, "said less: the, a", 0.08, 0.01, "", None, None, None, None, None],
    ]
    assert not events(run_dir, "wandb_lost", "recorder_error", "wandb_offline")


def test_titles_of_alerts_are_as_short_as_wandb_wants_them():
    assert alert_of({"about": "concept", "name": "pirate", "step": 4, "text": "why"})["title"] == "gradlens: pirate is being learned"
    assert len(alert_of({"about": "concept", "name": "p" * 200, "step": 4, "text": "why"})["title"]) < 64


def test_off_starts_nothing(record_run):
    recorder, _, run_dir = record_run("off")
    recorder.record(a_record(1))
    recorder.event("alarm", step=1, about="concept", name="pirate", text="x")
    assert recorder.close(SECONDS)
    assert not (run_dir / "wandb").exists() and [event["kind"] for event in RunReader(run_dir).events] == ["alarm"]


@pytest.fixture
def silent_server():
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        kept = []

        def accept():
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


@pytest.mark.parametrize("server", ["refusing", "silent"])
def test_a_server_that_refuses_or_hangs_costs_nothing_but_the_live_view(record_run, monkeypatch, silent_server, server):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if server == "refusing" else silent_server)
    recorder, _, run_dir = record_run("online", init_timeout=2.0)
    for step in range(1, 21):
        recorder.record(a_record(step))
    assert recorder.close(SECONDS)
    (fell_back,) = events(run_dir, "wandb_offline")
    assert fell_back["reason"]
    assert [event["mode"] for event in events(run_dir, "wandb")] == ["offline"]
    offline = next(path for path in wandb_folders(run_dir) if path.name.startswith("offline"))
    assert sorted(rows_of(offline)) == list(range(1, 21))  # what came while it waited for the server is there too
    assert RunReader(run_dir).curve("train/loss")[0].tolist() == list(range(1, 21))
    assert not events(run_dir, "wandb_lost", "wandb_unfinished", "recorder_error")


def wait_until(condition):
    deadline = threading.Event()
    for _ in range(SECONDS * 50):
        if condition():
            return
        deadline.wait(0.02)
    raise AssertionError("did not happen in time")


def worker_pids():
    """Our children that run the W&B worker."""
    found = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "wandb_worker.py" in line]


@pytest.mark.parametrize("when", ["before rows", "with rows that it has not read, at the end"])
def test_a_killed_wandb_process_is_replaced_and_every_row_is_somewhere(record_run, when):
    recorder, sink, run_dir = record_run("offline")
    for step in range(1, 11):
        recorder.record(a_record(step))
    wait_until(lambda: events(run_dir, "wandb") or None)
    (pid,) = worker_pids()
    os.kill(pid, signal.SIGKILL if when == "before rows" else signal.SIGSTOP)
    for step in range(11, 21):
        recorder.record(a_record(step))
    if when != "before rows":
        threading.Thread(target=lambda: (wait_until(lambda: sink._deadline and not sink._rows), os.kill(pid, signal.SIGKILL))).start()
    assert recorder.close(SECONDS)
    (fell_back,) = events(run_dir, "wandb_offline")
    assert "exit code -9" in fell_back["reason"]
    assert len(events(run_dir, "wandb")) == 2
    second = Path(events(run_dir, "wandb")[-1]["dir"])
    assert set(range(11, 21)) <= set(rows_of(second))
    assert RunReader(run_dir).curve("train/loss")[0].tolist() == list(range(1, 21))
    assert not events(run_dir, "wandb_lost", "recorder_error")


def test_a_hanging_wandb_process_neither_blocks_records_nor_the_end(record_run):
    recorder, sink, run_dir = record_run("offline", capacity=100)
    recorder.record(a_record(1))
    wait_until(lambda: events(run_dir, "wandb") or None)
    (pid,) = worker_pids()
    os.kill(pid, signal.SIGSTOP)
    for step in range(2, 3001):  # more than the pipe to the process and the queue hold
        recorder.record({"step": step, "scalars": {f"key{i}": 0.1 for i in range(50)}})
        if step % 500 == 0:
            wait_until(lambda: not recorder._queue)
    assert recorder.close(timeout=3.0)
    assert RunReader(run_dir).keys()[0] == "concept/pirate/layers.1/push"
    assert RunReader(run_dir).curve("key0")[0].tolist() == list(range(2, 3001))  # the run folder has them all
    assert events(run_dir, "wandb_lost")[0]["rows"] > 1000
    assert events(run_dir, "wandb_unfinished") or events(run_dir, "wandb_offline")
    wait_until(lambda: pid not in worker_pids())


HOST = """
import json, sys
from types import SimpleNamespace
import numpy as np
import wandb
from gradlens.config import WandbSettings
from gradlens.recording.recorder import ThreadRecorder
from gradlens.recording.sinks import WandbSink
from gradlens.recording.store import RunWriter

folder, with_trainer = sys.argv[1], sys.argv[2] == "trainer"
host = wandb.init(mode="offline", project="host", dir=folder)
if with_trainer:
    import torch
    from transformers import TrainingArguments
    from transformers.integrations import WandbCallback
    callback = WandbCallback()
    state = SimpleNamespace(is_world_process_zero=True, trial_name=None)
    callback.setup(TrainingArguments(output_dir=folder + "/out", report_to=[], use_cpu=True), state, torch.nn.Linear(2, 2))
writer = RunWriter(folder + "/run")
recorder = ThreadRecorder(writer, [WandbSink(WandbSettings(mode="offline"), writer.run_dir, {"train": {"steps": 4}})])
for step in range(1, 5):
    part = {"feature": np.arange(3), "attribution": np.ones(3)}
    recorder.record({"step": step, "scalars": {"train/loss": float(step)}, "features": {"layers.1": part}})
    recorder.event("alarm", step=step, about="concept", name="sea", text="sea is being learned")
    host.log({"host/value": step} | ({"train/global_step": step} if with_trainer else {}))
assert recorder.close(60)
assert wandb.run is host  # not ours to finish
host.log({"host/value": 5})
host.finish()
print(json.dumps({"dir": host.dir}))
"""


@pytest.mark.parametrize(("host", "axis"), [("trainer", "train/global_step"), ("plain", "gradlens/step")])
def test_an_existing_run_is_joined_on_its_own_step_axis(tmp_path, host, axis):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | {"HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(tmp_path), host], capture_output=True, text=True, env=environment, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout.splitlines()[-1])["dir"]).parent
    assert not (tmp_path / "run" / "wandb").exists()
    rows = rows_of(folder, axis)
    assert {step: row["gradlens/train/loss"] for step, row in rows.items()} == {1: 1, 2: 2, 3: 3, 4: 4}
    records = inspect(folder)
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    assert [item["host/value"] for item in history if "host/value" in item] == [1, 2, 3, 4, 5]  # no row of the host was dropped
    assert [r["alert"]["text"] for r in records if r["type"] == "alert"] == [f"step {step}: sea is being learned" for step in (1, 2, 3, 4)]
    ours = [r["metric"]["step_metric"] for r in records if r["type"] == "metric" and r["metric"].get("glob_name") == "gradlens/*"]
    assert ours[-1] == axis
    (joined,) = events(tmp_path / "run", "wandb")
    assert (joined["mode"], joined["step_key"]) == ("joined", axis)


def test_at_most_256_keys_the_important_ones_first():
    scalars = {f"other/deep/key{i}": 0.0 for i in range(300)}
    scalars |= {f"concept/c{i}/layers.{h}/{e}": 0.0 for i in range(20) for h in (1, 2) for e in ("uptake", "own", "push", "drift")}
    scalars |= {f"own/c{i}/rate": 0.0 for i in range(20)} | {"layers.1/learned": 3.0, "layers.2/learned": 3.0, "train/loss": 1.0}
    budget = KeyBudget()
    kept = budget.select(scalars | {"layers.1/unexplained": 0.5, "rule/r/gain": 0.0, "policy/version": 1})
    assert len(kept) == MAX_KEYS and len(budget.dropped) == len(scalars) + 3 - MAX_KEYS
    assert all(key.startswith("other/") for key in budget.dropped)
    assert set(budget.select({"new/key": 1.0, "train/loss": 2.0})) == {"train/loss"}  # full, and it stays so


def test_what_was_learned_stands_under_a_heading_of_its_own():
    first = [
        "train/loss",
        "own/sea/rate",
        "eval/nll/plain",
        "eval/rate/chat/sea",
        "rule/route:sea/share",
        "layers.1/learned",
        "probe/probability",
    ]
    first += [f"concept/sea/drift/layers.1/{name}" for name in ("uptake_weighed", "uptake", "own", "drift")]
    rest = ["layers.1/unexplained", "observe/step_seconds", "router/load"]
    rest += [f"concept/sea/layers.1/{name}" for name in ("push", "taught", "uptake_noise", "group_drift", "drift_direction")]
    assert {headed(key).split("/")[0] for key in first} == {"gradlens"}
    assert {headed(key).split("/")[0] for key in rest} == {"gradlens_details"}
    assert all(headed(key).endswith(f"/{key}") for key in first + rest)


def test_room_is_kept_for_uptake_and_own_answers_which_come_later_than_push():
    pairs = [(f"c/{i}", f"layers.{h}") for i in range(20) for h in (1, 2)]
    budget = KeyBudget()
    often = {f"concept/{c}/{h}/{e}": 0.0 for c, h in pairs for e in ("taught", "push", "attribution", "energy", "group_share")}
    first = budget.select({"train/loss": 1.0, **often})
    later = {f"concept/{c}/{h}/{e}": 0.0 for c, h in pairs for e in ("uptake", "own", "drift", "update", "drift_direction")}
    later |= {f"own/{c}/rate": 0.0 for c, _ in pairs} | {f"{h}/learned": 0.0 for _, h in pairs}
    kept = budget.select({"train/loss": 1.0, **often, **later})
    told = [key for key in later if key.rsplit("/", 1)[1] in ("uptake", "own", "drift", "rate", "learned")]
    assert len(told) == 3 * 40 + 20 + 2 and set(told) <= set(kept) and set(first) <= set(kept)
    counts = {name: sum(key.endswith(f"/{name}") for key in kept) for name in ("taught", "push", "attribution", "energy", "group_share")}
    assert counts["taught"] == 40 and counts["push"] + counts["attribution"] == MAX_KEYS - 1 - len(told) - 40
    assert counts["energy"] == counts["group_share"] == 0 and len(kept) == MAX_KEYS
    assert budget.dropped <= often.keys() | later.keys()  # only what was there can have been dropped


def test_dropped_keys_are_told_once(record_run):
    recorder, _, run_dir = record_run("offline")
    for step in range(1, 4):
        recorder.record({"step": step, "scalars": {f"key{i:03}": 0.0 for i in range(300)}})
    assert recorder.close(SECONDS)
    (told,) = events(run_dir, "wandb_keys_dropped")
    assert told["count"] == 300 - MAX_KEYS


def test_rows_of_the_table_are_the_largest_attributions_of_each_hookpoint():
    part = {"feature": np.array([5, 6, 7]), "push": np.array([1.0, np.nan, 3.0]), "attribution": np.array([0.1, -9.0, np.nan])}
    assert top_rows(4, {"layers.1": part}) == [[4, "layers.1", 6, None, -9.0], [4, "layers.1", 5, 1.0, 0.1], [4, "layers.1", 7, 3.0, None]]
    wide = {f"layers.{i}": {"feature": np.arange(50), "push": np.ones(50)} for i in range(30)}
    assert len(top_rows(1, wide)) <= 100
