"""Transcoders in the lens: features are read where they encode, and attributed where they act; held to autograd on a tiny model."""

import dataclasses

import pytest
import torch
from conftest import read_positions, tiny_batch, tiny_dictionary, tiny_model

from gradlens.config import ObserveSettings
from gradlens.control.rules import Policy, Rule
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import load_dictionary
from gradlens.errors import InputError, RunError
from gradlens.lens import Lens
from gradlens.model.capture import counted_tokens, read_activations
from gradlens.model.hookpoints import find_hookpoint
from gradlens.model.reading import read_texts
from gradlens.readings.probe import read_probe
from gradlens.readings.update import read_update, trainable_parameters

F64, MLP = torch.float64, "layers.2.mlp"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def transcoder(**extra) -> Dictionary:
    fields = {"hookpoint": MLP, "hook_in": (f"{MLP}.in",), "apply_b_dec_to_input": False, "W_skip": 0.1 * torch.randn(32, 32, dtype=F64)}
    return tiny_dictionary(dtype=F64, **{"k": 6, **fields, **extra})


CASES = {
    "mlp": (MLP, transcoder),
    "across layers": ("layers.3.mlp", lambda: transcoder(hookpoint="layers.3.mlp", hook_in=("layers.1.mlp.in",), W_skip=None)),
    "moved by one block": ("layers.1.mlp", transcoder),
    "crosscoder": (
        "layers.1",
        lambda: dataclasses.replace(
            tiny_dictionary(dtype=F64, k=6, apply_b_dec_to_input=False),
            W_enc=torch.randn(96, 80, dtype=F64), hook_in=("layers.0", "layers.1", "layers.3"), hookpoint="layers.1",
        ),
    ),
}  # fmt: skip


def inputs(model, dictionary, name, batch):
    read = read_activations(model, list(dictionary.read_at(name)), batch)
    return torch.cat([read[place] for place in dictionary.read_at(name)], -1)


@pytest.mark.parametrize("case", CASES)
def test_attribution_is_minus_the_derivative_of_scaling_features_where_they_act(case):
    name, make = CASES[case]
    model, batch, dictionary = tiny_model(dtype=F64), tiny_batch(), make()
    keep = counted_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"])
    x_BSD = inputs(model, dictionary, name, batch)
    acts_BSF = torch.stack([dictionary.encode(x_SD) for x_SD in x_BSD]) * read_positions(batch)[..., None]
    scale = torch.ones(80, dtype=F64, requires_grad=True)
    handle = find_hookpoint(model, name).watch(lambda h: h + ((scale - 1) * acts_BSF) @ dictionary.W_dec)
    (oracle,) = torch.autograd.grad(model(**batch).loss, scale)
    handle.remove()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    observe = ObserveSettings(estimators=["push", "attribution", "energy", "activation", "unexplained", "taught"], drift_every=0)
    with Lens(model, optimizer, {name: dictionary}, observe=observe) as lens:
        model.train()
        model(**batch).loss.backward()
        optimizer.step()
    found = lens.totals[name]
    assert oracle.abs().max() > 0
    torch.testing.assert_close(found["attribution"], -oracle, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["activation"], (acts_BSF * keep[..., None]).sum((0, 1)), rtol=1e-9, atol=1e-9)
    assert found["taught"].abs().max() > 0


def test_the_probe_set_is_encoded_where_it_is_read_and_judged_where_it_acts():
    model, batch, dictionary = tiny_model(dtype=F64), tiny_batch(), transcoder()
    keep = counted_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"])
    read = read_activations(model, [f"{MLP}.in", MLP], batch)
    x, y = read[f"{MLP}.in"][keep], read[MLP][keep]
    found = read_probe(model, {MLP: dictionary}, [batch])[MLP]
    acts = dictionary.encode(x)
    torch.testing.assert_close(found.acts, acts.mean(0))
    torch.testing.assert_close(found.mean, y.mean(0))
    residual = (y - dictionary.decode(acts, x)).square().sum() / (y - y.mean(0)).square().sum()
    assert found.fvu == pytest.approx(residual.item())


