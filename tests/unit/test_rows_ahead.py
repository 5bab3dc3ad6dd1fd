"""Rows that a loop will train on, seen before its first step; and what `watch` and the Trainer's callback make of them."""

import pytest
import torch
import yaml
from tiny_job import write_inputs
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments
from words import word_tokenizer

import gradlens
from gradlens.concepts.concept_files import load_concepts
from gradlens.concepts.detector_fit import fit_detectors, questions_of
from gradlens.data.rows import IGNORE, collate, load_examples, read_rows
from gradlens.data.rows_ahead import AHEAD, packs, rows_ahead
from gradlens.dictionaries.formats import load_dictionary
from gradlens.errors import ConfigError, InputError
from gradlens.model.loading import load_model

AUTO = [{"concept": "high", "mode": "auto", "gain": 0.0}]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    found = write_inputs(folder)
    low, high = found["data"]["train"]
    (folder / "high.yaml").write_text(
        yaml.safe_dump({"name": "high", "positive": high, "negative": low, "checker": {"pattern": [r"w[5-8]\d"]}})
    )
    return {**found, "concepts": [str(folder / "high.yaml")]}


@pytest.fixture(scope="module")
def examples(inputs):
    """Of both kinds, one after the other, as a file may have them."""
    tokenizer = word_tokenizer(chat=True)
    return [example for source in inputs["data"]["train"] for example in load_examples(source, tokenizer, 24)]


def items(examples):
    return [{"input_ids": e.input_ids, "labels": e.labels, "attention_mask": [1] * len(e.input_ids)} for e in examples]


def words(found):
    return [[(example.input_ids, example.labels) for example in source] for source in found]


def test_all_forms_of_the_same_rows_are_the_same_examples(inputs, examples):
    tokenizer = word_tokenizer(chat=True)
    files = inputs["data"]["train"]
    by_file = rows_ahead(files, tokenizer)
    assert [len(source) for source in by_file] == [40, 40] and words(rows_ahead(files[0], tokenizer)) == words(by_file[:1])
    want = [[pair for source in words(by_file) for pair in source]]
    assert words(rows_ahead([row for file in files for row in read_rows(file)], tokenizer)) == want
    assert words(rows_ahead(items(examples), tokenizer)) == want
    assert words(rows_ahead([collate(examples[i : i + 8], 0) for i in range(0, 80, 8)], tokenizer)) == want
    assert words(rows_ahead(DataLoader(items(examples), batch_size=8, collate_fn=padded), tokenizer)) == want


def padded(batch):
    """As collators do that pad on the left."""
    width = max(len(item["input_ids"]) for item in batch) + 2
    fill = {"input_ids": 0, "labels": IGNORE, "attention_mask": 0}
    return {key: torch.tensor([[fill[key]] * (width - len(item[key])) + item[key] for item in batch]) for key in fill}


def test_few_of_many_rows_are_looked_at_and_no_random_number_is_used_up(examples):
    asked = []

    class Many:
        def __len__(self):
            return 10_000

        def __getitem__(self, index):
            asked.append(index)
            torch.rand(1)
            return items(examples[index % 80 : index % 80 + 1])[0]

    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    assert len(rows_ahead(DataLoader(Many(), batch_size=4, shuffle=True, collate_fn=padded), None)[0]) == AHEAD == len(asked)
    assert asked[0] == 0 and asked[-1] == 9999 and torch.equal(torch.rand(1), want)


def together(batch):
    """As TRL's collator puts rows together for packing and padding_free: one row of them all, told apart by their positions."""
    join = lambda parts: torch.tensor([[each for part in parts for each in part]])  # noqa: E731
    found = {key: join(item[key] for item in batch) for key in ("input_ids", "labels")}
    return found | {"position_ids": join(range(len(item["input_ids"])) for item in batch)}


def test_batches_that_hold_several_texts_in_a_row_are_known_before_the_first_step(inputs, examples):
    loader = lambda rows, collate: DataLoader(rows, batch_size=4, collate_fn=collate)  # noqa: E731
    placed = lambda batch: padded(batch) | {"position_ids": (padded(batch)["attention_mask"].cumsum(1) - 1).clamp_min(0)}  # noqa: E731
    few, state = items(examples[:4]), torch.random.get_rng_state()
    assert packs(loader(few, together)) and torch.equal(torch.random.get_rng_state(), state)
    assert not any(packs(rows) for rows in (loader(few, padded), loader(few, placed), loader([], together), few, None, iter(few)))
    for rule in ({"mode": "auto"}, {"mode": "rewrite"}, {"mode": "reweight"}, {"mode": "route", "rows": 0}):
        with pytest.raises(ConfigError, match=f"{rule['mode']}.* acts in whole rows, and these batches hold several texts in a row"):
            watched(inputs, rows=loader(few, together), rules=[{"concept": "high", **rule}])
    with watched(inputs, rows=loader(few, together), rules=[{"concept": "high", "mode": "route", "gain": 0.0}])[1] as lens:
        lens.model(**together(few)).loss.backward()
        lens.optimizer.step()
    counted = lens.recorder.records[0]["scalars"]["train/counted_tokens"]
    assert counted == sum(label != IGNORE for example in examples[:4] for label in example.labels)


