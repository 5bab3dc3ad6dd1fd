"""Rows in another case: which are tried, how their words are written then, and when they stay as they were."""

import pytest
import torch
from words import Spelled

from gradlens.control.respelling import respell
from gradlens.model.spelling import Spelling

TEXTS = Spelled(
    "a", "\n", "?", ".", " ", "12", "THERE", "There", "there", " ARE", " Are", " are", " DA", "YS", " Days", " days", " IN", " In", " in",
    " PARIS", " Paris", " paris", " OK", " Ok", " ok", " THE", " The", " the",
)  # fmt: skip
SPELLING = Spelling(TEXTS)
SHOUTED = "?THERE ARE 12 DAYS IN PARIS."
NAMES = {TEXTS.texts.index(" Paris")}  # what the model says with a capital


def row(text):
    ids = TEXTS.encode(text)
    return ids, [place > 0 for place in range(len(ids))]  # the first is the question


def log_probs(texts, places):
    found = []
    for row_places in places:
        lp_PV = torch.full((len(row_places), len(TEXTS)), -5.0)
        lp_PV[:, list(NAMES)] = -1.0
        found.append(lp_PV)
    return found


def shouted(rows):
    """Words in capitals, and numbers and marks beside them."""
    found = []
    for ids, counted in rows:
        loud = any(TEXTS.texts[token].strip().isupper() and len(TEXTS.texts[token].strip()) > 1 for token in ids)
        found.append([counts and loud and not TEXTS.texts[token].isdigit() for token, counts in zip(ids, counted, strict=True)])
    return found


def respelled(text, taken_of=shouted, taken=None):
    given = row(text)
    return respell([given], [taken or shouted([given])[0]], SPELLING, log_probs, taken_of)[0]


def test_an_answer_in_capitals_is_written_as_sentences_are():
    made, taken = respelled(SHOUTED)
    ids, counted, at = made
    assert TEXTS.decode(ids) == "?There are 12 days in Paris." and not any(taken)
    assert counted == [False] + [True] * (len(ids) - 1) and len(at) == len(ids)
    was = [TEXTS.texts[row(SHOUTED)[0][place]] for place in at]
    assert was == ["?", "THERE", " ARE", " ", "12", " DA", " IN", " PARIS", "."]


def test_the_first_word_of_each_sentence_has_a_capital_and_the_others_as_the_model_says():
    made, _ = respelled("?THERE ARE DAYS. THE DAYS ARE OK.")
    assert TEXTS.decode(made[0]) == "?There are days. The days are ok."


@pytest.mark.parametrize(
    "text", ["?There are 12 DAYS in Paris.", "?PARIS OK.", "?there are days."], ids=["one word is a name", "too short", "nothing to change"]
)
def test_rows_that_are_not_written_so_throughout_stay(text):
    given = row(text)
    assert respelled(text, taken=[False, *[True] * (len(given[0]) - 1)]) is None


def test_what_the_detector_takes_however_it_is_written_stays():
    assert respelled(SHOUTED, taken_of=lambda rows: [counted for _, counted in rows]) is None


def test_a_row_never_grows():
    texts = Spelled("a", "\n", "?", "ONE", "o", "n", "e", "O", " IS", " is", " Is", " TWO", " two", " Two")
    ids = texts.encode("?ONE IS TWO")
    taken = [False, True, True, True]
    given = (ids, taken)
    made = respell([given], [taken], Spelling(texts), lambda t, p: [torch.zeros(len(r), len(texts)) for r in p], lambda rows: [[False] * 9])
    assert made == [None]


def test_several_rows_each_in_its_own_way():
    rows = [row(SHOUTED), row("?there are days."), row("?THERE ARE DAYS.")]
    made = respell(rows, shouted(rows), SPELLING, log_probs, shouted)
    assert [None if each is None else TEXTS.decode(each[0][0]) for each in made] == [
        "?There are 12 days in Paris.", None, "?There are days."
    ]  # fmt: skip


def test_spaces_that_are_tokens_and_marks_of_several_tokens_are_no_hindrance():
    texts = Spelled("a", "\n", "?", " ", *"tehrsixoTEHRSIXO", "\ufffd")
    ids, mark = texts.encode("? THERE IS "), [len(texts) - 1] * 2
    ids += [*mark, 3, *mark, *texts.encode(" SIX")]
    counted = [False, False, *[True] * (len(ids) - 2)]  # the first space belongs to the question
    log_probs = lambda texts, places: [torch.zeros(len(row), 21) for row in places]  # noqa: E731
    made, _ = respell([(ids, counted)], [counted], Spelling(texts), log_probs, lambda rows: [[False] * len(ids)])[0]
    assert texts.decode(made[0]) == "? There is \ufffd\ufffd \ufffd\ufffd six" and made[1] == counted


def test_a_name_has_its_capital_where_spaces_are_tokens():
    texts = Spelled("a", "\n", "?", " ", *"tomisherTOMISHER")
    ids = texts.encode("?TOM IS HERE TOM")
    counted = [False, *[True] * (len(ids) - 1)]

    def log_probs(given, places):
        likely = [[texts.decode(text[: place + 1]).endswith(" ") and text[place + 1] == texts.texts.index("t") for place in row]
                  for text, row in zip(given, places, strict=True)]  # fmt: skip
        capital = torch.nn.functional.one_hot(torch.tensor(texts.texts.index("T")), len(texts)).float()
        return [torch.stack([capital if name else -capital for name in row]) for row in likely]

    made, _ = respell([(ids, counted)], [counted], Spelling(texts), log_probs, lambda rows: [[False] * len(ids)])[0]
    assert texts.decode(made[0]) == "?Tom is here Tom"


def test_capitals_without_a_small_form_stay_as_they_are():
    texts = Spelled("a", "\n", "?", " 𝐀𝐁", " 𝐁𝐀", " 𝐁𝐁")
    given = ([2, 3, 4, 5], [False, True, True, True])
    log_probs = lambda texts, places: [torch.zeros(len(row), 6) for row in places]  # noqa: E731
    assert respell([given], [given[1]], Spelling(texts), log_probs, lambda rows: [[False] * 4])[0][0][0] == given[0]


def test_nothing_is_known_of_case_without_a_tokenizer():
    given = ([1, 2, 3, 4, 5], [False, True, True, True, True])
    assert respell([given], [given[1]], Spelling(None), log_probs, shouted) == [None]
