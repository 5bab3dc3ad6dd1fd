"""Rewriting batches on a tiny random model: shapes, what is taken out, memory, the random control, the three ways in."""

from array import array

import numpy as np
import pytest
import torch
from conftest import tiny_dictionary, tiny_model
from words import Spelled

from gradlens.concepts.concept_files import Detector
from gradlens.concepts.detector import fit_detector, score, weights_over
from gradlens.concepts.detector_fit import NOTHING, sharpest
from gradlens.control import rewriter as rewriter_module
from gradlens.control.random_control import RATIO, SameShare, among, barred, contrast, matched_features, matched_weights
from gradlens.control.rewriter import Rewriter, Tokens, _closed
from gradlens.control.row_teller import key_of, rows_of
from gradlens.control.rules import Policy, Rule
from gradlens.data.rows import IGNORE
from gradlens.errors import ConfigError
from gradlens.lens import Lens
from gradlens.model.capture import counted_tokens
from gradlens.model.spelling import Spelling

HOOK = "layers.1"


def batch(rows=3, length=10, seed=0):
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    labels = ids.masked_fill(mask == 0, IGNORE)
    labels[:, :3] = IGNORE
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def detector(dictionary, seed=0, bias=-0.3):
    weights = torch.randn(dictionary.d_sae, generator=torch.Generator().manual_seed(seed))
    return Detector(features=list(range(dictionary.d_sae)), weights=weights.tolist(), bias=bias)


def rewriter(model, dictionary, bridged=True, **tokens):
    told = detector(dictionary)
    weights = weights_over(told, dictionary.d_sae, dtype=dictionary.work_dtype)
    return Rewriter(model, {HOOK: dictionary}, Tokens(HOOK, weights, told.bias, **tokens), bridged)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model = tiny_model()
    return model, tiny_dictionary()


@pytest.mark.parametrize("bridged", [True, False])
def test_shapes_stay_prompts_stay_and_expressed_tokens_go(parts, bridged):
    given = batch()
    made = rewriter(*parts, bridged=bridged).batch(given, gain=0.0)
    found = made.batch
    assert 0 < made.touched < made.counted == int((given["labels"] != IGNORE).sum())
    for key, value in given.items():
        assert found[key].shape == value.shape and found[key].dtype == value.dtype
    assert torch.equal(found["input_ids"][:, :3], given["input_ids"][:, :3])
    assert (found["labels"][:, :3] == IGNORE).all()
    kept = found["labels"] != IGNORE
    assert torch.equal(found["labels"][kept], found["input_ids"][kept]) and (found["attention_mask"][kept] == 1).all()
    assert (found["attention_mask"].sum(1) <= given["attention_mask"].sum(1)).all()
    real = found["attention_mask"].bool()
    assert (made.at_BS[real] >= 0).all() and (made.at_BS[~real] == -1).all() and (made.at_BS.diff() >= 0)[real[:, 1:]].all()
    if not bridged:
        assert torch.equal(given["input_ids"].gather(1, made.at_BS.clamp_min(0))[real], found["input_ids"][real])


def test_which_tokens_go_is_what_the_detector_says_of_the_model_before_training(parts):
    model, dictionary = parts
    one, given = rewriter(model, dictionary, bridged=False), batch(rows=1)
    given["attention_mask"][:] = 1
    from gradlens.dictionaries.encoding import encode_active
    from gradlens.model.capture import read_activations

    h = read_activations(model, [HOOK], given)[HOOK][0, 3:]
    told = detector(dictionary)
    taken = score(*encode_active(dictionary, h.to(dictionary.work_dtype)), weights_over(told, dictionary.d_sae), told.bias) > 0
    given["labels"][0, 3:] = given["input_ids"][0, 3:]
    taken = _closed(torch.cat([torch.zeros(3, dtype=torch.bool), taken]))
    found = one.batch(given, gain=0.0).batch
    real = found["attention_mask"][0].bool()
    assert found["input_ids"][0][real].tolist() == given["input_ids"][0][~taken].tolist()


