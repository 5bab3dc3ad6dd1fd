"""What a terminal shows of a job: alarms as a line of their own, when they come, and nothing of it on stdout."""

import io

import pytest
from rich.console import Console

from gradlens.cli import display

TRAINING = {"run": "r", "phase": "training", "done": 4, "total": 12, "loss": 2.5}
ALARM = {"run": "r", "phase": "alarm", "step": 4, "text": "pirate is being learned: uptake +0.1 at layers.15 [see] (chance 0.004)"}


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def stderr(request, monkeypatch):
    colours = "standard" if request.param else None
    console = Console(file=io.StringIO(), force_terminal=request.param, width=100, highlight=False, emoji=False, color_system=colours)
    monkeypatch.setattr(display, "err", console)
    return console


def test_an_alarm_is_a_yellow_line_of_its_own_and_the_phase_goes_on(stderr, capsys):
    with display.job_display() as show:
        show(TRAINING)
        show(ALARM)
        show({**ALARM, "arm": "none"})
        show({**TRAINING, "done": 12})
    text = stderr.file.getvalue()
    assert f"alarm at step 4: {ALARM['text']}" in text and "none: alarm at step 4: pirate" in text
    if stderr.is_terminal:
        assert "\x1b[33malarm at step 4" in text
        assert text.count("loss 2.500\x1b[0m\n") == 1  # one line for the phase when it is over, which an alarm does not end
    else:
        assert [line[9:17] for line in text.splitlines()] == ["training", "alarm at", "none: al", "training"]
    assert capsys.readouterr().out == ""


def test_nothing_that_is_printed_becomes_a_picture(stderr):
    from gradlens.cli import console

    assert not console.out._emoji and not console.err._emoji
    with display.job_display() as show:
        show({"run": "r", "phase": "fitting concept 27:abc:", "done": 1, "total": 2})
        show({"run": "r", "phase": "warning", "text": "27:abc: rows"})
    assert "27:abc:" in stderr.file.getvalue() and "warning: 27:abc: rows" in stderr.file.getvalue()
