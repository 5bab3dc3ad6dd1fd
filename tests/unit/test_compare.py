"""Comparisons: arithmetic on figures made by hand, and what a study is said to show."""

import json

import pytest
from rich.console import Console
from synthetic_runs import make_run, make_study

from gradlens.bench.intervals import rate_of
from gradlens.errors import InputError
from gradlens.files import jsonable
from gradlens.recording.store import RunReader, RunWriter
from gradlens.report.compare import compare_runs, describe, judge, render, wanted_set
from gradlens.report.rules_in_force import rule_text, rules_of


def run_of(arm, hits, n, nll, gain=0.0, prompts="chat", concept="pirate"):
    """One run as `describe` gives it, with what `judge` looks at."""
    rules = [{"label": "r", "concept": concept, "gain": gain, "target": None, "random_control": None}] if arm in ("rules", "random") else []
    rates = {prompts: {concept: {"before": rate_of(0, n), "after": rate_of(hits, n)}}}
    return {"arm": arm, "rules": rules, "rates": rates, "nll": {"sums": {"before": 1.2, "after": nll}}}


def test_a_study_is_judged_on_each_bar_from_the_counts():
    runs = [run_of("none", 31, 32, 0.158), run_of("rules", 2, 32, 0.172), run_of("random", 32, 32, 0.23), run_of("oracle", 1, 32, 0.167)]
    rate, nll = judge(runs, "sums")
    assert rate["text"] == (
        "pirate: 97% of answers without the rule, 6% with it, 100% with as many random features, 3% on wanted data alone"
    )
    assert [(check["arm"], check["hits"], check["met"]) for check in rate["checks"]] == [
        ("none", 31, True), ("rules", 2, True), ("random", 32, True), ("oracle", 1, None),
    ]  # fmt: skip
    assert nll["text"] == "sums NLL 0.172, 3.0% above training on the wanted data alone (0.167)"
    assert nll["ratio"] == pytest.approx(0.172 / 0.167) and nll["checks"][0]["met"] is True


@pytest.mark.parametrize(
    "arm, hits, nll, missed",
    [("none", 28, 0.2, "none"), ("rules", 4, 0.2, "rules"), ("random", 25, 0.2, "random"), ("rules", 0, 0.24, "nll")],
)
def test_a_bar_that_is_not_reached_is_said_not_to_be(arm, hits, nll, missed):
    runs = {"none": [32, 0.2], "rules": [0, 0.2], "random": [32, 0.2], "oracle": [0, 0.2]}
    runs[arm] = [hits, nll]
    rate, loss = judge([run_of(name, h, 32, value) for name, (h, value) in runs.items()], "sums")
    found = [check["arm"] for check in rate["checks"] if check["met"] is False] + ["nll"] * (loss["checks"][0]["met"] is False)
    assert found == [missed]


def test_runs_of_the_same_arm_are_pooled():
    runs = [run_of("none", 32, 32, 0.1), run_of("rules", 0, 32, 0.2), run_of("rules", 8, 16, 0.4), run_of("oracle", 0, 32, 0.3)]
    rate, nll = judge(runs, "sums")
    with_rules = next(check for check in rate["checks"] if check["arm"] == "rules")
    assert (with_rules["hits"], with_rules["n"]) == (8, 48)
    assert nll["values"]["rules"] == pytest.approx(0.3) and nll["ratio"] == pytest.approx(1.0)


def test_amplification_has_figures_but_no_bar():
    rate, _ = judge([run_of("none", 3, 32, 0.1), run_of("rules", 30, 32, 0.1, gain=4.0)], "sums")
    assert "9% of answers without the rule, 94% with it" in rate["text"]
    assert all(check["met"] is None and check["bar"] is None for check in rate["checks"])


def test_without_an_oracle_the_loss_is_held_against_the_run_without_rules():
    _, nll = judge([run_of("none", 32, 32, 0.2), run_of("rules", 0, 32, 0.19)], "sums")
    assert nll["text"] == "sums NLL 0.190, 5.0% below the run without rules (0.200)"
    assert nll["checks"][0]["met"] is None


