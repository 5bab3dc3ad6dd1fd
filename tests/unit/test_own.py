"""The model's own words: which prompts, what is read, by whom, and that nothing stays changed."""

import numpy as np
import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from peft import LoraConfig, get_peft_model
from words import word_tokenizer

from gradlens.config import ObserveSettings
from gradlens.lens import Lens
from gradlens.model.hookpoints import unwrap
from gradlens.readings.learning import Learning
from gradlens.readings.movers import Mover
from gradlens.readings.own import OwnReading, before_training, place_in_answer, prompts_of, read_own, read_written, weights_in
from gradlens.readings.probe import ProbeTokens, evenly, read_probe, read_tokens, spread, unpacked
from gradlens.report.excerpts import place_of_words

HOOK = "layers.2"


def adapted():
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


def test_prompts_are_what_comes_before_the_answer_and_half_of_a_plain_text():
    chat = tiny_batch(0)  # four prompt tokens; rows of 10, 8 and 6 tokens
    assert prompts_of([chat], 8) == [row[:4].tolist() for row in chat["input_ids"]]
    plain = {"input_ids": chat["input_ids"], "attention_mask": chat["attention_mask"]}
    assert [len(prompt) for prompt in prompts_of([plain], 8)] == [5, 4, 3]
    left = {key: value.flip(1) for key, value in plain.items()}  # padding in front
    assert prompts_of([left], 8)[2] == left["input_ids"][2, 4:7].tolist()
    assert len(prompts_of([chat, tiny_batch(1)], 4)) == 4 and prompts_of([], 3) == []


def test_the_reader_is_the_model_before_training_and_is_left_as_it_was():
    model, base = adapted(), tiny_model()
    dictionaries, batch = {HOOK: tiny_dictionary()}, tiny_batch(0)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    live, frozen = (read_probe(m, dictionaries, [batch])[HOOK].acts for m in (model, base))
    assert not torch.allclose(live, frozen)
    with before_training(unwrap(model)) as was_frozen:
        assert was_frozen
        torch.testing.assert_close(read_probe(model, dictionaries, [batch])[HOOK].acts, frozen)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    torch.testing.assert_close(read_probe(model, dictionaries, [batch])[HOOK].acts, live)
    with before_training(base) as was_frozen:
        assert not was_frozen  # full fine-tuning: there is no frozen one


def test_what_a_user_has_frozen_of_an_adapter_stays_frozen():
    model = adapted()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    with before_training(unwrap(model)):
        pass
    assert all(parameter.requires_grad == ("lora_B" in name) for name, parameter in model.named_parameters())


def test_written_tokens_are_read_where_they_stand():
    model, dictionaries = tiny_model(), {HOOK: tiny_dictionary()}
    prompts, written = [[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]]
    at, known = read_written(model, dictionaries, prompts, written, 0)
    assert known.ids_T.tolist() == [10, 11, 12, 13, 14] and known.row_T.tolist() == [0, 0, 1, 1, 1]
    text = torch.tensor([[5, 6, 7, 10, 11]])
    labels = torch.tensor([[-100, -100, -100, 10, 11]])
    alone = read_probe(model, dictionaries, [{"input_ids": text, "labels": labels}])[HOOK]
    torch.testing.assert_close(at[HOOK].rows[0], alone.rows[0], rtol=1e-4, atol=1e-5)
    assert read_written(model, dictionaries, prompts, [[], []], 0) == ({}, None)


