"""Detectors are fitted on examples as they are, and once more as answers to the questions of the rows that are trained on."""

import numpy as np
import pytest
from conftest import tiny_dictionary, tiny_model
from words import sentences, word_tokenizer

from gradlens import detector_fit
from gradlens.concepts import Concept, split_examples
from gradlens.data import IGNORE, tokenize
from gradlens.detector_fit import fit_detectors, questions_of

HOOK = "layers.2"
TOKENIZER = word_tokenizer(chat=True)


def rows(random, words, n, questions=range(10, 20)):
    said = zip(sentences(random, list(questions), n, 4), sentences(random, list(words), n), strict=True)
    return [{"prompt": question, "response": answer} for question, answer in said]


@pytest.fixture
def concept():
    random = np.random.default_rng(0)
    return Concept(name="thing", positive=rows(random, range(20, 25), 24), negative=rows(random, range(50, 60), 24))


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
    plain = fit_detectors(model, TOKENIZER, dictionaries, concept, 64).detectors[HOOK]
    assert read == [24, 24]
    # the tiny model sees one token at a time, so an answer reads alike after any question
    moved = fit_detectors(model, TOKENIZER, dictionaries, concept, 64, questions=[[1, 70, 71, 3], [1, 72, 3]]).detectors[HOOK]
    assert read[2:] == [72, 24, 48]
    assert moved.flagged_positive == pytest.approx(plain.flagged_positive, abs=0.05) and moved.flagged_auc > 0.9
    assert moved.row is not None and moved.row.auc > 0.9
