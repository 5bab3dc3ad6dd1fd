"""`gradlens run` as a process: what it prints, ctrl-c, and a driver that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
import yaml
from tiny_job import write_inputs

from gradlens.recording.runfolder import is_running
from gradlens.recording.store import RunReader

COMMAND = [sys.executable, "-c", "from gradlens.cli.app import main; main()"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    inputs = write_inputs(folder)
    inputs["rules"] = [{"concept": "some", "gain": 0.0}]
    inputs["evaluate"] = {"heldout": {"low": inputs["data"]["train"][0]}, "prompts": {"low": inputs["data"]["train"][0]}, "max_rows": 4}
    (folder / "config.yaml").write_text(yaml.safe_dump(inputs))
    return folder / "config.yaml"


def gradlens(*arguments, **options):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


@contextmanager
def started(config, *arguments):
    """Yields a run as its own process group, as a shell starts it, once it has recorded a few steps; whatever happens, it is ended."""
    process = subprocess.Popen(
        [*COMMAND, "run", str(config), "--json", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # tests under nohup ignore it, and so would the run
    )  # fmt: skip
    runs = config.parent / "runs"
    before = set(runs.glob("*")) if runs.is_dir() else set()
    deadline = time.monotonic() + 200
    try:
        while (folder := training_in(set(runs.glob("*")) - before)) is None:
            assert time.monotonic() < deadline and process.poll() is None, "the run did not come to train"
            time.sleep(0.2)  # between looks at the condition
        yield process, folder
    finally:
        process.kill()
        process.communicate()


def training_in(folders):
    """The run folder that holds a few steps already."""
    return next((f for f in folders if (f / "rows.jsonl").is_file() and len(RunReader(f).curve("train/loss")[0]) > 5), None)


@pytest.fixture(scope="module")
def killed(config):
    """A run that was killed: its processes, and its folder."""
    with started(config, "--set", "train.steps=100000", "--set", "train.num_workers=2") as (process, folder):
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("RayTrainWorker" in " ".join(child.cmdline()) for child in family)
        sockets = [socket for member in family for socket in member.net_connections("inet") if socket.status == psutil.CONN_LISTEN]
    return family, folder, {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets}


def test_ray_listens_on_loopback_alone(killed):
    assert killed[2] == {"127.0.0.1"}


def test_a_study_compares_its_arms(config):
    done = gradlens("study", config, "--arms", "none,rules", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [run["arm"] for run in result["runs"]] == ["none", "rules"]
    assert result["verdicts"]
    assert os.path.getsize(result["report"]) > 10_000


def test_ctrl_c_ends_the_run_after_its_step_and_it_can_be_resumed(config):
    with started(config, "--set", "train.steps=3000", "--set", "evaluate.prompts={}") as (process, folder):
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    summary = json.loads(stdout)
    assert summary["status"] == "interrupted" and 5 < summary["steps"] < 3000
    assert f"--resume {folder}" in stderr
    steps = RunReader(folder).curve("train/loss")[0]
    assert list(steps) == list(range(1, summary["steps"] + 1))
    more = summary["steps"] + 60
    refused = gradlens("run", "--resume", folder, "--set", "rules=[{concept: some, gain: 0.5}]")
    assert refused.returncode == 2 and f"gradlens rules set {folder} FILE" in refused.stderr, refused.stderr
    kept = [(folder / name).read_text() for name in ("config.yaml", "summary.json", "outcome.json")]
    refused = gradlens("run", "--resume", folder, "--set", f"train.steps={more}", "--set", "observe.probe_rows=1")  # told by a rank
    assert refused.returncode == 2 and "the probe set is not the one that this run was first read on" in refused.stderr, refused.stderr
    assert [(folder / name).read_text() for name in ("config.yaml", "summary.json", "outcome.json")] == kept
    resumed = gradlens("run", "--resume", folder, "--set", f"train.steps={more}", "--json")
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)  # one object, and nothing else
    assert summary["steps"] == more == RunReader(folder).config["train"]["steps"]
    expected = {"run_id", "run_dir", "steps", "loss_first", "loss_last", "hookpoints", "top_features", "rules", "policy_version", "gaps"}
    assert expected <= set(summary)
    assert summary["rules"][0]["concept"] == "some"
    assert os.path.getsize(summary["report"]) > 10_000
    for phase in ("starting Ray", "starting ranks", "training", "writing report"):
        assert phase in resumed.stderr, phase
    assert "(raylet)" not in resumed.stderr and "Traceback" not in resumed.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_asked_to_end_saves_first(config, number):
    """By a scheduler, a container's end, a closed terminal: the command alone is told, and Ray has handlers of its own."""
    with started(config, "--set", "train.steps=3000", "--set", "evaluate={}") as (process, folder):
        os.kill(process.pid, number)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    steps = json.loads(stdout)["steps"]
    assert steps > 5 and [int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("step-*")] == [steps]
    assert not is_running(folder)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["train.stepz=3"], 2, "unknown key train.stepz; did you mean train.steps?"),
        (["rules=[{concept: nobody}]"], 2, "unknown concept 'nobody'"),
        (["dictionaries={layers.9: smollm2-l15}"], 3, "layers.9"),
        (["data.train=[nowhere.jsonl]"], 3, "nowhere.jsonl: no such file"),
    ],
)
def test_what_is_wrong_with_a_config_is_one_clear_error(config, changes, code, message):
    done = gradlens("run", config, *[part for change in changes for part in ("--set", change)])
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_nothing_is_left_of_a_killed_command(killed):
    family, folder, _ = killed  # killed before the tests above: the agents of Ray give themselves a minute
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert len(RunReader(folder).curve("train/loss")[0]) > 5
