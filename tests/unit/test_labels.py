"""Labels: what they say of a feature can be recomputed by hand, and files of labels survive a round trip."""

import gzip
import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from conftest import tiny_dictionary, tiny_model
from safetensors.torch import save_file
from words import sentences, word_tokenizer

from gradlens.data.rows import collate, tokenize
from gradlens.dictionaries import autolabels as module
from gradlens.dictionaries.autolabels import draw_examples, label_features, short_label, word_parts
from gradlens.dictionaries.formats import load_dictionary
from gradlens.dictionaries.labels import Label, labels_of, labels_path, load_labels, nearest, save_labels, search
from gradlens.errors import InputError
from gradlens.model.capture import read_activations

HOOK = "layers.2"


def corpus(tokenizer, n=20):
    random = np.random.default_rng(0)
    return [tokenize({"text": text}, tokenizer, 32) for text in sentences(random, list(range(3, 60)), n, 7)]


def plain_statistics(model, dictionary, examples):
    """Per feature: firings, `{token: (sum, count)}`, and the peaks (value, text, position), one text at a time."""
    fired, tokens, peaks, seen = Counter(), defaultdict(lambda: defaultdict(lambda: [0.0, 0])), defaultdict(list), Counter()
    for number, example in enumerate(examples):
        acts = dictionary.encode(read_activations(model, [HOOK], collate([example], 0))[HOOK][0])
        seen.update(example.input_ids[1:])
        for feature in range(dictionary.d_sae):
            values = acts[1:, feature]
            for position, value in enumerate(values.tolist(), 1):
                if value > 0:
                    fired[feature] += 1
                    entry = tokens[feature][example.input_ids[position]]
                    entry[0], entry[1] = entry[0] + value, entry[1] + 1
            if values.max() > 0:
                peaks[feature].append((values.max().item(), number, int(values.argmax()) + 1))
    return fired, tokens, peaks, seen


@pytest.mark.parametrize("pairs", [2_000_000, 50])
def test_labels_equal_a_plain_computation(monkeypatch, pairs):
    if pairs == 50:
        monkeypatch.setattr(module, "_PAIRS", pairs)  # merges and prunes many times; the top of each feature must survive
    model, tokenizer, dictionary = tiny_model(), word_tokenizer(), tiny_dictionary()
    examples = corpus(tokenizer)
    labels = label_features(model, tokenizer, {HOOK: dictionary}, examples, batch_size=3)[HOOK]
    fired, tokens, peaks, seen = plain_statistics(model, dictionary, examples)
    total = sum(len(example.input_ids) - 1 for example in examples)
    assert set(labels) == set(range(80))
    for feature, label in labels.items():
        assert label.rate == pytest.approx(fired[feature] / total, abs=1e-6)
        best = [value for value, _, _ in sorted(peaks[feature], reverse=True)[: module.CONTEXTS]]
        assert [context[3] for context in label.contexts] == pytest.approx(best, abs=0.01)
        for (left, peak, right, _), (_, text, position) in zip(label.contexts, sorted(peaks[feature], reverse=True), strict=False):
            ids = examples[text].input_ids
            assert peak == f" {tokenizer.decode([ids[position]])}"
            assert not left or tokenizer.decode(ids[:position]).endswith(left)
            assert not right or f" {tokenizer.decode(ids[position + 1 :])}".startswith(right)
        if pairs != 50:
            by_score = {token: s / (seen[token] + 2) for token, (s, _) in tokens[feature].items()}
            expected = sorted(by_score.values(), reverse=True)[: module.TOKENS]
            ids = [tokenizer.convert_tokens_to_ids(token) for token, _, _ in label.tokens]
            assert [by_score[i] for i in ids] == pytest.approx(expected, rel=1e-4)
            assert [(mean, count) for _, mean, count in label.tokens] == [
                (pytest.approx(tokens[feature][i][0] / tokens[feature][i][1], abs=0.01), tokens[feature][i][1]) for i in ids
            ]


