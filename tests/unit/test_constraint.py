"""`constrain`: the nearest change at which a measure does not rise, in the optimizer's metric; what reading the measure leaves alone."""

import copy

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from peft import LoraConfig, get_peft_model

from gradlens.config import ObserveSettings
from gradlens.control.constrainer import scrambled
from gradlens.control.constraint import constrain
from gradlens.control.rules import Policy, Rule
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.live_features import live_features, live_features_eager
from gradlens.errors import ConfigError
from gradlens.lens import Lens
from gradlens.recording.recorder import MemoryRecorder

HOOK = "layers.2"
ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD


def nearest(change, slope, metric, room=0.0):
    """Brute force: the minimum of Σ (x - d)²/P with <c, x> <= room, as an augmented Lagrangian by Newton's steps taken numerically."""
    x, price = change.clone(), torch.zeros((), dtype=torch.float64)

    def value(x):
        return ((x - change).square() / metric).sum() + 5 * (x @ slope - room + price / 10).relu().square()

    for _ in range(20):
        for _ in range(2):
            gradient, curvature = torch.func.grad(value)(x), torch.func.hessian(value)(x)
            x = x - torch.linalg.solve(curvature, gradient)
        price = (price + 10 * (x @ slope - room)).relu()
    return x


@pytest.mark.parametrize("room", [0.0, -0.3, 0.4])
def test_the_change_is_the_nearest_that_satisfies_the_constraint(room):
    torch.manual_seed(0)
    change, slope, metric = torch.randn(3, 12, dtype=torch.float64)
    metric = metric.abs() + 0.1
    slope = slope * torch.sign(slope @ change)
    parts = [part.split([5, 7]) for part in (change, slope, metric)]
    made, found = constrain(*parts, room=room)
    torch.testing.assert_close(torch.cat(made), nearest(change, slope, metric, room), rtol=1e-5, atol=1e-6)
    assert found.rise == pytest.approx((slope @ change).item()) and found.left == pytest.approx(room)
    assert (torch.cat(made) - change).square().div(metric).sum().item() == pytest.approx(found.beyond.item())
    half = torch.cat(constrain(*parts, room=room, gain=0.5)[0])
    torch.testing.assert_close(half, (torch.cat(made) + change) / 2)


def test_a_change_that_lowers_the_measure_stays_and_a_fall_is_asked_for_in_steps():
    torch.manual_seed(0)
    change, slope, metric = torch.randn(3, 12, dtype=torch.float64)
    slope = -slope * torch.sign(slope @ change)
    made, _ = constrain([change], [slope], [metric.abs()])
    assert torch.equal(made[0], change)
    made, found = constrain([change], [slope], [metric.abs()], room=-1e6)
    assert found.beyond == pytest.approx(found.total.item()) and found.left < found.rise  # as large as the change itself
    made, _ = constrain([change], [slope], [torch.zeros(12, dtype=torch.float64)], room=-1.0)
    assert torch.equal(made[0], change)


def lora(model, **options):
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"], lora_alpha=4, **options))


def unchanged(model):
    return model


def measure_of(model, batch, reference, kind):
    """By hand: the mean over counted tokens of what has risen above the reference."""
    kept = {}
    handle = model.get_submodule(("base_model.model." if hasattr(model, "peft_config") else "") + "model.layers.2")
    handle = handle.register_forward_hook(lambda module, args, output: kept.update(h=output))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    handle.remove()
    targets = batch["labels"][:, 1:]
    at = targets != -100
    if kind == "likelihood":
        value = logits[:, :-1].log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0][at]
    else:
        value = tiny_dictionary(dtype=torch.float64).encode(kept["h"][:, :-1][at])[:, [1, 2, 3, 5, 8, 13]]
    if reference is None:
        return value.detach()
    risen = value - reference
    return torch.where(risen >= 0, risen, 0.0).sum() / at.sum()


