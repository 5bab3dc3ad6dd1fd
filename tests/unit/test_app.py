"""The console script before any command."""

import errno
import os
import subprocess
import sys

import pytest

from gradlens.cli import app
from gradlens.cli.app import share_cores
from gradlens.files import write_json


@pytest.mark.parametrize(
    "said, expected",
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing", "count", "policy"],
)
def test_waiting_threads_give_up_their_core_unless_somebody_has_said_otherwise(monkeypatch, said, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    share_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_it_is_said_before_pytorch_is_there():
    code = "import sys, gradlens.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_is_a_command_too():
    found = subprocess.run([sys.executable, "-m", "gradlens", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("gradlens ")


def test_a_full_disk_is_one_line(monkeypatch, capsys, tmp_path):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(app, "share_cores", lambda: None)
    monkeypatch.setattr(app, "app", full)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 1 and capsys.readouterr().err == "error: No space left on device\n"
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(app, "app", lambda: write_json(tmp_path / "a.json", {}))
    with pytest.raises(SystemExit):
        app.main()
    assert capsys.readouterr().err.replace("\n", "") == f"error: {tmp_path / 'a.json'}: No space left on device"
