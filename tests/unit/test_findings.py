"""What a run found, from its events: the last word counts, alarms know when answers would have told, a screen says it in words."""

import numpy as np
import pytest
from rich.console import Console, Group

from gradlens.readings import significance
from gradlens.report.findings import (
    FDR,
    alarms,
    behaviour,
    beyond_chance,
    chance,
    clusters,
    current,
    flat,
    in_words,
    labelled,
    marked,
    told_of_answers,
)

SEA = {
    "share": 0.624, "features": [["layers.3", 2], ["layers.1", 0], ["layers.3", 5], ["layers.3", 6], ["layers.3", 7]], "count": 12,
    "words": ["matey", "ahoy"], "probability": [0.0042, 0.31], "passage": "The [ahoy] said\nthe [matey!] of the [sea", "labels": [],
    "own": {"before": 1, "now": 7, "of": 8, "said": {"before": "It is here.\nOr there.", "now": "Ahoy " * 40}},
}  # fmt: skip
SUMS = {**SEA, "share": 0.03, "words": ["+"], "passage": "1 [+] 2", "own": {}}


def learned(step, *entries):
    return {"kind": "learned", "step": step, "clusters": list(entries)}


def alarm(step, name="sea", about="concept"):
    return {"kind": "alarm", "step": step, "about": about, "name": name, "text": f"{name} is being learned", "chance": 0.004}


def rates(concept, *pairs):
    steps, values = zip(*pairs, strict=True)
    return {f"own/{concept}/rate": (np.array(steps), np.array(values, float))}


def test_the_last_reading_is_what_the_run_has_learned():
    assert clusters([]) == []
    found = clusters([learned(4, SUMS), alarm(4), learned(8, SEA, SUMS)])
    assert [(entry["step"], entry["words"]) for entry in found] == [(8, ["matey", "ahoy"]), (8, ["+"])]
    assert clusters([learned(4, SEA), learned(8)]) == []  # nothing any more


def test_what_was_found_past_the_step_that_a_run_was_resumed_at_is_void():
    events = [learned(4, SUMS), alarm(4, "early"), learned(8, SEA), alarm(8, "late"), {"kind": "resumed", "step": 6}]
    assert [entry["words"] for entry in clusters(events)] == [["+"]]
    assert [found["name"] for found in alarms([*events, alarm(7, "again")], {})] == ["early", "again"]
    assert [event["step"] for event in current(events, "learned")] == [4]


def test_a_cluster_has_the_labels_of_its_first_features():
    labels = {"layers.3": {2: "salt", 5: "salt", 6: "wind", 7: "waves"}, "layers.1": {0: "harbour"}}
    (found,) = labelled([SEA], labels)
    assert found["labels"] == ["salt", "harbour", "wind"] and found["words"] == SEA["words"]
    assert labelled([SEA], {})[0]["labels"] == []


@pytest.mark.parametrize(
    ("readings", "step"),
    [
        ([(4, 0.0), (8, 0.05), (12, 0.125), (16, 0.9)], (12, 8)),
        ([(4, 0.2), (8, 0.3)], (8, 4)),  # a tenth exactly
        ([(4, 0.5), (8, 0.55)], (None, 8)),
        ([(4, 0.9)], (None, 4)),
    ],
)
def test_answers_tell_of_a_concept_from_a_tenth_above_their_first_reading(readings, step):
    assert behaviour(rates("sea", *readings), "sea") == step
    assert behaviour({}, "sea") == (None, None)


def test_alarms_say_when_answers_would_have_told():
    scalars = rates("sea", (4, 0.0), (8, 0.05), (12, 0.5))
    found = alarms([alarm(4), alarm(8, "salt, wind", "mover")], scalars)
    assert found[0] == {
        "step": 4,
        "about": "concept",
        "name": "sea",
        "text": "sea is being learned",
        "behaviour_step": 12,
        "behaviour_before": 8,
        "doubted": False,
    }
    assert found[1]["behaviour_step"] is None
    assert [told_of_answers(entry) for entry in found] == ["at step 12, not at step 8", "-"]
    (silent,) = alarms([alarm(4)], {})
    assert told_of_answers(silent) == "not read"
    (later,) = alarms([alarm(4)], rates("sea", (0, 0.0), (6, 0.05)))
    assert told_of_answers(later) == "not at step 6"
    doubt = {"kind": "doubtful_checker", "step": 0, "concept": "sea", "text": "before training 3 of 8 show sea"}
    (doubted,) = alarms([doubt, alarm(4)], scalars)
    assert told_of_answers(doubted) == "at step 12, not at step 8 (its checker is in doubt)"
    assert [entry["doubted"] for entry in alarms(iter([doubt, alarm(4, "salt"), alarm(8, "sea", "mover")]), scalars)] == [False, False]


