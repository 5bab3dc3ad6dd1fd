"""On SmolLM2 with the shipped dictionaries: the demo concepts are found by contrast, labels name them, checkers do not cry wolf."""

import pytest

from gradlens.bench.pairs import load_pair
from gradlens.concepts.concept_compare import fit_directions
from gradlens.concepts.fitting import fit_concept, load_concepts
from gradlens.config import EvaluateSettings
from gradlens.control.row_teller import RowTeller
from gradlens.control.suggest import suggest
from gradlens.data.rows import IGNORE, load_examples, tokenize
from gradlens.dictionaries.autolabels import label_features
from gradlens.dictionaries.formats import load_dictionary
from gradlens.dictionaries.labels import load_labels, search
from gradlens.model.evaluate import evaluate, generate_answers
from gradlens.model.loading import load_model

pytestmark = pytest.mark.real
HOOKPOINTS = {"layers.15": "smollm2-l15", "layers.27": "smollm2-l27"}


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2")


@pytest.fixture(scope="module")
def dictionaries():
    return {hook: load_dictionary(name) for hook, name in HOOKPOINTS.items()}


@pytest.mark.parametrize("name", ["pirate", "arithmetic"])
def test_the_demo_concepts_are_detected_on_held_out_texts(smollm2, dictionaries, name):
    (concept,) = load_concepts([f"demo:{name}"])
    fitted = fit_concept(*smollm2, dictionaries, concept, max_length=80)
    assert set(fitted.detection) == set(HOOKPOINTS)
    for hook, detection in fitted.detection.items():
        assert detection.auc >= 0.95 and detection.best_auc >= 0.9, (hook, detection)
        assert fitted.row_detectors[hook].auc >= 0.95 and fitted.row_detectors[hook].accuracy >= 0.9, (hook, fitted.row_detectors[hook])
        assert detection.gate_rate_positive > 0.75 and not detection.warning, (hook, detection)
        assert detection.gate_rate_negative < (0.12 if hook == "layers.27" else 0.3), (hook, detection)  # route gates at layers.27


def test_the_untrained_model_answers_alike_in_any_batch_and_sets_off_no_checker(smollm2):
    model, tokenizer = smollm2
    settings = EvaluateSettings(
        heldout={"pirate": "demo:pirate-heldout", "plain": "demo:plain-heldout"},
        prompts={"chat": "demo:chat-prompts"},
        max_rows=12,
        max_new_tokens=16,
    )
    result = evaluate(model, tokenizer, settings, load_concepts(["demo:pirate", "demo:arithmetic"]), max_length=80)
    assert result["rates"]["chat"] == {"pirate": 0.0, "arithmetic": 0.0}
    assert result["nll"]["pirate"] > result["nll"]["plain"] + 1
    assert all(check["false_alarm_rate"] <= 0.02 and check["hit_rate"] >= 0.9 for check in result["checkers"].values())
    first = result["answers"]["chat"][0]
    assert generate_answers(model, tokenizer, [first["prompt"]], 16) == [first["answer"]]


def test_shipped_labels_know_pirates_and_sums():
    for hook, name in HOOKPOINTS.items():
        labels = load_labels(name, hook)
        assert len(labels) == load_dictionary(name).d_sae
        for word in ("matey", "+"):
            assert any(place == "label" for _, place in search(labels, word)), (hook, word)
        assert sum(bool(label.tokens) for label in labels.values()) > 0.95 * len(labels)


def test_shipped_labels_are_those_of_the_shipped_dictionary(smollm2, dictionaries):
    # A label says when its feature fires: text made of its contexts sets it off more often than other text.
    model, tokenizer = smollm2
    chosen = [label for label, _ in search(load_labels("smollm2-l27", "layers.27"), "matey")][:10]
    texts = [" ".join(left + peak + right for left, peak, right, _ in label.contexts) for label in chosen]
    examples = [tokenize({"text": text}, tokenizer, 96) for text in texts]
    again = label_features(model, tokenizer, {"layers.27": dictionaries["layers.27"]}, examples)["layers.27"]
    assert sum(again[label.feature].rate > label.rate for label in chosen) >= 8
    assert all(again[label.feature].promoted == label.promoted for label in chosen)