def test_update_reads_both_ends():
    model, batch, dictionary = tiny_model(dtype=F64), tiny_batch(), transcoder(activation="relu")
    before = {name: value.clone() for name, value in trainable_parameters(model).items()}
    keep = counted_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"])
    places = [f"{MLP}.in", MLP]
    old = read_activations(model, places, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter))  # Llama's norms compute in float32: much smaller changes drown
    found = read_update(model, {MLP: dictionary}, [batch], before, trainable_parameters(model))[MLP]
    new = read_activations(model, places, batch)
    change = dictionary.along((new[MLP] - old[MLP])[keep].mean(0))
    torch.testing.assert_close(found.direction, change, rtol=1e-2, atol=1e-7)
    acts = (dictionary.encode(new[f"{MLP}.in"][keep]) - dictionary.encode(old[f"{MLP}.in"][keep])).mean(0)
    assert acts.abs().max() > 1e-4
    torch.testing.assert_close(found.acts, acts, rtol=1e-2, atol=2e-6)


def test_texts_are_read_where_a_transcoder_encodes():
    from gradlens.data.rows import Example

    model, dictionary = tiny_model(dtype=F64), transcoder()
    ids = [3, 4, 5, 6]
    example = Example(ids, ids, 0, "", "", ())
    [(_, read)] = read_texts(model, {MLP: dictionary}, [example], 0)
    batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, 4)}
    torch.testing.assert_close(read[MLP], read_activations(model, [f"{MLP}.in"], batch)[f"{MLP}.in"][0])


def steps(rule, dictionary, name=MLP):
    model, batch = tiny_model(dtype=F64), tiny_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Lens(model, optimizer, {name: dictionary}, policy=Policy(rules=[rule])) as lens:
        model.train()
        for _ in range(2):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model, lens


@pytest.mark.parametrize("mode", ["route", "ablate", "grad"])
def test_rules_act_at_a_transcoder_s_features(mode):
    options = {"tokens": "own"} if mode == "route" else {}
    rule = Rule(features={MLP: list(range(40))}, gain=0.0, mode=mode, **options)
    free, _ = steps(Rule(features={MLP: [0]}, gain=1.0, mode=mode), transcoder())
    held, lens = steps(rule, transcoder())
    assert any(not torch.equal(a, b) for a, b in zip(free.parameters(), held.parameters(), strict=True))


def test_a_dictionary_that_reads_vectors_of_another_width_is_refused():
    wide = transcoder(W_skip=None)
    wide = dataclasses.replace(wide, W_enc=torch.randn(20, 80, dtype=F64))
    with pytest.raises(InputError, match="reads vectors of width 20, and layers.2.mlp.in has 32"):
        steps(Rule(features={MLP: [0]}, gain=0.0, mode="route"), wide)


def test_a_route_cannot_wait_for_what_is_read_above_it():
    _, make = CASES["crosscoder"]
    with pytest.raises(RunError, match="reads layers.0, layers.1, layers.3, and not all of that has been seen"):
        steps(Rule(features={"layers.1": [0]}, gain=0.0, mode="route"), make(), "layers.1")


def test_a_transcoder_whose_input_is_not_known_is_refused():
    with pytest.raises(InputError, match="reads 1 place that its files do not name.*hook_in="):
        steps(Rule(features={MLP: [0]}, gain=0.0, mode="route"), transcoder(hook_in=("",)))


def test_a_transcoder_goes_through_sparsify_s_files(tmp_path):
    from gradlens.dictionaries.formats.sparsify import write

    dictionary = transcoder(W_skip=None)
    folder = write(dictionary.to(dtype=torch.float32), tmp_path)
    found = load_dictionary(folder)
    assert (found.hookpoint, found.hook_in) == (MLP, (f"{MLP}.in",))
    x = torch.randn(5, 32)
    torch.testing.assert_close(found.decode(found.encode(x), x), dictionary.to(dtype=torch.float32).decode(found.encode(x), x))