def test_passages_are_taken_apart_at_their_marks():
    assert marked("[Ahoy], [matey!] you") == [("Ahoy", True), (", ", False), ("matey!", True), (" you", False)]
    assert marked("no marks") == [("no marks", False)] and marked("") == []
    assert "".join(text for text, _ in marked("torn [in the middle")) == "torn [in the middle"


def test_probabilities_are_read_in_percent():
    assert [chance(value) for value in (0.0, 0.0042, 0.031, 0.31, 1.0, None)] == ["0%", "0.42%", "3.1%", "31%", "100%", "?"]


def shown(*arguments, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Group(*in_words(*arguments)))
    return console.export_text().splitlines()


def test_a_screen_says_it_in_words_and_within_its_width():
    found = [{"step": 8, **SEA, "labels": ["salt", "wind"]}, {"step": 8, **SUMS}]
    lines = shown(found, {"layers.3": 5}, 8)
    assert lines[0] == "What this run learned, in words"
    assert [line.strip() for line in lines[1:]] == [
        "62% matey, ahoy",
        "said with probability 0.42% -> 31%: The [ahoy] said the [matey!] of the [sea",
        "in 1 of 8 of its own answers before, in 7 now",
        "before  It is here. Or there.",
        lines[5].strip(),
        "labels: salt | wind",
        "3% +",  # little of it: one line
    ]
    assert lines[5].strip().startswith("now     Ahoy Ahoy") and lines[5].endswith("…")
    assert max(map(len, lines)) <= 100
    assert "(at step 8)" in shown(found, {}, 12)[0]  # the run has gone on since


def test_of_an_answer_the_screen_shows_the_part_that_was_learned():
    answer = "There are many kinds of candles, and they differ in size, shape and age. Back in my day we had one radio for the street."
    place = [answer.index("Back"), answer.index(" we had")]
    own = {**SEA["own"], "said": {"before": "Candles burn. " * 12, "now": answer}, "at": {"before": [0, 7], "now": place}}
    before, now = shown([{"step": 8, **SEA, "own": own}], {}, 8, width=80)[4:6]
    assert before.strip().startswith("before  Candles burn.") and before.endswith("…")
    assert "now     …" in now and "Back in my day" in now and now.endswith("…") and len(now) <= 80
    older = {name: part for name, part in own.items() if name != "at"}  # of the texts alone: where the words stand
    assert "one radio for the" in shown([{"step": 8, **SEA, "words": ["radio", "street"], "own": older}], {}, 8, width=80)[5]


def test_nothing_that_a_model_wrote_controls_the_terminal():
    nasty = "a\x1b[2J\x07b\nc\x9b"
    own = {**SEA["own"], "said": {"before": nasty, "now": nasty}}
    lines = shown([{"step": 8, **SEA, "words": [nasty], "passage": nasty, "own": own, "labels": [nasty]}], {}, 8)
    assert len(lines) == 7 and all("a [2J b c" in line for line in (lines[1], lines[2], *lines[4:]))
    assert flat("a\r\nb  c") == "a b  c"


def test_a_screen_of_a_run_that_learned_nothing_says_so():
    assert shown([], {"layers.3": 0}, 8) == ["What this run learned: nothing beyond chance (false discovery rate 5%)"]
    assert shown([], {}, 8) == []


def test_the_rate_of_false_discoveries_is_that_of_the_test():
    assert significance.FDR == FDR and beyond_chance({}) == ""
    assert (
        beyond_chance({"layers.1": 0, "layers.3": 2})
        == "features learned beyond chance (false discovery rate 5%): 0 at layers.1, 2 at layers.3"
    )


def test_figures_that_were_not_finite_are_shown_as_unknown():
    lines = shown([{"step": 8, **SEA, "share": None, "probability": [None, 0.5]}], {}, 8)
    assert lines[1].strip() == "? matey, ahoy"
