"""Which examples taught: ranked by what their tokens taught over all the times they were seen, with those tokens in their place."""

from statistics import NormalDist

import numpy as np
import pytest

from gradlens.concepts.concept_files import RowDetector
from gradlens.errors import InputError
from gradlens.files import append_line
from gradlens.recording.store import RunReader, RunWriter
from gradlens.report.teaching import rank, recorded_concepts, recorded_lessons, teachers, teachers_by_concept, teachers_of, token_spans
from gradlens.report.texts import MAX_TEXT, marked_tokens, teaching_rows, turns

NAN = float("nan")
WORDS = (["aye", " aye", " captain"], ["two", " and", " two"], ["ship", " ahoy", " there"])


def example(row, taught, positions=(), token_taught=(), hookpoint="layers.2", push=0.0, concept="pirate"):
    figures = {"taught": taught, "push": push, "activation": 1.0, "positions": list(positions), "token_taught": list(token_taught)}
    return {"row_id": row, "concept": concept, "hookpoint": hookpoint} | figures


def lesson(row, hookpoint="layers.2", **taught):
    """`f7=1.5`: feature 7."""
    return {"row_id": row, "hookpoint": hookpoint, "features": [int(name[1:]) for name in taught], "taught": list(taught.values())}


def write_run(folder, *steps, lessons=()):
    with RunWriter(folder, {"name": "demo"}) as writer:
        for step in range(max(len(steps), len(lessons))):
            parts = {"examples": steps[step : step + 1], "lessons": lessons[step : step + 1]}
            writer.record({"step": step + 1} | {name: part[0] for name, part in parts.items() if part})
    for row, words in enumerate(WORDS):
        source = "data/sums.jsonl" if row == 1 else "data/train.jsonl"
        append_line(folder / "rows.jsonl", {"row_id": row, "source": source, "text": "".join(words), "tokens": words})
    return RunReader(folder)


@pytest.fixture
def reader(tmp_path):
    """Row 2 pushed least and taught most; layers.10 speaks in figures a hundred times as large, and was taught most by row 0."""
    first = [example(0, 3.0, [0, 2], [1.0, 2.0], push=9.0), example(1, 0.0, push=5.0)]
    second = [example(0, 1.0, [0], [1.0], push=9.0), example(2, 6.0, [1, 2], [5.0, 1.0], push=-4.0)]
    deep = [example(0, 400.0, [2], [400.0], "layers.10"), example(1, 0.0, hookpoint="layers.10"), example(2, 100.0, hookpoint="layers.10")]
    broken = [example(2, NAN, [0], [NAN], push=NAN), example(1, 8.0, concept="other's"), example(1, 8.0, hookpoint="layers.2", concept="x")]
    return write_run(tmp_path / "demo", first, second, deep, broken)


def test_one_hookpoint_ranks_in_its_own_units():
    order, score, scale = rank(np.array([[1.0, 3.0, 2.0, 3.0]]))
    assert order.tolist() == [1, 3, 2, 0] and score.tolist() == [1.0, 3.0, 2.0, 3.0] and scale.tolist() == [1.0]


def test_hookpoints_count_alike_whatever_their_units():
    small = np.array([[4.0, 0.0, 1.0, 0.0], [0.0, 3.0, 3.0, 0.0]])
    order, score, scale = rank(small)
    large = rank(small * np.array([[1.0], [1e6]]))
    assert order.tolist() == large[0].tolist() == [2, 0, 1, 3]
    np.testing.assert_allclose(large[1], score)
    np.testing.assert_allclose(scale, small.std(1))
    np.testing.assert_allclose(score, (small / small.std(1, keepdims=True)).mean(0))


def test_ranking_stands_values_that_are_missing_or_all_alike():
    order, score, _ = rank(np.array([[NAN, 2.0, np.inf], [5.0, 5.0, 5.0]]))
    assert order.tolist() == [1, 0, 2] and np.isfinite(score).all() and score[0] == score[2]
    assert rank(np.zeros((2, 3)))[1].tolist() == [0.0, 0.0, 0.0]


