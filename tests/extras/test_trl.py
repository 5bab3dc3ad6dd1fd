"""TRL's trainers: readings are those of a plain loop, or of plain hooks where the loss is TRL's own; nothing is read as what it is not."""

import numpy as np
import pytest
import torch
import yaml
from conftest import read_positions, tiny_dictionary, tiny_model
from needs import needs
from peft import LoraConfig, get_peft_model
from tiny_job import write_inputs
from transformers import TrainerCallback, set_seed
from words import sentences, word_tokenizer

import gradlens
from gradlens.concepts.detector_fit import questions_of
from gradlens.config import ObserveSettings
from gradlens.data.rows import collate, load_examples
from gradlens.data.rows_ahead import packs, rows_ahead
from gradlens.model.hookpoints import find_module, unwrap
from gradlens.model.loading import load_model
from gradlens.readings.attribution import attribution_eager, push_eager

trl, datasets = needs("trl", "trl"), needs("datasets", "trl")

HOOK, STEPS = "layers.2", 3
COMMON = {
    "max_steps": STEPS, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "logging_steps": 1, "report_to": [],
    "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True, "seed": 1, "optim": "adamw_torch", "weight_decay": 0.0,
    "gradient_checkpointing": False,
}  # fmt: skip


def texts(n, seed=0, length=5):
    return sentences(np.random.default_rng(seed), range(4, 95), n, length)


def lora(model):
    torch.manual_seed(2)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False))


class Oracle(TrainerCallback):
    """What passes the hookpoint, by hooks that know nothing of gradlens: h and g of the tokens whose label counts."""

    def __init__(self):
        self.seen, self.inputs = [], None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        unwrap(model).register_forward_pre_hook(self.note, with_kwargs=True)
        find_module(model, HOOK).register_forward_hook(self.read)

    def note(self, module, args, kwargs):
        self.inputs = kwargs

    def read(self, module, args, output):
        if not (torch.is_grad_enabled() and module.training):
            return
        keep = read_positions(self.inputs)
        entry = {
            "h": output.detach()[keep],
            "keep": keep,
            "counted": int(((self.inputs["labels"] != -100) & self.inputs["attention_mask"].bool()).sum()),
            "inputs": dict(self.inputs),
        }
        self.seen.append(entry)
        output.register_hook(lambda g: entry.update(g=g[keep]))

    def check(self, lens):
        dictionary = tiny_dictionary()
        for key, formula in (
            ("push", lambda h, g: push_eager(dictionary, g)),
            ("attribution", lambda h, g: attribution_eager(dictionary, h, g)),
        ):
            expected = sum(formula(part["h"], part["g"]).double() for part in self.seen)
            assert expected.abs().max() > 0
            assert (lens.totals[HOOK][key] - expected).abs().max() <= 1e-5 * expected.abs().max()


def callback(**options):
    return gradlens.GradLensCallback({HOOK: tiny_dictionary()}, **{"run": None, "concepts": {"c": {HOOK: [1, 2, 3]}}} | options)


def sft(model, folder, watched, accumulate=1, **config):
    rows = [{"prompt": prompt, "completion": " " + answer} for prompt, answer in zip(texts(24), texts(24, 1, 7), strict=True)]
    arguments = trl.SFTConfig(str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=accumulate, **{**COMMON, **config})
    return trl.SFTTrainer(
        model, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=word_tokenizer(), callbacks=watched
    )


PENALTY = {"mode": "penalty", "features": {HOOK: list(range(0, 80, 4))}, "gain": 0.0, "strength": 5.0}