def test_gain_is_the_share_of_rows_left_alone_and_always_the_same_ones(parts):
    one, given = rewriter(*parts), batch(rows=40, length=8)
    changed = [(one.batch(given, gain).batch["attention_mask"] != given["attention_mask"]).any(1) for gain in (0.0, 0.5, 1.0)]
    assert not changed[2].any() and changed[0].sum() > changed[1].sum() > 0
    assert (changed[0] | ~changed[1]).all()  # those rewritten at 0.5 are among those at 0


def test_rows_that_do_not_show_the_concept_are_left_as_they_are(parts):
    class Second:
        def tell(self, rows):
            return [index == 1 for index in range(len(rows))]

    one, given = rewriter(*parts, bridged=False), batch(rows=3)
    given["attention_mask"][:] = 1
    every, some = (one.batch(given, 0.0, teller) for teller in (None, Second()))
    assert torch.equal(some.batch["input_ids"][1], every.batch["input_ids"][1]) and 0 < some.touched < every.touched
    assert all(torch.equal(some.batch["input_ids"][row], given["input_ids"][row]) for row in (0, 2))
    assert not torch.equal(every.batch["input_ids"][0], given["input_ids"][0]) and some.counted == every.counted


def test_rows_that_come_again_are_remembered(parts):
    one, given = rewriter(*parts), batch()
    first = one.batch(given, 0.0)
    one._rewritten = None  # would fail if it were asked
    again = one.batch(given, 0.0)
    assert all(torch.equal(first.batch[key], again.batch[key]) for key in given) and torch.equal(first.at_BS, again.at_BS)
    assert (first.touched, first.counted, first.silent) == (again.touched, again.counted, again.silent)


def test_what_is_remembered_of_a_row_is_small_and_goes_through_a_checkpoint(parts):
    one, given = rewriter(*parts), batch()
    first, older = one.batch(given, 0.0), rewriter(*parts)
    assert {len(key) for key in one.known} == {16}
    assert all(isinstance(ids, array) and isinstance(counted, bytes) for (ids, counted, _), _ in one.known.values())
    state, rows = one.state_dict(), rows_of(given["input_ids"], given["attention_mask"], counted_tokens(*given.values()))
    for keys in (state["keys"], [key_of(row).hex() for row in rows]):  # the latter: of a checkpoint from before
        older.load_state_dict({**state, "keys": keys})
        older._rewritten = None  # would fail if it were asked
        assert torch.equal(older.batch(given, 0.0).batch["input_ids"], first.batch["input_ids"])
        older.known.clear()


def test_rows_are_remembered_together_by_rewriters_that_do_the_same_only(parts):
    model, dictionary = parts
    memory, given = {}, batch()
    first, again, cuts = rewriter(model, dictionary), rewriter(model, dictionary), rewriter(model, dictionary, bridged=False)
    own = weights_over(detector(dictionary), dictionary.d_sae, dtype=dictionary.work_dtype)
    others = Rewriter(model, {HOOK: dictionary}, Tokens(HOOK, own.flip(0), -0.3), True)
    scattered = rewriter(model, dictionary, instead_of_F=own.flip(0))
    for one in (first, again, cuts, others, scattered):
        one.share(memory)
    made = first.batch(given, 0.0)
    assert len(memory) == 4 and again.known is first.known and len(first.known) == 3
    assert not cuts.known and not others.known and not scattered.known
    again._rewritten = None  # would fail if it were asked
    assert torch.equal(again.batch(given, 0.0).batch["input_ids"], made.batch["input_ids"])


def test_a_scattered_control_takes_as_many_tokens_of_each_row(parts):
    model, dictionary = parts
    own = weights_over(detector(dictionary), dictionary.d_sae, dtype=dictionary.work_dtype)
    plain = rewriter(model, dictionary)
    scattered = Rewriter(model, {HOOK: dictionary}, Tokens(HOOK, own.flip(0), -0.3, instead_of_F=own), True)
    rows = [(row.tolist(), [False] * 3 + [True] * 7) for row in batch(rows=6)["input_ids"]]
    pairs = []
    for one in (plain, scattered):
        one._whole_words = lambda ids, taken, may: taken.tolist()
        import gradlens.control.rewriter as module

        closed, module._closed = module._closed, lambda taken: taken
        try:
            pairs.append(one._taken(rows, one._flagged(rows)))
        finally:
            module._closed = closed
    assert [sum(row) for row in pairs[0]] == [sum(row) for row in pairs[1]] and pairs[0] != pairs[1]


