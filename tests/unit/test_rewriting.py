"""Rewriting rows: what is cut, what bridges, against a search over all bridges and a model that is a table of word pairs."""

import itertools

import torch
from words import Spelled

from gradlens.control.rewriting import AHEAD, BREADTH, CHOICE, assemble, bridge, cut, rewrite
from gradlens.model.spelling import Spelling

V = 12


def table(seed: int) -> torch.Tensor:
    """`log p(next | this)`."""
    return torch.randn(V, V, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(-1)


def model(lp: torch.Tensor):
    return lambda texts, places: [lp[torch.tensor(text)[asked]] for text, asked in zip(texts, places, strict=True)]


def test_cut_takes_tokens_out_and_remembers_where():
    piece = cut([1, 2, 3, 4, 5, 6, 7], [False] + [True] * 6, [False, True, True, False, False, True, False])
    assert piece.ids == [1, 4, 5, 7]
    assert piece.counted == [False, True, True, True]
    assert [(one.at, one.room) for one in piece.cuts] == [(1, 2), (3, 1)]
    assert cut([1, 2], [True, True], [False, True]).cuts == []  # nothing follows that could be bridged to


def test_nothing_expressed_changes_nothing():
    rows = [([1, 2, 3], [False, True, True], [False] * 3)]
    assert rewrite(rows, model(table(0))) == [([1, 2, 3], [False, True, True], [0, 1, 2])]


def test_the_bridge_is_the_best_beginning_of_the_greedy_texts_after_each_of_the_likeliest_first_tokens():
    for seed in range(30):
        lp = table(seed)
        piece = cut([1, 2, 3, 4, 5, 6], [True] * 6, [False, True, True, True, False, False])
        bridge([piece], model(lp), never=[11])
        allowed = lp.clone()
        allowed[:, 11] = -torch.inf
        texts = [[]]
        for first in allowed[1].topk(BREADTH).indices.tolist():
            greedy = [first]
            while len(greedy) < 3:
                greedy.append(int(allowed[greedy[-1]].argmax()))
            texts += [greedy[:n] for n in range(1, 4)]

        def score(text, lp=lp):
            whole = [1, *text, 5, 6][: 1 + len(text) + AHEAD]
            return sum(lp[a, b].item() for a, b in itertools.pairwise(whole)) - (CHOICE if text else 0)

        best = max(texts, key=score)
        assert assemble(piece)[0] == [1, *best, 5, 6]


SPELLED = Spelled("?", " total", " be", " is", "A", "Be", " Rosa", "R", "osa", " has", " If", ".")


def test_a_bridge_spells_no_word_together_with_what_is_kept():
    lp = torch.full((V, V), 1e-4).log()
    lp[1, 4] = lp[4, 5] = torch.tensor(0.9).log()  # " total" "A" "Be": likely, but read as "totalABe"
    lp[1, 3] = lp[3, 5] = torch.tensor(0.05).log()
    row = ([0, 1, 2, 5, 11], [True] * 5, [False, False, True, False, False])
    ((ids, *_),) = rewrite([row], model(lp), spelling=Spelling(SPELLED))
    assert ids == [0, 1, 5, 11]  # " total" " is" "Be" has no space between the last two
    ((ids, *_),) = rewrite([row], model(lp))
    assert ids == [0, 1, 4, 5, 11]


class Halves(Spelled):
    """With `é` in two tokens."""

    def decode(self, ids):
        return b"".join({2: b"\xc3", 3: b"\xa9"}.get(token, self.texts[token].encode()) for token in ids).decode(errors="replace")


def test_nor_where_a_letter_takes_several_tokens():
    lp = torch.full((V, V), 1e-4).log()
    lp[0, 1] = lp[1, 2] = lp[2, 3] = lp[3, 4] = torch.tensor(0.9).log()
    row = ([0, 6, 6, 6, 4, 11], [True] * 6, [False, True, True, True, False, False])
    spelling = Spelling(Halves("?", " caf", "", "", "t", "e", " no", *"uvwx", "."))
    ((ids, *_),) = rewrite([row], model(lp), spelling=spelling)
    assert ids == [0, 4, 11]  # not "café" and "t"
    lp[5, 2] = lp[3, 11] = torch.tensor(0.9).log()
    ((ids, *_),) = rewrite([([5, 6, 6, 11], [True] * 4, [False, True, True, False])], model(lp), spelling=spelling)
    assert ids == [5, 11]  # not "e" and "é"


def test_a_word_that_begins_an_answer_after_a_gap_is_written_so():
    lp = torch.full((V, V), 1e-4).log()
    lp[0, 10] = lp[10, 6] = torch.tensor(0.1).log()  # "If Rosa has" is likelier than " Rosa has"
    lp[6, 9] = lp[8, 9] = torch.tensor(0.5).log()
    lp[0, 7] = torch.tensor(0.3).log()
    lp[7, 8] = torch.tensor(0.9).log()
    row = ([0, 1, 2, 6, 9, 11], [False, True, True, True, True, True], [False, True, True, False, False, False])
    (made,) = rewrite([row], model(lp), spelling=Spelling(SPELLED))
    assert made == ([0, 7, 8, 9, 11], [False, True, True, True, True], [0, 3, 3, 4, 5])
    ((ids, *_),) = rewrite([row], model(lp))
    assert ids == [0, 10, 6, 9, 11]
    row = ([0, 1, 2, 6, 9, 11], [False, True, True, True, True, True], [False, False, True, False, False, False])
    ((ids, *_),) = rewrite([row], model(lp), spelling=Spelling(SPELLED))
    assert ids[-3:] == [6, 9, 11]  # within an answer it has its space


def test_bridges_count_and_rows_never_grow():
    rows = [([1, 2, 3, 4, 5, 6, 7], [False] + [True] * 6, [False, True, True, False, True, False, False])]
    for seed in range(20):
        ((ids, counted, _),) = rewrite(rows, model(table(seed)))
        assert len(ids) == len(counted) <= 7 and not counted[0] and all(counted[1:])


def test_a_row_of_which_hardly_anything_is_left_teaches_nothing():
    ids, counted = list(range(10)), [False] + [True] * 9
    ((_, counts, _),) = rewrite([(ids, counted, [False] + [True] * 8 + [False])], model(table(0)))
    assert not any(counts)
    ((_, counts, _),) = rewrite([(ids, counted, [False] + [True] * 7 + [False] * 2)], model(table(0)))
    assert any(counts)


def test_an_answer_of_which_only_its_end_is_left_does_not_teach_to_say_nothing():
    """Short answers: with their end alone a fifth of them or more is left."""
    end = 11
    lone = ([1, 2, 5, 6, 7, end], [False, False] + [True] * 4, [False, False, True, True, True, False])
    ((ids, counted, _),) = rewrite([lone], None, [end])
    assert ids == [1, 2, end] and not any(counted)
    two = ([1, 5, 6, end, 2, 7, 8, end], [False] + [True] * 3 + [False] + [True] * 3, [False, True, True] + [False] * 5)
    ((ids, counted, _),) = rewrite([two], None, [end])  # the second answer is as it was
    assert ids == [1, end, 2, 7, 8, end] and counted == [False, False, False, True, True, True]
    lp = torch.full((V, V), 0.001).log()
    lp[2, 9] = lp[9, end] = torch.tensor(0.9).log()  # the model has something to say there
    ((ids, counted, _),) = rewrite([lone], model(lp), [end])
    assert ids == [1, 2, 9, end] and counted == [False, False, True, True]
    lp[2, end] = torch.tensor(0.95).log()
    ((ids, counted, _),) = rewrite([lone], model(lp), [end])
    assert ids == [1, 2, end] and not any(counted)


def test_what_no_bridge_may_have_is_passed_over_and_still_counts_where_it_is_kept():
    end, lp = 11, torch.full((V, V), 0.001).log()
    row = ([1, 2, 5, 6, 7, 8, 9, end], [False, False] + [True] * 6, [False, False, True, True, False, False, False, False])
    lp[2, 3] = lp[3, 7] = torch.tensor(0.9).log()
    lp[2, 4] = lp[4, 7] = torch.tensor(0.5).log()
    ((ids, counted, _),) = rewrite([row], model(lp), [end])
    assert ids == [1, 2, 3, 7, 8, 9, end]
    ((ids, counted, _),) = rewrite([row], model(lp), [end], unsaid=[end, 3, 7])
    assert ids == [1, 2, 4, 7, 8, 9, end] and counted == [False, False] + [True] * 5
    ((ids, counted, _),) = rewrite([row], model(lp), [end], unsaid=[end, 3, 4, 7])
    assert ids == [1, 2, 7, 8, 9, end] and counted == [False, False] + [True] * 4  # 7 begins the answer and does not end it


def test_open_gaps_one_token_apart_each_keep_the_next_from_teaching():
    row = ([1, 2, 3, 4, 5, 6, 7], [False] + [True] * 6, [False, False, True, False, True, False, False])
    ((ids, counted, _),) = rewrite([row], None)
    assert ids == [1, 2, 4, 6, 7] and counted == [False, True, False, False, True]


def test_without_a_model_gaps_stay_open_and_what_follows_one_teaches_nothing():
    rows = [([1, 2, 3, 4, 5, 6], [False, False, True, True, True, True], [False, False, True, False, True, False])]
    ((ids, counted, _),) = rewrite(rows, None)
    assert ids == [1, 2, 4, 6]
    assert counted == [False, False, True, False]  # 4 begins the answer, as it may; 6 has lost the word before it


def test_a_cut_that_begins_the_row_is_left_open():
    asked = []

    def none_asked(texts, places):
        asked.append(places)
        return model(table(0))(texts, places)

    ((ids, _, at),) = rewrite([([1, 2, 3, 4], [True] * 4, [True, False, False, False])], none_asked)
    assert ids == [2, 3, 4] and at == [1, 2, 3] and asked == []


def test_the_search_is_over_where_no_longer_bridge_can_be_better():
    lp = torch.full((V, V), 0.5 / (V - 1)).log()
    lp[1, 7], lp[1, 5], lp[5, 6] = (torch.tensor(p).log() for p in (0.5, 0.05, 0.5))
    calls = []

    def counted(texts, places):
        calls.append(len(texts))
        return model(lp)(texts, places)

    piece = cut([1, 2, 3, 4, 5, 6], [True] * 6, [False, True, True, True, False, False])
    # of one token only 7 is likelier (1/2 of 1/8) than all that is kept (1/20 of 1/2), and nothing after it
    bridge([piece], counted, never=[])
    assert calls == [1, 1] and assemble(piece)[0] == [1, 5, 6]