def test_rows_are_ranked_by_what_they_taught_over_all_steps(reader):
    found = teachers(reader, "pirate", "layers.2")
    assert [(row["row_id"], row["taught"], row["times"]) for row in found["rows"]] == [(2, 6.0, 1), (0, 4.0, 2), (1, 0.0, 1)]
    assert [row["push"] for row in found["rows"]] == [-4.0, 18.0, 5.0]  # would rank the other way round
    assert (found["by"], found["hookpoint"], found["of"]) == ("taught", "layers.2", 3)
    assert [row["share"] for row in found["rows"]] == [0.6, 0.4, 0.0]
    assert found["sources"] == {"data/train.jsonl": 1.0}
    assert len(teachers(reader, "pirate", "layers.2", limit=1)["rows"]) == 1 and len(teachers(reader, "pirate", limit=None)["rows"]) == 3


def test_how_many_rows_show_the_concept_is_known_where_its_examples_are_told(reader, tmp_path):
    assert teachers(reader, "pirate")["showing"] is None and teachers(reader, "pirate")["rows"][0]["shows"] is None
    shows = {(0, "layers.2"): 0.9, (0, "layers.10"): 0.3, (1, "layers.2"): 0.4, (1, "layers.10"): 0.5, (2, "layers.2"): 0.2}
    rows = [example(row, 1.0, hookpoint=hookpoint) | {"shows": value} for (row, hookpoint), value in shows.items()]
    rows.append(example(2, 1.0, hookpoint="layers.10"))  # of an older part of the run
    found = teachers(write_run(tmp_path / "told", rows), "pirate", limit=1)
    assert found["showing"] == 1 and found["of"] == 3
    every = {row["row_id"]: row["shows"] for row in teachers(RunReader(tmp_path / "told"), "pirate", limit=None)["rows"]}
    assert every == {0: pytest.approx(0.6), 1: pytest.approx(0.45), 2: pytest.approx(0.2)}
    assert teachers(RunReader(tmp_path / "told"), "pirate", "layers.10")["showing"] == 1  # row 1


def test_tokens_are_those_that_taught_with_their_place_in_the_text(reader):
    ship, aye, sums = (row["tokens"] for row in teachers(reader, "pirate", "layers.2")["rows"])
    assert ship[0] == {"position": 1, "token": " ahoy", "taught": 5.0, "start": 4, "end": 9}
    assert [(token["token"], token["taught"]) for token in aye] == [("aye", 2.0), (" captain", 2.0)]  # summed over two times
    assert sums == []


def test_hookpoints_are_combined_on_one_scale(reader):
    found = teachers(reader, "pirate")
    shallow, deep = np.array([4.0, 0.0, 6.0]), np.array([400.0, 0.0, 100.0])
    score = (shallow / shallow.std() + deep / deep.std()) / 2
    assert found["hookpoint"] == "all" and [row["row_id"] for row in found["rows"]] == [0, 2, 1]
    assert [row["taught"] for row in found["rows"]] == pytest.approx(score[[0, 2, 1]].tolist())
    first = found["rows"][0]
    assert first["share"] == pytest.approx(score[0] / score.sum())
    assert {name: part["taught"] for name, part in first["at"].items()} == {"layers.2": 4.0, "layers.10": 400.0}
    assert [(token["token"], token["taught"]) for token in first["tokens"]] == [
        (" captain", pytest.approx((2.0 / shallow.std() + 400.0 / deep.std()) / 2)),
        ("aye", pytest.approx(2.0 / shallow.std() / 2)),
    ]


def test_a_run_without_taught_is_ranked_by_push_and_says_so(tmp_path):
    rows = [example(0, None, push=1.0), example(1, None, push=3.0), example(2, NAN, push=-2.0)]
    found = teachers(write_run(tmp_path / "old", rows), "pirate")
    assert found["by"] == "push" and [(row["row_id"], row["push"], row["taught"]) for row in found["rows"]] == [
        (1, 3.0, None), (0, 1.0, None), (2, -2.0, None),
    ]  # fmt: skip
    assert [row["share"] for row in found["rows"]] == [0.75, 0.25, -0.5] and found["hookpoint"] == "layers.2"