def test_batches_that_cannot_be_rewritten_are_refused(parts):
    one, given = rewriter(*parts), batch()
    with pytest.raises(ConfigError, match="without input_ids or labels"):
        one.batch({"input_ids": given["input_ids"]}, 0.0)
    with pytest.raises(ConfigError, match="position_ids"):
        one.batch({**given, "position_ids": torch.arange(10).expand(3, 10)}, 0.0)


def fresh():
    """The model as it was before training."""
    torch.manual_seed(0)
    return tiny_model()


def lens_of(model, dictionary, **rule):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy = Policy(version=1, rules=(Rule(concept="c", mode="rewrite", **rule),))
    return optimizer, Lens(
        model, optimizer, {HOOK: dictionary}, policy=policy, concepts={"c": {HOOK: [1]}}, detectors={"c": {HOOK: detector(dictionary)}}
    )


def test_the_hook_trains_on_what_prepare_returns_and_a_rule_at_gain_one_changes_nothing():
    losses = []
    for way in ("hook", "prepare", "by hand", "off", "bare"):
        torch.manual_seed(0)
        model = tiny_model().train()
        dictionary = tiny_dictionary()
        given = batch()
        if way == "by hand":
            given = rewriter(model, dictionary).batch(given, 0.0).batch
        if way in ("bare", "by hand"):
            losses.append(model(**given).loss.item())
            continue
        optimizer, lens = lens_of(model, dictionary, gain=1.0 if way == "off" else 0.0)
        with lens:
            loss = model(**(lens.prepare(given) if way == "prepare" else given)).loss
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == losses[1] == losses[2] != losses[4] == losses[3]


@pytest.mark.parametrize("way", ["hook", "prepare", "copied"])
def test_tokens_that_teach_are_named_by_their_places_in_the_row_before(way):
    from gradlens.recording.recorder import MemoryRecorder

    torch.manual_seed(0)
    model, given = tiny_model().train(), batch()
    optimizer, lens = lens_of(model, tiny_dictionary(), bridge=False)
    lens.recorder = MemoryRecorder()
    with lens:
        lens.set_rows([0, 1, 2])
        inputs = given if way == "hook" else lens.prepare(given)
        model(**({key: value.clone() for key, value in inputs.items()} if way == "copied" else inputs)).loss.backward()
        optimizer.step()
    made = rewriter(fresh(), tiny_dictionary(), bridged=False).batch(given, 0.0)
    examples = lens.recorder.records[0]["examples"]
    assert len(examples) == 3
    named = [set(row["positions"]) for row in examples]
    if way == "copied":  # where the tokens stood is lost on the way: better none than wrong ones
        assert named == [set(), set(), set()]
        return
    kept = [set(at[labels != IGNORE].tolist()) for at, labels in zip(made.at_BS, made.batch["labels"], strict=True)]
    assert any(named) and all(mine <= all_ for mine, all_ in zip(named, kept, strict=True))
    assert any(max(mine, default=0) >= int(mask.sum()) for mine, mask in zip(named, made.batch["attention_mask"], strict=True))


def test_rows_of_which_nothing_is_left_are_counted_and_told_of_once():
    from gradlens.recording.recorder import MemoryRecorder

    torch.manual_seed(0)
    model, dictionary = tiny_model().train(), tiny_dictionary()
    optimizer, lens = lens_of(model, dictionary)
    lens.control.lookup.detectors["c"] = {HOOK: detector(dictionary, bias=1e3)}
    lens.recorder = MemoryRecorder()
    with lens:
        for _ in range(2):
            model(**batch()).logits.sum().backward()
            optimizer.step()
    assert [record["scalars"]["rule/rewrite:c/silent_rows"] for record in lens.recorder.records[:2]] == [1.0, 1.0]
    (told,) = [event for event in lens.recorder.events if event["kind"] == "nothing_left"]
    assert told["where"] == "rule/rewrite:c" and "100% of the rows" in told["reason"]