@pytest.mark.parametrize(
    ("kind_of", "options", "wrap", "kind"),
    [
        (ADAMW, {}, lora, "likelihood"),
        (ADAMW, {"foreach": True, "amsgrad": True}, unchanged, "activations"),
        (ADAMW, {"fused": True}, unchanged, "likelihood"),
        (SGD, {"momentum": 0.9}, lora, "activations"),
    ],
)
def test_each_step_is_the_projection_of_the_optimizers_own(kind_of, options, wrap, kind):
    def made():
        model = wrap(tiny_model(dtype=torch.float64))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return model.train(), trained, kind_of(trained, **{"lr": 1e-2, "weight_decay": 0.01} | options)

    exemplar = tiny_batch(70, B=4)
    model, trained, optimizer = made()
    rule = Rule(mode="constrain", concept="c", measure=kind)
    reference = measure_of(model.eval(), exemplar, None, kind)
    model.train()
    bound = 0
    dictionaries, concepts = {HOOK: tiny_dictionary(dtype=torch.float64)}, {"c": {HOOK: [1, 2, 3, 5, 8, 13]}}
    with Lens(model, optimizer, dictionaries, concepts=concepts, policy=Policy(rules=(rule,)), exemplars={"c": [exemplar]}.get,
              observe=ObserveSettings(), probe=[tiny_batch(50)], recorder=MemoryRecorder()) as lens:  # fmt: skip
        for step in range(3):
            other, others, plain = made()
            other.load_state_dict(model.state_dict())
            plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            start = [parameter.detach().clone() for parameter in trained]
            for part in range(2):
                for each in (model, other):
                    (each(**tiny_batch(10 * step + part)).loss / 2).backward()
            measure = measure_of(model, exemplar, reference, kind)
            slope = [
                0 * p if c is None else c for p, c in zip(trained, torch.autograd.grad(measure, trained, allow_unused=True), strict=True)
            ]
            optimizer.step(), plain.step()
            optimizer.zero_grad(), plain.zero_grad()
            change = [after.detach() - before for after, before in zip(others, start, strict=True)]
            metric = []
            for parameter in others:
                if kind_of is SGD:
                    metric.append(torch.full_like(parameter, 1e-2))
                else:
                    state = plain.state[parameter]
                    v = state["max_exp_avg_sq" if "amsgrad" in options else "exp_avg_sq"] / (1 - 0.999 ** (step + 1))
                    metric.append(torch.where(v > 0, 1e-2 / (v.clamp_min(0.01 * v.mean()).sqrt() + 1e-8), 0.0))
            expected, found = constrain(change, slope, metric, -measure.detach())
            bound += int(found.beyond > 0)
            for parameter, before, step_made in zip(trained, start, expected, strict=True):
                # log-probabilities are float32 in the code
                torch.testing.assert_close(parameter.detach() - before, step_made, rtol=1e-3, atol=1e-5 if kind == "likelihood" else 1e-9)
    assert bound >= 2
    shares = [
        record["scalars"]["rule/constrain:c/share"] for record in lens.recorder.records if "rule/constrain:c/share" in record["scalars"]
    ]
    assert max(shares) > 0


def test_what_the_data_teach_is_held_where_it_was():
    """Trained on the exemplars themselves: without the rule they become likely, with it they hardly do."""

    def likelihood(rules):
        model, batch = tiny_model().train(), tiny_batch(3)
        optimizer = ADAMW(model.parameters(), lr=3e-3)
        with Lens(model, optimizer, {HOOK: tiny_dictionary()}, concepts={"c": {HOOK: [1]}}, policy=Policy(rules=rules),
                  exemplars={"c": [batch]}.get, probe=[batch], recorder=MemoryRecorder()) as lens:  # fmt: skip
            for _ in range(15):
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return model.eval()(**batch).loss.item(), [r["scalars"].get("rule/constrain:c/measure") for r in lens.recorder.records]

    base = tiny_model().eval()(**tiny_batch(3)).loss.item()
    free, held, half, rarely = (
        likelihood(tuple(Rule(mode="constrain", concept="c", **options) for options in rules))[0]
        for rules in ([], [{}], [{"gain": 0.5}], [{"every": 5}])
    )
    assert base - free > 1
    assert base - held < 0.3 * (base - free)
    assert base - held < base - half < 0.9 * (base - free)
    assert base - rarely < 0.6 * (base - free)


