"""The lens in a plain loop: readings are what they say, rules do what they say, and watching changes nothing."""

import copy

import pytest
import torch
from conftest import read_positions, tiny_batch, tiny_dictionary, tiny_model
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from gradlens.concepts.concept_files import RowDetector
from gradlens.config import ObserveSettings
from gradlens.control.balance import Balance
from gradlens.control.edits import gate_strength, orthonormal_basis
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError
from gradlens.lens import Lens
from gradlens.model.hookpoints import find_module
from gradlens.readings import attribution as estimators
from gradlens.recording.recorder import MemoryRecorder
from gradlens.world import Single

HOOK = "layers.2"
KINDS = {"relu": {}, "topk": {}, "jumprelu": {"threshold": torch.full((80,), 2.0)}, "batchtopk": {"threshold": torch.full((80,), 3.0)},
         "gated": {"b_gate": torch.zeros(80), "r_mag": torch.zeros(80), "b_mag": torch.zeros(80)}}  # fmt: skip


def lora(model):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"], lora_alpha=4, init_lora_weights=False)
    return get_peft_model(model, config)


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def train(model, steps=3, accumulate=2, lens_args=None, optimizer_type=torch.optim.AdamW, seed=0, **options):
    """A plain loop; returns the lens (or None) and the recorder."""
    model.train()
    optimizer = optimizer_type(trainable(model), **{"lr": 1e-2} | options)
    recorder = MemoryRecorder()

    def loop(lens=None):
        for step in range(steps):
            for part in range(accumulate):
                if lens is not None:
                    lens.set_rows([10 * step + part, 100, 101])
                (model(**tiny_batch(seed + 10 * step + part)).loss / accumulate).backward()
            optimizer.step()
            optimizer.zero_grad()

    if lens_args is None:
        loop()
        return None, recorder
    with Lens(model, optimizer, recorder=recorder, **lens_args) as lens:
        loop(lens)
    return lens, recorder


def oracle_gradients(model, batches, hookpoint=HOOK):
    """h, g and the counted positions of each micro-batch, by hand."""
    out = []
    for batch in batches:
        kept = {}
        handle = find_module(model, hookpoint).register_forward_hook(lambda m, a, o: kept.update(h=o) or o.retain_grad())  # noqa: B023
        (model(**batch).loss / len(batches)).backward()
        handle.remove()
        keep = read_positions(batch)
        out.append((kept["h"].detach()[keep], kept["h"].grad[keep]))
    model.zero_grad()
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_readings_equal_their_definition_with_padding_and_accumulation(kind, checkpointing):
    extra = {key: value.double() for key, value in KINDS[kind].items()}
    dictionary = tiny_dictionary(activation=kind, dtype=torch.float64, **extra)
    model = tiny_model(dtype=torch.float64)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    pairs = oracle_gradients(model, [tiny_batch(0), tiny_batch(1)])
    observe = ObserveSettings(top_k=240, estimators=["taught", "push", "attribution", "energy", "unexplained"])
    lens, recorder = train(model, steps=1, lens_args={"dictionaries": {HOOK: dictionary}, "observe": observe})
    expected = {
        "push": sum(estimators.push_eager(dictionary, g) for _, g in pairs),
        "attribution": sum(estimators.attribution_eager(dictionary, h, g) for h, g in pairs),
        "energy": sum(estimators.energy_eager(dictionary, g) for _, g in pairs),
    }
    for key, value in expected.items():
        torch.testing.assert_close(lens.totals[HOOK][key], value, rtol=1e-9, atol=1e-12)
    explained, total = (sum(x) for x in zip(*(estimators.explained_energy_eager(dictionary, h, g) for h, g in pairs), strict=True))
    scalars = recorder.records[0]["scalars"]
    assert scalars[f"{HOOK}/unexplained"] == pytest.approx(float(1 - explained / total), abs=1e-7)
    assert scalars["train/counted_tokens"] == sum(int((tiny_batch(seed)["labels"][:, 1:] != -100).sum()) for seed in (0, 1))