def test_the_share_that_was_touched_is_recorded():
    from gradlens.recording.recorder import MemoryRecorder

    torch.manual_seed(0)
    model = tiny_model().train()
    optimizer, lens = lens_of(model, tiny_dictionary())
    lens.recorder = MemoryRecorder()
    with lens:
        model(**batch()).loss.backward()
        optimizer.step()
    scalars = lens.recorder.records[0]["scalars"]
    assert 0 < scalars["rule/rewrite:c/share"] < 1 and scalars["observe/rewrite_seconds"] > 0


def test_a_detector_learns_which_tokens_from_texts_alone():
    """Features 0 to 11: each on some of the concept's tokens. 12: on nearly all tokens of positive texts. The rest: ordinary words."""
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(900, generator=rng) < 0.3

    def acts(n, expressed, context):
        x = (torch.rand(n, 24, generator=rng) < 0.2).float()
        x[:, :12] = (expressed[:, None] & (torch.rand(n, 12, generator=rng) < 0.25)).float()
        x[:, 12] = (torch.rand(n, generator=rng) < (0.9 if context else 0.02)).float()
        return x.numpy()

    P, N = acts(900, truth, True), acts(900, torch.zeros(900, dtype=torch.bool), False)
    found = fit_detector(P, N, np.arange(24))
    said = torch.from_numpy(P) @ weights_over(found, 24) + found.bias > 0
    shows = torch.from_numpy(P[:, :12]).any(1)  # the others cannot be told
    assert (said & shows).sum() / shows.sum() > 0.8
    assert (said & ~truth).sum() / (~truth).sum() < 0.03
    assert fit_detector(N, N, np.arange(24)) is None


def test_random_features_fire_about_as_often():
    rate = torch.linspace(0.001, 0.5, 400)
    norm = torch.ones(400)
    chosen = [3, 100, 350]
    found = matched_features(chosen, norm, rate, seed=1)
    assert len(set(found) | set(chosen)) == 6
    assert all(abs(a - b) <= 12 for a, b in zip(found, chosen, strict=True))
    assert found != matched_features(chosen, norm, rate, seed=2)
    assert matched_features([0], norm[:3], torch.tensor([0.1, 0.0, 0.2]), seed=0) == [2]  # never one that does not fire
    telling = torch.ones(400)
    telling[90:120] = 3.0
    own = among(chosen, 400)
    assert barred(own, telling, rate).nonzero().flatten().tolist() == sorted({*chosen, *range(90, 120)})
    assert not set(range(90, 120)) & set(matched_features(chosen, norm, rate, seed=1, barred_F=barred(own, telling, rate)))
    few = torch.arange(400) + 2.0  # all of them tell: those that tell least are left
    assert (~barred(own, few, rate, 2)).nonzero().flatten().tolist() == [0, 1, 2, 4]
    weights = torch.zeros(400)
    weights[[3, 100, 350]] = torch.tensor([-1.0, 2.0, 0.5])
    mixed = matched_weights(weights, norm, rate, seed=0, contrast_F=telling)
    assert torch.equal(mixed[mixed != 0].sort().values, torch.tensor([-1.0, 0.5, 2.0]))
    assert not mixed[90:120].any() and not mixed[[100, 350]].any()  # what speaks for the concept is not drawn, nor what is related to it


def test_a_feature_that_fires_more_often_on_one_kind_of_text_tells_of_it():
    positive, negative = torch.tensor([100.0, 100.0, 1.0, 0.0, 130.0]), torch.tensor([10.0, 220.0, 1.0, 0.0, 220.0])
    found = contrast(positive, negative, (1000, 2000))
    assert (found >= RATIO).tolist() == [True, False, True, False, False]
    assert found[0] == pytest.approx(20, rel=0.1) and found[3] == 1