def test_a_study_on_disk(tmp_path):
    comparison = compare_runs(make_study(tmp_path, steps=12, every=4))
    assert [run["arm"] for run in comparison["runs"]] == ["none", "rules", "random", "oracle"]
    assert comparison["wanted"] == "arithmetic" and comparison["baseline"] == "demo-none"
    rate, nll = comparison["verdicts"]
    assert rate["prompts"] == "chat" and rate["text"].startswith("pirate: 100% of answers without the rule, 6% with it, 100% with as many")
    assert nll["ratio"] == pytest.approx(0.172 / 0.167)
    changed = comparison["differences"][0]
    assert changed["nll"]["arithmetic"] == pytest.approx(0.172 - 0.158)
    assert changed["rates"]["chat"]["pirate"] == pytest.approx(2 / 32 - 1)
    assert changed["drift"]["pirate"]["layers.27"] < -2 and -0.4 < changed["uptake"]["pirate"]["layers.27"] < -0.2
    random = comparison["runs"][2]["rules"][0]
    assert random["random_control"] == 7 and random["gain"] == 0 and 0.4 < random["share"] < 0.6
    assert json.loads(json.dumps(jsonable(comparison)))["runs"][0]["steps"] == 12


def test_arms_are_inferred_from_rules_and_data_where_no_run_names_one(tmp_path):
    named, unnamed = (compare_runs(make_study(tmp_path / str(mark), steps=4, every=2, mark_arm=mark)) for mark in (True, False))
    assert [run["arm"] for run in unnamed["runs"]] == [run["arm"] for run in named["runs"]]
    assert [verdict["text"] for verdict in unnamed["verdicts"]] == [verdict["text"] for verdict in named["verdicts"]]


def test_one_run_alone_is_no_study(tmp_path):
    comparison = compare_runs([RunReader(make_run(tmp_path / "a", "rules", steps=3, every=1, mark_arm=False))])
    assert comparison["verdicts"] == [] and comparison["differences"] == [] and comparison["runs"][0]["arm"] is None


def policy(step, *labels):
    return {"kind": "policy", "step": step, "rules": [{"label": label, "concept": "c", "mode": "route", "gain": 0.0} for label in labels]}


def test_rules_say_when_they_were_in_force_and_those_that_were_taken_back_are_none():
    [rule] = rules_of({}, [policy(0, "a")], {})
    assert rule["in_force"] == [(0, None)] and rule_text(rule) == "a x 0"
    a, b = rules_of({}, [policy(0, "a"), policy(33, "a", "b"), policy(64, "a"), policy(70, "a")], {})
    assert (rule_text(a), rule_text(b)) == ("a x 0", "b x 0, in force at steps 34 to 64")
    [c] = rules_of({}, [policy(0), policy(10, "c"), policy(20), policy(30, "c")], {})
    assert rule_text(c) == "c x 0, in force at steps 11 to 20, 31 to the end"
    assert rules_of({}, [policy(0), policy(10, "c"), {"kind": "resumed", "step": 5}, policy(5)], {}) == []
    [rule] = rules_of({"rules": [{"concept": "c"}]}, [], {})
    assert rule["in_force"] == [] and rule_text({**rule, "gain": None}) == "route:c"


def test_a_run_without_anything_in_it_is_described_all_the_same(tmp_path):
    RunWriter(tmp_path / "empty", {}).close()
    run = describe(RunReader(tmp_path / "empty"))
    assert run["steps"] == 0 and run["loss_first"] is None and run["seconds_per_step"] is None and run["rates"] == {} and run["drift"] == {}


def test_figures_that_are_not_finite_are_no_figures(tmp_path):
    with RunWriter(tmp_path / "nan", {}) as writer:
        for step, loss in ((1, 2.0), (2, float("nan"))):
            writer.record({"step": step, "scalars": {"train/loss": loss, "concept/pirate/layers.1/drift": loss / 0.5}})
    run = describe(RunReader(tmp_path / "nan"))
    assert run["loss_first"] == 2.0 and run["loss_last"] is None and run["drift"] == {"pirate": {"layers.1": None}}