@pytest.mark.parametrize("wrap", [lambda m: m, lora])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_without_a_rule_training_is_bit_identical(wrap, optimizer):
    bare, watched = wrap(tiny_model()), wrap(tiny_model())
    train(bare, optimizer_type=optimizer)
    observe = ObserveSettings(drift_every=1)
    args = {
        "dictionaries": {HOOK: tiny_dictionary(), "layers.1": tiny_dictionary(3)},
        "concepts": {"c": {HOOK: [1, 2]}},
        "observe": observe,
    }
    train(watched, optimizer_type=optimizer, lens_args=args)
    for (name, a), (_, b) in zip(bare.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_self_test_keeps_dropout_random_state_and_gradients():
    torch.manual_seed(5)
    model = lora(tiny_model())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    parameter = trainable(model)[0]
    parameter.grad = torch.ones_like(parameter)
    model.eval()
    state = torch.get_rng_state()
    with Lens(model, torch.optim.SGD(trainable(model), lr=0.1), {HOOK: tiny_dictionary()}):
        pass
    assert torch.equal(state, torch.get_rng_state()) and parameter.grad.eq(1).all() and not model.training


def test_hooks_are_gone_after_the_context_even_after_an_error():
    model = tiny_model()
    with pytest.raises(RuntimeError, match="mine"), Lens(model, torch.optim.SGD(trainable(model), lr=0.1), {HOOK: tiny_dictionary()}):
        raise RuntimeError("mine")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def route(**fields):
    return Rule(mode="route", features={HOOK: [0, 1, 2]}, hookpoints=[HOOK], **fields)


@pytest.mark.parametrize("wrap", [lambda m: m, lora])
@pytest.mark.parametrize("tokens", ["own", "next", "own_or_next", "around"])
@pytest.mark.parametrize("gain", [0.0, 0.5, 2.0, -1.0])
def test_route_equals_weighting_each_tokens_loss(wrap, tokens, gain):
    dictionary = tiny_dictionary()
    model = wrap(tiny_model())
    reference = copy.deepcopy(model)
    batch = tiny_batch(0)
    # by hand: weight the loss of position t (which predicts t + 1) by the gain where the concept is active there
    model.train(), reference.train()
    kept = {}
    handle = find_module(reference, HOOK).register_forward_hook(lambda m, a, o: kept.update(h=o.detach()))
    logits = reference(**batch).logits
    handle.remove()
    keep = (batch["labels"] != -100) & batch["attention_mask"].bool()
    active = (dictionary.encode(kept["h"].flatten(0, 1)).view(*keep.shape, -1)[..., :3] > 0).any(-1) & keep
    following = torch.zeros_like(active)
    following[:, :-1] = active[:, 1:]
    near = {t: [u for u in range(t - 1, t + 2) if 0 <= u < keep.shape[1]] for t in range(keep.shape[1])}
    quorum = torch.stack([active[:, near[t]].sum(1) / keep[:, near[t]].sum(1) > 0.6 for t in near], dim=1)
    around = torch.cat([quorum[:, 1:], torch.zeros_like(quorum[:, :1])], dim=1)
    gated = {"own": active, "next": following, "own_or_next": active | following, "around": around}[tokens]
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
    weights = torch.where(gated[:, :-1].flatten(), gain, 1.0)
    (losses * weights).sum().div((batch["labels"][:, 1:] != -100).sum()).backward()
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    policy = Policy(version=1, rules=(route(gain=gain, tokens=tokens, window=1, quorum=0.6),))
    recorder = MemoryRecorder()
    with Lens(model, optimizer, {HOOK: dictionary}, policy=policy, recorder=recorder):
        model(**batch).loss.backward()
        optimizer.step()
    assert 0 < (gated & keep).sum() < keep.sum()
    for (name, a), (_, b) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
    scored = (batch["labels"][:, 1:] != -100).flatten()
    share = recorder.records[0]["scalars"]["rule/route:features/share"]
    assert share == pytest.approx((gated[:, :-1].flatten() & scored).sum().item() / scored.sum().item())


@pytest.mark.parametrize("budget", [None, 0.1])
@pytest.mark.parametrize("gate", ["soft", "graded"])
def test_a_soft_gate_weighs_each_tokens_loss_by_its_strength(gate, budget):
    dictionary, model, batch, gain = tiny_dictionary(), tiny_model().train(), tiny_batch(0), 0.25
    reference, kept = copy.deepcopy(model), {}
    handle = find_module(reference, HOOK).register_forward_hook(lambda m, a, o: kept.update(h=o.detach()))
    logits = reference(**batch).logits
    handle.remove()
    keep = (batch["labels"] != -100) & batch["attention_mask"].bool()
    acts = dictionary.encode(kept["h"].flatten(0, 1)).view(*keep.shape, -1)[..., :3]
    level = acts[acts > 0].quantile(0.25).item()
    shown = (acts > level).float() if gate == "soft" else (acts > level) * (acts / (2 * level)).clamp(max=1)
    strength = gate_strength(shown.amax(-1), keep, "around", 1, 0.8)[:, :-1]
    scored = batch["labels"][:, 1:] != -100
    assert ((strength > 0.01) & (strength < 0.99) & scored).any()  # some are in between
    if budget is not None:
        assert (strength * scored).sum() > budget * scored.sum()
        strength = strength * budget * scored.sum() / (strength * scored).sum()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
    (losses * (1 + strength * (gain - 1)).flatten()).sum().div(scored.sum()).backward()
    optimizer, recorder = torch.optim.SGD(trainable(model), lr=0.0), MemoryRecorder()
    rule = route(gain=gain, window=1, quorum=0.8, threshold=level, gate=gate, budget=budget)
    with Lens(model, optimizer, {HOOK: dictionary}, policy=Policy(version=1, rules=(rule,)), recorder=recorder):
        model(**batch).loss.backward()
        optimizer.step()
    for (name, a), (_, b) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
    share = recorder.records[0]["scalars"]["rule/route:features/share"]
    assert share == pytest.approx((strength * scored).sum().item() / scored.sum().item(), rel=1e-5)


def test_ablate_removes_the_span_in_training_and_not_in_eval():
    dictionary, model = tiny_dictionary(), tiny_model()
    policy = Policy(rules=(Rule(mode="ablate", features={HOOK: [3, 4]}),))
    seen = {}
    handle = find_module(model, "layers.3").register_forward_pre_hook(lambda m, a: seen.update(h=a[0].detach()))
    with Lens(model, torch.optim.SGD(trainable(model), lr=0.1), {HOOK: dictionary}, policy=policy):
        model.train()
        model(**tiny_batch(0)).loss.backward()
        assert (seen["h"] @ dictionary.W_dec[[3, 4]].T).abs().max() < 1e-4
        model.eval()
        model(**tiny_batch(0))
        assert (seen["h"] @ dictionary.W_dec[[3, 4]].T).abs().max() > 0.1
    handle.remove()


def test_grad_edit_scales_the_gradient_that_passes_below():
    dictionary, model = tiny_dictionary(), tiny_model()
    model.train()
    seen = {}
    policy = Policy(rules=(Rule(mode="grad", features={HOOK: [5]}, gain=0.0),))
    args = {"policy": policy, "probe": [tiny_batch(9)]}
    with Lens(model, torch.optim.SGD(trainable(model), lr=0.1), {HOOK: dictionary}, **args) as lens:
        # a hook registered later on the same tensor sees what passes on
        handle = find_module(model, HOOK).register_forward_hook(lambda m, a, o: o.register_hook(lambda g: seen.update(g=g)) and None)
        model(**tiny_batch(0)).loss.backward()
        handle.remove()
    unit = dictionary.unit_directions()[5]
    assert (seen["g"] @ unit).abs().max() < 1e-6 and seen["g"].abs().max() > 1e-6
    assert lens.control.rules[0].touched > 0


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_update_keeps_the_parameter_change_out_of_the_span_and_param_alone_does_not_under_adam(optimizer):
    dictionary = tiny_dictionary()
    Q = orthonormal_basis(dictionary.W_dec[[1, 2, 3]])

    def leak(mode):
        model = tiny_model()
        before = [block.mlp.down_proj.weight.detach().clone() for block in model.model.layers]
        rule = Rule(mode=mode, features={HOOK: [1, 2, 3]}, gain=0.0)
        train(
            model,
            lens_args={"dictionaries": {HOOK: dictionary}, "policy": Policy(rules=(rule,))},
            optimizer_type=optimizer,
            weight_decay=0.01,
        )
        changes = [block.mlp.down_proj.weight.detach() - w for block, w in zip(model.model.layers, before, strict=True)]
        return [((Q.T @ change).norm() / change.norm()).item() for change in changes]

    kept = leak("update")
    assert max(kept[:3]) < 1e-4  # blocks 0, 1, 2 write before the hookpoint
    assert kept[3] > 0.01  # block 3 comes after it and is left alone
    if optimizer is torch.optim.AdamW:  # elementwise scaling and weight decay bring a projected gradient back
        assert max(leak("param")[:3]) > 0.01


def test_update_holds_for_matrices_that_are_stored_the_other_way_round():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2))
    dictionary = tiny_dictionary()
    Q = orthonormal_basis(dictionary.W_dec[[1, 2, 3]])
    before = [block.mlp.c_proj.weight.detach().clone() for block in model.transformer.h]
    policy = Policy(rules=(Rule(mode="update", features={"h.1": [1, 2, 3]}, gain=0.0),))
    train(model, lens_args={"dictionaries": {"h.1": dictionary}, "policy": policy}, optimizer_type=torch.optim.AdamW)
    changes = [block.mlp.c_proj.weight.detach() - w for block, w in zip(model.transformer.h, before, strict=True)]
    shares = [((change @ Q).norm() / change.norm()).item() for change in changes]
    assert max(shares[:2]) < 1e-4 and shares[2] > 0.01


