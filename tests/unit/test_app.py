"""The console script before any command."""

import errno
import json
import os
import subprocess
import sys

import pytest
import typer
from rich.text import Text

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


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_has_not_ends_no_command(tmp_path, encoding):
    code = (
        "from gradlens.cli import app; from gradlens.cli.console import out, print_json\n"
        "app.app = lambda: (out.print('日本'), print_json({'a': '日本'}))\napp.main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    text, data = found.stdout.decode(encoding).splitlines()
    assert text == "??" and json.loads(data) == {"a": "日本"}


def test_whoever_reads_the_progress_may_go_and_the_work_goes_on():
    code = (
        "import sys; from gradlens.cli.console import err; sys.stdin.readline()\nfor n in range(3): err.print('progress', n)\nprint('done')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stderr.close()
    stdout, _ = process.communicate(b"go\n", timeout=60)
    assert process.returncode == 0 and stdout == b"done\n"


def texts_of(command):
    yield command.help or ""
    yield from (parameter.help or "" for parameter in command.params if hasattr(parameter, "help"))
    for below in getattr(command, "commands", {}).values():
        yield from texts_of(below)


def test_nothing_of_a_help_text_is_taken_for_markup():
    for text in texts_of(typer.main.get_command(app.app)):
        assert Text.from_markup(text).plain == text.replace("\\[", "["), text


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