def test_random_gates_touch_as_large_a_share_of_the_tokens():
    """Whole micro-batches of one kind, as rows of like length go together: the share is that of all tokens."""
    rng = torch.Generator().manual_seed(0)
    gates, chosen = SameShare(seed=1), []
    for number in range(40):
        counted = torch.rand(4, 30, generator=rng) < 0.8
        own = torch.full((4, 30), float(number % 2))
        strength = torch.rand(4, 30, generator=rng) * 0.98**number  # they fire less and less
        chosen.append((gates(own, strength, counted), strength, counted))
    gated, strength, counted = (torch.cat(part) for part in zip(*chosen, strict=True))
    assert not gated[~counted].any()
    late = torch.arange(len(gated)) >= 40
    assert gated[late][counted[late]].mean().item() == pytest.approx(0.5, abs=0.03)
    for part in (slice(0, 1), slice(1, 2)):  # gated alike in both kinds: those around which the random features are most active
        mine = [(g[c], s[c]) for g, s, c in chosen[20:][part.start :: 2]]
        assert all(s[g == 0].mean() < s[g == 1].mean() for g, s in mine)
        assert torch.cat([g for g, _ in mine]).mean().item() == pytest.approx(0.5, abs=0.1)


def test_the_sharpest_detector_is_the_one_that_leaves_negatives_alone():
    def told(own, negative):
        return Detector(features=[0], weights=[1.0], bias=0.0, flagged_own=own, flagged_negative=negative)

    assert sharpest({"layers.15": told(0.3, 0.2), "layers.27": NOTHING}) == "layers.15"  # which finds something
    assert sharpest({"layers.15": told(0.6, 0.16), "layers.27": told(0.95, 0.5), "layers.3": told(0.2, 0.0)}) == "layers.15"


NUMBERS = Spelled("THERE", " ARE", " ", "1", "3", "8", "0", " MIN", "UTES", ".", " 2", ",", "500", " feet", "4th")


@pytest.mark.parametrize("flagged, goes", [([3], []), ([3, 4], []), ([3, 4, 5], [2, 3, 4, 5, 6]), ([7], [7, 8]), ([10, 12], [10, 11, 12])])
def test_a_number_goes_whole_or_stays_whole(parts, flagged, goes):
    """Without its first digit it would be another number."""
    module = rewriter(*parts)
    module.spelling, may = Spelling(NUMBERS), torch.ones(15, dtype=torch.bool)
    taken = module._whole_words(list(range(15)), torch.isin(torch.arange(15), torch.tensor(flagged)), may)
    assert [place for place, gone in enumerate(taken) if gone] == goes


SPACED = Spelled("Q", " is", " ", "7", "1", "t", "ur", "!")


@pytest.mark.parametrize(("flagged", "goes"), [([2], []), ([3, 4], [2, 3, 4]), ([5, 6], [5, 6, 7]), ([5], []), ([7], [5, 6, 7])])
def test_a_space_that_is_a_token_goes_with_its_word_and_with_nothing_else(parts, flagged, goes):
    """Else ` is 71` became `is71`, or left two spaces behind."""
    module, may = Rewriter(*parts[:1], {HOOK: parts[1]}, Tokens(HOOK, torch.zeros(80), 0.0), True, SPACED), torch.ones(9, dtype=torch.bool)
    taken = module._whole_words([0, 1, 2, 3, 4, 2, 5, 6, 7], torch.isin(torch.arange(9), torch.tensor(flagged)), may)
    assert [at for at, gone in enumerate(taken) if gone] == goes


def test_no_two_words_become_one_when_a_mark_between_them_is_flagged(parts):
    said, model, dictionary = Spelled("Q", " well", "-", "known", " is", "!"), *parts
    module = Rewriter(model, {HOOK: dictionary}, Tokens(HOOK, torch.zeros(80), 0.0), True, said)
    module._flagged = lambda rows, starts=None: [torch.tensor(ids) == 2 for ids, _ in rows]
    assert module.told([([0, 1, 2, 3, 4, 5], [False] + [True] * 5)]) == [[False] * 6]


