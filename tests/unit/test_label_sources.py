"""Labels that others made: every form of file, several of them at once, who said what, and one clear line for what is no label file."""

import gzip
import json

import pytest
from conftest import tiny_dictionary

from gradlens.dictionaries import label_sources
from gradlens.dictionaries.directions import from_probe
from gradlens.dictionaries.labels import Label, citation, labels_of, load_labels, neuronpedia_link, save_labels, search
from gradlens.errors import InputError


def row(index, text, explainer="gpt-4o-mini", source="20-gemmascope-res-16k", **extra):
    return {"modelId": "gemma-2-2b", "layer": source, "index": str(index), "description": text, "explanationModelName": explainer} | extra


def pack(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(entry) + "\n" for entry in rows).encode()))
    return path


def test_a_neuronpedia_export_keeps_every_explainer_and_its_page(tmp_path):
    export = tmp_path / "v1" / "gemma-2-2b" / "20-gemmascope-res-16k"
    pack(export / "explanations" / "batch-10.jsonl.gz", [row(7, "late")])
    pack(
        export / "explanations" / "batch-2.jsonl.gz",
        [row(5, "the sea", embedding=[0.1, 0.2]), row(5, "ships and sailors", "claude"), row(6, "")],
    )
    for folder in (export, export / "explanations"):
        labels = load_labels(folder)
        assert [(label.label, label.source) for label in labels.values()] == [
            ("the sea", "gpt-4o-mini"), ("", "gpt-4o-mini"), ("late", "gpt-4o-mini")
        ]  # fmt: skip
        assert labels[5].also == [("ships and sailors", "claude")]
        assert labels[5].neuronpedia == "gemma-2-2b@20-gemmascope-res-16k:5"
        assert labels[5].link == "https://neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/5"
    assert [label.feature for label, place in search(load_labels(export), "sailor")] == [5]
    pack(export / "explanations" / "batch-3.jsonl.gz", [row(1, "other", source="21-gemmascope-res-16k")])
    with pytest.raises(InputError, match=r"several dictionaries \(gemma-2-2b@20-.*gemma-2-2b@21-"):
        load_labels(export)


def test_rows_by_index_are_rows_and_no_hookpoints(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"12": {"label": "the sea", "source": "me"}, "3": {"label": "ships"}}))
    found = load_labels(tmp_path / "labels.json", "layers.12")
    assert [(label.feature, label.label, label.source) for label in found.values()] == [(12, "the sea", "me"), (3, "ships", "labels.json")]
    (tmp_path / "labels.json").write_text(json.dumps({"12": {"5": "of block 12"}, "13": {"5": "of block 13"}}))
    assert load_labels(tmp_path / "labels.json", "layers.13")[5].label == "of block 13"