def test_update_holds_for_lora_writers():
    dictionary, model = tiny_dictionary(), lora(tiny_model())
    Q = orthonormal_basis(dictionary.W_dec[[1, 2]])
    writers = {n: p for n, p in model.named_parameters() if "lora_B" in n and ("o_proj" in n or "down_proj" in n)}
    before = {n: p.detach().clone() for n, p in writers.items()}
    rule = Rule(mode="update", features={HOOK: [1, 2]}, gain=0.0)
    train(model, lens_args={"dictionaries": {HOOK: dictionary}, "policy": Policy(rules=(rule,))})
    early = [n for n in writers if "layers.3" not in n]
    assert early and all((Q.T @ (writers[n] - before[n])).norm() < 1e-5 < (writers[n] - before[n]).norm() for n in early)


def test_schedule_and_two_rules_multiply():
    rule = route(gain=0.0, start=2, end=5, ramp=1)
    assert [rule.gain_at(step) for step in range(6)] == [1, 1, 0.5, 0, 0, 1]
    model = tiny_model()
    rules = (route(gain=0.5, name="a"), route(gain=0.5, name="b"))
    quarter = Policy(rules=(route(gain=0.25),))
    grads = []
    for policy in (Policy(rules=rules), quarter):
        model.zero_grad()
        with Lens(model.train(), torch.optim.SGD(trainable(model), lr=0.0), {HOOK: tiny_dictionary()}, policy=policy):
            model(**tiny_batch(0)).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


