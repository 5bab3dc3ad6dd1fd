"""The console script before any command."""

import os
import subprocess
import sys

import pytest

from gradlens.cli.app import share_cores


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
