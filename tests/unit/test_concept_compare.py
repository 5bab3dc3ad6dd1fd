"""`concepts compare` and `concepts directions`: figures that can be recomputed, files that a run can use, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
import yaml
from conftest import tiny_dictionary, tiny_model
from typer.testing import CliRunner
from words import sentences, word_tokenizer

from gradlens.cli import concepts, directions
from gradlens.concepts.concept_compare import compare
from gradlens.concepts.fitting import Concept, counted_tokens, load_concepts, split_examples
from gradlens.data.rows import collate
from gradlens.dictionaries.formats import load_dictionary, save_dictionary
from gradlens.dictionaries.probing import KINDS
from gradlens.dictionaries.unembedding import from_unembedding
from gradlens.errors import ConfigError, InputError
from gradlens.model.capture import read_activations
from gradlens.readings.ranking import auc

root = typer.Typer()
concepts.register(root)
directions.register(root)


def call(*arguments):
    result = CliRunner().invoke(root, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def examples(n=24):
    random = np.random.default_rng(0)
    return {kind: sentences(random, list(words), n) for kind, words in (("positive", range(20, 25)), ("negative", range(50, 60)))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    tiny_model().save_pretrained(folder / "model")
    word_tokenizer(chat=True).save_pretrained(folder / "model")
    dictionary = tiny_dictionary()
    dictionary.b_dec.zero_()
    save_dictionary(dictionary, folder / "sae")
    (folder / "concept.yaml").write_text(yaml.safe_dump({"name": "twenties", **examples()}))
    (folder / "bare.yaml").write_text("name: bare\nfeatures: {layers.2: [1]}\n")
    return folder


def test_every_method_is_judged_on_the_texts_that_chose_nothing():
    model, tokenizer, concept = tiny_model(), word_tokenizer(), Concept(name="thing", **examples())
    sae, tokens = tiny_dictionary(), from_unembedding(tiny_model(), word_tokenizer())
    sae.b_dec.zero_()
    rows, fitted = compare(model, tokenizer, {"layers.2": sae, "layers.2#tokens": tokens, "layers.1#other": sae}, concept, 4, draws=50)
    assert [(found.hook, found.facts["kind"]) for found in fitted] == [(at, kind) for at in ("layers.2", "layers.1") for kind in KINDS]
    by_name = {(row["hookpoint"], row["method"]): row for row in rows}
    assert {name for name, _ in by_name} == {"layers.2", "layers.2#tokens", "layers.1", "layers.1#other"}
    judging = split_examples(concept, tokenizer, 256)[1]
    readings = {True: [], False: []}
    probe = fitted[0]
    chosen = by_name["layers.2", "best feature"]["features"]
    firings = {True: [], False: []}
    for example, positive in judging:
        h_TD = read_activations(model, ["layers.2"], collate([example], 0))["layers.2"][0][counted_tokens(example)]
        readings[positive].append((h_TD @ probe.w_FD[0] + probe.bias_F[0]).numpy())
        firings[positive].append(sae.encode(h_TD)[:, chosen[0]].numpy())
    for name, found in (("probe", readings), ("best feature", firings)):
        row = by_name["layers.2", name]
        assert row["auc_tokens"][0] == pytest.approx(auc(*(np.concatenate(found[kind]) for kind in (True, False))), abs=2e-4)
        assert row["auc_texts"][0] == pytest.approx(auc(*([part.mean() for part in found[kind]] for kind in (True, False))), abs=2e-4)
    for row in rows:
        for key in ("auc_texts", "auc_tokens"):
            assert 0 <= row[key][1] <= row[key][0] + 1e-9 and row[key][0] <= row[key][2] + 1e-9 <= 1 + 1e-6
        assert (row["minus_probe"] is None) == (row["method"] == "probe")
    assert by_name["layers.2", "probe"]["auc_texts"][0] > 0.95  # five words against ten others
    assert by_name["layers.2", "feature set"]["directions"] == len(by_name["layers.2", "feature set"]["features"]) <= 4


def test_a_transcoder_is_read_where_it_reads():
    sae = tiny_dictionary()
    same = replace(sae, b_dec=torch.zeros(32), apply_b_dec_to_input=False)
    transcoder = replace(same, hookpoint="layers.3", hook_in=("layers.2",))
    concept = Concept(name="thing", **examples(16))
    rows, _ = compare(tiny_model(), word_tokenizer(), {"layers.2": same, "layers.3": transcoder}, concept, 4, draws=10)
    by_name = {(row["hookpoint"], row["method"]): row for row in rows}
    for name in ("best feature", "feature set"):
        assert by_name["layers.2", name]["auc_tokens"] == by_name["layers.3", name]["auc_tokens"]
    assert by_name["layers.2", "pca"]["auc_tokens"] != by_name["layers.3", "pca"]["auc_tokens"]


def test_the_command_prints_a_table_and_writes_the_best_direction(folder):
    where = ["--model", folder / "model", "-d", f"layers.2={folder / 'sae'}", "--features", 4]
    out = folder / "best.safetensors"
    printed = json.loads(call("concepts", "compare", folder / "concept.yaml", *where, "--tokens", "--save", out, "--json"))
    assert printed["concept"] == "twenties" and printed["saved"] == str(out)
    names = {row["hookpoint"] for row in printed["methods"]}
    assert names == {"layers.2", "layers.2#tokens"}
    saved = load_dictionary(out)
    fitted = [row for row in printed["methods"] if row["method"] in KINDS]
    assert saved.hookpoint == "layers.2" and saved.metadata["auc_tokens"] == max(row["auc_tokens"] for row in fitted)
    page = call("concepts", "compare", folder / "concept.yaml", *where)
    assert "feature probe: logistic regression on those features" in page and f"layers.2/{printed['methods'][3]['features'][0]}" in page


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".json"])
def test_directions_are_written_for_a_config(folder, suffix):
    out = folder / f"two{suffix}"
    other = folder / "other.yaml"
    other.write_text(yaml.safe_dump({"name": "fifties", "positive": examples()["negative"], "negative": examples()["positive"]}))
    arguments = ["concepts", "directions", folder / "concept.yaml", other, "--at", 2, "--kind", "mean", "--model", folder / "model"]
    printed = json.loads(call(*arguments, "--out", out, "--json"))["directions"]
    assert [row["label"] for row in printed] == ["twenties (mean)", "fifties (mean)"] and printed[0]["auc_texts"][0] > 0.9
    found = load_dictionary(out)
    assert found.hookpoint == "layers.2" and found.metadata["labels"] == ["twenties (mean)", "fifties (mean)"]
    torch.testing.assert_close(found.W_dec[0], -found.W_dec[1], rtol=0.5, atol=0.5)  # fitted on other halves of the same texts


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["compare", "{bare}", "-m", "{model}"], ConfigError, "concept bare: it has no examples to fit and to judge on"),
        (["directions", "{concept}", "--at", "2", "-o", "x.npz", "-k", "lda", "-m", "{model}"], ConfigError, "is not one of probe, mean"),
        (["directions", "{concept}", "--at", "2", "-o", "x.txt", "-m", "{model}"], InputError, "expected a name that ends with"),
        (["directions", "{concept}", "--at", "9", "-o", "x.npz", "-m", "{model}"], InputError, "layers.0 to layers.3"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(folder, arguments, error, message):
    places = {"model": folder / "model", "concept": folder / "concept.yaml", "bare": folder / "bare.yaml"}
    with pytest.raises(error, match=message):
        call("concepts", *(argument.format(**places) for argument in arguments))


def test_a_direction_file_brings_what_a_route_rule_needs(folder):
    out = folder / "one.safetensors"
    where = ["concepts", "directions", folder / "concept.yaml", "--at", 2, "--model", folder / "model"]
    (row,) = json.loads(call(*where, "--out", out, "--json"))["directions"]
    assert row["gates"][0] > 0.8 > 0.2 > row["gates"][1] and 0 < row["quorum"] <= 0.5 and row["threshold"] >= 0
    (folder / "by-probe.yaml").write_text("name: twenties\ndirections: one.safetensors\n")
    (concept,) = load_concepts([folder / "by-probe.yaml"])
    key = "layers.2#twenties"
    assert concept.quorum == {key: row["quorum"]} and concept.thresholds == {key: [row["threshold"]]}