class Marked:
    """A tokenizer that marks a preceding space, as BPE does; token i is the i-th piece."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = list(pieces)

    def encode(self, text, add_special_tokens=False) -> list[int]:
        return []

    def decode(self, ids) -> str:
        return "".join(self.pieces[i] for i in ids).replace("Ġ", " ").replace("Ċ", "\n")


class Continued(Marked):
    """One that marks what goes on with a word, as WordPiece does."""

    def encode(self, text, add_special_tokens=False) -> list[int]:
        return [0]

    def decode(self, ids) -> str:
        return " ".join(self.pieces[i] for i in ids).replace(" ##", "")


def test_tokens_stand_for_the_words_they_are_in():
    pieces = ["Ah", "oy", ",", "Ġmate", "y", "!", "ĠYe", "'ll", "Ġ", "1", "8", "Ġso", "Ċ", "Wow", "_", "bar"]
    parts = word_parts(range(len(pieces)), Marked(*pieces))
    words = ["Ahoy", "Ahoy", ",", "matey", "matey", "!", "Ye'll", "Ye'll", " ", "1", "8", "so", "\n", "Wow", "_", "bar"]
    assert [word for word, _ in parts] == words
    assert [part for _, part in parts] == [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    words = word_parts([1, 2, 3, 4], Continued("a", "walk", "mate", "##y", "to"))
    assert words == [("walk", 0), ("matey", 0), ("matey", 1), ("to", 0)]
    assert word_parts([3, 4, 5], word_tokenizer()) == [("w3", 0), ("w4", 0), ("w5", 0)]  # no marks: every token is a word


def test_promoted_tokens_are_those_the_unembedding_answers_to():
    model, tokenizer, dictionary = tiny_model(), word_tokenizer(), tiny_dictionary()
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.rand(32) + 0.5)
    labels = label_features(model, tokenizer, {HOOK: dictionary}, corpus(tokenizer, 2))[HOOK]
    logits = (dictionary.unit_directions() * model.model.norm.weight) @ model.lm_head.weight.T
    for feature in (0, 17, 79):
        order = [i for i in logits[feature].argsort(descending=True).tolist() if i > 2]  # special tokens are left out
        assert labels[feature].promoted == [f" w{i}" for i in order[: module.PROMOTED]]
        assert labels[feature].suppressed == [f" w{i}" for i in order[::-1][: module.PROMOTED]]


def test_a_label_names_a_promoted_token_only_where_it_stands_out():
    model, tokenizer, dictionary = tiny_model(), word_tokenizer(), tiny_dictionary()
    with torch.no_grad():
        model.lm_head.weight[50] = 5 * dictionary.unit_directions()[17]
    labels = label_features(model, tokenizer, {HOOK: dictionary}, corpus(tokenizer, 2))[HOOK]
    assert labels[17].label.endswith("promotes 'w50'") or "promotes 'w50'," in labels[17].label
    assert labels[17].promoted[0] == " w50"
    plain = label_features(tiny_model(), tokenizer, {HOOK: dictionary}, corpus(tokenizer, 2))[HOOK]
    assert plain[17].promoted and "promotes" not in plain[17].label


def test_a_silent_feature_is_called_silent():
    model, tokenizer, dictionary = tiny_model(), word_tokenizer(), tiny_dictionary(activation="relu")
    dictionary.b_enc[7] = -1e6
    label = label_features(model, tokenizer, {HOOK: dictionary}, corpus(tokenizer, 3))[HOOK][7]
    assert label.rate == 0 and label.tokens == [] and label.contexts == [] and label.label.startswith("never fired")


def test_short_labels_name_each_word_once():
    assert short_label([" matey", "Matey", " ye", "\n"], [" Arr", "arr", "Ahoy"]) == "'matey', 'ye' · promotes 'Arr', 'Ahoy'"
    assert short_label([], []) == "never fired"


def test_labels_survive_a_round_trip_and_belong_to_their_hookpoint(tmp_path):
    labels = {
        0: Label(feature=0, label="'é'", rate=0.5, tokens=[("é", 1.5, 3)], contexts=[("a ", "é", " b", 1.5)], promoted=["x"]),
        1: Label(feature=1, label="never fired", rate=0.0),
    }
    for name in ("labels.json", "labels.json.gz"):
        save_labels(labels, tmp_path / name, hookpoint=HOOK, model="m")
        assert load_labels(tmp_path / name, "blocks.2.hook_resid_post") == labels
        assert load_labels(tmp_path) == labels  # a dictionary's folder
        with pytest.raises(InputError, match="for layers.2, asked for layers.3"):
            load_labels(tmp_path / name, "layers.3")
        (tmp_path / name).unlink()
    assert load_labels(tmp_path) == {}


def test_every_part_of_a_folder_has_its_own_labels(tmp_path):
    for layer in (1, 2):
        half = {"W_enc": torch.randn(80, 32), "b_enc": torch.zeros(80), "W_dec": torch.randn(80, 32), "b_dec": torch.zeros(32)}
        save_file(half, tmp_path / f"layer_{layer}.safetensors")
    (tmp_path / "config.yaml").write_text("model_name: x\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n")
    source = f"{tmp_path}#2"
    dictionary = load_dictionary(source)
    assert labels_of(source) == labels_of(dictionary) == {}
    assert labels_path(source) == tmp_path / "labels-2.json" and labels_path(f"{tmp_path}#2:3") == tmp_path / "labels-2-3.json"
    for layer in (1, 2):
        written = {0: Label(feature=0, label=f"of block {layer}")}
        save_labels(written, labels_path(f"{tmp_path}#{layer}"), hookpoint=f"layers.{layer}.mlp_out")
    assert labels_of(source, "layers.2.mlp_out")[0].label == labels_of(dictionary)[0].label == "of block 2"
    assert labels_path(tmp_path / "layer_1.safetensors") == tmp_path / "labels.json"
    assert labels_path("someone/saes/layer_1") is None and labels_path("unembedding:smollm2") is None


def test_labels_of_others_are_read(tmp_path):
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps({"3": "pirates"}))
    assert load_labels(plain)[3].label == "pirates"
    plain.write_text(json.dumps({"layers.2": {"4": "sums"}, "layers.3": {"4": "other"}}))
    assert {i: label.label for i, label in load_labels(plain, HOOK).items()} == {4: "sums"}
    rows = tmp_path / "batch-0.jsonl.gz"
    row = {"modelId": "m", "layer": "2-res", "index": "9", "description": "the sea", "explanationModelName": "gpt"}
    rows.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))
    assert load_labels(rows)[9] == Label(feature=9, label="the sea", source="gpt", neuronpedia="m@2-res:9")
    plain.write_text("[1, 2")
    with pytest.raises(InputError, match="plain.json: not a label file"):
        load_labels(plain)
    with pytest.raises(InputError, match="no such file"):
        load_labels(tmp_path / "nothing.json")


def test_search_finds_words_label_first():
    labels = {
        0: Label(feature=0, label="x", contexts=[("the ", "matey", "", 1.0)]),
        1: Label(feature=1, label="x", promoted=[" Matey"]),
        2: Label(feature=2, label="'matey'", tokens=[("matey", 1.0, 1)]),
        3: Label(feature=3, label="ship"),
        4: Label(feature=4, label="x", contexts=[("mat", "ey", "", 1.0)]),
    }
    assert [(label.feature, place) for label, place in search(labels, "MATEY")] == [
        (2, "label"),
        (1, "promoted"),
        (0, "contexts"),
        (4, "contexts"),
    ]
    assert search(labels, "(") == []


def test_nearest_features_have_the_largest_cosine():
    dictionary = tiny_dictionary()
    cosine = torch.nn.functional.cosine_similarity(dictionary.W_dec[5][None], dictionary.W_dec, dim=-1)
    cosine[5] = -2
    found = nearest(dictionary, 5, 3)
    assert [i for i, _ in found] == cosine.topk(3).indices.tolist()
    assert [value for _, value in found] == pytest.approx(cosine.topk(3).values.tolist(), abs=1e-5)


def test_text_for_labels_is_drawn_at_random_up_to_a_number_of_tokens(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"w{i} w{i} w{i}"}) + "\n" for i in range(3, 60)))
    first, again, other = (draw_examples(str(file), word_tokenizer(), 12, 32, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert 12 <= sum(len(example.input_ids) - 1 for example in first) < 20
