"""`gradlens examples` in all its forms, on a made-up run."""

import json
import re

import numpy as np
import pytest
import typer
from test_teaching import WORDS, example, lesson, write_run
from typer.testing import CliRunner

from gradlens.cli.app import app
from gradlens.cli.examples import highlighted, parse_features
from gradlens.errors import ConfigError, InputError
from gradlens.recording.store import RunWriter

CLUSTERS = [
    {"share": 0.6, "features": [["layers.2", 7], ["layers.10", 1]], "count": 2, "words": ["ahoy", "aye"], "labels": []},
    {"share": 0.1, "features": [["layers.2", 3]], "count": 1, "words": [], "labels": ["'sums'"]},
]


@pytest.fixture
def run(tmp_path):
    deep = [example(row, 0.0, hookpoint="layers.10") for row in (0, 1)] + [example(2, 9.0, hookpoint="layers.10")]
    first = [example(0, 3.0, [0, 2], [0.3, 2.7]), example(1, 0.0), *deep]
    second = [example(0, 1.0, [0], [1.0]), example(2, 6.0, [1, 2], [5.9, 0.1])]
    at = {row: lesson(row, "layers.10", f1=float(row == 2)) for row in range(3)}
    lessons = [[lesson(0, f7=1.0), lesson(1, f3=8.0), at[0], at[1]], [lesson(0, f7=1.0), lesson(2, f7=5.0), at[2]]]
    folder = tmp_path / "runs" / "demo"
    write_run(folder, first, second, lessons=lessons)
    with RunWriter.open_existing(folder) as writer:
        writer.event("learned", clusters=[{"share": 1.0, "features": [["layers.2", 3]], "words": ["early"]}])
        writer.event("learned", clusters=CLUSTERS)
    return folder