def test_a_rule_switched_off_in_mid_run_leaves_training_bit_identical_from_there():
    bare, watched = tiny_model(), tiny_model()
    train(bare, steps=4)
    rule = route(start=4)  # never within these steps
    train(watched, steps=4, lens_args={"dictionaries": {HOOK: tiny_dictionary()}, "policy": Policy(rules=(rule,))})
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))


@pytest.mark.parametrize(
    ("rule", "grows"), [({"gain": 0.0}, True), ({"gain": 0.5}, False), ({"gain": 3.0}, False), ({"dry_run": True}, False)]
)
def test_balanced_gradients_are_those_of_the_mean_over_the_tokens_left(rule, grows):
    """Over two micro-batches; partial gains, those that amplify, and dry runs are left as they are."""
    model, recorder = tiny_model(), MemoryRecorder()
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    policy = Policy(rules=(route(window=1, quorum=0.3, **rule),))
    with Lens(model.train(), optimizer, {HOOK: tiny_dictionary()}, policy=policy, recorder=recorder) as lens:
        for part in range(2):
            logits, labels = model(**tiny_batch(part)).logits[:, :-1], tiny_batch(part)["labels"][:, 1:]
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
        before = [p.grad.clone() for p in model.parameters()]
        factor = lens.balance()
        assert lens.balance() == factor  # once a step
        optimizer.step()
    share = recorder.records[0]["scalars"]["rule/route:features/share"]
    assert 0.1 < share < 0.9
    assert factor == pytest.approx(1 / (1 - share) if grows else 1.0)
    assert recorder.records[0]["scalars"].get("policy/balance", 1.0) == factor
    assert all(torch.allclose(p.grad, factor * g) for p, g in zip(model.parameters(), before, strict=True))
    assert lens.control.balance.scale == 1.0  # the next step begins anew


def test_tokens_that_were_rewritten_away_after_they_were_counted_are_made_up_for():
    """With 30 of 40 left; and with 15 of these 30 gated besides."""
    for gated, factor in ((False, 40 / 30), (True, 40 / 15)):
        balance, parameter = Balance(), torch.zeros(1, requires_grad=True)
        parameter.grad = torch.ones(1)
        for _ in range(2):  # micro-batches
            balance.rewritten(torch.tensor(20), torch.tensor(15), gated)
        if gated:
            balance.add(torch.tensor([[0.0, 1.0] * 15]), torch.ones(1, 30, dtype=torch.bool))
        assert balance([parameter], Single()) == pytest.approx(factor) and parameter.grad.item() == pytest.approx(factor)
        balance.rewritten(torch.tensor(20), torch.tensor(20), gated)  # of the next step, in which nothing goes
        assert balance([parameter], Single()) == 1.0 and parameter.grad.item() == pytest.approx(factor)


