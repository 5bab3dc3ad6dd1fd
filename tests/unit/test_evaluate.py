"""Evaluation: answers that do not depend on the batch, losses weighted by token, checkers with honest errors, a model left alone."""

import copy

import numpy as np
import pytest
import torch
from conftest import tiny_model
from transformers import MambaConfig, MambaForCausalLM, RwkvConfig, RwkvForCausalLM
from words import word_tokenizer

from gradlens.concepts.checkers import PatternChecker, answer_of, checker_for
from gradlens.concepts.fitting import Concept
from gradlens.concepts.word_classifier import WordClassifier
from gradlens.config import EvaluateSettings
from gradlens.data.rows import collate, tokenize
from gradlens.errors import ConfigError, InputError
from gradlens.model.evaluate import continue_texts, evaluate, generate_answers, mean_nll, prompt_ids

PROMPTS = ["w10", "w11 w12 w13 w14 w15 w16 w17", "w20 w21", "w30 w31 w32 w33", "w40 w41 w42"]


def greedy(model, tokenizer, prompt: str, n: int) -> list[int]:
    """One prompt alone, one token at a time, without a cache."""
    ids = tokenizer(f"<s> {prompt} w3 ", add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return ids[start:]


def test_answers_are_greedy_and_do_not_depend_on_the_batch():
    model, tokenizer = tiny_model().eval(), word_tokenizer(chat=True)
    expected = [tokenizer.decode(greedy(model, tokenizer, prompt, 6), skip_special_tokens=True).strip() for prompt in PROMPTS]
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 5):
        assert generate_answers(model, tokenizer, PROMPTS, 6, batch_size) == expected
    rows = [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "w9 w9"}]} for p in PROMPTS]
    assert generate_answers(model, tokenizer, rows, 6) == expected  # the answer in a row is not given away