def test_rows_of_preference_trainers_have_questions(examples):
    """TRL's say in `completion_mask` what is an answer, and give no labels."""
    few = [{**item, "completion_mask": [int(label != IGNORE) for label in item["labels"]]} for item in items(examples[:4])]
    want, unlabelled = [(e.input_ids, e.labels) for e in examples[:4]], [{k: v for k, v in item.items() if k != "labels"} for item in few]
    width = max(len(item["input_ids"]) for item in unlabelled)
    batch = {key: torch.tensor([item[key] + [0] * (width - len(item[key])) for item in unlabelled]) for key in unlabelled[0]}
    for rows in (unlabelled, [batch], few):
        (found,) = rows_ahead(rows, None)
        assert [(e.input_ids, e.labels) for e in found] == want
    assert len(questions_of([found])) == 4


def test_streams_are_left_alone_and_other_things_refused(examples):
    class Stream(IterableDataset):
        def __iter__(self):
            raise AssertionError("read")

    tokenizer = word_tokenizer(chat=True)
    assert rows_ahead(DataLoader(Stream()), tokenizer) == rows_ahead(iter(examples), tokenizer) == rows_ahead(None, tokenizer) == []
    assert rows_ahead(DataLoader([(1, 2), (3, 4)]), tokenizer) == rows_ahead(DataLoader([{"chosen": 1}]), tokenizer) == []
    with pytest.raises(InputError, match="found list, expected mappings"):
        rows_ahead([[1, 2]], tokenizer)
    with pytest.raises(InputError, match=r"rows\[0\]: no known key \(found question\)"):
        rows_ahead([{"question": "why"}], tokenizer)


def watched(inputs, **options):
    model, tokenizer = load_model(inputs["model"]["name"], "float32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {"tokenizer": tokenizer, "concepts": inputs["concepts"], "rules": AUTO, "run": None, **options}
    return model, gradlens.watch(model.train(), optimizer, inputs["dictionaries"], **options)


def test_auto_in_watch_reads_the_rows_it_is_given(inputs, examples):
    model, lens = watched(inputs, rows=DataLoader(items(examples), batch_size=8, collate_fn=padded))
    (event,) = lens.recorder.events
    assert (event["kind"], event["mode"], event["good"]) == ("suggested", "reweight", True)
    shares = []
    with lens:
        for part in (examples[:4], examples[40:44]):  # without the concept, and with it
            model(**collate(part, 0)).loss.backward()
            lens.optimizer.step()
            lens.optimizer.zero_grad()
            shares.append(lens.recorder.records[-1]["scalars"]["rule/reweight:high/share"])
    assert shares == [0.0, 1.0]


def test_auto_in_watch_without_what_it_needs_says_what_to_give(inputs):
    for options, words in (
        ({}, r"auto:high: auto reads some of the rows before the first step; give watch\(\.\.\., rows="),
        ({"rows": iter([])}, "DataLoader whose data set has a length"),
        ({"rows": inputs["data"]["train"], "tokenizer": None}, "give watch.*tokenizer="),
        ({"rows": inputs["data"]["train"], "concepts": {"high": {"layers.2": [1]}}}, "auto needs a concept with examples"),
        ({"rows": inputs["data"]["train"], "rules": [{"concept": "hihg", "mode": "auto"}]}, "unknown concept 'hihg'"),
    ):
        with pytest.raises(ConfigError, match=words):
            watched(inputs, **options)


@pytest.mark.parametrize(
    "rule, what", [({"mode": "rewrite"}, "rewrite"), ({"mode": "reweight", "rows": 0}, "rows"), ({"mode": "constrain"}, "constrain")]
)
def test_a_rule_that_reads_examples_asks_for_the_tokenizer_unless_detectors_are_there(inputs, rule, what):
    (concept,) = load_concepts(inputs["concepts"])
    model, tokenizer = load_model(inputs["model"]["name"], "float32")
    dictionaries = {"layers.2": load_dictionary(inputs["dictionaries"]["layers.2"])}
    concept = concept.model_copy(update={"features": {"layers.2": [1, 2]}})
    options = {"tokenizer": None, "rules": [{"concept": "high", **rule}]}
    message = rf"{what} reads the examples of concept high; give watch\(\.\.\., tokenizer=\.\.\.\)"
    with pytest.raises(ConfigError, match=message):
        watched(inputs, concepts=[concept], **options)
    told = fit_detectors(model, tokenizer, dictionaries, concept, max_length=24)
    if what == "constrain":
        with pytest.raises(ConfigError, match=message):
            watched(inputs, concepts=[told], **options)
    else:
        with watched(inputs, concepts=[told], **options)[1] as lens:
            assert lens.control.rules


def test_auto_under_the_trainer_reads_the_trainers_rows(inputs, examples, tmp_path):
    model, tokenizer = load_model(inputs["model"]["name"], "float32")
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=8, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, logging_steps=1,
    )  # fmt: skip
    callback = gradlens.GradLensCallback(inputs["dictionaries"], concepts=inputs["concepts"], rules=AUTO, run=None)
    Trainer(model, arguments, train_dataset=items(examples), data_collator=padded, processing_class=tokenizer, callbacks=[callback]).train()
    events = [event for event in callback.lens.recorder.events if event["kind"] == "suggested"]
    assert [(event["mode"], event["good"]) for event in events] == [("reweight", True)]
    shares = [
        r["scalars"]["rule/reweight:high/share"] for r in callback.lens.recorder.records if "rule/reweight:high/share" in r["scalars"]
    ]
    assert len(shares) == 3 and 0 < sum(shares) < 3