@pytest.mark.parametrize("rules", [[], [{"mode": "route", "features": {HOOK: [1, 2]}, "gain": 0.25}], [PENALTY]])
def test_sft_reads_and_rules_as_a_plain_loop_does(tmp_path, rules):
    watched = callback(rules=rules)
    job = sft(lora(tiny_model()), tmp_path, [watched], accumulate=2)
    job.train()
    plain = lora(tiny_model()).train()
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    set_seed(1)
    loader = iter(job.get_train_dataloader())
    with gradlens.watch(plain, optimizer, {HOOK: tiny_dictionary()}, run=None, rules=rules, concepts={"c": {HOOK: [1, 2, 3]}}) as lens:
        for _ in range(STEPS):
            batches = [{key: value for key, value in next(loader).items() if torch.is_tensor(value)} for _ in range(2)]
            counted = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
            for batch in batches:
                (plain(**batch, num_items_in_batch=counted)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for key in ("taught", "push", "attribution"):
        mine, theirs = watched.lens.totals[HOOK][key], lens.totals[HOOK][key]
        assert theirs.abs().max() > 0
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max(), key
    for (name, a), (_, b) in zip(job.model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_sft_packed_into_rows_without_padding_counts_the_same_tokens(tmp_path):
    plain, packed = callback(), callback()
    sft(tiny_model(), tmp_path, [plain]).train()
    job = sft(tiny_model(), tmp_path, [packed], padding_free=True, max_length=None)
    job.train()
    counted = [[record["scalars"]["train/counted_tokens"] for record in lens.recorder.records if "features" in record]
               for lens in (plain.lens, packed.lens)]  # fmt: skip
    assert counted[0] == counted[1] and len(counted[0]) == STEPS


@pytest.mark.parametrize("packed", [{"packing": True, "max_length": 40}, {"padding_free": True, "max_length": None}])
def test_rules_that_act_in_whole_rows_are_refused_where_rows_are_packed(tmp_path, packed):
    watched = callback(rules=[{"mode": "reweight", "features": {HOOK: [1, 2]}, "gain": 0.0}])
    with pytest.raises(gradlens.ConfigError, match="reweight acts in whole rows, and these batches hold several texts"):
        sft(tiny_model(), tmp_path, [watched], **packed).train()
    assert watched.lens is None and not packs(sft(tiny_model(), tmp_path, []).get_train_dataloader())


def test_rewritten_rows_weigh_as_in_a_plain_loop(tmp_path):
    """The trainer has counted the tokens by which it divides before some of them go."""
    inputs, detector = write_inputs(tmp_path), {"features": list(range(0, 80, 2)), "weights": [1.0, -1.0] * 20, "bias": 0.0}
    concept = {"name": "high", "features": {HOOK: [1, 2]}, "detectors": {HOOK: detector}, "checker": {"pattern": [r"w[5-8]\d"]}}
    (tmp_path / "high.yaml").write_text(yaml.safe_dump(concept))
    given = {"concepts": [str(tmp_path / "high.yaml")], "rules": [{"concept": "high", "mode": "rewrite"}], "run": None}
    examples = [example for path in inputs["data"]["train"] for example in load_examples(path, word_tokenizer(chat=True), 24)[:8]]
    rows = datasets.Dataset.from_list([{"input_ids": each.input_ids, "labels": each.labels} for each in examples])
    model, plain, start = (lora(load_model(inputs["model"]["name"])[0]).train() for _ in range(3))
    config = COMMON | {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd"}
    job = trl.SFTTrainer(
        model, args=trl.SFTConfig(str(tmp_path), per_device_train_batch_size=16, **config), train_dataset=rows,
        processing_class=word_tokenizer(chat=True), callbacks=[gradlens.GradLensCallback(inputs["dictionaries"], **given)],
    )  # fmt: skip
    job.train()
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=1.0)
    with gradlens.watch(plain, optimizer, inputs["dictionaries"], tokenizer=word_tokenizer(chat=True), **given) as lens:
        plain(**collate(examples, 0)).loss.backward()
        optimizer.step()
    assert 0.1 < lens.recorder.records[0]["scalars"]["rule/rewrite:high/share"] < 0.5
    for mine, theirs, first in zip(model.parameters(), plain.parameters(), start.parameters(), strict=True):
        assert (mine - theirs).norm() <= 1e-4 * (theirs - first).norm()


def test_dynamic_fine_tuning_leaves_taught_out(tmp_path):
    watched = callback()
    sft(lora(tiny_model()), tmp_path, [watched], loss_type="dft").train()
    assert "taught" not in watched.lens.totals[HOOK] and watched.lens.totals[HOOK]["push"].abs().max() > 0
    assert [event["estimator"] for event in watched.lens.recorder.events if event["kind"] == "not_read"] == ["taught"]


def test_reentrant_checkpointing_reads_what_is_there_without(tmp_path):
    watched = [callback(), callback()]
    sft(lora(tiny_model()), tmp_path, watched[:1]).train()
    again = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    sft(lora(tiny_model()), tmp_path, watched[1:], **again).train()
    plain, other = (each.lens.totals[HOOK]["push"] for each in watched)
    assert plain.abs().max() > 0 and (other - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_two_callbacks_in_one_trainer_are_refused(tmp_path):
    with pytest.raises(gradlens.ConfigError, match="give the trainer one GradLensCallback"):
        sft(lora(tiny_model()), tmp_path, [callback(), callback()]).train()


def test_a_run_folder_with_curves_comes_from_three_lines(tmp_path):
    watched = callback(run="sft", runs_dir=tmp_path / "runs")
    sft(lora(tiny_model()), tmp_path, [watched]).train()
    from gradlens.recording.store import RunReader

    reader = RunReader(watched.lens.run_dir)
    assert reader.summary["steps"] == STEPS and list(reader.curve("train/loss")[0]) == [1, 2, 3]
    assert list(reader.curve(f"concept/c/{HOOK}/taught")[0]) == [1, 2, 3] and watched.top(3)[0]["uptake"] != 0


@pytest.mark.parametrize("adapter", [True, False])
def test_dpo_reads_the_gradient_of_both_answers_and_leaves_taught_out(tmp_path, adapter):
    rows = [{"prompt": p, "chosen": " " + a, "rejected": " " + b} for p, a, b in zip(texts(12), texts(12, 1), texts(12, 2, 7), strict=True)]
    oracle, watched = Oracle(), callback()
    model = lora(tiny_model()) if adapter else tiny_model()
    reference = None if adapter else tiny_model(seed=5)
    trl.DPOTrainer(
        model, reference, args=trl.DPOConfig(str(tmp_path), per_device_train_batch_size=4, **COMMON),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=word_tokenizer(), callbacks=[watched, oracle],
    ).train()  # fmt: skip
    assert len(oracle.seen) == STEPS and all(len(part["keep"]) == 8 for part in oracle.seen)  # chosen and rejected in one batch
    oracle.check(watched.lens)
    counted = [record["scalars"]["train/counted_tokens"] for record in watched.lens.recorder.records if "features" in record]
    assert counted == [part["counted"] for part in oracle.seen]
    assert "taught" not in watched.lens.totals[HOOK]
    told = [event for event in watched.lens.recorder.events if event["kind"] == "not_read"]
    assert [event["estimator"] for event in told] == ["taught"] and "DPO" in told[0]["reason"]


def test_rows_of_dpo_are_read_ahead_with_their_questions(tmp_path):
    rows = [{"prompt": p, "chosen": " " + a, "rejected": " " + b} for p, a, b in zip(texts(12), texts(12, 1), texts(12, 2, 7), strict=True)]
    job = trl.DPOTrainer(
        lora(tiny_model()), args=trl.DPOConfig(str(tmp_path), per_device_train_batch_size=4, **COMMON),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=word_tokenizer(),
    )  # fmt: skip
    found = rows_ahead(job.get_train_dataloader(), word_tokenizer())
    questions = {tuple(word_tokenizer().encode(row["prompt"])) for row in rows}
    assert len(found[0]) == 24 and {tuple(each) for each in questions_of(found)} <= questions and len(questions_of(found)) >= 12


def test_dpo_with_route_gives_gated_tokens_no_gradient(tmp_path):
    rows = [{"prompt": p, "chosen": " " + a, "rejected": " " + b} for p, a, b in zip(texts(12), texts(12, 1), texts(12, 2, 7), strict=True)]
    model = lora(tiny_model())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    watched = callback(rules=[{"mode": "route", "features": {HOOK: list(range(80))}, "gain": 0.0}])
    trl.DPOTrainer(
        model, args=trl.DPOConfig(str(tmp_path), per_device_train_batch_size=4, **COMMON),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=word_tokenizer(), callbacks=[watched],
    ).train()  # fmt: skip
    assert watched.lens.recorder.records[0]["scalars"]["rule/route:features/share"] == 1.0
    after = dict(model.named_parameters())  # TRL adds a copy of the adapter, for reference
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_dpo_refuses_rules_that_rewrite_rows(tmp_path):
    rows = [{"prompt": p, "chosen": " " + a, "rejected": " " + b} for p, a, b in zip(texts(12), texts(12, 1), texts(12, 2), strict=True)]
    job = trl.DPOTrainer(
        lora(tiny_model()), args=trl.DPOConfig(str(tmp_path), per_device_train_batch_size=4, **COMMON),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=word_tokenizer(),
        callbacks=[callback(rules=[{"mode": "rewrite", "concept": "c"}])],
    )  # fmt: skip
    with pytest.raises(gradlens.ConfigError, match="rewrite"):
        job.train()


def test_grpo_reads_what_the_model_writes(tmp_path):
    rows = [{"prompt": prompt} for prompt in texts(60)]
    oracle, watched = Oracle(), callback(observe=ObserveSettings(drift_every=2))
    config = COMMON | {"max_steps": 6}
    torch.manual_seed(0)
    trl.GRPOTrainer(
        lora(tiny_model()), reward_funcs=lambda completions, **kwargs: [float(sum(ord(c) for c in text) % 7) for text in completions],
        args=trl.GRPOConfig(str(tmp_path), per_device_train_batch_size=12, num_generations=2, max_completion_length=5, **config),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=word_tokenizer(), callbacks=[watched, oracle],
    ).train()  # fmt: skip
    oracle.check(watched.lens)
    assert watched.lens.step == 6 and "taught" not in watched.lens.totals[HOOK]
    change = watched.lens.learning.generated_change(HOOK)
    assert change is not None and change[0].abs().max() > 0
    assert any(f"concept/c/{HOOK}/generated" in record["scalars"] for record in watched.lens.recorder.records)
    assert isinstance(watched.lens.rising(5), list)


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_rules_that_change_activations_are_refused_where_old_log_probabilities_are_taken_without(tmp_path, kind):
    config, again = getattr(trl, f"{kind}Config"), {"num_iterations": 2} if kind == "GRPO" else {}
    job = getattr(trl, f"{kind}Trainer")(
        lora(tiny_model()), reward_funcs=lambda completions, **kwargs: [float(len(text)) for text in completions],
        args=config(str(tmp_path), per_device_train_batch_size=12, num_generations=2, max_completion_length=5, **again, **COMMON),
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in texts(60)]), processing_class=word_tokenizer(),
        callbacks=[callback(rules=[{"mode": "steer", "features": {HOOK: [1]}, "gain": 0.0}])],
    )  # fmt: skip
    with pytest.raises(gradlens.ConfigError, match=f"change activations while training, and {kind} compares with"):
        job.train()