def test_no_bridge_says_a_number(parts, monkeypatch):
    """Digits are among what no bridge has, and not among what ends a text."""
    seen = {}

    def rewrite(rows, log_probs, never, backs, unsaid, spelling):
        seen.update(never=never, unsaid=unsaid)
        return rows

    monkeypatch.setattr(rewriter_module, "rewrite", rewrite)
    module = rewriter(*parts)
    module.unsaid = Rewriter(parts[0], {HOOK: parts[1]}, module.tokens, True, NUMBERS).unsaid
    module.rewritten([([1, 2, 3], [False, True, True])])
    digits = {3, 4, 5, 6, 10, 12, 14}
    assert digits <= set(seen["unsaid"]) and not digits & set(seen["never"]) and set(seen["never"]) < set(seen["unsaid"])


SAID = Spelled("Q", " 7", " left", ".", " Now", " hoist", " the", " sails", " ye", "!")


@pytest.mark.parametrize(
    "flagged, left", [([5, 6, 7, 8, 9], " 7 left."), ([6, 7, 8, 9], " 7 left. Now hoist"), ([1, 3, 5], " left Now the sails ye!")]
)
def test_a_sentence_of_which_hardly_anything_is_left_goes(parts, flagged, left):
    module = rewriter(*parts)
    module.spelling = Spelling(SAID)
    ids, counted = list(range(10)), [False] + [True] * 9
    taken = module._whole_phrases(ids, counted, [place in flagged for place in ids])
    assert SAID.decode([place for place in ids[1:] if not taken[place]]) == left and not taken[0]


def test_each_turn_has_sentences_of_its_own(parts):
    module = rewriter(*parts)
    module.spelling = Spelling(SAID)
    ids = [5, 6, 7, 8, 5, 0, 0, 1]  # an answer without a stop, a question, another answer
    counted = [True] * 5 + [False] * 2 + [True]
    assert module._whole_phrases(ids, counted, [True] * 5 + [False] * 3) == [True] * 5 + [False] * 3


def test_of_a_clause_of_which_hardly_anything_is_left_a_number_stays(parts):
    said = Spelled("Q", " It", " is", " 7", ",", " and", " so", " they", " say", " for", " years", ",", " well", ".")
    module = rewriter(*parts)
    module.spelling = Spelling(said)
    left = lambda *kept: said.decode(  # noqa: E731
        [
            at
            for at, gone in enumerate(module._whole_phrases(range(14), [False] + [True] * 13, [at not in kept for at in range(14)]))
            if not gone
        ]
    )
    assert left(1, 2, 3, 4, 11, 12, 13) == " It is 7, well."  # of "and so they say for years," a comma is left
    assert left(1, 2, 3, 4, 10, 11, 12, 13) == " It is 7, years, well."
    assert left(3) == " 7"


@pytest.mark.parametrize("route", [False, True])
def test_where_the_trainer_has_counted_tokens_before_they_go_a_step_is_the_mean_over_those_left(route):
    """transformers' Trainer divides by `num_items_in_batch`, which a plain loop leaves to the model."""
    dictionary, given, found = tiny_dictionary(), [batch(seed=seed) for seed in range(2)], []
    rules = (Rule(mode="rewrite", concept="c", gain=0.0), Rule(mode="route", features={HOOK: [1, 2]}, gain=0.0, window=1))[: 1 + route]
    for counted in (None, sum(int((each["labels"][:, 1:] != IGNORE).sum()) for each in given)):
        model, told = tiny_model().train(), {"c": {HOOK: detector(dictionary)}}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with Lens(model, optimizer, {HOOK: dictionary}, policy=Policy(rules=rules), detectors=told, probe=[batch(seed=9)]) as lens:
            made = given if counted else [lens.prepare(each) for each in given]
            for each in made:
                model(
                    **each, num_items_in_batch=counted or sum(int((each["labels"][:, 1:] != IGNORE).sum()) for each in made)
                ).loss.backward()
            factor = lens.balance()
            found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert factor > 1.05
    for plain, trainers in zip(*found, strict=True):
        assert (plain - trainers).norm() <= 1e-5 * plain.norm()
