"""What a model says less than before: shares of whole predictions, words beyond chance, and how it is told."""

import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from words import word_tokenizer

from gradlens.config import ObserveSettings
from gradlens.readings.learning import Learning
from gradlens.readings.probe import read_tokens
from gradlens.readings.said_less import fallen, likeliest, share_in, shares
from gradlens.readings.said_less import in_words as in_plain_data
from gradlens.report.findings import in_words, listed, said_less

HOOK = "layers.2"
WORDS = [" the", "The", " a", " of", " ship", "ing"]


def eager(model, batch, keep_BS):
    """Mean predicted distribution over the counted tokens of each row, by its definition."""
    with torch.no_grad():
        p_BSV = model.eval()(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits.softmax(-1)
    return torch.stack([p_SV[:-1][keep_S[1:]].mean(0) for p_SV, keep_S in zip(p_BSV, keep_BS, strict=True)])


def test_shares_are_those_of_the_whole_prediction_at_the_counted_tokens():
    model, batches = tiny_model(), [tiny_batch(seed) for seed in range(3)]
    _, begun = read_tokens(model, {HOOK: tiny_dictionary()}, batches, follow=True)
    wanted = torch.cat([eager(model, batch, batch["labels"] != -100) for batch in batches])
    assert torch.allclose(begun.said_RC, wanted[:, begun.said_ids_C], atol=1e-6)
    assert begun.said_RC.sum(1).allclose(torch.ones(len(wanted)), atol=1e-4)  # a small vocabulary is followed as a whole
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    _, now = read_tokens(model, {HOOK: tiny_dictionary()}, batches, follow=begun.said_ids_C)
    wanted = torch.cat([eager(model, batch, batch["labels"] != -100) for batch in batches])
    assert torch.equal(now.said_ids_C, begun.said_ids_C) and torch.allclose(now.said_RC, wanted[:, now.said_ids_C], atol=1e-6)
    assert read_tokens(model, {HOOK: tiny_dictionary()}, batches)[1].said_RC is None  # not asked for


def test_a_row_in_which_nothing_counts_has_no_share():
    logits_BCV = torch.randn(2, 4, 7)
    keep_BS = torch.tensor([[False] * 4, [False, True, False, True]])
    ids, share = shares(logits_BCV, None, keep_BS, torch.arange(7))
    assert torch.allclose(share, logits_BCV[1, [0, 2]].softmax(-1).mean(0)[None])
    columns = torch.tensor([0, 2])  # of a model that makes logits only where they are asked for
    assert torch.allclose(shares(logits_BCV[:, columns], columns, keep_BS, torch.arange(7))[1], share)


def test_what_is_followed_is_what_would_be_said_most_over_all_texts(monkeypatch):
    monkeypatch.setattr("gradlens.readings.said_less.KEPT", 2)
    one = (torch.tensor([[4, 7]]), torch.tensor([[0.5, 0.1]]))
    other = (torch.tensor([[7, 2]]), torch.tensor([[0.3, 0.2]]))
    ids, share = likeliest([one, other])
    assert ids.tolist() == [4, 7] and torch.allclose(share, torch.tensor([[0.5, 0.1], [0.0, 0.3]]))


def by_text(share: float, texts: int = 12, seed: int = 0) -> torch.Tensor:
    return share * (1 + 0.2 * torch.rand(texts, generator=torch.Generator().manual_seed(seed)))


def test_words_said_less_are_told_with_their_shares_the_largest_fall_first():
    before = torch.stack([by_text(share, seed=n) for n, share in enumerate((0.03, 0.01, 0.02, 0.02, 0.01, 0.1))], 1)
    now = before.clone()
    now[:, :2] *= 0.1  # "the", however it is written
    now[:, 2] *= 0.4
    now[:, 3] *= 0.7  # not half as much
    now[:, 5] *= 0.1  # part of a word
    (the, was, rest), (a, _, _) = fallen(before, now, WORDS)
    assert (the, a) == ("the", "a") and abs(was - before[:, :2].sum(1).mean()) < 1e-6 and abs(rest - 0.1 * was) < 1e-6
    assert fallen(before, before, WORDS) == [] == fallen(before[:5], now[:5], WORDS) == fallen(now, before, WORDS)
    assert fallen(before * 0.01, now * 0.01, WORDS) == []  # of one token in ten thousand nobody needs to know
    assert fallen(before, now * float("nan"), WORDS) == []


def test_what_falls_in_one_text_alone_is_chance():
    before = torch.stack([by_text(0.02, seed=n) for n in range(len(WORDS))], 1)
    now = before + 0.004 * torch.randn(before.shape, generator=torch.Generator().manual_seed(9))
    now[0, 0] = 0
    assert fallen(before, now, WORDS) == []


def test_a_reading_tells_what_the_model_says_less_and_goes_on_after_a_restart(monkeypatch):
    observe = ObserveSettings(own_prompts=0)
    made = Learning(tiny_model(), {HOOK: tiny_dictionary()}, observe, {}, tokenizer=word_tokenizer())
    made.begin([tiny_batch(seed) for seed in range(4)])
    assert made.less() == {}
    most = int(made.known.said_RC.mean(0).argmax())
    again = Learning(made.model, made.dictionaries, observe, {}, tokenizer=made.tokenizer)
    again.load_state_dict(made.state_dict(), made.probe)
    monkeypatch.setattr(
        "gradlens.readings.learning.each_in_text", lambda _, ids: [f" word{i}" for i in ids]
    )  # the tokenizer has fewer than the model
    for learning in (made, again):
        learning.read_drift({})
        assert learning.less() == {}  # the model is as it was
    word = int(made.known.said_ids_C[most])
    lowered = 20 * torch.nn.functional.one_hot(torch.tensor(word), made.model.lm_head.out_features)
    made.model.lm_head.register_forward_hook(lambda module, args, logits: logits - lowered)
    for learning in (made, again):
        learning.read_drift({})
        told = learning.less()
        assert told["words"] == [f"word{word}"] and told["own"] is None
        assert abs(told["before"] - made.known.said_RC[:, most].mean()) < 1e-6 and told["now"] < 1e-6


def test_own_answers_are_counted_in_words():
    assert share_in(["The ship, the sea.", "No."], ["the", ","]) == 3 / 8
    assert share_in(["It's Tom's."], ["'s"]) == 2 / 5
    assert share_in([], ["the"]) is None
    told = in_plain_data([("the", 0.05, 0.01), ("a", 0.03, 0.0)], ["the cat"], ["cat cat"])
    assert told == {"words": ["the", "a"], "before": 0.08, "now": 0.01, "own": {"before": 0.5, "now": 0.0}}
    assert in_plain_data([], ["the"], ["the"]) == {} and in_plain_data([("a", 0.1, 0.0)], [], [])["own"] is None


def test_it_is_told_in_one_line_of_words_and_one_of_figures():
    less = {"words": ["the", "a"], "before": 0.08, "now": 0.01, "own": {"before": 0.15, "now": 0.01}}
    events = [{"kind": "learned", "step": 1, "clusters": []}, {"kind": "learned", "step": 2, "clusters": [], "less": less}]
    assert said_less(events) == less and said_less(events[:1]) == said_less([]) == {}
    shown = [line.plain for line in in_words([], {}, 2, less)]
    assert shown[0].split() == ["less", "the,", "a"] and listed([",", "a", "!", "..."]) == "',', a, !, '...'"
    assert shown[1].strip() == "8% -> 1% of what it would say in the probe's texts, 15% -> 1% of the words of its own answers"
    assert "own answers" not in in_words([], {}, 2, {**less, "own": None})[1].plain