def test_own_words_are_read_before_and_after_and_their_rate_is_counted():
    tokenizer, model = word_tokenizer(), tiny_model().eval()
    dictionaries = {HOOK: tiny_dictionary()}
    reading = read_own(model, tokenizer, dictionaries, [[5, 6, 7], [8, 9, 10]], 4)
    assert len(reading.answers) == 2 and reading.at[HOOK].tokens <= 8
    members = {("c", HOOK): torch.tensor([1, 2])}
    seen = []
    checkers = {"c": lambda text: bool(seen.append(text)) or text == reading.answers[0]}
    observe = ObserveSettings(own_prompts=3, own_tokens=4)
    learning = Learning(model, dictionaries, observe, members, tokenizer, checkers=checkers)
    learning.begin([tiny_batch(0)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    scalars, dense = {}, {}
    learning.read_own(scalars, dense)
    change = learning.own_last.at[HOOK].acts - learning.own_start.at[HOOK].acts
    assert torch.equal(torch.from_numpy(dense[HOOK]["own"]), change.float()) and change.any()
    assert scalars[f"concept/c/{HOOK}/own"] == pytest.approx(change[[1, 2]].mean().item())
    assert seen == learning.own_last.answers and 0 <= scalars["own/c/rate"] <= 1
    without = Learning(model, dictionaries, observe, members)  # no tokenizer: nothing is said
    without.begin([tiny_batch(0)])
    without.read_own(scalars := {}, dense := {})
    assert not scalars and not dense and without.own_drift(HOOK) is None


def test_own_words_are_read_through_the_wrapper_of_ranks():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, tokenizer = torch.nn.parallel.DistributedDataParallel(tiny_model()), word_tokenizer(chat=True)
        learning = Learning(model, {HOOK: tiny_dictionary()}, ObserveSettings(own_prompts=2, own_tokens=3), {}, tokenizer)
        learning.begin([tiny_batch(0)])
    finally:
        torch.distributed.destroy_process_group()
    assert len(learning.own_start.answers) == 2


def test_texts_with_positions_of_their_own_are_read_with_them():
    ids, mask = torch.arange(3, 9).view(1, 6), torch.tensor([[0, 0, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 0, 0, 1, 2, 3]])
    found = unpacked(ids, {"attention_mask": mask, "position_ids": positions})
    assert torch.equal(found["position_ids"], positions) and torch.equal(found["attention_mask"], mask)
    assert "position_ids" not in unpacked(ids, {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])})


@pytest.mark.parametrize("total", [0, 1, 5, 80, 1000, 16_777_220, 99_999_999, 2**31 - 1])
@pytest.mark.parametrize("count", [0, 1, 5, 256])
def test_numbers_are_evenly_spread_below_any_total(total, count):
    found = evenly(total, count)
    assert len(found) == min(total, count) == len(set(found))
    if len(found) > 1:
        steps = [second - first for first, second in zip(found, found[1:], strict=False)]
        assert (found[0], found[-1]) == (0, total - 1) and max(steps) - min(steps) <= 1


class Bytes:
    """A token for each byte."""

    def decode(self, ids, skip_special_tokens=False):
        return bytes(ids).decode("utf-8", errors="replace")

    def encode(self, text, add_special_tokens=False):
        return list(text.encode())


def test_the_part_of_an_answer_holds_whole_characters():
    answer = "so 🎉🎉 it is"
    ids = torch.tensor(list(answer.encode()))
    reading = OwnReading([answer], {}, ProbeTokens(ids, torch.zeros(len(ids)), None, {}))
    weight_T = np.zeros(len(ids))
    weight_T[[5, 8]] = 1.0  # within the first and the second
    first, last = place_in_answer(Bytes(), reading, 0, weight_T)
    assert answer[first:last] == "🎉🎉"


def test_rows_are_picked_evenly_and_padding_is_cut():
    batches = [tiny_batch(0), tiny_batch(1)]
    picked = spread(batches, 2)
    assert [len(batch["input_ids"]) for batch in picked] == [1, 1]
    assert torch.equal(picked[0]["input_ids"][0], batches[0]["input_ids"][0])
    assert torch.equal(picked[1]["input_ids"][0], batches[1]["input_ids"][2][:6])  # the third row is six tokens long
    assert sum(len(batch["input_ids"]) for batch in spread(batches, 99)) == 6


def test_of_an_answer_the_part_where_features_fire_most_is_told():
    tokenizer = word_tokenizer()
    words = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
    known = ProbeTokens(torch.tensor([30, 31, *words]), torch.tensor([0, 0] + [1] * 12), None, {})
    answers = [tokenizer.decode([30, 31]), tokenizer.decode(words)]
    reading = OwnReading(answers, {}, known)
    weight_T = np.zeros(14)
    weight_T[[0, 11, 13]] = [9.0, 1.0, 2.0]  # the first is in the other answer
    first, last = place_in_answer(tokenizer, reading, 1, weight_T)
    assert answers[1][first:last].strip() == tokenizer.decode(words[9:12])
    assert place_in_answer(tokenizer, reading, 1, np.zeros(14)) is None
    assert place_in_answer(tokenizer, OwnReading(answers, {}, None), 1, np.zeros(0)) is None  # as after a restart