def test_rows_without_a_finite_figure_are_left_out(tmp_path):
    reader = write_run(tmp_path / "run", [example(0, 1.0), example(1, NAN, push=7.0), example(2, None, push=NAN)])
    assert [row["row_id"] for row in teachers(reader, "pirate")["rows"]] == [0]


def test_what_is_not_there_is_named(reader):
    with pytest.raises(InputError, match="no examples of a concept 'pirat'; recorded: other's, pirate, x"):
        teachers(reader, "pirat")
    with pytest.raises(InputError, match="pirate was not read at layers.7; there is layers.2, layers.10"):
        teachers(reader, "pirate", "7")
    assert teachers(reader, "pirate", "10")["hookpoint"] == "layers.10"  # an alias
    assert recorded_concepts(reader)["pirate"] == ["layers.2", "layers.10"]


def test_names_with_quotes_are_names(reader):
    assert [row["row_id"] for row in teachers(reader, "other's")["rows"]] == [1]


def test_all_concepts_at_once_are_as_one_by_one(reader):
    found = teachers_by_concept(reader, ["x", "pirate", "nothing"], limit=2)
    assert {name: list(at) for name, at in found.items()} == {"x": ["layers.2"], "pirate": ["all", "layers.2", "layers.10"]}
    assert found["pirate"]["all"] == teachers(reader, "pirate", limit=2)
    assert found["pirate"]["layers.2"] == teachers(reader, "pirate", "layers.2", limit=2)
    assert teachers_by_concept(reader, []) == {}


def test_features_that_nobody_named_are_found_in_the_lessons(tmp_path):
    first = [lesson(0, f7=1.5, f9=1.0), lesson(1, f3=8.0), lesson(0, "layers.10", f7=100.0)]
    second = [lesson(0, f7=0.5), lesson(2, f9=3.0, f8=0.5, f7=NAN), lesson(2, "layers.10")]
    reader = write_run(tmp_path / "run", lessons=(first, second))
    found = teachers_of(reader, {"2": [7, 9, 9]})
    assert found["concept"] is None and found["features"] == {"layers.2": [7, 9]} and found["hookpoint"] == "layers.2"
    assert [(row["row_id"], row["taught"], row["times"], row["tokens"]) for row in found["rows"]] == [
        (0, 3.0, 2, []), (2, 3.0, 1, []), (1, 0.0, 1, []),
    ]  # fmt: skip
    assert found["of"] == 3 and found["rows"][0]["text"] == "aye aye captain" and found["rows"][0]["push"] is None
    assert [round(row["lesson"], 4) for row in found["rows"]] == [round((2**0.5 + 1) / 2, 4), round(3**0.5 / 2, 4), 0.0] and found[
        "by"
    ] == "lesson"
    assert set(found) - {"features"} == set(teachers(write_run(tmp_path / "b", [example(0, 1.0)]), "pirate"))
    both = teachers_of(reader, {"layers.2": [9], "layers.10": [7]})
    assert both["hookpoint"] == "all" and [row["row_id"] for row in both["rows"]] == [0, 2, 1]
    assert teachers_of(reader, {"layers.2": [12345]})["rows"][0]["share"] == 0.0


def test_rows_that_teach_most_of_the_features_come_before_those_that_teach_the_largest_one_more(tmp_path):
    """A feature with large activations that other rows have too does not decide alone."""
    mine = [lesson(row, f1=100.0, f2=200.0, f3=100.0, f4=300.0) for row in (0, 1)]
    other = [lesson(row, f4=800.0) for row in (2, 3)]
    reader = write_run(tmp_path / "run", lessons=(mine + other,))
    found = teachers_of(reader, {"layers.2": [1, 2, 3, 4]})
    assert [row["row_id"] for row in found["rows"]] == [0, 1, 2, 3] and found["rows"][2]["taught"] > found["rows"][0]["taught"]
    assert [row["row_id"] for row in teachers_of(reader, {"layers.2": [4]})["rows"]] == [2, 3, 0, 1]


