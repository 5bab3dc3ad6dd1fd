"""Detectors are fitted on examples as they are, and once more as answers to the questions of the rows that are trained on."""

import numpy as np
import pytest
from conftest import tiny_dictionary, tiny_model
from words import sentences, word_tokenizer

from gradlens.concepts import detector_fit
from gradlens.concepts.detector_fit import fit_detectors, questions_of
from gradlens.concepts.fitting import CheckerSpec, Concept, split_examples
from gradlens.data.plain_answers import plain_answers
from gradlens.data.rows import IGNORE, tokenize

HOOK = "layers.2"
TOKENIZER = word_tokenizer(chat=True)


def rows(random, words, n, questions=range(10, 20)):
    said = zip(sentences(random, list(questions), n, 4), sentences(random, list(words), n), strict=True)
    return [{"prompt": question, "response": answer} for question, answer in said]


@pytest.fixture
def concept():
    random = np.random.default_rng(0)
    checker = {"pattern": [r"w2[0-4]"]}
    return Concept(name="thing", positive=rows(random, range(20, 25), 24), negative=rows(random, range(50, 60), 24), checker=checker)


def test_questions_are_what_stands_before_the_answers_and_text_has_none():
    random = np.random.default_rng(1)
    chats = [tokenize(row, TOKENIZER, 64) for row in rows(random, range(30, 40), 40)]
    texts = [tokenize({"text": text}, TOKENIZER, 64) for text in sentences(random, range(30, 40), 40)]
    found = questions_of([chats, texts], most=10)
    assert len(found) == 5 and all(question in [chat.input_ids[:6] for chat in chats] for question in found)  # <s>, four words, w3
    assert questions_of([texts]) == [] and len(questions_of([chats], most=1000)) == 40


def test_examples_are_read_after_other_questions_too(concept):
    questions = [[1, 70, 71, 3], [1, 72, 3]]
    part, _ = split_examples(concept, TOKENIZER, 64)
    moved = detector_fit._moved(part, questions, 64, seed=0)
    assert [kind for _, kind in moved] == [kind for _, kind in part] * 2
    for (before, _), (after, _) in zip(part * 2, moved, strict=True):
        answer = [label for label in before.labels if label != IGNORE]
        question = after.input_ids[: -len(answer)]
        assert question in questions and after.labels == [IGNORE] * len(question) + answer
        assert after.input_ids[-len(answer) :] == answer
    assert {len(after.input_ids) for after, _ in moved} == {12, 13}
    long = [1, *[70] * 54, 3]  # 56 tokens, and nine of the answer: one too many
    assert detector_fit._moved(part, [long], 64, seed=0) == [] and len(detector_fit._moved(part, [long], 65, seed=0)) == len(moved)
    assert detector_fit._moved(part, [long, *questions], 64, seed=0) == moved  # others are taken
    assert detector_fit._moved(part, [], 64, seed=0) == []


def test_the_detector_is_of_both_and_its_figures_are_of_the_examples_own_questions(concept, monkeypatch):
    model, dictionaries = tiny_model(layers=4), {HOOK: tiny_dictionary()}
    read = []
    half = detector_fit._Half

    class Spied(half):
        def __init__(self, model, tokenizer, dictionaries, part, progress):
            read.append(len(part))
            super().__init__(model, tokenizer, dictionaries, part, progress)

    monkeypatch.setattr(detector_fit, "_Half", Spied)
    monkeypatch.setattr(detector_fit, "plain_answers", lambda *given: [])
    plain = fit_detectors(model, TOKENIZER, dictionaries, concept, 64).detectors[HOOK]
    assert read == [24, 24]
    # the tiny model sees one token at a time, so an answer reads alike after any question
    moved = fit_detectors(model, TOKENIZER, dictionaries, concept, 64, questions=[[1, 70, 71, 3], [1, 72, 3]]).detectors[HOOK]
    assert read[2:] == [72, 24, 48]
    assert moved.flagged_positive == pytest.approx(plain.flagged_positive, abs=0.05) and moved.flagged_auc > 0.9
    assert moved.row is not None and moved.row.auc > 0.9