def call(run, *arguments):
    result = CliRunner().invoke(app, ["examples", run.name, *map(str, arguments), "--runs-dir", str(run.parent)], env={"COLUMNS": "120"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def ids(run, *arguments):
    return [row["row_id"] for row in json.loads(call(run, *arguments, "--json"))["rows"]]


def test_a_concept_is_shown_with_its_tokens_marked_in_the_text(run):
    text = call(run, "--concept", "pirate", "--hookpoint", "layers.2")
    first, second = text.split("\n1. ")[1].split("\n2. ")
    assert first.startswith("row 2, from data/train.jsonl: taught 6, 60.0% of all, seen once\nship [ahoy] there")
    assert second.startswith("row 0, from data/train.jsonl: taught 4, 40.0% of all, seen 2 times\n[aye] aye [captain]")
    assert text.startswith(
        "pirate, layers.2: 2 of 3 examples\n100% of it from data/train.jsonl\n"
    )  # a row that taught nothing is not shown
    assert "pirate, all hookpoints together" in call(run, "--concept", "pirate")


@pytest.mark.parametrize("rule, said", [({"mode": "reweight", "rows": 0.5, "gain": 0.0}, True), ({"mode": "route", "gain": 0.0}, False)])
def test_rows_that_a_rule_left_out_are_not_passed_over_in_silence(run, rule, said):
    with RunWriter.open_existing(run) as writer:
        writer.event("policy", rules=[rule])
    asked = ["examples", run.name, "--concept", "pirate", "--runs-dir", str(run.parent), "--json"]
    result = CliRunner().invoke(app, asked, env={"COLUMNS": "200"})
    assert ("A rule of this run left whole rows out" in result.stderr) == said and json.loads(result.stdout)["rows"]


@pytest.mark.parametrize("shows, said", [(0.8, "2 of 2 show it"), (0.1, "No row shows it: these come nearest")])
def test_it_says_how_many_rows_show_the_concept(tmp_path, shows, said):
    rows = [example(row, 1.0 + row) | {"shows": shows} for row in (0, 1)]
    write_run(tmp_path / "runs" / "demo", rows)
    text = call(tmp_path / "runs" / "demo", "--concept", "pirate")
    assert said in text and f"seen once, shows it with probability {shows}" in text


def test_json_holds_the_rows_asked_for_or_all(run):
    assert ids(run, "--concept", "pirate", "-n", 1) == [2]
    data = json.loads(call(run, "--concept", "pirate", "--hookpoint", "2", "--json", "--all-rows", "-n", 1))
    assert [(row["row_id"], row["taught"]) for row in data["rows"]] == [(2, 6.0), (0, 4.0), (1, 0.0)]
    assert (data["title"], data["concept"], data["hookpoint"], data["by"], data["of"]) == ("pirate", "pirate", "layers.2", "taught", 3)
    assert data["rows"][0]["text"] == "".join(WORDS[2]) and data["rows"][0]["tokens"][0]["token"] == " ahoy"


def test_any_features_can_be_asked_for(run):
    assert ids(run, "--features", "layers.2:3,7") == [1, 2, 0]
    assert ids(run, "--features", "layers.2:7", "--features", "2:3") == [1, 2, 0]
    found = json.loads(call(run, "--features", "2:3", "--features", "10:1", "--json", "--hookpoint", "layers.10"))
    assert found["features"] == {"layers.10": [1]} and found["rows"][0]["row_id"] == 2
    assert "features layers.2:3, layers.2: 1 of 3 examples" in call(run, "--features", "layers.2:3")
    assert "None of them taught it" in call(run, "--features", "layers.2:99")


def test_a_cluster_of_the_last_reading_is_asked_for_by_its_number(run):
    found = json.loads(call(run, "--cluster", 1, "--json"))
    assert found["features"] == {"layers.2": [7], "layers.10": [1]} and found["title"] == "cluster 1 (ahoy, aye)"
    assert found["hookpoint"] == "all" and found["rows"][0]["row_id"] == 2
    assert "cluster 2 ('sums'), layers.2: 1 of 3 examples" in call(run, "--cluster", 2) and ids(run, "--cluster", 2)[0] == 1


def test_a_concept_that_was_fitted_after_the_run_can_be_asked_for(run, tmp_path):
    file = tmp_path / "fitted.yaml"
    file.write_text("name: sums\nfeatures: {layers.2: [3], layers.30: [5]}\n")
    found = json.loads(call(run, "--concept-file", file, "--json"))
    assert found["title"] == "sums" and found["features"] == {"layers.2": [3]} and found["rows"][0]["row_id"] == 1
    file.write_text("name: sums\nfeatures: {layers.30: [5]}\n")
    with pytest.raises(ConfigError, match=r"features at layers.30, but the run was read at layers.2, layers.10"):
        call(run, "--concept-file", file)
    file.write_text("[{name: a, features: {layers.2: [3]}}, {name: b, features: {layers.2: [3]}}]")
    with pytest.raises(ConfigError, match=r"holds 2 concepts \(a, b\); give a file with one"):
        call(run, "--concept-file", file)
    with pytest.raises(ConfigError, match="no such file"):
        call(run, "--concept-file", tmp_path / "nothing.yaml")


@pytest.mark.parametrize("config", ["name: demo\n", "name: demo\ndata: {train: [x.jsonl]}\ntrain: {steps: 1}\n"])
def test_a_concept_with_examples_alone_is_sent_to_be_fitted_by_a_command_that_exists(run, tmp_path, config):
    file = tmp_path / "named.yaml"
    file.write_text("name: sums\npositive: [two]\nnegative: [aye]\n")
    (run / "config.yaml").write_text(config)
    with pytest.raises(ConfigError, match="sums has examples but no features") as error:
        call(run, "--concept-file", file)
    (line,) = re.findall(r"^gradlens concepts fit (.*)$", str(error.value), re.MULTILINE)
    fit = typer.main.get_command(app).commands["concepts"].commands["fit"]
    options = {name for parameter in fit.params for name in parameter.opts}
    used = re.findall(r"--[a-z-]+", line)
    assert used and set(used) <= options and line.startswith(str(file))
    assert (f"--config {run / 'config.yaml'}" in line) == ("data" in config)
    assert f"give --concept-file {line.split('--out ')[1]}" in str(error.value)


def test_alone_it_lists_what_can_be_asked_for(run):
    text = call(run)
    assert "--concept pirate  (read at layers.2, layers.10)" in text and "--features HOOKPOINT:ID" in text and "--concept-file FILE" in text
    assert "--cluster 1  60% of what was learned: ahoy, aye\n" in text and "--cluster 2  10% of what was learned: 'sums'\n" in text
    data = json.loads(call(run, "--json"))
    assert data["concepts"] == {"pirate": ["layers.2", "layers.10"]} and data["hookpoints"] == ["layers.2", "layers.10"]
    assert [entry["words"] for entry in data["clusters"]] == [["ahoy", "aye"], []]


def test_shares_and_words_of_clusters_are_told_as_elsewhere(run):
    small = [{**CLUSTERS[0], "share": 0.0065, "words": [".", ",", "but"]}, {**CLUSTERS[1], "share": float("nan")}]
    with RunWriter.open_existing(run) as writer:
        writer.event("learned", clusters=small)
    text = call(run)
    assert "--cluster 1  0.65% of what was learned: '.', ',', but" in text and "--cluster 2  ? of what was learned" in text


def test_a_run_without_rows_says_so_and_a_loop_of_ones_own_how_to_have_them(tmp_path):
    RunWriter(tmp_path / "runs" / "loop", {"name": "loop"}).close()
    RunWriter(tmp_path / "runs" / "job", {"name": "job", "data": {"train": ["a.jsonl"]}}).close()
    text = call(tmp_path / "runs" / "loop")
    assert "this run has recorded no rows; a loop of your own says which rows come" in text and "lens.set_rows(ids) before each" in text
    assert call(tmp_path / "runs" / "job").endswith("this run has recorded no rows\n")
    with pytest.raises(InputError, match=r"lens.set_rows\(ids\) before each forward pass"):
        call(tmp_path / "runs" / "loop", "--features", "2:1")
    with pytest.raises(InputError, match=r"lens.set_rows\(ids\) before each forward pass"):
        call(tmp_path / "runs" / "loop", "--concept", "pirate")


def test_rows_that_only_a_loop_knows_are_named_by_their_numbers_alone(run):
    (run / "rows.jsonl").unlink()
    text = call(run, "--concept", "pirate", "--hookpoint", "layers.2")
    assert text.splitlines() == [
        "pirate, layers.2: 2 of 3 examples", "",
        "1. row 2: taught 6, 60.0% of all, seen once", "",
        "2. row 0: taught 4, 40.0% of all, seen 2 times",
    ]  # fmt: skip
    assert json.loads(call(run, "--concept", "pirate", "--json"))["rows"][0]["text"] is None


def test_a_feature_that_the_dictionary_has_not_is_refused(run):
    with RunWriter.open_existing(run) as writer:
        writer.record({"step": 3, "scalars": {}, "dense": {"layers.2": {"drift": np.zeros(8)}}})
    with pytest.raises(InputError, match="demo: no feature 99 at layers.2; its dictionary has the features 0 to 7"):
        call(run, "--features", "layers.2:3,99")
    assert ids(run, "--features", "layers.2:7")


def test_what_people_type_is_printed_as_they_typed_it(run, capsys, monkeypatch):
    from gradlens.cli.app import main

    monkeypatch.setattr("sys.argv", ["gradlens", "examples", run.name, "--features", "27:abc", "--runs-dir", str(run.parent)])
    with pytest.raises(SystemExit):
        main()
    assert "error: --features 27:abc: expected HOOKPOINT:ID" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named_without_a_traceback(run, capsys, monkeypatch):
    from gradlens.cli.app import main

    out = run / "config.yaml" / "report.html"
    monkeypatch.setattr("sys.argv", ["gradlens", "report", run.name, "--out", str(out), "--runs-dir", str(run.parent)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip() in (f"error: {out.parent}: {reason}" for reason in ("Not a directory", "File exists"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--concept", "pirate", "--cluster", 1], "--concept and --cluster: give one of --concept, --features, --cluster, --concept-file"),
        (["--cluster", 1, "--concept-file", "x.yaml"], "--cluster and --concept-file: give one of"),
        (["--features", "layers.2"], r"--features layers.2: expected HOOKPOINT:ID\[,ID...\], for instance"),
        (["--features", "layers.2:1,"], "--features layers.2:1,: expected"),
        (["--features", "layers.2:-1"], "--features layers.2:-1: expected"),
        (["--features", ":1"], "--features :1: expected"),
        (["--cluster", 3], "--cluster 3: demo has the clusters 1 to 2"),
        (["--cluster", 0], "--cluster 0: demo has the clusters 1 to 2"),
        (["--concept", "pirate", "--all-rows"], "--all-rows .* goes with --json"),
        (["--all-rows", "--json"], "--all-rows: say of what, with one of --concept"),
        (["--hookpoint", "layers.2"], "--hookpoint: say of what, with one of --concept"),
        (["--cluster", 2, "--hookpoint", "10"], "--hookpoint 10: cluster 2 .* has no features there; there is layers.2"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_what_can(run, arguments, message):
    with pytest.raises(ConfigError, match=message):
        call(run, *arguments)


def test_what_the_run_has_not_is_named(run):
    with pytest.raises(InputError, match="no examples of a concept ''; recorded: pirate"):
        call(run, "--concept", "")
    with pytest.raises(InputError, match="no lessons at layers.3; there is layers.2, layers.10"):
        call(run, "--features", "3:1")
    (run / "events.jsonl").unlink()
    with pytest.raises(ConfigError, match="--cluster 1: demo has recorded nothing as learned so far"):
        call(run, "--cluster", 1)


def test_a_run_ranked_by_push_says_that_it_is(tmp_path):
    write_run(tmp_path / "runs" / "old", [example(0, None, push=2.0), example(1, None, push=-1.0)])
    text = call(tmp_path / "runs" / "old", "--concept", "pirate")
    assert "ranked by raw push" in text and "1. row 0, from data/train.jsonl: push 2, 100.0% of all" in text and "row 1" not in text
    assert "--features" not in call(tmp_path / "runs" / "old")  # it has no lessons


def test_feature_lists_are_read():
    assert parse_features(["layers.2:1, 2", "a.b:3", "layers.2:4"]) == {"layers.2": [1, 2, 4], "a.b": [3]}


def test_stronger_tokens_are_louder():
    parts = [("a", 0.0), ("[b]", 1.0), ("c", 0.3), ("d", 0.05)]
    text = highlighted(parts)
    assert text.plain == "a[b]cd"
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (1, 4, "bold black on bright_yellow"), (4, 5, "black on yellow"), (5, 6, "yellow"),
    ]  # fmt: skip
    assert highlighted(parts, colours=False).plain == "a[[b]][c]d" and not highlighted(parts, colours=False).spans
