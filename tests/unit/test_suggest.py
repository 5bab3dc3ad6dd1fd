"""Which rule is suggested for which data, by how a concept's tokens lie in the rows."""

import pytest

from gradlens.concepts.concept_files import Concept, Detector
from gradlens.concepts.detector_fit import NOTHING
from gradlens.control.rules import Rule
from gradlens.control.suggest import _checked, _choose, _found, _inner_gaps, _lost, _spread, settle, settled
from gradlens.errors import ConfigError


def detector(auc=0.99, negative=0.05):
    return Detector(features=[0], weights=[1.0], bias=0.0, flagged_auc=auc, flagged_positive=0.3, flagged_negative=negative)


@pytest.mark.parametrize(
    ("seen", "free", "whole", "gaps", "told", "mode", "good", "words"),
    [
        (True, 0.5, 0.0, 2.0, detector(), "reweight", True, "leaves the others out"),
        (True, 0.5, 0.0, 2.0, detector(auc=0.7), "reweight", True, "leaves the others out"),
        (True, 0.0, 0.0, 0.1, detector(), "rewrite", True, "ends of answers"),
        (True, 0.0, 0.0, 2.0, detector(), "rewrite", False, "midst of answers"),
        (True, 0.0, 0.9, 0.0, detector(), "rewrite", False, "beginning to end"),
        (True, 0.0, 0.0, 0.0, detector(auc=0.7), "rewrite", False, "not told well"),
        (True, 0.0, 0.0, 0.0, detector(negative=0.6), "rewrite", False, "not told well"),
        (True, 0.0, 0.0, 0.0, NOTHING, "route", False, "no feature tells"),
        (False, 1.0, 0.0, 0.0, detector(), "reweight", False, "nothing to suppress"),
    ],
)
def test_the_rule_follows_from_where_the_tokens_are(seen, free, whole, gaps, told, mode, good, words):
    rule, expects, found = _choose("c", "layers.1", seen, free, whole, gaps, 0.3, True, told)
    assert (rule.mode, found) == (mode, good) and words in expects
    assert rule.rows == (0.3 if mode == "reweight" else None)
    if mode == "reweight" and seen:
        rule, expects, found = _choose("c", "layers.1", seen, free, whole, gaps, 0.0, False, told)
        assert (rule.mode, rule.rows, found) == ("reweight", 0.0, False) and "do not part" in expects
        rule, expects, found = _choose("c", "layers.1", seen, free, whole, gaps, None, False, told)  # rows cannot be told
        assert (rule.mode, rule.rows, found) == ("route", None, told.flagged_auc > 0.9) and ("expect some" in expects) != found


@pytest.mark.parametrize("total", [0, 3, 16, 19, 31, 32, 47, 160])
def test_rows_that_are_tried_come_from_everywhere(total):
    tried = _spread(range(100, 100 + total), 16)
    steps = [second - first for first, second in zip(tried, [*tried[1:], 100 + total], strict=False)]
    assert len(tried) == min(total, 16) and tried[:1] == [100][:total] and max(steps, default=0) - min(steps, default=0) <= 1


def test_what_leaving_rows_out_costs_is_said_by_file():
    files = ["a"] * 5 + ["some/where/b"] * 5
    assert "(little or nothing is left of b)" in _lost(files, [5, 6, 7, 8, 9])
    assert "little or nothing" not in _lost(files, [0, 5, 6, 7]) and "name the file in data.wanted" in _lost(files, [0])
    assert "little or nothing" not in _lost(["a"] * 5, [0, 1, 2, 3, 4])


def test_gaps_at_the_ends_of_an_answer_are_no_inner_gaps():
    ids, counted = [1, 2, 3, 4, 5, 6, 9], [False, False] + [True] * 5
    opening, middle, closing = ([t in gone for t in ids] for gone in ((3,), (4,), (6,)))
    assert [_inner_gaps(ids, counted, taken, ends=[9]) for taken in (opening, middle, closing)] == [0, 1, 0]