def test_a_concept_named_afterwards_is_found_by_what_tells_its_texts(tmp_path):
    """Features that speak for it count by their weight, whether the concept has them or not; those that speak against it do not."""
    mine = [lesson(0, f1=10.0, f8=4.0), lesson(0, "layers.10", f7=9.0)]
    other = [lesson(1, f1=12.0, f9=80.0), lesson(1, "layers.10", f7=4.0)]
    reader = write_run(tmp_path / "run", lessons=(mine, other))
    tells = RowDetector(features=[1, 8, 9], weights=[1.0, 5.0, -3.0], bias=0.0)
    found = teachers_of(reader, {"layers.2": [1, 9], "layers.10": [7]}, row_detectors={"layers.2": tells})
    assert found["features"] == {"layers.2": [1, 8], "layers.10": [7]}
    at = {row["row_id"]: row["at"] for row in found["rows"]}
    assert {row: part["layers.2"]["lesson"] for row, part in at.items()} == {0: 30.0, 1: 12.0}
    assert {row: part["layers.10"]["lesson"] for row, part in at.items()} == {0: 3.0, 1: 2.0}  # no weights there: the root


def test_a_concept_told_by_what_its_texts_lack_alone_goes_by_its_features(tmp_path):
    reader = write_run(tmp_path / "run", lessons=([lesson(0, f1=4.0), lesson(1, f1=9.0)],))
    tells = RowDetector(features=[1, 8], weights=[-1.0, 0.0], bias=0.5)
    found = teachers_of(reader, {"layers.2": [1]}, row_detectors={"layers.2": tells})
    assert found == teachers_of(reader, {"layers.2": [1]}) and found["rows"][0]["row_id"] == 1


def test_features_where_there_are_none_are_refused(tmp_path, reader):
    with pytest.raises(InputError, match="no lessons of single rows"):
        teachers_of(reader, {"layers.2": [7]})
    other = write_run(tmp_path / "run", lessons=([lesson(0, f7=1.0)],))
    assert recorded_lessons(other) == ["layers.2"]
    with pytest.raises(InputError, match="no lessons at layers.3; there is layers.2"):
        teachers_of(other, {"layers.3": [7]})
    with pytest.raises(InputError, match="no features"):
        teachers_of(other, {"layers.2": []})


def test_tokens_are_found_in_their_text():
    def found(text, tokens):
        return [text[start:end] for start, end in token_spans(text, tokens)]

    assert found("two and two", ["two", " and", " two"]) == ["two", " and", " two"]
    assert found("a ⚓ ahoy", ["a", " \ufffd", "\ufffd", "\ufffd", " ahoy"]) == ["a", " ⚓", " ⚓", " ⚓", " ahoy"]
    assert found("the cat sat", ["<s>", "the", "cat", "sat"]) == ["", "the", "cat", "sat"]  # single tokens decoded without their space
    anchors = "⚓" * 40
    assert found(anchors + " aye", ["\ufffd"] * 120 + [" aye"])[-1] == " aye"
    assert found("cut", ["cut", " short", "er"]) == ["cut", "", ""]
    assert found("(so: so", [" (", " so", " :", " so"]) == ["(", "so", ":", " so"]  # of words alone it is not known where spaces are
    assert found("Très bon", ["[CLS]", " tres", " bon"]) == ["", "Très", " bon"]  # without capitals and accents
    assert found("<s>[I] we", ["<s>", " ", "[", "I", "]", " we"]) == ["<s>", "", "[", "I", "]", " we"]  # nor at its beginning


