"""Concepts: files in and out, the choice of features by contrast, and held-out scores that can be recomputed by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_dictionary, tiny_model
from words import sentences, word_tokenizer

from gradlens.concepts.fitting import (
    QUORUMS,
    ChoosingHalf,
    Concept,
    choose_features,
    fit_concept,
    load_concepts,
    save_concept,
    split_examples,
)
from gradlens.concepts.row_detector import row_scores
from gradlens.data.rows import collate
from gradlens.dictionaries.directions import Directions
from gradlens.errors import ConfigError, InputError
from gradlens.model.capture import read_activations
from gradlens.readings.ranking import auc

HOOK = "layers.2"


def rows(random, words, n, prompt_words=range(10, 20)):
    """Chat rows whose prompts look alike and whose answers use the given words."""
    prompts, answers = sentences(random, list(prompt_words), n, 4), sentences(random, list(words), n)
    return [{"prompt": p, "response": a} for p, a in zip(prompts, answers, strict=True)]


def dictionary(seed=0, **extra):
    """A random dictionary whose features tell the tokens of a random model apart (a bias would drown its small activations)."""
    random = tiny_dictionary(seed, **extra)
    return replace(random, b_dec=torch.zeros_like(random.b_dec))


def concept_of(positive_words=range(20, 25), negative_words=range(50, 60), n=24, **extra) -> Concept:
    random = np.random.default_rng(0)
    return Concept(name="thing", positive=rows(random, positive_words, n), negative=rows(random, negative_words, n), **extra)


def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_half():
    random = np.random.default_rng(1)
    positive, negative = random.integers(0, 6, 23), random.integers(0, 5, 31)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auc(positive, negative) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auc([1, 2], [0, 0.5]) == 1 and auc([0], [1]) == 0 and auc([1, 1], [1]) == 0.5
    assert np.isnan(auc([], [1]))


def acts(*columns: str) -> np.ndarray:
    """`float32[T, C]` from one string of digits (activations) per feature."""
    return np.array([[float(digit) for digit in column] for column in columns], dtype=np.float32).T


def test_features_are_chosen_to_cover_positives_and_spare_negatives():
    positive = acts("1111110000", "1111100000", "0000001100", "0000111100", "1111111111")
    negative = acts("0000000000", "0000000000", "0000000000", "0000000000", "1111110000")
    assert choose_features(positive, negative, 9)[0] == [0, 2]  # 1 and 3 add nothing that is worth it, 4 fires on too many negatives
    assert choose_features(positive, negative, 1)[0] == [0]
    assert choose_features(acts("1100000000"), acts("1111000000"), 2) == ([], [])


def test_a_threshold_lets_weak_activations_on_negatives_pass():
    (columns, thresholds) = choose_features(acts("9999990000"), acts("2222222000"), 3)
    assert columns == [0] and thresholds == [2.0]  # without it the feature would not be worth having
    assert choose_features(acts("9999990000"), acts("0000000000"), 3) == ([0], [0.0])


def test_the_quorum_lies_between_what_positives_and_what_negatives_show():
    statistics = ChoosingHalf(4)
    for kind, period in ((True, 3), (False, 12)):
        for _ in range(5):
            val_TK = torch.zeros(60, 1)
            val_TK[::period] = 1.0
            statistics.add(kind, torch.full((60, 1), 2), val_TK)
    assert statistics.choose_quorum([2], [0.0]) == 0.25  # a third of the tokens of positives (at the end 5 of 17)
    assert statistics.choose_quorum([2], [1.0]) == max(QUORUMS)  # nothing is active: no quorum helps


def test_fitted_features_tell_held_out_texts_apart():
    fitted = fit_concept(tiny_model(), word_tokenizer(chat=True), {HOOK: dictionary()}, concept_of(), n_features=6)
    detection = fitted.detection[HOOK]
    assert len(fitted.features[HOOK]) == len(set(fitted.features[HOOK])) <= 6
    assert detection.auc > 0.9 and detection.best_auc > 0.7
    assert detection.best_feature in fitted.features[HOOK]
    assert detection.rate_positive > 2 * detection.rate_negative
    assert detection.texts_positive == detection.texts_negative == 12
    assert not fitted.detection[HOOK].warning


def test_what_tells_texts_is_fitted_with_the_features_and_judged_on_texts_that_it_was_not_fitted_on():
    model, tokenizer, lexicon, concept = tiny_model(), word_tokenizer(chat=True), dictionary(), concept_of()
    fitted = fit_concept(model, tokenizer, {HOOK: lexicon}, concept, n_features=6)
    tells = fitted.row_detectors[HOOK]
    assert set(tells.features) - set(fitted.features[HOOK])  # all features that fire say something, for or against
    assert tells.auc > 0.9 and tells.accuracy > 0.8
    sizes = {kind: [] for kind in (True, False)}
    for half in split_examples(concept, tokenizer, 256):
        for example, positive in half:
            acts = lexicon.encode(read_activations(model, [HOOK], collate([example], 0))[HOOK][0])
            counted = torch.tensor([label != -100 for label in example.labels]) & (torch.arange(len(example.labels)) > 0)
            sizes[positive].append(row_scores(tells, acts[counted].mean(0)[None]).item())
    assert np.mean(np.array(sizes[True]) > 0) > 0.9 and np.mean(np.array(sizes[False]) < 0) > 0.9
    by_hand = fit_concept(model, tokenizer, {HOOK: lexicon}, concept_of(features={HOOK: [3]}))
    assert not by_hand.row_detectors  # who names a feature asks for that one
    again = fit_concept(model, tokenizer, {HOOK: lexicon}, fitted)
    assert again == fitted
    wrong = fitted.model_copy(update={"row_detectors": {HOOK: tells.model_copy(update={"features": [80], "weights": [1.0]})}})
    with pytest.raises(ConfigError, match="row_detectors.layers.2: 80 is not one of 0..79"):
        fit_concept(model, tokenizer, {HOOK: lexicon}, wrong)
    unfitted = wrong.model_copy(update={"features": {}, "detection": {}})  # what is fitted anew need not suit the dictionary
    assert fit_concept(model, tokenizer, {HOOK: lexicon}, unfitted, n_features=6).row_detectors[HOOK] == tells


def test_features_chosen_anew_do_not_keep_what_told_the_texts_before(monkeypatch):
    model, tokenizer, lexicon = tiny_model(), word_tokenizer(chat=True), dictionary()
    fitted = fit_concept(model, tokenizer, {HOOK: lexicon}, concept_of(), n_features=6)
    monkeypatch.setattr("gradlens.concepts.row_detector.fit_rows", lambda *means: None)  # no feature fires in enough texts
    assert fit_concept(model, tokenizer, {HOOK: lexicon}, fitted, n_features=6, refit=True).row_detectors == {}


def test_detection_equals_a_plain_computation_on_the_held_out_half():
    model, tokenizer, lexicon, concept = tiny_model(), word_tokenizer(chat=True), dictionary(), concept_of()
    fitted = fit_concept(model, tokenizer, {HOOK: lexicon}, concept, n_features=5, seed=3)
    ids = fitted.features[HOOK]
    texts = {True: [], False: []}
    fired, gated, tokens = {True: 0, False: 0}, {True: 0, False: 0}, {True: 0, False: 0}
    for example, positive in split_examples(concept, tokenizer, 256, seed=3)[1]:
        acts = lexicon.encode(read_activations(model, [HOOK], collate([example], 0))[HOOK][0])[:, ids]
        counted = torch.tensor([label != -100 for label in example.labels]) & (torch.arange(len(example.labels)) > 0)
        active = (acts > torch.tensor(fitted.thresholds[HOOK])).any(-1) & counted
        texts[positive].append(acts[counted].mean(0))
        tokens[positive] += int(counted.sum())
        fired[positive] += int(active.sum())
        for t in counted.nonzero().flatten().tolist():  # by default: the fitted share of the counted tokens at most sixteen away
            near = slice(max(0, t - 16), t + 17)
            gated[positive] += int(active[near].sum() / counted[near].sum() > fitted.quorum[HOOK] - 1e-6)
    detection = fitted.detection[HOOK]
    assert detection.auc == pytest.approx(auc(*([mean.sum().item() for mean in texts[kind]] for kind in (True, False))), abs=1e-4)
    column = ids.index(detection.best_feature)
    assert detection.best_auc == pytest.approx(auc(*([mean[column].item() for mean in texts[kind]] for kind in (True, False))), abs=1e-4)
    for kind, name in ((True, "positive"), (False, "negative")):
        assert getattr(detection, f"rate_{name}") == pytest.approx(fired[kind] / tokens[kind], abs=1e-4)
        assert getattr(detection, f"gate_rate_{name}") == pytest.approx(gated[kind] / tokens[kind], abs=1e-4)


def test_only_answers_choose_features_not_prompts():
    # The prompts differ, the answers do not: nothing to find in the answers of a model that sees one token at a time.
    model, tokenizer = tiny_model(layers=4), word_tokenizer(chat=True)
    random = np.random.default_rng(0)
    concept = Concept(
        name="prompts",
        positive=rows(random, range(50, 90), 40, prompt_words=range(10, 20)),
        negative=rows(random, range(50, 90), 40, prompt_words=range(20, 30)),
    )
    fitted = fit_concept(model, tokenizer, {HOOK: dictionary()}, concept, n_features=6)
    told_by_answers = fit_concept(model, tokenizer, {HOOK: dictionary()}, concept_of(n=40), n_features=6)
    assert fitted.detection[HOOK].auc < told_by_answers.detection[HOOK].auc
    assert "does not separate" in fitted.detection[HOOK].warning


@pytest.mark.parametrize("chat", [True, False])
def test_plain_texts_are_read_as_answers_where_there_is_a_chat_template(chat):
    tokenizer = word_tokenizer(chat=chat)
    said = [*sentences(np.random.default_rng(0), range(20, 30), 20), {"prompt": "w9", "response": "w8"}, "<s> w4 w3 w5 </s>"]
    kinds = {read_as: Concept(name="c", positive=said, negative=["w7"], read_as=read_as) for read_as in ("auto", "answers", "texts")}
    texts = kinds["texts"].examples("positive", tokenizer)
    assert texts == kinds["texts"].rows("positive") and texts[0] == {"text": said[0]}
    answers = kinds["answers"].examples("positive", tokenizer)
    assert answers[0] == {"prompt": "", "response": said[0]}
    assert answers[20:] == texts[20:]  # what is a chat, or written in the template, stays as it is
    assert kinds["auto"].examples("positive", tokenizer) == (answers if chat else texts)


def test_texts_choose_features_as_the_same_words_in_a_chat_do():
    model, tokenizer, random = tiny_model(layers=4), word_tokenizer(chat=True), np.random.default_rng(0)
    said = {kind: sentences(random, words, 24) for kind, words in (("positive", range(20, 25)), ("negative", range(50, 60)))}
    chats = {kind: [{"prompt": "", "response": text} for text in texts] for kind, texts in said.items()}
    fits = [fit_concept(model, tokenizer, {HOOK: dictionary()}, Concept(name="thing", **part), n_features=6) for part in (said, chats)]
    assert fits[0].features == fits[1].features and fits[0].detection == fits[1].detection


def test_the_same_seed_gives_the_same_features_and_the_halves_do_not_overlap():
    tokenizer, concept = word_tokenizer(chat=True), concept_of()
    choosing, judging = split_examples(concept, tokenizer, 256, seed=5)
    assert {e.text for e, _ in choosing}.isdisjoint({e.text for e, _ in judging})
    first, second = (fit_concept(tiny_model(), tokenizer, {HOOK: dictionary()}, concept, seed=5) for _ in range(2))
    assert first == second


def test_features_given_by_hand_stay_and_are_measured():
    model, tokenizer, dictionaries = tiny_model(), word_tokenizer(chat=True), {HOOK: dictionary()}
    best = fit_concept(model, tokenizer, dictionaries, concept_of(), n_features=4).features[HOOK]
    given = fit_concept(model, tokenizer, dictionaries, concept_of(features={"blocks.2.hook_resid_post": best[::-1]}), n_features=4)
    assert given.features == {HOOK: best[::-1]} and given.detection[HOOK].auc > 0.9
    without_examples = Concept(name="ids", features={HOOK: [3, 1]})
    assert fit_concept(model, tokenizer, dictionaries, without_examples) == without_examples
    refitted = fit_concept(model, tokenizer, dictionaries, concept_of(features={HOOK: [0]}), n_features=4, refit=True)
    assert refitted.features[HOOK] == best


def test_several_hookpoints_are_fitted_in_one_pass():
    seen = []
    dictionaries = {"layers.1": dictionary(1), "blocks.3.hook_resid_post": dictionary(2, activation="relu")}
    fitted = fit_concept(tiny_model(), word_tokenizer(chat=True), dictionaries, concept_of(), n_features=4, progress=seen.append)
    assert set(fitted.features) == set(fitted.detection) == {"layers.1", "layers.3"}
    assert sum(seen) == 48  # every text is read once


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        (lambda: concept_of(n=5), "positive: 5 usable examples, at least 8"),
        (lambda: concept_of(features={HOOK: [80]}), "80 is not one of 0..79"),
        (lambda: Concept(name="thing", features={"layers.1": [1]}), "no examples to fit"),
        (lambda: Concept(name="thing", positive=["w3 w4"] * 9 + ["w5 w6"], negative=["w5 w6"]), "both positive and negative"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_a_reason(concept, message):
    with pytest.raises(ConfigError, match=message):
        fit_concept(tiny_model(), word_tokenizer(chat=True), {HOOK: dictionary()}, concept())


def test_concept_files_round_trip_with_examples_beside_them(tmp_path):
    examples = tmp_path / "data" / "yes.jsonl"
    examples.parent.mkdir()
    examples.write_text('{"text": "ja"}\n{"text": "ja"}\n{"prompt": "?", "response": "oui"}\n')
    file = tmp_path / "concept.yaml"
    file.write_text(
        yaml.safe_dump({"name": "yes", "positive": "data/yes.jsonl", "negative": ["no", "never.json said"], "features": {15: [3, 1]}})
    )
    (concept,) = load_concepts([str(file)])
    assert concept.rows("positive") == [{"text": "ja"}, {"prompt": "?", "response": "oui"}]
    assert concept.rows("negative") == [{"text": "no"}, {"text": "never.json said"}]
    assert concept.features == {"layers.15": [3, 1]}
    for name in ("out/again.yaml", "out/again.jsonl"):
        save_concept(concept, tmp_path / name)
        (again,) = load_concepts([tmp_path / name])
        assert again.rows("positive") == concept.rows("positive") and again.features == concept.features
        assert str(tmp_path) not in (tmp_path / name).read_text()
    save_concept([concept, concept.model_copy(update={"name": "other"})], tmp_path / "two.yaml")
    assert [c.name for c in load_concepts([tmp_path / "two.yaml"])] == ["yes", "other"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "a", "positiv": ["x"], "negative": ["y"]}, "bad.yaml: unknown key positiv; did you mean positive"),
        ({"name": "a", "positive": ["x"]}, "bad.yaml.*give features, directions, or both positive and negative"),
        ({"positive": ["x"], "negative": ["y"]}, "bad.yaml: name is missing"),
        ({"name": "a/b", "features": {"layers.1": [1]}}, "bad.yaml: name"),
        ("just text", "bad.yaml: expected a mapping"),
        ({"name": "a", "features": {"layers.2": [1], 2: [3]}}, "bad.yaml: features: .*layers.2 and 2 both mean layers.2; keep one"),
        ({"name": "a", "features": {"layers.1": [-1]}}, "bad.yaml: features.layers.1.0: .*greater than or equal to 0"),
        ({"name": "a", "features": {"layers.1": [1]}, "quorum": {"layers.1": 5}}, "bad.yaml: quorum.layers.1: .*less than or equal to 1"),
        ({"name": "a", "features": {"layers.1": [1]}, "quorum": {11: 0.5}}, "concept a: quorum.layers.11: its features are at layers.1"),
        ([], "bad.yaml: no concept in it"),
        ([{"name": "a", "features": {"layers.1": [1]}}] * 2, "the concept a is already defined in"),
    ],
)
def test_a_bad_concept_file_is_refused_with_file_and_key(tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        load_concepts([file])


@pytest.mark.parametrize("suffix", ["yaml", "jsonl"])
def test_a_text_is_the_same_when_it_is_read_back(tmp_path, suffix):
    texts = ["one\u2028two", "one\x85two", "please open src/package.json", "a\nb", "naïve"]
    (tmp_path / "my texts.jsonl").write_text('{"text": "from a file"}\n')
    concept = Concept(name="c", positive=texts, negative=["no", str(tmp_path / "my texts.jsonl")])
    save_concept([concept, concept.model_copy(update={"name": "d"})], tmp_path / f"c.{suffix}")
    again, _ = load_concepts([tmp_path / f"c.{suffix}"])
    assert again.positive == texts and [row["text"] for row in again.rows("positive")] == texts
    assert [row["text"] for row in again.rows("negative")] == ["no", "from a file"]
    (tmp_path / "my texts.jsonl").unlink()
    with pytest.raises(InputError, match="my texts.jsonl"):
        again.rows("negative")


def test_a_concept_need_not_be_known_to_the_probes_of_others():
    model, tokenizer, concept = tiny_model(), word_tokenizer(), concept_of()
    nothing = Directions(torch.randn(1, 32), torch.tensor([-1e6]), labels=("other",)).dictionary()  # says no everywhere
    fitted = fit_concept(model, tokenizer, {HOOK: dictionary(), f"{HOOK}#other": nothing}, concept, 4)
    assert set(fitted.features) == {HOOK} == set(fitted.detection) == set(fitted.quorum)
    with pytest.raises(ConfigError, match=f"no feature at {HOOK}#other fires more often"):
        fit_concept(model, tokenizer, {f"{HOOK}#other": nothing}, concept, 4)
    silent = replace(nothing, metadata={})
    with pytest.raises(ConfigError, match=f"no feature at {HOOK}#other fires more often"):
        fit_concept(model, tokenizer, {HOOK: dictionary(), f"{HOOK}#other": silent}, concept, 4)


@pytest.mark.parametrize(
    "fields, error, message",
    [
        (
            {"positive": [{"promt": "a", "response": "b"}], "negative": ["c"]},
            InputError,
            "concept c: positive: no known key .*did you mean 'prompt'",
        ),
        ({"positive": [{"text": 5}], "negative": ["c"]}, InputError, "concept c: positive: text must be text, found int"),
        ({"positive": [{"messages": "hi"}], "negative": ["c"]}, InputError, "messages must be a list"),
        ({"features": {"layers.1": [3, 5, 3]}}, ValueError, "features.layers.1 names 3 twice"),
        ({"features": {"layers.1": [0, 1, 0]}}, ValueError, "features.layers.1 names 0 twice"),
    ],
)
def test_rows_and_features_that_cannot_be_are_named(fields, error, message):
    with pytest.raises(error, match=message):
        Concept(name="c", **fields).rows("positive")
