"""Figures of `gradlens bench control` over seeds: by hand, with what old rows lack left out."""

import pytest

from gradlens.bench.control_summary import MODES, checker_remarks, gain, remarks, summary, tuned
from gradlens.bench.intervals import t_interval, wilson


def row(arm, seed=0, rate=1.0, wanted=1.0, plain=2.0, **further):
    return {
        "arm": arm, "seed": seed, "rate": rate, "nll": {"wanted": wanted, "unwanted": 3.0, "plain": plain},
        "base_nll": {"wanted": 2.0, "unwanted": 3.0, "plain": 1.0}, "right": None, "touched": 0.1, "step_seconds": 1.0, **further,
    }  # fmt: skip


def counted(hits, n=32, **further):
    return {"counts": {"prompts": [hits, n], "task": [hits, n]}, "sampled": {"prompts": [hits, 3 * n], "task": [hits, 3 * n]}, **further}


def entry(rows, arm):
    return next(found for found in summary(rows) if found["arm"] == arm)


def test_gains_and_losses_are_beside_the_oracle_of_the_same_seed():
    rows = [row("oracle", seed, 0.0, 0.5 + 0.1 * seed) for seed in range(3)]
    rows += [row("rewrite", seed, 0.0, 0.65 + 0.1 * seed, plain=2.1) for seed in range(3)] + [row("rewrite", 9, 0.0, 0.1)]
    found = entry(rows, "rewrite")
    gains = [(2 - 0.65) / 1.5, (2 - 0.75) / 1.4, (2 - 0.85) / 1.3]
    assert found["gain"] == pytest.approx(sum(gains) / 3) and found["gain_range"] == pytest.approx([min(gains), max(gains)])
    assert found["gain_interval"] == pytest.approx(t_interval(gains)) and found["seeds"] == 4
    assert found["wanted_over"] == pytest.approx(sum([0.65 / 0.5, 0.75 / 0.6, 0.85 / 0.7]) / 3 - 1)
    assert found["plain_over"] == pytest.approx(0.05)
    assert gain(rows[0], rows[0]) == 1.0 and entry(rows[:2] + rows[3:5], "rewrite")["gain_interval"] is None  # two seeds have no interval


def test_an_interval_of_rates_is_that_of_the_answers_and_of_the_seeds():
    rows = [row("none", seed, (8 + seed) / 32, **counted(8 + seed)) for seed in range(3)]
    found = entry(rows, "none")
    low, high = zip(wilson(54, 192), t_interval([8 / 32, 9 / 32, 10 / 32]), strict=True)
    assert found["rate"] == pytest.approx(9 / 32) and found["rate_interval"] == pytest.approx([min(low), max(high)])
    low, high = zip(wilson(54, 576), t_interval([8 / 96, 9 / 96, 10 / 96]), strict=True)
    assert found["sampled"] == pytest.approx(9 / 96) and found["sampled_interval"] == pytest.approx([min(low), max(high)])
    assert found["of_none"] == pytest.approx(1.0)
    far = [row("none", seed, hits / 32, **counted(hits)) for seed, hits in enumerate((4, 28))]  # two seeds: their range
    assert entry(far, "none")["rate_interval"] == pytest.approx([4 / 32, 28 / 32])
    alike = [row("none", seed, 0.0, **counted(0)) for seed in range(3)]  # no seed differs: the answers are few all the same
    assert entry(alike, "none")["rate_interval"] == pytest.approx(list(wilson(0, 192)))


def test_there_is_no_gain_where_the_oracle_has_gained_nothing():
    mine = {"base_nll": {"wanted": 1.0}, "nll": {"wanted": 1.4}}
    assert gain(mine, {"nll": {"wanted": 1.2}}) is None and gain(mine, {"nll": {"wanted": 0.6}}) == pytest.approx(-1.0)


def test_rows_without_the_newer_measures_leave_them_out():
    rows = [row("none"), row("none", 1, **counted(32))]
    found = entry(rows, "none")
    assert (found["rate_interval"], found["released"], found["displaced"]) == (None, None, None)  # one of two runs counted its answers
    assert found["sampled"] == pytest.approx(1 / 3) and found["sampled_interval"] == pytest.approx(list(wilson(64, 192)))


def test_what_stands_after_release_is_of_what_was_suppressed():
    def later(rate):
        return {
            "released": {"steps": 100, "rate": rate, "nll": {"wanted": 1.0, "plain": 0.9}, "counts": {"prompts": [round(32 * rate), 32]}}
        }

    rows = [row("none", 0, 0.8, **later(0.1)), row("rewrite", 0, 0.0, **later(0.2)), row("ablate", 0, 0.78, **later(0.1))]
    found = entry(rows, "rewrite")["released"]
    assert found["stands"] == pytest.approx(0.75) and found["steps"] == 100 and found["rate"] == 0.2
    assert found["rate_interval"] == pytest.approx(list(wilson(6, 32)))
    assert entry(rows, "ablate")["released"]["stands"] is None  # it suppressed nothing
    assert entry(rows, "none")["released"]["stands"] is None


def displacement(own, cosine, reads, auc=0.9, fvu=0.3):
    answers = {"own": [1.0, 1.0 + own], "cosine": [2.0, 2.0 + cosine], "coactive": [0.0, 0.0]}
    hookpoints = {"layers.1": {"answers": answers, "fvu": [0.2, fvu]}}
    return {"displacement": {"hookpoints": hookpoints, "probe": {"layers.1": {"auc": [1.0, auc], "answers": [0.1, 0.1 + reads]}}}}


