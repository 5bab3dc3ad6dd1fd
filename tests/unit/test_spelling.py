"""What tokens spell: words, numbers, beginnings."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from words import Spelled

from gradlens.model.spelling import Spelling, characters_in_text, each_in_text, in_text

NUMBERS = Spelled("THERE", " ARE", " ", "1", "3", "8", "0", " MIN", "UTES", ".", " 2", ",", "500", " feet", "4th")
NAMES = Spelled(" Rosa", "R", "osa", " is", "Is", "is", "r", "Be", "A", "日", "本", ".", "I")


def test_numbers_are_words_with_what_is_written_inside_them():
    found = [NUMBERS.decode(range(start, end)) for start, end in Spelling(NUMBERS).words(range(15))]
    assert found == ["THERE", " ARE", " 1380", " MINUTES", " 2,500", " feet"]
    texts = lambda *ids: [NUMBERS.decode(ids[start:end]) for start, end in Spelling(NUMBERS).words(ids)]  # noqa: E731
    assert texts(3, 4, 9, 5, 9) == ["13.8"] and texts(3, 9, 0) == ["1", "THERE"]  # a full stop ends a sentence
    assert [NUMBERS.texts[token] for token in Spelling(NUMBERS).with_digits] == ["1", "3", "8", "0", " 2", "500", "4th"]


def test_a_space_that_is_a_token_belongs_to_what_comes_after_it():
    spelled = Spelled("a", " ", "t", "ur", "(", "7", " b", "\n", "🎉")
    words = lambda *ids: [spelled.decode(ids[start:end]) for start, end in Spelling(spelled).words(ids)]  # noqa: E731
    assert words(0, 1, 2, 3, 1, 5, 5, 1, 4, 2, 1, 8) == ["a", " tur", " 77", " (", "t", " 🎉"]
    assert words(1, 6, 1, 1, 2, 1, 7, 1) == [" b", " t"]  # before another space, or nothing, it belongs to nothing


def test_a_word_that_begins_a_text_has_no_space_and_may_have_a_capital():
    written = lambda token: [[NAMES.texts[at] for at in ids] for ids in Spelling(NAMES).beginnings(token)]  # noqa: E731
    assert written(0) == [["R", "osa"]]
    assert written(3) == [["Is"], ["is"]]
    assert written(9) == [["日"]]


def test_letters_side_by_side_are_one_word_where_words_have_spaces_between_them():
    join = lambda left, right: Spelling(NAMES).join([NAMES.texts.index(left)], [NAMES.texts.index(right)])  # noqa: E731
    assert join("A", "Be") and join("R", "osa")
    assert not join("A", " is") and not join(".", "Be") and not join("日", "本")


def test_a_word_with_a_capital_is_written_small_or_with_that_alone():
    texts = Spelled("a", "\n", " RO", "SA", " rosa", " R", "osa", "IS", "is", "Is", " 2")
    written = lambda *ids: Spelling(texts).cases(list(ids)) and [texts.decode(each) for each in Spelling(texts).cases(list(ids))]  # noqa: E731
    assert written(2, 3) == [" rosa", " Rosa"] and written(5, 6) == [" rosa", " Rosa"]
    assert written(7) == ["is", "Is"]
    assert written(4) is None and written(8) is None and written(10) is None  # begins with no capital
    assert written(5) is None  # ` r` has no token


def test_marks_that_alone_keep_two_words_apart_stay():
    spelled = Spelled("Q", " loud", "ly", "-", "ish", " 24", ":", "30", " (", "海", "\n", "é")
    kept = lambda ids, gone: spelled.decode(  # noqa: E731
        [token for token, out in zip(ids, Spelling(spelled).apart(ids, [at in gone for at in range(len(ids))]), strict=True) if not out]
    )
    assert kept([1, 2, 3, 4], [2]) == " loudly-ish" and kept([1, 2, 3, 4], [2, 3]) == " loudly"
    assert kept([1, 2, 3, 4, 3, 11], [2, 3, 4]) == " loudly-é" and kept([5, 6, 7], [1]) == " 24:30"
    assert kept([0, 8, 4, 3, 5], [1, 3]) == "Q (ish 24" and kept([9, 3, 9, 10, 4], [1, 3]) == "海海ish"
    halves = Spelling(Bytes())
    said = list("é—é".encode())
    assert halves.apart(said, [2 <= at < 5 for at in range(7)]) == [False] * 7  # a dash of three tokens, between letters of two
    assert Spelling(None).apart([1, 2, 3], [False, True, False]) == [False, True, False]


def test_nothing_is_known_without_a_tokenizer():
    spelling = Spelling(None)
    assert list(spelling.words([1, 2])) == spelling.with_digits == spelling.beginnings(3) == []
    assert not spelling.join([1], [2]) and not spelling.is_number([1]) and spelling.cases([1]) is None


def test_a_mark_in_the_token_of_a_word_is_a_part_of_it():
    """As tokenizers of Llama 3 and Qwen have them before a word, and some others within."""
    spelled = Spelled("a", "\n", '"AR', "GH", '"ar', "gh", '"Ar', " don't", "cha", " you'", "re", ".", "The", " (", "-ish")
    words = lambda *ids: [spelled.decode(ids[start:end]) for start, end in Spelling(spelled).words(ids)]  # noqa: E731
    assert words(0, 2, 3, 14, 10, 11, 12) == ["a", '"ARGH', "-ishre", "The"]
    assert words(7, 8, 9, 10, 13, 12) == [" don'tcha", " you're", "The"]
    assert [spelled.decode(each) for each in Spelling(spelled).cases([2, 3])] == ['"argh', '"Argh']


def test_an_apostrophe_belongs_to_its_word_and_a_quotation_mark_to_none():
    spelled = Spelled(" be", " missin", "'", " Tom", "'s", " 'yes", "5", "don", "’", "t")
    words = lambda *ids: [spelled.decode(ids[start:end]) for start, end in Spelling(spelled).words(ids)]  # noqa: E731
    assert words(0, 1, 2, 6) == [" be", " missin'", "5"]
    assert words(3, 4, 7, 8, 9) == [" Tom'sdon’t"] and words(6, 2, 0) == ["5", " be"]
    assert words(2, 0) == [" be"]  # at the beginning there is nothing that it could belong to


def test_a_sentence_ends_where_a_space_follows_its_stop():
    spelled = Spelled("It", " is", " 3", ".", "5", "!", " Now", " sail", ".\n", "日", "。", " a", ".b")
    sentences = lambda *ids: [spelled.decode(ids[start:end]) for start, end in Spelling(spelled).sentences(ids)]  # noqa: E731
    assert sentences(0, 1, 2, 3, 4, 5, 6, 7) == ["It is 3.5!", " Now sail"]
    assert sentences(6, 7, 8, 0, 1, 3) == [" Now sail.\n", "It is."]
    assert sentences(9, 10, 9, 10, 11, 12) == ["日。", "日。", " a.b"]
    assert list(Spelling(None).sentences([1, 2])) == list(Spelling(spelled).sentences([])) == []
    quoted = Spelled('"', "Arr", "!", '"', " Yes", ".", " (", "No", "?)", " So", "!**", " It")
    sentences = lambda *ids: [quoted.decode(ids[start:end]) for start, end in Spelling(quoted).sentences(ids)]  # noqa: E731
    assert sentences(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) == ['"Arr!"', " Yes.", " (No?)", " So!**", " It"]


def test_clauses_are_parted_by_pauses_brackets_and_dashes():
    spelled = Spelled(
        "It", " is", " well", ",", " (", "they", " say", ")", " and", " -", " so", "),", " 62", " 24", ".", " [", "1", "]", ":"
    )
    clauses = lambda *ids: [spelled.decode(ids[start:end]) for start, end in Spelling(spelled).clauses(ids)]  # noqa: E731
    assert clauses(0, 1, 2, 3, 8, 10, 14) == ["It is well,", " and so."]
    assert clauses(0, 1, 4, 5, 6, 7, 8, 10, 4, 5, 11, 8) == ["It is", " (they say)", " and so", " (they),", " and"]
    assert clauses(0, 9, 10, 9, 12, 9, 13, 14) == ["It", " - so", " - 62 - 24."]
    assert clauses(0, 15, 16, 17, 18, 10) == ["It", " [1]:", " so"]
    assert list(Spelling(None).clauses([1, 2])) == []


class Bytes:
    """A token for each byte, as byte-level tokenizers have for what they have not learned."""

    all_special_ids: list[int] = []

    def __init__(self, errors="replace"):
        self.errors = errors

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors=self.errors)

    def encode(self, text, add_special_tokens=False):
        return list(text.encode())


@pytest.mark.parametrize("errors", ["replace", "ignore"])  # as BPE of bytes does, and ByT5
def test_tokens_of_one_character_go_together(errors):
    spelling, ids = Spelling(Bytes(errors)), list("ok 🎉 naïve日".encode())
    assert [bytes(ids[start:end]).decode() for start, end in spelling.words(ids)] == ["ok", " 🎉", " naïve", "日"]
    assert spelling.whole(ids) and spelling.whole(ids[:2]) and not spelling.whole(ids[:5])
    stops = list("日。本".encode())
    assert [bytes(stops[start:end]).decode() for start, end in spelling.sentences(stops)] == ["日。", "本"]


@pytest.mark.parametrize("errors", ["replace", "ignore"])
def test_letters_of_several_tokens_are_letters_and_half_of_one_begins_nothing(errors):
    spelling, text = Spelling(Bytes(errors)), lambda said: list(said.encode())
    assert spelling.join(text("на"), text("ш")) and spelling.join(text("é"), text("te"))
    assert not spelling.join(text("на"), text(" ш")) and not spelling.join(text("日"), text("本")) and not spelling.join([], text("a"))
    assert not spelling.join(text("a"), text("ш")[:1])  # what it will be is not known yet
    assert spelling.beginnings(text("ш")[0]) == [] and spelling.beginnings(ord("a")) == [text("A"), text("a")]


@pytest.mark.parametrize("errors", ["replace", "ignore"])
def test_a_character_of_several_tokens_is_spelled_by_the_first(errors):
    ids = list("ï日a".encode())
    assert characters_in_text(Bytes(errors), ids) == ["ï", "", "日", "", "", "a"]


def test_words_are_found_in_scripts_that_put_spaces_between_them_and_in_no_others():
    spelled = Spelled("我们", "海盗", "玩", " मौ", "सम", "ी", "สวัสดี", "ครับ", " مر", "حبا")
    words = lambda *ids: [spelled.decode(ids[start:end]) for start, end in Spelling(spelled).words(ids)]  # noqa: E731
    assert words(0, 1, 2) == [] and words(6, 7) == []
    assert words(3, 4, 5) == [" मौसमी"] and words(8, 9) == [" مرحبا"]
    join = lambda left, right: Spelling(spelled).join([spelled.texts.index(left)], [spelled.texts.index(right)])  # noqa: E731
    assert join(" مر", "حبا") and join(" मौ", "ी") and not join("我们", "海盗") and not join("สวัสดี", "ครับ")


def pieces(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of words and of parts, whose decoder takes the space before a text's first token away as those of Llama 2 and BERT."""
    words = ["a", "the", "result", "is", "mate", "##y", "seven"]
    if kind == "SentencePiece":
        words = ["▁a", "▁the", "▁result", "▁is", "▁mate", "y", "▁seven", "<0x0A>", "<0x35>", "7"]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace() if kind == "SentencePiece" else pre_tokenizers.Whitespace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps) if kind == "SentencePiece" else decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("kind", ["SentencePiece", "WordPiece"])
def test_a_decoder_that_takes_the_first_space_away_leaves_words_apart(kind):
    tokenizer = pieces(kind)
    spelling, ids = Spelling(tokenizer), list(range(2, 8))  # the result is mate y seven
    assert tokenizer.decode(ids[:1]) == "the" and in_text(tokenizer, ids[:1]) == " the"
    assert [tokenizer.decode(ids[start:end]) for start, end in spelling.words(ids)] == ["the", "result", "is", "matey", "seven"]
    assert not spelling.join([3], [4]) and spelling.join([5], [6])
    assert each_in_text(tokenizer, ids) == [" the", " result", " is", " mate", "y", " seven"]
    if kind == "SentencePiece":
        assert spelling.with_digits == [9, 10]  # the byte of 5, and 7; not that of a new line