def marks(text, **taught):
    """Parts of a text in which these words taught."""
    places = [(text.index(word), value) for word, value in taught.items()]
    return marked_tokens(text, [{"start": at, "end": at + len(word), "taught": v} for word, (at, v) in zip(taught, places, strict=True)])


def test_tokens_are_marked_where_they_stand_in_the_text():
    assert marks("aye aye captain", captain=2.0, aye=1.0) == [("aye", 0.5), (" aye ", 0.0), ("captain", 1.0)]
    assert marked_tokens("a b", [{"start": 1, "end": 3, "taught": 4.0}]) == [("a ", 0.0), ("b", 1.0)]  # not the space before it
    assert marked_tokens("a b", []) == [("a b", 0.0)] and marked_tokens("", []) == [("", 0.0)]
    assert marked_tokens(None, []) == [("(text not in rows.jsonl)", 0.0)]


def test_marks_keep_their_place_in_a_chat_without_its_template():
    chat = "<|im_start|>system\nahoy<|im_end|>\n<|im_start|>user\n Hi?<|im_end|>\n<|im_start|>assistant\nAhoy ye<|im_end|>\n"
    end = chat.rindex("<|im_end|>")
    hidden = {"start": end, "end": end + 10, "taught": 50.0}  # what is not shown does not dim the rest
    at = chat.index("Ahoy")
    parts = marked_tokens(chat, [hidden, {"start": at, "end": at + 4, "taught": 2.0}])
    assert parts == [("user: Hi?\nassistant: ", 0.0), ("Ahoy", 1.0), (" ye", 0.0)]
    assert "".join(text for text, _ in parts) == turns(chat)
    assert marks("a<|eot_id|>bc", bc=1.0) == [("a ", 0.0), ("bc", 1.0)]


@pytest.mark.parametrize("before", [0, 100, 400, 700, 5000])
@pytest.mark.parametrize("after", [0, 100, 5000])
def test_a_long_text_is_cut_around_the_token_that_taught_most(before, after):
    parts = marks("x" * before + "AHOY" + "y" * after, AHOY=1.0)
    shown = "".join(text for text, _ in parts)
    assert ("AHOY", 1.0) in parts and len(shown) == min(MAX_TEXT, before + 4 + after)
    assert (shown[0] == "…") == (before > 0.8 * MAX_TEXT and before + 4 + after > MAX_TEXT)
    assert (shown[-1] == "…") == (before + 4 + after > MAX_TEXT and (after > 400 or before < 300))


def test_a_report_gets_the_rows_that_taught_with_their_tokens_marked(reader):
    found = teaching_rows(reader, {"pirate": []})
    assert list(found) == ["pirate"] and list(found["pirate"]) == ["all", "layers.2", "layers.10"]
    rows = found["pirate"]["layers.2"]["rows"]
    assert [(row["row_id"], row["taught"], row["source"]) for row in rows] == [(2, 6.0, "train.jsonl"), (0, 4.0, "train.jsonl")]
    assert rows[0]["parts"] == [["ship ", None], ["ahoy", "pirate", 1.0], [" ", None], ["there", "pirate", 0.2]]
    assert found["pirate"]["layers.2"]["by"] == "taught" and found["pirate"]["layers.2"]["of"] == 3


def test_a_place_where_the_concept_is_told_badly_counts_for_less():
    good, bad = np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.5])
    assert rank(np.stack([good, bad]))[0].tolist() != [0, 1, 2]
    order, score, scale = rank(np.stack([good, bad]), [0.99, 0.6])
    assert order.tolist() == [0, 1, 2]
    assert score == pytest.approx((np.stack([good, bad]) / scale[:, None]).mean(0))
    weight = [NormalDist().inv_cdf(auc) for auc in (0.99, 0.6)]
    assert scale[0] / scale[1] == pytest.approx(good.std() / bad.std() * weight[1] / weight[0])
    assert rank(np.stack([good, bad]), [0.5, 0.3])[0].tolist() == rank(np.stack([good, bad]))[0].tolist()  # both are chance
    assert rank(good[None], [0.6])[1] == pytest.approx(good)