def test_auto_keeps_what_the_rule_says_and_amplifies_by_route():
    class Found:
        rule = Rule(concept="c", mode="rewrite", hookpoints=["layers.1"])

    rule = Rule(concept="c", mode="auto", random_control=3, start=2)
    assert settled(rule, Found) == Rule(concept="c", mode="rewrite", hookpoints=["layers.1"], random_control=3, start=2)
    assert settled(Rule(concept="c", mode="auto", gain=2), Found).mode == "route"
    Found.rule = Rule(concept="c", mode="rewrite", hookpoints=["layers.1"], rows=0.2)
    assert settled(rule, Found).rows == 0.2 and settled(rule.model_copy(update={"rows": 0.0}), Found).rows == 0.0
    Found.rule = Rule(concept="c", mode="reweight", rows=0.3)
    assert settled(rule, Found) == Rule(concept="c", mode="reweight", rows=0.3, random_control=3, start=2)
    assert settled(rule.model_copy(update={"rows": 0.0}), Found).rows == 0.0
    there = rule.model_copy(update={"hookpoints": ["layers.2"]})  # the score that was found is of another place's detector
    assert settled(there, Found).hookpoints is None
    assert settled(there.model_copy(update={"rows": 0.0}), Found).hookpoints == ["layers.2"]
    assert settled(Rule(concept="c", mode="auto", gain=2), Found).rows is None


def test_rows_to_rewrite_are_told_wherever_that_is_done_best():
    rule = Rule(concept="c", mode="rewrite", hookpoints=["layers.1"])
    assert rule.told_at == ["layers.1"] and rule.model_copy(update={"rows": 0.2}).told_at is None
    assert Rule(concept="c", mode="reweight", hookpoints=["layers.1"], rows=0.2).told_at == ["layers.1"]  # one place tells them there


def test_auto_is_refused_a_gain_that_the_suggested_mode_does_not_have():
    class Found:
        rule = Rule(concept="c", mode="rewrite", hookpoints=["layers.1"])

    reverse = Rule(concept="c", mode="auto", gain=-0.5)
    with pytest.raises(ConfigError, match="its gain is -0.5, and these rows suit mode rewrite"):
        settled(reverse, Found)
    Found.rule = Rule(concept="c", mode="reweight", rows=0.3)
    assert settled(reverse, Found) == Rule(concept="c", mode="reweight", rows=0.3, gain=-0.5)


def test_the_checker_says_what_stays_where_it_finds_the_concept_at_all():
    concept = Concept(name="c", positive=["oh"], negative=["no"], checker={"pattern": ["oh"]})
    assert _checked(concept, ["oh dear", "Oh", "well", "oh"], ["dear", "", "well", "oh"]) == (0.75, 0.25)
    assert _checked(concept, ["dear", "well", "oh"], ["dear", "well", "oh"]) is None
    assert _checked(Concept(name="c", positive=["oh"], negative=["no"]), ["oh"], [""]) is None  # no checker, and too few examples for one


def test_only_a_checker_that_is_named_says_of_rows_that_they_show_the_concept():
    examples = {"positive": [f"oh {n}" for n in range(20)], "negative": [f"no {n}" for n in range(20)]}
    assert _found(Concept(name="c", **examples, checker={"pattern": ["oh"]}), ["oh dear", "well", "Oh"]) == [0, 2]
    assert _found(Concept(name="c", **examples), ["oh dear", "well", "oh 3"]) == []


def test_a_rule_that_auto_has_settled_keeps_its_own_name_where_another_has_the_new_one():
    class Found:
        rule, expects, good = Rule(concept="c", mode="reweight", rows=0.3), "", True

    concept = Concept(name="c", positive=["oh"], negative=["no"])
    rules = [Rule(concept="c", mode="reweight", gain=0.5), Rule(concept="c", mode="auto")]
    settled_rules, _ = settle(rules, [concept], lambda concept: (Found, concept), lambda kind, **fields: None)
    assert [rule.label for rule in settled_rules] == ["reweight:c", "auto:c"]