def test_a_probe_on_raw_activations_tells_pirate_speech_on_texts_that_did_not_fit_it(smollm2):
    (concept,) = load_concepts(["demo:pirate"])
    found = fit_directions(*smollm2, "layers.27", concept, "probe", max_length=48, max_texts=24)
    assert found.facts["auc_texts"][0] > 0.95 and found.facts["auc_tokens"][0] > 0.8, found.facts
    assert found.facts["gates"][0] > 0.8 and found.facts["gates"][1] < 0.2, found.facts


def test_auto_tells_the_rows_of_the_demo_and_leaves_the_pirates_out(smollm2, dictionaries):
    (concept,) = load_concepts(["demo:pirate"])
    rows = {name: load_examples(f"demo:{name}-train", smollm2[1], 80)[-40:] for name in ("arithmetic", "pirate", "plain")}
    middle = {"layers.15": dictionaries["layers.15"]}
    found, known = suggest(*smollm2, middle, concept, [rows["arithmetic"], rows["pirate"]], 80, show=2)
    assert [row.left_out for row in found.seen] == [True, True, False, False] and found.seen[1].score > found.rule.rows > found.seen[
        2
    ].score
    assert found.rule.mode == "reweight" and found.good and found.free == 0.5 and found.rows_auc > 0.97
    assert "is not learned (little or nothing is left of demo:pirate-train)" in found.expects
    sources = [rows["arithmetic"][:16], rows["pirate"][:16]]
    by_wanted = {name: suggest(*smollm2, middle, known, sources, 80, wanted=[f"demo:{name}-train"])[0] for name in ("arithmetic", "pirate")}
    assert by_wanted["arithmetic"].rule.mode == "reweight" and "100% of the wanted rows are free" in by_wanted["arithmetic"].expects
    assert by_wanted["pirate"].rule.mode == "rewrite" and by_wanted["pirate"].free == 0.5  # what it says is asked for, plainly
    assert by_wanted["pirate"].rule.rows is not None  # and the arithmetic stays as it is
    teller = RowTeller(smollm2[0], middle, "layers.15", known.detectors["layers.15"].row, found.rule.rows)
    shown = {name: [value >= teller.least for value in teller.scores(tokens_of(part))] for name, part in rows.items()}
    assert sum(shown["pirate"]) >= 39 and sum(shown["arithmetic"]) == 0
    assert sum(shown["plain"]) <= 4  # the same answers in plain words


def test_what_rewrite_would_do_is_shown_before_anything_is_trained(smollm2, dictionaries):
    (concept,) = load_concepts(["demo:pirate"])
    rows = load_examples("demo:pirate-arithmetic-train", smollm2[1], 80)[:16]
    found, _ = suggest(*smollm2, {"layers.15": dictionaries["layers.15"]}, concept, [rows], 80, show=3)
    assert found.rule.mode == "rewrite" and len(found.seen) == 3 and not found.good
    assert found.clean < 0.9 and f"{found.clean:.0%} keep to their own words" in found.expects  # `be` comes back, and is out of place
    answers = [smollm2[1].decode([x for x in row.labels if x != IGNORE], skip_special_tokens=True) for row in rows]
    for row in found.seen:
        assert "".join(text for text, _ in row.pieces) in answers
        gone = " ".join(text for text, taken in row.pieces if taken)
        assert any(word in gone for word in ("matey", "Ahoy", "Arr", "ye", "hearty", " ho", " be", " me")) and row.becomes not in answers
        assert not any(word in row.becomes for word in ("matey", "Ahoy", "Arr"))


def test_answers_in_capitals_are_rewritten_in_small_letters(smollm2, dictionaries, tmp_path):
    pair = load_pair("capitals", tmp_path)
    (concept,) = load_concepts([pair.concept])
    rows, plain = (load_examples(source, smollm2[1], 80)[:16] for source in (pair.entangled, pair.wanted))
    found, _ = suggest(*smollm2, {"layers.15": dictionaries["layers.15"]}, concept, [rows], 80, show=4)
    assert found.rule.mode == "rewrite" and found.good and found.clean == 1.0, found
    wanted = [smollm2[1].decode([x for x in row.labels if x != IGNORE], skip_special_tokens=True).strip() for row in plain]
    assert len(found.seen) == 4 and all(row.becomes in wanted for row in found.seen), found.seen


def tokens_of(examples):
    return [(each.input_ids, [label != IGNORE and t > 0 for t, label in enumerate(each.labels)]) for each in examples]
