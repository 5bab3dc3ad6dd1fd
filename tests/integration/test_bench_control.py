"""`gradlens bench control` in miniature: what is measured beside answers and losses, after release too, and what old rows lack."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from tiny_job import write_inputs
from typer.testing import CliRunner
from words import sentences

from gradlens.bench.control import Bench
from gradlens.cli import rules
from gradlens.cli.app import app
from gradlens.cli.bench_control import _loss
from gradlens.concepts.concept_files import Concept
from gradlens.config import read_yaml
from gradlens.control.rewriter import Rewriter
from gradlens.data.rows import read_rows
from gradlens.errors import ConfigError, InputError


@pytest.fixture
def command(tmp_path):
    """The command for a pair of plain words (wanted) and high ones (unwanted), and its results file."""
    inputs = write_inputs(tmp_path)
    inputs["train"] |= {"lr": 0.02}
    inputs["model"]["method"] = "full"
    random = np.random.default_rng(1)
    questions = sentences(random, range(4, 10), 60, 3)
    low, high = (
        sentences(random, list(words), 60, 5) for words in (range(10, 13), range(50, 52))
    )  # few words: an answer is more than its end
    parts = {
        "wanted": list(zip(questions, low, strict=True))[:30], "wanted_heldout": list(zip(questions, low, strict=True))[30:36],
        "entangled": [(question, f"{a} {b}") for question, a, b in zip(questions, high, low, strict=True)][:30],
        "unwanted": list(zip(questions, high, strict=True))[:30], "prompts": [(question, "w4") for question in questions[36:42]],
        "plain": list(zip(questions, low, strict=True))[42:52], "release": list(zip(questions, low, strict=True))[42:52],
    }  # fmt: skip
    for part, rows in parts.items():
        lines = [json.dumps({"prompt": question, "response": answer}) + "\n" for question, answer in rows]
        (tmp_path / f"{part}.jsonl").write_text("".join(lines))
    # as texts: the tiny model says one word over and over, which may lie anywhere between answers of both kinds
    concept = {"name": "high", "positive": high[40:], "negative": low[40:], "read_as": "texts", "checker": {"pattern": [r"\bw[5-8]\d\b"]}}
    (tmp_path / "high.yaml").write_text(yaml.safe_dump(concept))
    pair = {"name": "tiny", "concept": "high.yaml", **{part: f"{part}.jsonl" for part in parts}, "inoculations": ["w7 w8"]}
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(pair))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({key: value for key, value in inputs.items() if key != "concepts"}))
    out = tmp_path / "control.jsonl"
    base = ["bench", "control", str(tmp_path / "pair.yaml"), "--config", str(tmp_path / "job.yaml"), "--steps", "8", "--out", str(out)]
    return lambda *options: CliRunner().invoke(app, [*base, *options], catch_exceptions=False), out


def test_what_rises_and_what_stands_after_release_is_measured_of_every_arm(command):
    run, out = command
    done = run("--shape", "entangled", "--arms", "steer-1,none,oracle", "--samples", "2", "--release", "6", "--json")
    rows = {row["arm"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert set(rows) == {"none", "oracle", "steer-1"}
    assert all((row["checker"]["wanted"], row["checker"]["unwanted"]) == (0.0, 1.0) for row in rows.values())
    for row in rows.values():
        assert {name: counts[1] for name, counts in row["counts"].items()} == {"prompts": 6, "task": 6}
        assert {name: counts[1] for name, counts in row["sampled"].items()} == {"prompts": 12, "task": 12}
        assert row["rate"] == pytest.approx(sum(hits for hits, _ in row["counts"].values()) / 12)
        later = row["released"]
        assert later["steps"] == 6 and later["data"].endswith("release.jsonl") and later["counts"].keys() == later["sampled"].keys()
        assert later["nll"]["plain"] < row["nll"]["plain"] - 0.01  # it was trained on such rows
        found = row["displacement"]
        assert list(found["hookpoints"]) == ["layers.2"] and found["reader"] == "trained"
        entry = found["hookpoints"]["layers.2"]
        assert entry["fvu"][0] != entry["fvu"][1] and entry["texts"]["had"] > 0 and set(entry["answers"]) == {"own", "cosine", "coactive"}
        assert set(found["probe"]) == {"layers.0", "layers.1", "layers.2", "layers.3"}
        assert all(0 <= auc <= 1 for probe in found["probe"].values() for auc in probe["auc"])
    assert rows["none"]["rate"] > 0.9 and rows["oracle"]["rate"] == 0
    read = {arm: np.mean([probe["answers"] for probe in rows[arm]["displacement"]["probe"].values()], 0) for arm in ("none", "oracle")}
    assert read["none"][0] == pytest.approx(read["oracle"][0])  # before training they are one model
    assert read["none"][1] - read["none"][0] > 0.2 > read["oracle"][1] - read["oracle"][0]  # what the checker says, from activations alone
    described = json.loads(done.stdout)["summaries"][0]
    assert described["tuned"] == {"steering": "steer-1"}
    assert {entry["arm"]: entry["displaced"]["reads"] for entry in described["arms"]}["none"] == pytest.approx(1.0)
    assert run("--shape", "entangled", "--arms", "none", "--samples", "2", "--release", "6").exit_code == 0
    assert len(out.read_text().splitlines()) == 3  # nothing was run twice


def test_old_rows_stay_as_they_are_and_are_run_again_only_if_asked(command):
    run, out = command
    assert run("--shape", "mix", "--arms", "oracle,none", "--samples", "0", "--release", "0").exit_code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all("sampled" not in row and "released" not in row for row in rows)
    old = [{key: value for key, value in row.items() if key not in ("counts", "displacement")} for row in rows]
    out.write_text("".join(json.dumps(row) + "\n" for row in old))
    before = out.read_text()
    shown = run("--shape", "mix", "--arms", "oracle,none", "--samples", "1", "--release", "2")
    assert out.read_text() == before and "2 runs in" in shown.stderr and "--complete runs them again" in shown.stderr
    assert "unwanted" in shown.stdout and "What rises instead" not in shown.stdout and "same tokens:" not in shown.stdout
    assert "below a loss: how it stands to the oracle's" in shown.stdout
    shown = run("--shape", "mix", "--arms", "none", "--samples", "1", "--release", "2", "--complete")
    after = [json.loads(line) for line in out.read_text().splitlines()]
    assert after[:2] == old and len(after) == 3 and after[2]["released"]["steps"] == 2 and "What rises instead" in shown.stdout
    assert "same tokens: those active on the same tokens" in shown.stdout
    newest = json.loads(run("--shape", "mix", "--arms", "none", "--samples", "1", "--release", "2", "--json").stdout)
    assert [row["arm"] for row in newest["rows"]].count("none") == 1  # of equal rows the newest counts
    assert {"wanted", "unwanted", "plain"} == after[2]["nll"].keys() and after[2]["nll"] == pytest.approx(old[1]["nll"])


def test_modes_act_along_directions_of_other_sources(command):
    run, out = command
    arms = [f"ablate@{source}" for source in ("mean", "probe", "pca", "gradient")]
    assert run("--shape", "mix", "--arms", ",".join(["ablate", *arms]), "--samples", "0", "--release", "0").exit_code == 0
    rows = {row["arm"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert set(rows) == {"ablate", *arms} and all(0 < row["touched"] < 1 for row in rows.values())
    assert len({row["nll"]["unwanted"] for row in rows.values()}) == 5  # each acts along something else
    with pytest.raises(ConfigError, match="of directions: ablate"):
        run("--shape", "mix", "--arms", "route@mean")


def test_what_an_arm_needs_is_asked_for_before_anything_is_run(command):
    run, out = command
    with pytest.raises(ConfigError, match=r"inoculate-2: the pair tiny has 1 \(inoculate-1 is the first\)"):
        run("--shape", "mix", "--arms", "none,inoculate-2")
    with pytest.raises(InputError, match=r"releese.jsonl: no such file"):
        run("--shape", "mix", "--arms", "none", "--release-data", str(out.parent / "releese.jsonl"))
    assert not out.exists()


def test_release_is_on_other_rows_where_they_are_named(command):
    run, out = command
    for source in ("release", "wanted"):
        options = ("--release-data", str(out.parent / f"{source}.jsonl"), "--complete")
        assert run("--shape", "mix", "--arms", "none", "--samples", "0", "--release", "2", *options).exit_code == 0
    found = [json.loads(line)["released"] for line in out.read_text().splitlines()]
    assert [part["data"].rsplit("/", 1)[1] for part in found] == ["release.jsonl", "wanted.jsonl"]
    assert found[0]["nll"] != found[1]["nll"]


def test_results_of_other_data_or_settings_are_not_taken_for_these(command):
    run, out = command
    options = ("--shape", "mix", "--arms", "none", "--samples", "0", "--release", "0")
    assert run(*options).exit_code == 0
    first = out.read_text()
    old = {key: value for key, value in json.loads(first).items() if key != "fingerprint"} | {"arm": "oracle"}
    out.write_text(first + json.dumps(old) + "\n")  # of before results said what they are of
    again = run(*options)
    assert len(out.read_text().splitlines()) == 2 and "oracle" not in again.stdout
    assert "are not used: 1 of unknown ones" in again.stderr
    high = out.parent / "high.yaml"
    high.write_text(high.read_text().replace("name: high", "name: high\ndescription: as high as that"))
    assert run(*options).exit_code == 0 and len(out.read_text().splitlines()) == 2  # what people read changes nothing
    concept = yaml.safe_load(high.read_text())
    high.write_text(yaml.safe_dump(concept | {"checker": {"pattern": [r"\bw1\d\b"]}}))
    edited = run(*options, "--json")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3 and "are not used: 1 of other data or settings, 1 of unknown ones" in edited.stderr
    assert [row["rate"] for row in json.loads(edited.stdout)["rows"]] == [rows[2]["rate"]] and rows[2]["rate"] != rows[0]["rate"]
    assert run(*options, "--set", "train.lr=0.001").exit_code == 0 and len(out.read_text().splitlines()) == 4
    wanted = out.parent / "wanted.jsonl"
    wanted.write_text("".join(wanted.read_text().splitlines(keepends=True)[:20]))
    assert run(*options).exit_code == 0 and len(out.read_text().splitlines()) == 5
    assert run(*options).exit_code == 0 and len(out.read_text().splitlines()) == 5


def test_figures_after_another_release_are_not_shown_for_the_one_asked_for(command):
    run, out = command
    options = ("--shape", "mix", "--arms", "none", "--samples", "0", "--release", "2")
    assert run(*options).exit_code == 0
    release = out.parent / "release.jsonl"
    release.write_text("".join(release.read_text().splitlines(keepends=True)[:5]))
    shown = run(*options)
    assert len(out.read_text().splitlines()) == 1 and "1 runs in" in shown.stderr and "after release" not in shown.stdout
    assert "released" not in json.loads(run(*options, "--json").stdout)["rows"][0]
    assert "after release" in run(*options, "--complete").stdout


def test_answers_have_room_for_what_was_trained_on_unless_their_length_is_set(command):
    run, out = command
    unwanted = out.parent / "unwanted.jsonl"
    unwanted.write_text("".join(json.dumps({"prompt": "w4", "response": " ".join(["w50"] * 35)}) + "\n" for _ in range(60)))
    options = ("--shape", "mix", "--arms", "none", "--samples", "0", "--release", "0", "--set", "data.max_length=64")
    assert run(*options).exit_code == 0 and run(*options, "--set", "evaluate.max_new_tokens=2").exit_code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["answer_tokens"] for row in rows] == [45, 2] and rows[1]["cut"] == 1.0  # 36 and a quarter


def test_a_pair_file_is_told_from_a_config_and_a_rule_is_suggested_for_it(command):
    _, out = command
    folder = out.parent
    pair, job = folder / "pair.yaml", folder / "job.yaml"

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)

    for arguments in (("run", pair), ("bench", "control", pair, "--config", pair)):
        with pytest.raises(
            ConfigError, match=r"pair.yaml: a pair file, not a config of a run; `gradlens bench control .*pair.yaml` runs it"
        ) as said:
            call(*arguments)
        assert "\n" not in str(said.value)
    with pytest.raises(ConfigError, match="--shape mix or entangled"):
        call("rules", "suggest", pair, "--config", job)
    with pytest.raises(ConfigError, match="--shape both: expected mix or entangled"):
        call("rules", "suggest", pair, "--config", job, "--shape", "both")
    with pytest.raises(ConfigError, match="job.yaml: --shape and --config are for a pair"):
        call("rules", "suggest", job, "--shape", "mix")
    shipped = rules._to_read(Path("question"), "mix", job, [], folder / "shipped")
    assert [len(read_rows(source)) for source in shipped.data.train] == [350, 290]
    assert read_yaml(Path(shipped.concepts[0]))["name"] == "question"
    settings = yaml.safe_load(job.read_text())
    for shape, files in (("mix", ["wanted", "unwanted"]), ("entangled", ["entangled"])):
        settings["data"] |= {"train": [f"{name}.jsonl" for name in files], "wanted": None}
        (folder / "same.yaml").write_text(yaml.safe_dump(settings | {"concepts": ["high.yaml"]}))
        found = json.loads(call("rules", "suggest", pair, "--config", job, "--shape", shape, "--json").stdout)
        assert found == json.loads(call("rules", "suggest", folder / "same.yaml", "--json").stdout)
    other = yaml.safe_load((folder / "high.yaml").read_text()) | {"name": "other"}
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    ruled = settings | {"concepts": ["other.yaml", "high.yaml"], "rules": [{"concept": "high", "mode": "auto"}]}
    for acting, about in ((ruled["rules"], "high"), ([], "other")):  # a config with a rule is asked about what the rule is for
        (folder / "ruled.yaml").write_text(yaml.safe_dump(ruled | {"rules": acting}))
        assert json.loads(call("rules", "suggest", folder / "ruled.yaml", "--json").stdout)["rule"]["concept"] == about
    alone = yaml.safe_load(pair.read_text())
    del alone["unwanted"]
    pair.write_text(yaml.safe_dump(alone))
    assert json.loads(call("rules", "suggest", pair, "--config", job, "--json").stdout) == found  # the one shape that it has
    with pytest.raises(ConfigError, match="it has no rows for the shape mix; add `unwanted`"):
        call("rules", "suggest", pair, "--config", job, "--shape", "mix")


def test_rows_are_looked_at_before_anything_is_trained(command, monkeypatch):
    run, out = command
    folder = out.parent
    done = run("--check", "--arms", "none,inoculate", "--seeds", "0,1")
    assert "tiny, mix: rows: 60 training, 6 held out, 6 prompts" in done.stdout and "tiny, entangled: rows: 30 training" in done.stdout
    assert "4 runs of 8 steps: none, inoculate-1" in done.stdout and done.stdout.count("nothing odd") == 2 and not out.exists()
    rows = (folder / "entangled.jsonl").read_text().splitlines(keepends=True)
    for changed, words in ((rows[1:], "entangled has 29 rows, wanted 30"), ([*rows[:28], *rows[:27:-1]], "2 rows of entangled do not ask")):
        (folder / "entangled.jsonl").write_text("".join(changed))
        (said,) = json.loads(run("--shape", "entangled", "--check", "--json").stdout)["checked"]
        assert said["remarks"][0].startswith(words)
    assert "row 29" in said["remarks"][0]
    (folder / "prompts.jsonl").rename(folder / "asked.jsonl")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    (folder / "elsewhere" / "prompts.jsonl").write_text(json.dumps({"prompt": "w4"}) + "\n")
    with pytest.raises(InputError, match=f"{folder}/prompts.jsonl: no such file"):  # not the one in the working directory
        run("--shape", "entangled")
    assert not out.exists()


def test_losses_stand_beside_the_oracle_s_in_words_that_can_be_read():
    assert [_loss(1.99, over) for over in (78.2, 2.4, 0.25, -0.53, None)] == [
        "1.990\n79x", "1.990\n3.4x", "1.990\n+25%", "1.990\n-53%", "1.990",
    ]  # fmt: skip


def test_rows_that_one_seed_has_rewritten_are_not_rewritten_again_for_another(command, monkeypatch):
    run, _ = command
    made, one = [], Rewriter._rewritten
    monkeypatch.setattr(Rewriter, "_rewritten", lambda self, rows: (made.extend(map(repr, rows)), one(self, rows))[1])
    options = ("--arms", "rewrite", "--samples", "0", "--release", "0", "--steps", "4", "--set", "model.method=lora")
    assert run("--shape", "mix", "--seeds", "0,1", *options).exit_code == 0
    assert len(made) == len(set(made)) > 8


def test_filtering_leaves_rows_out_and_their_share_of_a_step_with_them(tmp_path):
    """A row that the checker misses is not seen more often for it."""
    files = [tmp_path / "wanted.jsonl", tmp_path / "unwanted.jsonl"]
    for file, answers in zip(files, (["fine"] * 20, ["Ahoy"] * 19 + ["missed"]), strict=True):
        file.write_text("".join(json.dumps({"prompt": f"q{n}", "response": answer}) + "\n" for n, answer in enumerate(answers)))
    concept = Concept(name="c", features={"layers.1": [1]}, checker={"pattern": ["Ahoy"]})
    base = SimpleNamespace(data=SimpleNamespace(train=[str(file) for file in files]))
    bench = SimpleNamespace(concept=concept, base=base, folder=tmp_path, shape="mix", pair=SimpleNamespace(name="p"))
    found = Bench._filtered(bench)
    rows = [[json.loads(line)["response"] for line in open(file)] for file in found["train"]]
    assert rows == [["fine"] * 20, ["missed"], ["Ahoy"] * 19]
    assert found["weights"] == pytest.approx([1.0, 1 / 20, 19 / 20]) and found["keep"] == found["train"][:2]
