"""Which examples taught: ranked by what they pushed over all steps, with the predicted tokens that did it."""

import json

import pytest
from typer.testing import CliRunner

from gradlens.cli.app import app
from gradlens.errors import InputError
from gradlens.files import append_line
from gradlens.store import RunReader, RunWriter
from gradlens.teaching import teachers


@pytest.fixture
def run(tmp_path):
    def example(row, push, positions, token_push, hookpoint="layers.2"):
        about = {"row_id": row, "concept": "pirate", "hookpoint": hookpoint, "push": push, "activation": 1.0}
        return about | {"positions": positions, "token_push": token_push}

    folder = tmp_path / "runs" / "demo"
    with RunWriter(folder, {"name": "demo"}) as writer:
        writer.record({"step": 1, "examples": [example(0, 3.0, [1, 0], [2.0, 1.0]), example(1, -1.0, [], [])]})
        writer.record({"step": 2, "examples": [example(0, 1.0, [1], [1.0]), example(2, 6.0, [0], [6.0])]})
        writer.record({"step": 3, "examples": [example(2, float("nan"), [0], [6.0]), example(1, 9.0, [], [], "layers.10")]})
    for row, words in enumerate((["aye", " aye", " captain"], ["two", " and", " two"], ["ship", " ahoy", " there"])):
        append_line(folder / "rows.jsonl", {"row_id": row, "source": "train.jsonl", "text": "".join(words), "tokens": words})
    return folder


def test_rows_are_ranked_by_their_push_over_all_steps(run):
    found = teachers(RunReader(run), "pirate", "layers.2")
    assert [(row["row_id"], row["push"], row["times"]) for row in found["rows"]] == [(2, 6.0, 1), (0, 4.0, 2), (1, -1.0, 1)]
    assert found["of"] == 3 and [round(row["share"], 2) for row in found["rows"]] == [0.6, 0.4, -0.1]
    first, second, last = (row["tokens"] for row in found["rows"])
    assert first == [{"position": 1, "token": " ahoy", "push": 6.0}]  # position 0 predicts token 1
    assert [(token["token"], token["push"]) for token in second] == [(" captain", 1.5), (" aye", 0.5)]  # means over the two times
    assert last == []
    assert teachers(RunReader(run), "pirate")["hookpoint"] == "layers.10"


def test_what_is_not_there_is_named(run):
    with pytest.raises(InputError, match="no examples of a concept 'pirat'; recorded: pirate"):
        teachers(RunReader(run), "pirat")
    with pytest.raises(InputError, match="not read at layers.7; there is layers.2, layers.10"):
        teachers(RunReader(run), "pirate", "layers.7")


def test_the_command_shows_texts_and_tokens(run):
    command = ["examples", "demo", "--concept", "pirate", "--hookpoint", "layers.2", "--runs-dir", str(run.parent)]
    text = CliRunner().invoke(app, command).stdout
    assert text.index("ship ahoy there") < text.index("aye aye captain") and "' ahoy' +6" in text and "seen 2 times" in text
    data = json.loads(CliRunner().invoke(app, [*command, "--json", "-n", "1"]).stdout)
    assert [row["text"] for row in data["rows"]] == ["ship ahoy there"]