def test_results_of_delphi_are_those_of_the_hookpoint(tmp_path):
    folder = tmp_path / "results" / "explanations"
    folder.mkdir(parents=True)
    for module in ("layers.9", "model.layers.10"):
        for index in (11, 2):
            (folder / f"{module}_latent{index}.txt").write_text(json.dumps(f"about {module} {index}\n"))
    for place in (folder, folder.parent):
        assert load_labels(place, "layers.10#sae") == {
            i: Label(feature=i, label=f"about model.layers.10 {i}", source="Delphi") for i in (2, 11)
        }
    with pytest.raises(InputError, match=r"several modules \(layers.9, model.layers.10\)"):
        load_labels(folder)
    (folder / "layers.9_latent3.txt").write_text('{"explanation": "x"}')
    with pytest.raises(InputError, match=r"layers\.9_latent3\.txt: expected one JSON text, found dict"):
        load_labels(folder, "layers.9")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "feature,label,explainer\n4,the sea,me\n5,\"ships, sails\",me\n"),
        ("l.tsv", "Index\tDescription\tExplainer\n4\tthe sea\tme\n5\tships, sails\tme\n"),
        ("l.json", '[{"index": 4, "description": "the sea", "author": "me"}, {"index": "5", "label": "ships, sails", "source": "me"}]'),
        ("l.jsonl", '{"latent": 4, "explanation": "the sea", "author": "me"}\n\n{"id": 5, "text": "ships, sails", "author": "me"}\n'),
    ],
)  # fmt: skip
def test_tables_and_lists_are_read_by_the_names_of_their_columns(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (tmp_path / name, packed):
        assert load_labels(path) == {
            4: Label(feature=4, label="the sea", source="me"),
            5: Label(feature=5, label="ships, sails", source="me"),
        }


def test_a_plain_file_says_that_it_was_the_one(tmp_path):
    (tmp_path / "mine.json").write_text('{"3": "pirates"}')
    assert load_labels(tmp_path / "mine.json")[3] == Label(feature=3, label="pirates", source="mine.json")


def test_sources_are_joined_in_their_order_and_none_is_lost(tmp_path):
    own = {3: Label(feature=3, label="'matey'", rate=0.1, tokens=[("matey", 1.0, 4)]), 4: Label(feature=4, label="'sum'")}
    save_labels(own, tmp_path / "sae" / "labels.json", hookpoint="layers.2")
    (tmp_path / "mine.csv").write_text("index,label\n3,pirate talk\n")
    pack(tmp_path / "batch-0.jsonl.gz", [row(3, "the sea", "gpt")])
    labels = labels_of(tmp_path / "sae", "layers.2#sae", [tmp_path / "mine.csv", tmp_path / "batch-0.jsonl.gz"], d_sae=80)
    assert (labels[3].label, labels[3].source) == ("pirate talk", "mine.csv")
    assert labels[3].also == [("the sea", "gpt"), ("'matey'", own[3].source)]
    assert labels[3].tokens == own[3].tokens and labels[3].rate == 0.1 and labels[3].neuronpedia == "gemma-2-2b@20-gemmascope-res-16k:3"
    assert labels[4] == own[4]
    for word in ("pirate", "sea", "matey"):
        assert [(label.feature, place) for label, place in search(labels, word)] == [(3, "label")]
    with pytest.raises(InputError, match=r"batch-0\.jsonl\.gz: a label for feature 3, the dictionary has 0 to 2"):
        labels_of(tmp_path / "sae", "layers.2", [tmp_path / "batch-0.jsonl.gz"], d_sae=3)


def test_a_dictionary_in_memory_or_on_the_hub_has_the_labels_it_brings_or_none():
    probe = from_probe({"directions": [[1.0, 2.0]], "labels": ["pirate"]})
    assert labels_of(probe)[0].label == "pirate"
    assert labels_of(tiny_dictionary()) == {} == labels_of("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.jsonl.gz", gzip.compress(b'{"index": 1, "description": "a"}\n' * 2000, mtime=0)[:-40], "packed data that ends too early"),
        ("l.jsonl.gz", gzip.compress(b"x" * 5000, mtime=0)[:30] + b"\0" * 30, "not a label file"),
        ("l.json.gz", b"no gzip", "not a label file"),
        ("labels.json.gz", gzip.compress(b'{"features": []}' + b" " * 5000, mtime=0)[:-20], "not a label file"),
        ("l.json", b'{"1": "a"', "JSONDecodeError"),
        ("l.json", b'{"1": ["a"]}', "label of feature 1 is no text but list"),
        ("l.json", b'{"one": "a"}', "not a label file"),
        ("l.json", b'[{"index": 1}]', "a row without index or description; its columns: index"),
        ("l.json", b"[1, 2]", "expected rows with index and description, found int"),
        ("l.jsonl", b'{"index": -1, "description": "a"}', "feature -1 is less than 0"),
        ("l.csv", b"a;b\n1;2\n", "a row without index or description; its columns: a;b"),
        ("l.csv", b"index,label\n\xff\xfe,x\n", "not a label file"),
    ],
)
def test_what_is_no_label_file_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_labels(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_huge_file_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(label_sources, "LARGEST", 1000)
    path = tmp_path / "l.jsonl.gz"
    path.write_bytes(gzip.compress(b"0" * 10_000_000))
    with pytest.raises(InputError, match="not a label file .*more than"):
        load_labels(path)


def test_an_id_and_a_feature_make_a_citation_and_an_address():
    assert citation("gpt2-small/6-res-jb", 650) == "gpt2-small@6-res-jb:650"
    assert neuronpedia_link("gpt2-small@6-res-jb:650") == "https://neuronpedia.org/gpt2-small/6-res-jb/650"