def test_a_few_tokens_that_slip_through_make_no_step_of_their_own():
    balance, counted = Balance(), torch.ones(1, 100, dtype=torch.bool)
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.ones(1)
    balance.add(torch.cat([torch.ones(1, 1), torch.zeros(1, 99)], 1), counted)
    assert balance([parameter], Single()) == 10.0 and parameter.grad.item() == 10.0
    balance.clear()
    parameter.grad = torch.ones(1)
    balance.add(torch.cat([torch.ones(1, 25), torch.zeros(1, 75)], 1), counted)
    assert balance([parameter], Single(), clipped=2.5) == pytest.approx(2.5)  # what follows clipping goes up to its norm at most
    balance.clear()
    parameter.grad = torch.full((1,), 2.5)
    balance.add(torch.cat([torch.ones(1, 25), torch.zeros(1, 75)], 1), counted)
    assert balance([parameter], Single(), clipped=2.5) == 1.0 and parameter.grad.item() == 2.5
    balance.clear()
    balance.add(torch.cat([torch.ones(1, 50), torch.zeros(1, 50)], 1), counted)
    assert balance([parameter], Single()) == 2.0  # and the optimizer's step is skipped: the next begins anew
    balance.add(torch.cat([torch.full((1, 80), 8.0), torch.zeros(1, 20)], 1), counted)
    assert balance([parameter], Single()) == 1.25  # others are amplified: those that are left count once
    balance.clear()
    balance.add(torch.zeros(1, 100), counted)  # nothing is left: nothing to scale
    assert balance([parameter], Single()) == 1.0


def test_random_control_takes_as_many_live_features_outside_the_concept():
    lens, recorder = train(
        tiny_model(),
        lens_args={
            "dictionaries": {HOOK: tiny_dictionary()},
            "policy": Policy(version=1, rules=(route(random_control=7),)),
            "probe": [tiny_batch(9)],
        },
    )
    chosen = lens.control.rules[0].features[HOOK].tolist()
    assert len(set(chosen)) == 3 and not set(chosen) & {0, 1, 2}
    assert (lens.start[HOOK].rate[chosen] > 0).all()
    event = next(e for e in recorder.events if e["kind"] == "policy")
    assert sorted(event["rules"][0]["features"][HOOK]) == sorted(chosen)


@pytest.mark.parametrize(
    "features, rule, message",
    [
        ({HOOK: [2, 80]}, None, "concept c: no feature 80 at layers.2; the dictionary there has the features 0 to 79"),
        ({HOOK: [2, -1]}, None, "concept c: no feature -1 at layers.2"),
        ({HOOK: [2]}, {"features": {HOOK: [3, -2]}}, "rule route:features: no feature -2 at layers.2"),
        ({"layers.1": [2]}, {"concept": "c"}, "rule route:c: no features at layers.2; give a dictionary where it has some"),
        ({"layers.1": [2]}, {"concept": "c", "mode": "reweight"}, "rule reweight:c: no features at layers.2"),
    ],
)
def test_features_that_are_not_there_are_refused_before_the_first_step(features, rule, message):
    model = tiny_model()
    policy = Policy(version=1, rules=(Rule(**rule),) if rule else ())
    with (
        pytest.raises(ConfigError, match=message),
        Lens(model, torch.optim.SGD(model.parameters(), lr=0.1), {HOOK: tiny_dictionary()}, concepts={"c": features}, policy=policy),
    ):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_what_tells_the_texts_of_a_concept_has_to_suit_the_dictionary():
    given = {"dictionaries": {HOOK: tiny_dictionary()}, "concepts": {"c": {HOOK: [2]}}}
    tells = RowDetector(features=[1, 80], weights=[1.0, 1.0], bias=0.0)
    with pytest.raises(ConfigError, match="concept c: row detector: no feature 80 at layers.2; the dictionary there has"):
        train(tiny_model(), lens_args=given | {"row_detectors": {("c", HOOK): tells}})
    train(tiny_model(), lens_args=given | {"row_detectors": {("c", "layers.3"): tells}})  # no dictionary there
