"""What a terminal shows of a job: alarms as a line of their own, when they come, and nothing of it on stdout."""

import io

import pytest
from rich.console import Console
from rich.table import Table

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


STEERING = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b]8;;http://x\x1b\\ \x9b31m \x7f\r"


@pytest.mark.parametrize("kind", ["text", "table"])
def test_texts_of_other_people_do_not_steer_a_terminal(kind):
    from gradlens.cli.console import Texts

    console = Texts(file=io.StringIO(), force_terminal=True, width=100, color_system="standard")
    table = Table("text", box=None)
    table.add_row(STEERING, style="yellow")
    console.print(table if kind == "table" else STEERING, style="yellow", markup=False, highlight=False)
    said = console.file.getvalue()
    assert "]0;title[2J[31mred" in said and "\x1b[33m" in said  # letters stay, and so do colours of our own
    assert not set(said.replace("\x1b[33m", "").replace("\x1b[1;33m", "").replace("\x1b[0m", "")) & set("\x07\x1b\x7f\x9b\r")


def test_neither_do_those_in_json(capsys):
    import json

    from gradlens.cli.console import print_json

    print_json({"text": STEERING})
    said = capsys.readouterr().out
    assert json.loads(said) == {"text": STEERING} and not set(said) & set("\x07\x1b\x7f\x9b\r")


def test_both_consoles_are_of_that_kind():
    from gradlens.cli import console

    assert isinstance(console.out, console.Texts) and isinstance(console.err, console.Texts)