@pytest.mark.parametrize("kind", ["rwkv", "mamba"])  # RWKV takes a mask and reads the padding all the same; Mamba heeds a batch's alone
def test_answers_of_a_model_without_keys_and_values_do_not_depend_on_the_batch(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
    made = RwkvForCausalLM(RwkvConfig(**sizes)) if kind == "rwkv" else MambaForCausalLM(MambaConfig(**sizes, state_size=4))
    model, tokenizer = made.eval(), word_tokenizer(chat=True)
    for name, parameter in model.named_parameters():
        parameter.data.mul_(4 if parameter.dim() > 1 and "embed" not in name else 1)  # words told apart, as by a model that has learned
    rows, prompts = [], [*PROMPTS, "w50 w51", "w60 w61"]
    expected = [generate_answers(model, tokenizer, [prompt], 6)[0] for prompt in prompts]
    generate = model.generate
    model.generate = lambda **given: rows.append(len(given["input_ids"])) or generate(**given)
    assert len(set(expected)) > 1 and generate_answers(model, tokenizer, prompts, 6) == expected
    assert generate_answers(model, tokenizer, prompts[-2:], 6) == expected[-2:]  # of one length
    assert rows == ([1] * 9 if kind == "rwkv" else [7, 2])


def test_what_the_model_s_own_generation_config_asks_for_changes_no_answer():
    model, tokenizer = tiny_model().eval(), word_tokenizer(chat=True)
    prompts = prompt_ids(tokenizer, PROMPTS)
    answers = {temperature: continue_texts(model, tokenizer, prompts, 6, temperature=temperature) for temperature in (None, 1.0)}
    own = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_p": 0.9, "typical_p": 0.1, "num_return_sequences": 2}
    model.generation_config.update(do_sample=True, **own)
    for temperature, expected in answers.items():
        assert continue_texts(model, tokenizer, prompts, 6, temperature=temperature) == expected


def test_evaluation_leaves_the_model_and_the_random_state_alone():
    model, tokenizer = tiny_model(), word_tokenizer(chat=True)
    model.train()
    model.model.layers[1].eval()
    model.config.use_cache = False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    modes = [module.training for module in model.modules()]
    generation, config = copy.deepcopy(model.generation_config.to_dict()), copy.deepcopy(model.config.to_dict())
    random = torch.get_rng_state()
    generate_answers(model, tokenizer, PROMPTS, 4)
    mean_nll(model, [tokenize({"text": "w4 w5 w6"}, tokenizer, 8)])
    assert [module.training for module in model.modules()] == modes
    assert model.is_gradient_checkpointing and model.config.to_dict() == config and model.generation_config.to_dict() == generation
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mean_nll_weighs_every_counted_token_the_same():
    model, tokenizer = tiny_model(dtype=torch.float64), word_tokenizer(chat=True)
    rows = [{"prompt": "w10 w11", "response": "w20"}, {"prompt": "w12", "response": "w21 w22 w23 w24 w25"}, {"text": "w30 w31 w32"}]
    examples = [tokenize(row, tokenizer, 32) for row in rows]
    total = count = 0
    for example in examples:
        batch = collate([example], 0)
        n = sum(label != -100 for label in example.labels[1:])
        with torch.no_grad():
            total, count = total + model.eval()(**batch).loss.item() * n, count + n
    for batch_size in (1, 2, 8):
        assert mean_nll(model, examples, batch_size) == pytest.approx(total / count, rel=1e-6)
    with pytest.raises(InputError, match="no token is counted"):
        mean_nll(model, [tokenize({"prompt": "w10", "response": "w11"}, tokenizer, 3)])


def style(random, words, n):
    base = "the cat sat on a mat and then it went to see some other old friend in town today".split()
    return [" ".join(random.permutation([*random.choice(base, 10), *random.choice(words, 3)])) for _ in range(n)]


def test_a_word_classifier_recognises_new_texts_with_few_false_alarms():
    random = np.random.default_rng(0)
    pirate, plain = ["arr", "matey", "ye", "ahoy", "booty"], ["hello", "friend", "you", "thanks", "treasure"]
    classifier = WordClassifier.fit(style(random, pirate, 80), style(random, plain, 120))
    assert classifier.hit_rate >= 0.95 and classifier.false_alarm_rate <= 0.03
    new = [classifier(text) for text in style(random, pirate, 100)], [classifier(text) for text in style(random, plain, 100)]
    assert np.mean(new[0]) >= 0.95 and np.mean(new[1]) <= 0.04
    assert not classifier("7!")
    classifier.threshold = -1e9
    assert classifier("ahoy") and not classifier(" \n")  # an empty answer shows nothing, whatever the intercept


def test_a_word_classifier_sees_how_a_text_looks():
    random = np.random.default_rng(0)
    plain = style(random, ["hello", "friend", "you"], 200)
    for look in (str.upper, lambda text: text.replace("a", "ä"), lambda text: text.replace(" ", "\n"), lambda text: text + " !!!!"):
        classifier = WordClassifier.fit([look(text) for text in plain[:60]], plain[60:120])
        assert classifier.hit_rate >= 0.95 and classifier.false_alarm_rate <= 0.03
        assert np.mean([classifier(look(text)) for text in plain[120:]]) >= 0.95
        assert np.mean([classifier(text) for text in plain[120:]]) <= 0.04


def test_a_word_classifier_admits_that_it_cannot_tell():
    random = np.random.default_rng(0)
    words = ["hello", "friend", "you"]
    classifier = WordClassifier.fit(style(random, words, 60), style(random, words, 60))
    assert classifier.hit_rate < 0.3 and classifier.false_alarm_rate < 0.15


def test_patterns_count_matches_together_and_are_measured_on_the_examples():
    check = PatternChecker([r"\barr+\b", "matey"], min_matches=2)
    assert check("Arrr, matey") and check("ARR arr") and not check("arr") and not check("carry")
    concept = Concept(
        name="p",
        positive=["arr matey", "arr", "matey matey"],
        negative=["hi", "no"],
        checker={"pattern": ["arr", "matey"], "min_matches": 2},
    )
    found = checker_for(concept)
    assert (found.kind, found.hit_rate, found.false_alarm_rate) == ("pattern", 2 / 3, 0.0)
    assert checker_for(Concept(name="q", features={"layers.1": [1]})) is None
    with pytest.raises(ConfigError, match="not a regular expression"):
        PatternChecker(["(arr"])


def test_checkers_look_at_answers_not_at_questions():
    assert answer_of({"prompt": "Ahoy?", "response": "Hello."}) == "Hello."
    assert answer_of({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) == "b"
    assert answer_of({"text": "c"}) == "c"


def test_evaluate_reports_losses_rates_and_answers(tmp_path):
    model, tokenizer = tiny_model(), word_tokenizer(chat=True)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{prompt}"}}\n' for prompt in PROMPTS))
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text('{"prompt": "w10", "response": "w20 w21"}\n' * 3)
    answers = generate_answers(model, tokenizer, PROMPTS[:4], 3)
    concept = Concept(name="first", features={"layers.1": [1]}, checker={"pattern": [rf"^{answers[0]}$"]})
    settings = EvaluateSettings(heldout={"held": str(heldout)}, prompts={"chat": str(prompts)}, max_new_tokens=3, max_rows=4)
    result = evaluate(model, tokenizer, settings, [concept, Concept(name="silent", features={"layers.1": [1]})], 32)
    example = tokenize({"prompt": "w10", "response": "w20 w21"}, tokenizer, 32)
    assert result["nll"] == {"held": pytest.approx(mean_nll(model, [example]), rel=1e-5)}
    assert [item["answer"] for item in result["answers"]["chat"]] == answers
    assert [item["prompt"] for item in result["answers"]["chat"]] == PROMPTS[:4]
    assert result["rates"] == {"chat": {"first": answers.count(answers[0]) / 4}}
    assert result["answers"]["chat"][0]["hits"] == {"first": True}
    assert result["checkers"] == {"first": {"kind": "pattern", "hit_rate": None, "false_alarm_rate": None}}


def test_sampled_answers_are_drawn_at_the_temperature_and_the_same_again(tmp_path):
    model, tokenizer = tiny_model(), word_tokenizer(chat=True)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{prompt}"}}\n' for prompt in PROMPTS))
    draws = [generate_answers(model, tokenizer, PROMPTS, 6, temperature=1.0, seed=seed) for seed in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
    assert generate_answers(model, tokenizer, PROMPTS, 6, temperature=1e-3) == generate_answers(model, tokenizer, PROMPTS, 6)
    word = draws[0][0].split()[0]
    concept = Concept(name="word", features={"layers.1": [1]}, checker={"pattern": [rf"\b{word}\b"]})
    settings = EvaluateSettings(prompts={"chat": str(prompts)}, max_new_tokens=6, samples=2)
    random = torch.get_rng_state()
    found = evaluate(model, tokenizer, settings, [concept], 32)["sampled"]
    assert torch.equal(torch.get_rng_state(), random)
    hits = sum(word in answer.split() for drawn in draws[:2] for answer in drawn)
    assert found == {"chat": {"word": {"hits": hits, "n": 2 * len(PROMPTS)}}} and hits >= 1
    assert "sampled" not in evaluate(model, tokenizer, settings.model_copy(update={"samples": 0}), [concept], 32)


def test_answers_that_did_not_end_by_themselves_are_counted(tmp_path):
    model, tokenizer = tiny_model(), word_tokenizer(chat=True)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{prompt}"}}\n' for prompt in PROMPTS))
    settings = EvaluateSettings(prompts={"chat": str(prompts)}, max_new_tokens=3)
    cut = [sum(ids[-1] != tokenizer.eos_token_id for ids in continue_texts(model, tokenizer, prompt_ids(tokenizer, PROMPTS), 3))]
    assert evaluate(model, tokenizer, settings, [], 32)["cut"] == {"chat": cut[0]} and cut[0] > 0
    first = continue_texts(model, tokenizer, prompt_ids(tokenizer, PROMPTS), 3)[0][0]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, first]  # a model that ends so
    assert evaluate(model, tokenizer, settings, [], 32)["cut"]["chat"] < cut[0]