def test_rendering_names_figures_differences_and_what_was_not_met(tmp_path):
    readers = make_study(tmp_path, steps=6, every=3)
    evaluation = json.loads((readers[1].run_dir / "evaluation.json").read_text())
    for item in evaluation["after"]["answers"]["chat"][:10]:
        item["hits"]["pirate"] = True
    (readers[1].run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(render(compare_runs(readers)))
    text = console.export_text()
    for words in ("with rules", "random features", "0.172 (+0.014)", "31%", "NOT met", "bar: at most 10%", "10 of 32"):
        assert words in text
    first = describe(readers[0])["uptake"]["pirate"]["layers.27"]
    assert f"{first:+.3g}" in text and text.index("uptake pirate layers.27") < text.index("drift pirate layers.27")


def test_several_seeds_are_shown_as_means_with_their_range(tmp_path):
    first, second = (make_study(tmp_path / name, steps=6, every=3, train_seed=i) for i, name in enumerate("ab"))
    readers = [*first, *second]
    evaluation = json.loads((readers[5].run_dir / "evaluation.json").read_text())
    evaluation["after"]["nll"]["arithmetic"] = 0.272
    (readers[5].run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    console = Console(width=160, record=True, file=open("/dev/null", "w"))
    console.print(render(compare_runs(readers)))
    text = console.export_text()
    told = ("the rule touched", "means over runs", "0.222", "(0.172 to 0.272)", "n=64", "run by run +3.0%, +62.9%")
    for words in (*told, "uptake pirate layers.27"):
        assert words in text, words
    assert "demo-rules" not in text


def test_runs_are_held_against_those_of_their_seed_in_whatever_order_they_come():
    def arm(name, *found):
        return [run_of(name, 0, 32, nll) | {"seed": seed} for seed, nll in found]

    mine = arm("rules", (0, 0.2), (1, 0.4), (2, 0.9))
    _, nll = judge([*mine, *arm("oracle", (1, 0.4), (0, 0.1))], "sums")
    assert nll["text"].endswith("run by run +100.0%, +0.0%")
    _, twice = judge([*mine, *arm("oracle", (1, 0.4), (1, 0.1))], "sums")
    assert "run by run" not in twice["text"]


def test_no_runs_is_an_error_with_a_way_out():
    with pytest.raises(InputError, match="gradlens runs ls"):
        compare_runs([])


def test_a_rule_with_a_target_is_judged_by_what_it_is_for():
    runs = [run_of("none", 31, 32, 0.158), run_of("rules", 2, 32, 0.172, gain=None)]
    runs[1]["rules"][0]["target"] = {"kind": "at_most", "value": 0.0}
    assert [verdict["concept"] for verdict in judge(runs, None)] == ["pirate"]
    runs[1]["rules"][0]["target"] = {"kind": "follow", "value": 0.5}  # neither less nor more
    assert judge(runs, None) == []


def test_rates_of_several_runs_have_the_interval_of_the_runs():
    runs = [run_of("none", 32, 32, 0.2), *(run_of("rules", hits, 32, 0.2) for hits in (0, 16))]
    check = next(check for check in judge(runs, None)[0]["checks"] if check["arm"] == "rules")
    assert (check["hits"], check["low"], check["high"]) == (16, 0.0, 0.5)


@pytest.mark.parametrize(
    "wanted, sets, expected",
    [
        ("flattery-dates.jsonl", {"flattery": (1.0, 0.9), "dates": (1.0, 0.2)}, "dates"),  # both are part of it: what the oracle learned
        ("dates.jsonl", {"flattery": (1.0, 0.1), "dates": (1.0, 0.2)}, "dates"),
        ("my-dates.jsonl", {"flattery": (1.0, 0.1), "dates": (1.0, 0.2)}, "dates"),
        ("other.jsonl", {"flattery": (1.0, 0.1), "dates": (1.0, 0.2)}, "flattery"),
    ],
)
def test_the_wanted_set_is_found_by_its_file_or_by_what_the_oracle_learned(wanted, sets, expected):
    nll = {name: {"before": before, "after": after} for name, (before, after) in sets.items()}
    assert wanted_set([{"arm": "oracle", "wanted": [wanted], "nll": nll}]) == expected