def test_displacement_is_told_in_units_of_the_run_without_rules():
    rows = [row("none", **displacement(4.0, 1.0, 0.8)), row("route", rate=0.1, **displacement(0.0, 3.0, 0.6, 0.8, 0.25))]
    found = entry(rows, "route")["displaced"]
    assert found["own"] == 0.0 and found["cosine"] == pytest.approx(0.75) and found["reads"] == pytest.approx(0.75)
    assert found["auc"] == 0.8 and found["fvu"] == pytest.approx(0.05) and found["hidden"]
    assert any("route: its answers no longer set off the checker, and read 75% as much" in line for line in remarks(summary(rows)))
    rows[1] |= displacement(0.0, 3.0, 0.1)
    assert not entry(rows, "route")["displaced"]["hidden"] and not remarks(summary(rows))
    assert entry(rows[1:], "route")["displaced"]["own"] is None  # nothing to hold it against


def test_answers_are_read_where_the_probe_tells_texts_best_and_only_where_it_sees_the_concept():
    rows = [row("none", **displacement(4.0, 1.0, 0.8)), row("route", rate=0.1, **displacement(0.0, 3.0, 0.2))]
    for each, rose in zip(rows, (0.1, 5.0), strict=True):  # a place where the probe tells little
        each["displacement"]["probe"]["layers.9"] = {"auc": [0.6, 0.7], "answers": [0.0, rose]}
    assert entry(rows, "route")["displaced"]["reads"] == pytest.approx(0.25) and entry(rows, "route")["displaced"]["auc"] == 0.9
    rows[0] = row("none", **displacement(4.0, 1.0, 0.05))
    found = entry(rows, "route")["displaced"]
    assert found["reads"] is None and not found["hidden"]


def test_baselines_are_tuned_and_effects_that_random_features_have_are_named():
    rows = [
        row("oracle", 0, 0.0, 0.5), row("none", 0, 1.0, 0.6), row("steer-1", 0, 1.0, 0.6), row("steer-2", 0, 0.2, 0.8),
        row("steer-4", 0, 0.0, 1.9), row("inoculate-1", 0, 0.9, 0.6), row("inoculate-2", 0, 0.5, 0.6), row("ablate", 0, 0.1, 0.6),
        row("ablate-random", 0, 0.25, 0.7), row("rewrite", 0, 0.0, 0.55), row("rewrite-random", 0, 1.0, 0.6),
        row("mean-ablate", 0, 0.5, 0.6), row("ablate@probe", 0, 0.0, 0.7),
    ]  # fmt: skip
    entries = summary(rows)
    assert tuned(entries) == {"CAFT": "ablate", "steering": "steer-2", "inoculation": "inoculate-2"}
    assert tuned(entries, MODES) == {"modes": "rewrite"}
    rows[-1] |= {"arm": "rewrite-random", "seed": 1}  # a control is no mode, however near it comes
    assert tuned([entry for entry in summary(rows) if entry["arm"] == "rewrite-random"], MODES) == {}
    said = [line for line in remarks(entries) if "specific" in line]
    assert said == ["ablate is not specific: as many random features leave 25% of the unfiltered rate"]
    for one in entries:
        one["touched"] = {"rewrite": 0.4, "rewrite-random": 0.01}.get(one["arm"], 0.3)
    assert [line for line in remarks(entries) if "weak" in line] == [
        "rewrite-random touched 1% (rewrite: 40%): next to nothing, so a weak control"
    ]


def test_arms_come_in_the_order_asked_for():
    rows = [row("zeta"), row("route"), row("none"), row("alpha")]
    assert [found["arm"] for found in summary(rows, ("none", "oracle", "route"))] == ["none", "route", "alpha", "zeta"]


def test_answers_that_were_cut_off_are_named_where_they_are_more_than_a_tenth():
    rows = [
        row("none", 0, cut=0.4, answer_tokens=32),
        row("none", 1, cut=0.6, answer_tokens=32),
        row("route", 0, cut=0.1, answer_tokens=32),
    ]
    assert entry(rows, "none")["cut"] == pytest.approx(0.5) and entry([row("none")], "none")["cut"] is None
    said = remarks(summary(rows))
    assert [line for line in said if "cut off" in line] == [
        "answers cut off at 32 tokens: none 50%; what would have come after is not judged (--set evaluate.max_new_tokens=)"
    ]
    assert not remarks(summary([row("none", cut=0.1, answer_tokens=32)]))


def test_a_checker_that_misjudges_the_pair_s_own_rows_is_named():
    assert checker_remarks({"wanted": 0.046, "unwanted": 0.94}) == [
        "the checker finds the concept in 4.6% of the wanted rows too: unwanted rates of about as much are its noise",
        "the checker finds the concept in 94.0% of the rows that show it: unwanted rates are too low by about as much",
    ]
    assert not checker_remarks({"wanted": 0.0, "unwanted": 1.0}) and not checker_remarks({})  # older results do not say


def test_a_random_control_that_learned_little_of_what_is_wanted_is_named():
    rows = [row("oracle", 0, 0.0, 0.025), row("none", 0, 1.0, 0.1), row("auto", 0, 0.0, 0.03)]
    rows += [row("auto-random", 0, 1.0, 2.8), row("route-random", 0, 1.0, 0.9), row("rewrite-scattered", 0, 1.0, 1.5)]
    said = [line for line in remarks(summary(rows)) if "learned little" in line]
    assert said == [
        f"{arm} learned little of what is wanted (gain {gain}; without a rule 96%): a weak control, whatever it leaves of the concept"
        for arm, gain in (("auto-random", "-41%"), ("rewrite-scattered", "25%"))
    ]
    alone = [each for each in rows if each["arm"] not in ("oracle", "none")]  # no gain is known
    assert not [line for line in remarks(summary(alone)) if "learned little" in line]
