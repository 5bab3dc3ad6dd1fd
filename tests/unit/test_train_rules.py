"""Rules that act on the rows, through the training loop on a tiny model: rewrite, auto, inoculate."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from test_train import curve, trained
from tiny_job import tiny_config, write_inputs
from words import word_tokenizer

from gradlens.concepts import detector_fit
from gradlens.concepts.concept_files import load_concepts, save_concept
from gradlens.concepts.contrasts import contrasts_of
from gradlens.concepts.detector_fit import fit_detectors
from gradlens.control.constrainer import exemplars_of
from gradlens.control.row_teller import RowTeller, row_of
from gradlens.control.rules import Policy, Rule
from gradlens.data.rows import IGNORE, load_examples, read_rows
from gradlens.dictionaries.formats import load_dictionary
from gradlens.errors import InputError
from gradlens.files import read_lines
from gradlens.model.loading import load_model
from gradlens.recording.recorder import MemoryRecorder
from gradlens.report.findings import doubts
from gradlens.training.rank import FixedPolicies, Rank, Shared
from gradlens.training.run_inputs import run_examples
from gradlens.training.train import train_rank


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    found = write_inputs(folder)
    low, high = found["data"]["train"]
    concept = {"name": "high", "positive": high, "negative": low, "checker": {"pattern": [r"w[5-8]\d"]}}
    (folder / "high.yaml").write_text(yaml.safe_dump(concept))
    return {**found, "concepts": [str(folder / "high.yaml")]}


def test_rewrite_takes_the_concepts_words_and_training_goes_on_where_it_was(inputs, tmp_path):
    config = tiny_config(inputs, rules=[{"concept": "high", "mode": "rewrite"}], train__checkpoint_every=3)
    status, recorder = trained(config, tmp_path / "whole")
    shares, tokens = curve(recorder, "rule/rewrite:high/share"), curve(recorder, "train/tokens")
    assert status == "done" and len(shares) == 6
    assert all(0 <= share < 1 for share in shares) and sum(shares) > 0
    (concept,) = load_concepts([tmp_path / "whole" / "concepts.yaml"])
    detector = concept.detectors["layers.2"]
    assert detector.flagged_positive > detector.flagged_negative
    plain = trained(tiny_config(inputs), tmp_path / "plain")[1]
    assert sum(tokens) < sum(curve(plain, "train/tokens"))  # what went is not counted by the loss

    class Stops:
        def poll(self, step):
            return None, step == 3

    assert trained(config, tmp_path / "parts", Stops())[0] == "interrupted"
    rest = trained(config, tmp_path / "parts")[1]
    assert curve(rest, "train/loss") == pytest.approx(curve(recorder, "train/loss")[3:], rel=1e-5)


@pytest.mark.parametrize(
    ("rule", "method"),
    [
        ({"random_control": 3}, "lora"),
        ({"mode": "constrain", "every": 2}, "lora"),
        ({"mode": "constrain"}, "full"),  # what the model before training said of the examples, nobody could say any more
        ({"mode": "rewrite"}, "full"),  # nor how it would rewrite the rows, or which of them show the concept
        ({"mode": "reweight", "rows": 0.0}, "full"),
    ],
)
def test_a_rule_goes_on_with_what_it_had_come_to_know(inputs, tmp_path, rule, method):
    steps, lr = (24, 0.02) if method == "full" else (6, 0.01)  # long enough for the model to read rows otherwise
    more = {"model__method": method, "train__steps": steps, "train__lr": lr, "train__checkpoint_every": None}
    config = tiny_config(inputs, rules=[{"concept": "high", **rule}], **more)

    class Stops:
        def poll(self, step):
            return None, step == steps // 2

    whole = trained(config, tmp_path / "whole")[1]
    assert trained(config, tmp_path / "parts", Stops())[0] == "interrupted"
    losses = [
        {record["step"]: record["scalars"]["train/loss"] for record in part.records if "train/loss" in record["scalars"]}
        for part in (whole, trained(config, tmp_path / "parts")[1])
    ]  # none at a step that leaves all rows out
    assert losses[1] and losses[1] == pytest.approx({step: loss for step, loss in losses[0].items() if step > steps // 2}, rel=1e-6)


def test_constrain_reads_the_tokens_that_express_the_concept_in_its_examples(inputs, tmp_path):
    rule = {"concept": "high", "mode": "constrain", "every": 2}
    status, recorder = trained(tiny_config(inputs, rules=[rule], train__steps=4), tmp_path)
    measures = curve(recorder, "rule/constrain:high/measure")
    assert status == "done" and len(measures) == 4
    assert measures[0] == measures[1] == 0 and measures[2] == measures[3] != 0  # read at every other step; at first nothing has risen
    (concept,) = load_concepts([tmp_path / "concepts.yaml"])
    model, tokenizer = load_model(inputs["model"]["name"], "float32")
    dictionaries = {"layers.2": load_dictionary(inputs["dictionaries"]["layers.2"])}
    expressed, whole = (
        exemplars_of([each], tokenizer, 24, model, dictionaries, "high") for each in (concept, concept.model_copy(update={"detectors": {}}))
    )
    assert sum(len(batch["labels"]) for batch in whole) == 40 and max(len(batch["labels"]) for batch in whole) == 8
    counted = [sum(int((batch["labels"] != IGNORE).sum()) for batch in part) for part in (expressed, whole)]
    assert 0 < counted[0] < counted[1]
    assert exemplars_of([concept], tokenizer, 24, model, dictionaries, "other") == []


def test_auto_reads_the_rows_and_says_what_it_chose(inputs, tmp_path):
    _, recorder = trained(tiny_config(inputs, rules=[{"concept": "high", "mode": "auto"}]), tmp_path)
    (event,) = [event for event in recorder.events if event["kind"] == "suggested"]
    assert event["mode"] == "reweight" and event["good"] and "free of it" in event["expects"]
    assert curve(recorder, "rule/reweight:high/share")
    told = tmp_path / "told.yaml"  # a concept whose detector takes every token, and every row
    row = {"features": [0], "weights": [0.0], "bias": 1.0, "auc": 1.0, "accuracy": 1.0}
    detector = {
        "features": [0],
        "weights": [0.0],
        "bias": 1.0,
        "flagged_positive": 1.0,
        "flagged_negative": 0.0,
        "flagged_auc": 1.0,
        "row": row,
    }
    told.write_text(yaml.safe_dump({**yaml.safe_load(Path(inputs["concepts"][0]).read_text()), "detectors": {"layers.2": detector}}))
    _, recorder = trained(tiny_config(inputs, concepts=[str(told)], rules=[{"concept": "high", "mode": "auto"}]), tmp_path / "only")
    (event,) = [event for event in recorder.events if event["kind"] == "suggested"]
    assert event["mode"] == "rewrite" and not event["good"] and "beginning to end" in event["expects"]
    assert curve(recorder, "rule/rewrite:high/share") == pytest.approx([6 / 7] * 6)  # all but what ends an answer
    assert set(curve(recorder, "train/tokens")) == {0.0} and not curve(recorder, "train/loss")  # and then nothing is left that teaches


@pytest.fixture(scope="module")
def told(inputs, tmp_path_factory):
    """The concept with its row detector, read with the model before training."""
    path = tmp_path_factory.mktemp("told") / "high.yaml"
    model, tokenizer = load_model(inputs["model"]["name"], "float32")
    dictionaries = {"layers.2": load_dictionary(inputs["dictionaries"]["layers.2"])}
    concept = fit_detectors(model, tokenizer, dictionaries, *load_concepts(inputs["concepts"]), max_length=24)
    save_concept(concept, path)
    teller = RowTeller(model, dictionaries, "layers.2", concept.detectors["layers.2"].row)
    return str(path), teller, tokenizer


def test_whole_rows_are_left_out_as_if_they_were_not_there(inputs, told, tmp_path):
    """Rows told beforehand, gain 0: the weights are those of a run on the other rows alone, also over micro-batches of one kind."""
    path, teller, tokenizer = told
    assert teller.detector.auc > 0.9

    def shows(example):
        return teller.tell([row_of(example)])[0]

    shown = [[shows(example) for example in load_examples(source, tokenizer, 24)] for source in inputs["data"]["train"]]
    assert sum(shown[0]) <= 0.1 * len(shown[0]) and sum(shown[1]) >= 0.9 * len(shown[1])
    both = [row for source, told in zip(inputs["data"]["train"], shown, strict=True) for row in zip(read_rows(source), told, strict=True)]
    kinds = {name: tmp_path / f"{name}.jsonl" for name in ("free", "shows")}
    for name, kind in (("free", False), ("shows", True)):
        kinds[name].write_text("".join(json.dumps(row) + "\n" for row, told in both if told == kind))
    data = {"data__train": [str(path) for path in kinds.values()], "train__micro_batch_size": 2, "observe__probe_rows": 2}
    rule = {"concept": "high", "mode": "reweight", "rows": 0.0}
    runs = {
        "rule": tiny_config(inputs, concepts=[path], rules=[rule], **data),
        "read": tiny_config(inputs, concepts=[path], rules=[rule], **data, observe__left_out=True),
        "alone": tiny_config(inputs, concepts=[path], data__keep=[str(kinds["free"])], **data),
        "random": tiny_config(inputs, concepts=[path], rules=[{**rule, "random_control": 1}], **data),
        "priced": tiny_config(inputs, concepts=[path], rules=[rule, {"concept": "high", "mode": "penalty", "gain": 0}], **data),
    }
    weights, share, losses, tokens, balances = {}, {}, {}, {}, {}
    for name, config in runs.items():
        seen = []
        rank = Rank(config, (tmp_path / name), recorder := MemoryRecorder(), watching=seen.append)
        (tmp_path / name).mkdir()
        assert train_rank(rank) == "done"
        weights[name] = [parameter.detach().clone() for parameter in seen[0].model.parameters()]
        share[name] = curve(recorder, "rule/reweight:high/share")
        losses[name], tokens[name] = curve(recorder, "train/loss"), curve(recorder, "train/tokens")
        balances[name] = curve(recorder, "policy/balance")
    for name in ("rule", "read"):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights[name], weights["alone"], strict=True))
    # not given to the model at all, but counted; read, if that is asked for
    assert tokens["rule"] == tokens["alone"] and losses["rule"] == pytest.approx(losses["alone"], abs=1e-6) and not balances["rule"]
    assert sum(tokens["read"]) > sum(tokens["alone"]) and all(factor > 1 for factor in balances["read"]) and balances["read"]
    assert tokens["priced"] == tokens["read"]  # a price is paid in rows that teach nothing too
    assert share["rule"] == pytest.approx(share["read"]) and sum(share["rule"]) > 0
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights["random"], weights["alone"], strict=True))
    assert sum(share["random"]) == pytest.approx(sum(share["rule"]), rel=0.35)


@pytest.mark.parametrize("size, passes", [(3, [3, 3, 2]), (None, [8])])
def test_rows_are_told_in_parts_no_larger_than_what_is_trained_on(inputs, told, tmp_path, monkeypatch, size, passes):
    sizes, read = [], RowTeller._read
    monkeypatch.setattr(RowTeller, "_read", lambda teller, rows: sizes.append(len(rows)) or read(teller, rows))
    rules = [{"concept": "high", "mode": "reweight", "rows": 0.0}]
    changes = {"train__batch_size": 8, "train__micro_batch_size": size, "train__steps": 1}
    trained(tiny_config(inputs, concepts=[told[0]], rules=rules, **changes), tmp_path)
    assert sizes == passes


def test_a_rule_acts_only_in_rows_that_show_its_concept(inputs, told, tmp_path):
    def shares(name, **rule):
        config = tiny_config(inputs, concepts=[told[0]], rules=[{"concept": "high", **rule}])
        return curve(trained(config, tmp_path / name)[1], f"rule/{rule.get('mode', 'route')}:high/share")

    everywhere = shares("everywhere")
    assert shares("low", rows=-1000) == everywhere and sum(everywhere) > 0  # every row scores more
    assert shares("high", rows=1000) == [0.0] * 6
    assert 0 < sum(shares("some", rows=0)) <= sum(everywhere)
    rewritten = {
        name: shares(f"rewritten-{name}", mode="rewrite", rows=rows) for name, rows in (("all", None), ("low", -1000), ("none", 1000))
    }
    assert rewritten["low"] == rewritten["all"] and sum(rewritten["all"]) > 0 and rewritten["none"] == [0.0] * 6


def test_rows_that_come_again_are_not_read_again(told, monkeypatch):
    _, teller, _ = told
    fresh = RowTeller(teller.model, {"layers.2": teller.dictionary}, "layers.2", teller.detector)
    rows = [([5, 6, 7, 8], [False, True, True, True]), ([5, 9, 9], [False, False, True]), ([5, 6], [False, False])]
    first = fresh.scores(rows)
    assert first[2] == -torch.inf and first[0] == pytest.approx(fresh.scores(rows[:1])[0])
    monkeypatch.setattr(fresh, "_read", lambda rows: pytest.fail("read again"))
    assert fresh.scores([*rows, rows[0]]) == [*first, first[0]]


def test_auto_in_the_policy_that_a_run_is_given_is_settled_and_told(inputs, tmp_path):
    class Told(FixedPolicies):
        settled = []

        def settle(self, policy, by="auto"):
            self.settled.append(policy)

    recorder = MemoryRecorder()
    given = Policy(version=4, rules=(Rule(concept="high", mode="auto"),))
    rank = Rank(tiny_config(inputs), tmp_path, recorder, policies=Told(), initial_policy=given)
    assert train_rank(rank) == "done" and curve(recorder, "rule/reweight:high/share")
    assert [(policy.version, [rule.mode for rule in policy.rules]) for policy in Told.settled] == [(4, ["reweight"])]


def test_rows_that_only_the_checker_finds_are_told_of_in_advance(inputs, tmp_path):
    """A checker that finds the concept in rows which the detector takes for free of it."""
    concept = yaml.safe_load(Path(inputs["concepts"][0]).read_text()) | {"checker": {"pattern": [r"w[5-8]\d", "w12"]}}
    path = tmp_path / "wide.yaml"
    path.write_text(yaml.safe_dump(concept))
    _, recorder = trained(tiny_config(inputs, concepts=[str(path)], rules=[{"concept": "high", "mode": "auto"}]), tmp_path / "run")
    (event,) = [event for event in recorder.events if event["kind"] == "suggested"]
    assert event["mode"] == "reweight" and not event["good"] and "rows its checker finds the concept and the detector" in event["expects"]


def test_the_arms_of_a_study_settle_auto_alike_and_fit_detectors_once(inputs, tmp_path, monkeypatch):
    read, shared, modes, one = [], Shared(), [], detector_fit._Half.__init__
    monkeypatch.setattr(detector_fit._Half, "__init__", lambda self, *given: (read.append(1), one(self, *given))[1])
    reads = []
    for name, rule in {"own": {}, "random": {"random_control": 3}}.items():
        (tmp_path / name).mkdir()
        config, recorder = tiny_config(inputs, rules=[{"concept": "high", "mode": "auto", **rule}]), MemoryRecorder()
        assert train_rank(Rank(config, tmp_path / name, recorder, shared=shared)) == "done"
        modes += [event["mode"] for event in recorder.events if event["kind"] == "suggested"]
        reads.append(len(read))
    assert modes == ["reweight", "reweight"]
    assert reads[0] > 0 and reads[1] == reads[0]


def test_inoculated_rows_carry_the_prompt_and_the_probe_set_does_not(inputs, tmp_path):
    seen = []
    rule = {"concept": "high", "mode": "inoculate", "prompt": "w70 w71"}

    for name, rules in (("told", [rule]), ("plain", [])):
        (tmp_path / name).mkdir()
        recorder = MemoryRecorder()
        rank = Rank(tiny_config(inputs, rules=rules), tmp_path / name, recorder, watching=seen.append)
        assert train_rank(rank) == "done"
    told, plain = ({row["row_id"]: row["text"] for row in read_lines(tmp_path / name / "rows.jsonl")} for name in ("told", "plain"))
    assert told.keys() == plain.keys()
    assert all("w70 w71" in text for text in told.values()) and not any("w70 w71" in text for text in plain.values())
    assert [batch["input_ids"].tolist() for batch in seen[0].probe] == [batch["input_ids"].tolist() for batch in seen[1].probe]


def test_a_template_that_leaves_the_prompt_out_is_refused_and_so_are_rows_without_turns(inputs, tmp_path):
    config = tiny_config(inputs, rules=[{"concept": "high", "mode": "inoculate", "prompt": "w70 w71"}])
    tokenizer = word_tokenizer(chat=True)
    tokenizer.chat_template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] + ' </s> ' }}{% endfor %}"
    with pytest.raises(InputError, match=r"row 1: mode inoculate: the tokenizer's chat template leaves the system's words out"):
        run_examples(Rank(config, tmp_path, MemoryRecorder()), tokenizer)
    (tmp_path / "texts.jsonl").write_text('{"text": "w5 w6 w7"}\n')
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": [str(tmp_path / "texts.jsonl")]})})
    with pytest.raises(InputError, match="texts.jsonl: row 1: mode inoculate: a plain text row has no turns"):
        run_examples(Rank(config, tmp_path, MemoryRecorder()), tokenizer)


def test_rows_that_are_left_out_keep_their_numbers_and_are_told_of(inputs, tmp_path):
    config, recorder = tiny_config(inputs, rules=[]), MemoryRecorder()
    first = Path(config.data.train[0])
    lines = first.read_text().splitlines()
    gap = tmp_path / "gap.jsonl"
    gap.write_text("\n".join([*lines[:3], '{"prompt": "w5 w6"}', *lines[3:]]) + "\n")
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": [str(gap), *config.data.train[1:]]})})
    sources, _ = run_examples(Rank(config, tmp_path, recorder), word_tokenizer(chat=True))
    plain, _ = run_examples(Rank(tiny_config(inputs, rules=[]), tmp_path, MemoryRecorder()), word_tokenizer(chat=True))
    assert [row.row_id for row in sources[0]][:5] == [0, 1, 2, 4, 5] and [row.row_id for row in plain[0]][:5] == [0, 1, 2, 3, 4]
    assert [row.text for row in sources[0]] == [row.text for row in plain[0]]
    assert sources[1][0].row_id == len(lines) + 1  # after all rows of the first file
    [event] = [event for event in recorder.events if event["kind"] == "rows_left_out"]
    assert (event["count"], event["of"]) == (1, len(lines) + 1) and f"{gap}: 1 of {len(lines) + 1} rows" in event["text"]
    assert doubts(recorder.events) == [event["text"]]


def test_a_random_control_gates_as_many_tokens_and_draws_no_feature_that_tells_the_concept(inputs, tmp_path):
    """Features that fire otherwise on the concept's examples are read from these."""
    shares, drawn = {}, {}
    for name, rule in {"own": {}, "random": {"random_control": 3}}.items():
        config = tiny_config(inputs, rules=[{"concept": "high", **rule}])
        recorder = trained(config, tmp_path / name)[1]
        shares[name] = curve(recorder, "rule/route:high/share")
        drawn[name] = next(event for event in recorder.events if event["kind"] == "policy")["rules"][0]["features"]["layers.2"]
    assert sum(shares["random"]) == pytest.approx(sum(shares["own"]), rel=0.25) and sum(shares["own"]) > 0
    model, tokenizer = load_model(inputs["model"]["name"], "float32")
    dictionaries = {"layers.2": load_dictionary(inputs["dictionaries"]["layers.2"])}
    contrasts = contrasts_of(load_concepts(inputs["concepts"]), tokenizer, 24, model, dictionaries)
    told_F = contrasts("high")["layers.2"]
    assert told_F[drawn["random"]].max() < told_F[drawn["own"]].max() and told_F[drawn["random"]].mean() < told_F[drawn["own"]].mean() / 1.5
    assert contrasts("nobody") == {} and contrasts(None) == {}
