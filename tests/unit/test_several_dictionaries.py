"""Several dictionaries at one hookpoint, `layers.2` and `layers.2#probes`: each reads as if it were alone, rules act through either."""

import copy

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from torch.nn.functional import cross_entropy

from gradlens.config import ObserveSettings
from gradlens.control.edits import expresses
from gradlens.control.rules import Policy, Rule
from gradlens.dictionaries.directions import Directions
from gradlens.errors import ConfigError, InputError
from gradlens.lens import Lens
from gradlens.model.capture import read_activations
from gradlens.model.hookpoints import canonical, layer_of, place
from gradlens.recording.recorder import MemoryRecorder

SAE, PROBES = "layers.2", "layers.2#probes"


def probes(model) -> Directions:
    """Two probes that say yes on some tokens of the tiny batch."""
    w_FD = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))
    h = read_activations(model, [SAE], tiny_batch())[SAE].flatten(0, 1)
    return Directions(w_FD, -(h @ w_FD.T).quantile(0.7, dim=0), labels=("first", "second"), hook=SAE)


def run(dictionaries, rules=(), steps=2, **arguments):
    model = tiny_model()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = MemoryRecorder()
    policy = Policy(version=1, rules=tuple(rules)) if rules else None
    with Lens(model, optimizer, dictionaries, policy=policy, recorder=recorder, **arguments) as lens:
        for step in range(steps):
            model(**tiny_batch(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model, lens, recorder


def test_names_after_a_hash_stay_and_the_place_is_what_stands_before():
    assert [canonical(name) for name in ("15#a", "blocks.15.hook_resid_post#a-b_2", "model.layers.15")] == [
        "layers.15#a", "layers.15#a-b_2", "layers.15"
    ]  # fmt: skip
    assert place("15#a") == "layers.15" and layer_of("layers.15#7") == 15
    for name in ("15#", "15#a.b", "15#a#b", "15#a/b"):
        with pytest.raises(InputError, match="letters, digits, - and _"):
            canonical(name)


def test_each_reads_as_if_it_were_alone():
    sae, directions = tiny_dictionary(), probes(tiny_model()).dictionary()
    concepts = {"c": {SAE: [1, 2], PROBES: [0]}}
    observe = ObserveSettings(drift_every=1, update_every=1)
    _, lens, recorder = run({SAE: sae, PROBES: directions}, concepts=concepts, observe=observe)
    for name, dictionary in ((SAE, sae), (PROBES, directions)):
        _, alone, single = run({name: dictionary}, concepts={"c": {name: concepts["c"][name]}}, observe=observe)
        for key, value in alone.totals[name].items():
            torch.testing.assert_close(lens.totals[name][key], value, rtol=0, atol=0)
        for both, one in zip(recorder.records, single.records, strict=True):
            mine = {key: value for key, value in one["scalars"].items() if f"{name}/" in key}
            assert mine and {key: both["scalars"][key] for key in mine} == pytest.approx(mine, nan_ok=True)
    assert {row["hookpoint"] for row in lens.table(100)} == {SAE, PROBES}


@pytest.mark.parametrize("mode", ["grad", "ablate"])
def test_all_read_the_tensor_after_every_edit_of_the_gradient_and_before_any_of_the_activation(mode):
    sae, directions = tiny_dictionary(), probes(tiny_model()).dictionary()
    _, lens, _ = run({SAE: sae, PROBES: directions}, [Rule(features={PROBES: [0, 1]}, mode=mode)], steps=1)
    _, plain, _ = run({SAE: sae, PROBES: directions}, steps=1)
    push = lens.totals[PROBES]["push"].abs()
    if mode == "grad":
        assert push.max() < 1e-5 < plain.totals[PROBES]["push"].abs().max()  # nothing is left along what is suppressed
    for name in (SAE, PROBES):  # the other dictionary sees the edit too, and both see the activations as they were
        assert not torch.equal(lens.totals[name]["push"], plain.totals[name]["push"])
    active = {name: ObserveSettings(estimators=["activation"]) for name in ("edited", "plain")}
    _, edited, _ = run({SAE: sae, PROBES: directions}, [Rule(features={PROBES: [0]}, mode=mode)], steps=1, observe=active["edited"])
    _, unedited, _ = run({SAE: sae, PROBES: directions}, steps=1, observe=active["plain"])
    for name in (SAE, PROBES):
        assert torch.equal(edited.totals[name]["activation"], unedited.totals[name]["activation"])


def test_a_route_rule_gates_where_the_probe_says_yes():
    model, found = tiny_model(), probes(tiny_model())
    batch = tiny_batch()
    rule = Rule(features={PROBES: [1]}, mode="route", tokens="own")
    trained, _, recorder = run({SAE: tiny_dictionary(), PROBES: found.dictionary()}, [rule], steps=1)
    oracle = copy.deepcopy(model)
    oracle.train()
    h_BSD = read_activations(oracle, [SAE], batch)[SAE]
    yes_BS = (h_BSD @ found.w_FD[1] + found.bias_F[1]) > 0
    counted_BS = batch["labels"] != -100
    counted_BS[:, 0] = False
    weight_BS = 1.0 - expresses(yes_BS, counted_BS, "own").float()
    logits = oracle(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:]
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100).view(targets.shape)
    ((loss * weight_BS[:, :-1]).sum() / (targets != -100).sum()).backward()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter -= 0.1 * parameter.grad
    for (name, a), (_, b) in zip(trained.named_parameters(), oracle.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
    assert 0 < recorder.records[0]["scalars"]["rule/route:features/share"] < 1


@pytest.mark.parametrize("mode", ["param", "update"])
def test_rules_on_parameters_act_along_a_probe(mode):
    model, found = tiny_model(), probes(tiny_model())
    trained, _, _ = run({PROBES: found.dictionary()}, [Rule(features={PROBES: [0]}, mode=mode)], steps=1)
    unit_D = found.w_FD[0] / found.w_FD[0].norm()
    for layer in (0, 2, 3):
        change = trained.model.layers[layer].mlp.down_proj.weight - model.model.layers[layer].mlp.down_proj.weight
        share = ((unit_D @ change).norm() / change.norm()).item()
        assert share < 1e-3 if layer <= 2 else share > 1e-3  # matrices above the hookpoint are free


def test_a_name_that_no_dictionary_has_is_refused():
    with pytest.raises(ConfigError, match="no dictionary at layers.2#probe; this run has layers.2, layers.2#probes"):
        run({SAE: tiny_dictionary(), PROBES: probes(tiny_model()).dictionary()}, [Rule(features={"layers.2#probe": [0]})])