def test_the_answer_that_gained_most_comes_with_the_place_of_what_it_gained():
    tokenizer, model = word_tokenizer(), tiny_model().eval()
    learning = Learning(model, {HOOK: tiny_dictionary()}, ObserveSettings(own_prompts=3, own_tokens=6), {}, tokenizer)
    learning.begin([tiny_batch(0)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    learning.read_own({}, {})
    now = learning.own_last.known
    rows = learning.own_last.at[HOOK].rows - learning.own_start.at[HOOK].rows
    most, feature = divmod(int(rows.argmax()), rows.shape[1])
    mover = Mover(HOOK, feature, 1.0, 1.0, np.ones(len(learning.known.row_T)))
    weight_T = weights_in(learning.own_last, {(HOOK, feature): 1.0})
    means = np.bincount(now.row_T.numpy(), weight_T) / np.bincount(now.row_T.numpy())
    assert means == pytest.approx(learning.own_last.at[HOOK].rows[:, feature].numpy(), rel=1e-4)  # the same activations, token by token
    own = learning._own_evidence([mover], [])
    first, last = own["at"]["now"]
    strongest = int(now.ids_T[np.where(now.row_T.numpy() == most, weight_T, -1.0).argmax()])
    assert own["said"]["now"] == learning.own_last.answers[most] and tokenizer.decode([strongest]) in own["said"]["now"][first:last].split()
    learning.own_last.known = None
    word = own["said"]["now"].split()[-1]
    assert learning._own_evidence([mover], [word])["at"]["now"] == place_of_words(own["said"]["now"], [word])  # of the texts alone


def test_rows_are_picked_among_those_in_which_a_token_counts():
    batch = tiny_batch(0)
    batch["labels"][[0, 2]] = -100
    [picked] = spread([batch], 2)
    assert torch.equal(picked["input_ids"], batch["input_ids"][1:2, : int(batch["attention_mask"][1].sum())])
    dictionaries, observe = {HOOK: tiny_dictionary()}, ObserveSettings(update_rows=2)
    four = {key: torch.cat([value[:1], value[1:2], value[1:2], value[2:]]) for key, value in batch.items()}
    learning = Learning(tiny_model().eval(), dictionaries, observe, {})
    learning.begin([four])
    learning.watch_updates()  # the first and the last row have nothing to read


def test_with_all_tokens_prompts_have_the_probabilities_that_the_model_gives_them():
    model, batch = tiny_model().eval(), tiny_batch(0)
    _, known = read_tokens(model, {HOOK: tiny_dictionary()}, [batch], "all")
    log_p = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    expected = log_p[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0].exp()[batch["attention_mask"][:, 1:].bool()]
    torch.testing.assert_close(known.prob_T.float(), expected, rtol=1e-4, atol=1e-6)


def test_texts_packed_into_one_row_are_read_one_by_one():
    model, dictionaries = tiny_model().train(), {HOOK: tiny_dictionary()}
    ids = torch.randint(3, 96, (1, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    optimizer = torch.optim.SGD([p for p in model.parameters()], lr=0.0)
    with Lens(model, optimizer, dictionaries, observe=ObserveSettings(tokens="all")) as lens:
        model(input_ids=ids, position_ids=positions, labels=ids).loss.backward()
        optimizer.step()
    texts = [{"input_ids": part} for part in (ids[:, :5], ids[:, 5:])]
    alone = read_probe(model, dictionaries, texts, "all")[HOOK]
    torch.testing.assert_close(lens.start[HOOK].acts, alone.acts, rtol=1e-4, atol=1e-5)
    assert lens.start[HOOK].tokens == 10 and len(lens.start[HOOK].rows) == 2
    torch.testing.assert_close(lens.start[HOOK].rows[1], alone.rows[1], rtol=1e-4, atol=1e-5)
    [probe] = lens.probe
    assert probe["labels"][0].tolist() == [*ids[0, :5].tolist(), -100, -100] and probe["attention_mask"].sum(1).tolist() == [5, 7]