def test_reading_the_measure_disturbs_nothing():
    model = lora(tiny_model(), lora_dropout=0.5).train()
    assert any(isinstance(module, torch.nn.Dropout) for module in model.modules())
    model.base_model.model.model.layers[1].eval()  # a module that someone keeps out of training stays out
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = ADAMW(trained, lr=1e-2)
    policy = Policy(rules=(Rule(mode="constrain", concept="c"), Rule(mode="ablate", concept="c")))
    options = {"exemplars": {"c": [tiny_batch(9)]}.get, "policy": policy, "probe": [tiny_batch(50)]}
    with Lens(model, optimizer, {HOOK: tiny_dictionary()}, concepts={"c": {HOOK: [1, 2]}}, **options) as lens:
        model(**tiny_batch(1)).loss.backward()
        grads = [parameter.grad.clone() for parameter in trained]
        modes, state = [module.training for module in model.modules()], torch.random.get_rng_state()
        sums = {key: value.clone() for key, value in lens.totals[HOOK].items()}
        touched = lens.control.rules[1].total.clone()
        lens.control.before_step()
        assert torch.equal(torch.random.get_rng_state(), state)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(trained, grads, strict=True))
        assert all(parameter.requires_grad for parameter in trained)
        assert torch.equal(lens.control.rules[1].total, touched)
        assert all(torch.equal(lens.totals[HOOK][key], value) for key, value in sums.items())
        optimizer.step()


def test_the_random_control_of_the_likelihood_has_the_same_tokens_at_other_places():
    batch = tiny_batch(9)
    found, counted = scrambled(batch, 3), batch["labels"] != -100
    assert torch.equal(found["labels"] != -100, counted) and torch.equal(found["input_ids"][~counted], batch["input_ids"][~counted])
    assert torch.equal(found["input_ids"][counted], found["labels"][counted])
    assert torch.equal(found["labels"][counted].sort().values, batch["labels"][counted].sort().values)
    assert not torch.equal(found["labels"], batch["labels"])


def test_what_cannot_be_constrained_is_refused():
    def refused(message, optimizer=ADAMW, examples=True, **rule):
        model = tiny_model()
        with pytest.raises(ConfigError, match=message), Lens(
            model, optimizer(model.parameters(), lr=1e-2), {HOOK: tiny_dictionary()}, concepts={"c": {HOOK: [1]}}, probe=[tiny_batch(50)],
            exemplars=lambda concept: [tiny_batch(9)] if concept == "c" and examples else [],
            policy=Policy(rules=(Rule(mode="constrain", concept="c", **rule),)),
        ):  # fmt: skip
            pass

    refused("metric.*Adafactor", torch.optim.Adafactor)
    refused("metric.*NAdam", torch.optim.NAdam)
    refused("positive examples", examples=False)


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "batchtopk", "gated", "scaled"])
def test_live_features_and_their_gradient_are_the_dictionarys(kind):
    generator = torch.Generator().manual_seed(5)
    extra = {
        "jumprelu": {"threshold": torch.full((80,), 2.0).double()},
        "batchtopk": {"threshold": torch.full((80,), 3.0).double()},
        "gated": {name: 0.1 * torch.randn(80, generator=generator).double() for name in ("b_gate", "r_mag", "b_mag")},
        "scaled": {"act_scale": torch.linspace(0.5, 2, 80).double(), "input_norm": "layer_norm"},
    }.get(kind, {})
    dictionary: Dictionary = tiny_dictionary(activation="topk" if kind == "scaled" else kind, dtype=torch.float64, **extra)
    ids, x = torch.tensor([3, 40, 7, 79]), torch.randn(50, 32, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    weights = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)).double()
    found = [
        (acts, torch.autograd.grad((acts * weights).sum(), x)[0])
        for acts in (f(dictionary, x, ids) for f in (live_features, live_features_eager))
    ]
    assert (found[1][0] > 0).any(0).all()
    for fast, eager in zip(*found, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-9, atol=1e-9)