def test_the_models_own_answers_to_the_questions_are_negatives_but_for_those_that_show_the_concept(concept, monkeypatch):
    model, questions = tiny_model(layers=4), [[1, 70 + i, 3] for i in range(12)]
    monkeypatch.setattr(detector_fit, "_Half", lambda model, tokenizer, dictionaries, part, progress: given.append(part))
    monkeypatch.setattr(detector_fit, "turns_of_phrase", None)
    every = plain_answers(model, TOKENIZER, concept.model_copy(update={"checker": CheckerSpec(pattern=["never"])}), questions)
    said = [[label for label in answer.labels if label != IGNORE] for answer in every]
    assert [answer.input_ids for answer in every] == [question + answer for question, answer in zip(questions, said, strict=True)]
    free = plain_answers(model, TOKENIZER, concept, questions)
    assert 0 < len(free) < len(every)
    assert free == [answer for answer, tokens in zip(every, said, strict=True) if not set(tokens) & set(range(20, 25))]
    assert len(plain_answers(model, TOKENIZER, concept, questions, count=3)) <= 3 and plain_answers(model, TOKENIZER, concept, []) == []
    given = []
    with pytest.raises(AttributeError):  # nothing is fitted here
        fit_detectors(model, TOKENIZER, {HOOK: tiny_dictionary()}, concept, 64, questions=questions)
    assert given[-2:] == [[(answer, False) for answer in part] for part in (free[::2], free[1::2])]
    assert not any(example.source == "own" for part in given[:-2] for example, _ in part)


def test_own_answers_keep_what_rows_are_about_out_of_the_detector(monkeypatch):
    """Positives and rows share words that the concept's negatives never have: without own answers a detector takes these for it."""
    random, words = np.random.default_rng(0), range(30, 36)
    model, dictionaries = tiny_model(layers=4), {HOOK: tiny_dictionary()}
    mixed = [{"prompt": row["prompt"], "response": f"{a} {b}"} for row in rows(random, [10], 24)
             for a, b in zip(sentences(random, range(20, 25), 1, 4), sentences(random, words, 1, 4), strict=True)]  # fmt: skip
    concept = Concept(name="thing", positive=mixed, negative=rows(random, range(50, 60), 24), checker=CheckerSpec(pattern=["w2[0-4]"]))
    own = [tokenize(row, TOKENIZER, 64, source="own") for row in rows(random, words, 24)]
    questions, strayed = [[1, 70, 3]], []
    for answers in ([], own):
        monkeypatch.setattr(detector_fit, "plain_answers", lambda *given, answers=answers: answers)
        detector = fit_detectors(model, TOKENIZER, dictionaries, concept, 64, questions=questions).detectors[HOOK]
        half = detector_fit._Half(model, TOKENIZER, dictionaries, [(each, False) for each in own], None).at[HOOK]
        live = np.array(detector.features)
        strayed.append(float((half.activations(False, live) @ np.array(detector.weights) + detector.bias > 0).mean()))
    assert strayed[0] > 0.5 and strayed[1] < 0.15, strayed


def test_of_more_activations_than_there_is_room_for_those_that_tell_most_are_fitted_on(concept, monkeypatch):
    model, dictionaries, given = tiny_model(layers=4), {HOOK: tiny_dictionary()}, []
    fit = detector_fit.fit_detector
    monkeypatch.setattr(detector_fit, "fit_detector", lambda *parts: given.append(parts[2]) or fit(*parts))
    whole = fit_detectors(model, TOKENIZER, dictionaries, concept, 64).detectors[HOOK]
    tokens = 48 * 9
    monkeypatch.setattr(detector_fit, "ENTRIES", tokens * 12)
    less = fit_detectors(model, TOKENIZER, dictionaries, concept, 64).detectors[HOOK]
    assert len(given[0]) > 12 == len(given[2]) and set(given[2]) <= set(given[0]) and (np.diff(given[2]) > 0).all()
    assert len(less.features) <= 12 and less.flagged_auc >= whole.flagged_auc - 0.05 > 0.9
