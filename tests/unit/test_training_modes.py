"""Ways to train: each gives the readings of the plain loop, or is refused with a reason."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import read_positions, tiny_batch, tiny_dictionary, tiny_model
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from words import word_tokenizer

from gradlens.config import ObserveSettings
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError, RunError
from gradlens.lens import Lens
from gradlens.model.hookpoints import blocks, find_module
from gradlens.readings.attribution import attribution_eager, push_eager
from gradlens.recording.recorder import MemoryRecorder

HOOK, INSIDE = "layers.2", "layers.1.mlp"
SETTINGS = ObserveSettings(top_k=400, estimators=["taught", "push", "attribution", "energy", "unexplained"])


def lens_of(model, optimizer, policy=None, **options):
    dictionaries = {HOOK: tiny_dictionary(), INSIDE: tiny_dictionary(3)}
    options = {"observe": SETTINGS, "recorder": MemoryRecorder(), "probe": [tiny_batch(50)]} | options
    return Lens(model, optimizer, dictionaries, policy=policy, **options)


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def plain(model, steps=2, accumulate=1, policy=None, **options):
    model.train()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    with lens_of(model, optimizer, policy, **options) as lens:
        for step in range(steps):
            for part in range(accumulate):
                (model(**tiny_batch(10 * step + part)).loss / accumulate).backward()
            optimizer.step()
            optimizer.zero_grad()
    return lens


def assert_same(lens, other, rtol=1e-5, estimators=("taught", "push", "attribution", "energy")):
    for name in lens.dictionaries:
        for key in estimators:
            a, b = lens.totals[name][key], other.totals[name][key]
            assert a.abs().max() > 0
            assert (a - b).abs().max() <= rtol * b.abs().max(), (name, key, ((a - b).abs().max() / b.abs().max()).item())


def steps_of(lens):
    """The scalars of every observed step."""
    return [record["scalars"] for record in lens.recorder.records if "features" in record]


def assert_same_weights(model, other):
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("rule", [None, {"mode": "ablate", "gain": 0.0}, {"mode": "route", "gain": 0.0}, {"mode": "grad", "gain": 0.0}])
def test_checkpointing_counts_nothing_twice_also_inside_blocks(reentrant, rule):
    policy = Policy(rules=(Rule(features={INSIDE: [1, 2, 3, 4, 5], HOOK: [6]}, **rule),)) if rule else None
    bare, model = tiny_model(), tiny_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    lens, other = plain(model, accumulate=2, policy=policy), plain(bare, accumulate=2, policy=policy)
    assert_same(lens, other)
    assert_same_weights(model, bare)
    for mine, theirs in zip(steps_of(lens), steps_of(other), strict=True):
        assert mine["train/counted_tokens"] == theirs["train/counted_tokens"]
        if rule:
            key = f"rule/{rule['mode']}:features/share"
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4) and mine[key] > 0


def test_reentrant_checkpointing_of_blocks_in_which_adapters_alone_are_trained_is_read_too():
    """Nothing trainable is in the graph outside the blocks: `autograd.grad` raises nothing there, and passes no hook."""
    config = LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False)
    model, bare = adapted(tiny_model(), config), adapted(tiny_model(), config)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    assert_same(plain(model), plain(bare))
    assert_same_weights(model, bare)
    low = adapted(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[3]))
    with pytest.raises(ConfigError, match="nothing trainable lies below it"):
        plain(low)


def test_several_forward_passes_before_a_backward_pass_are_told_apart_or_refused():
    def losses(model):
        return model(**tiny_batch(0)).loss + model(**tiny_batch(1)).loss

    def run(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with lens_of(model.train(), optimizer) as lens:
            losses(model).backward()
            optimizer.step()
        return lens

    checked = tiny_model()
    checked.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(run(checked), run(tiny_model()))
    checked.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    checked.enable_input_require_grads()
    with pytest.raises(RunError, match="use_reentrant=False"):
        run(checked)


def test_reentrant_checkpointing_by_hand_is_read_too():
    bare, model = tiny_model(), tiny_model()
    model.enable_input_require_grads()
    for block in blocks(model):
        forward = block.mlp.forward
        block.mlp.forward = partial(lambda f, h: checkpoint(f, h, use_reentrant=True), forward)
    inner = "layers.1.mlp.down_proj"
    dictionaries = {HOOK: tiny_dictionary(), inner: tiny_dictionary(3)}
    totals = []
    for each in (model, bare):
        optimizer = torch.optim.SGD(each.train().parameters(), lr=1e-2)
        with Lens(each, optimizer, dictionaries, observe=SETTINGS, probe=[tiny_batch(50)]) as lens:
            each(**tiny_batch(0)).loss.backward()
            optimizer.step()
        totals.append(lens)
    assert_same(*totals)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_reads_the_gradient_there_is(dtype):
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    dictionary, kept, keep = tiny_dictionary(), {}, read_positions(tiny_batch(0))
    with Lens(model, optimizer, {HOOK: dictionary}, observe=SETTINGS, probe=[tiny_batch(50)]) as lens:
        handle = find_module(model, HOOK).register_forward_hook(lambda m, a, o: kept.update(h=o) or o.retain_grad())
        with torch.autocast("cpu", dtype):
            loss = model(**tiny_batch(0)).loss
        loss.backward()
        optimizer.step()
        handle.remove()
    h, g = kept["h"].detach()[keep].float(), kept["h"].grad[keep].float()
    torch.testing.assert_close(lens.totals[HOOK]["push"].float(), push_eager(dictionary, g), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lens.totals[HOOK]["attribution"].float(), attribution_eager(dictionary, h, g), rtol=1e-4, atol=1e-6)
    with lens_of(again := tiny_model().train(), torch.optim.SGD(again.parameters(), lr=0.0)) as full:
        again(**tiny_batch(0)).loss.backward()
        full.optimizer.step()
    assert (lens.totals[HOOK]["push"] - full.totals[HOOK]["push"]).norm() < 0.05 * full.totals[HOOK]["push"].norm()


def test_readings_are_the_same_whatever_of_a_loop_is_inside_autocast():
    found = []
    rule = Rule(concept="some", mode="route", gain=0.5, tokens="own")
    for inside in (0, 1, 2):  # the forward pass only; backward too; the step too
        model = tiny_model().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        concepts = {"some": {HOOK: [1, 2, 3]}}
        observe = SETTINGS.model_copy(update={"drift_every": 1})
        with lens_of(model, optimizer, Policy(version=1, rules=(rule,)), concepts=concepts, observe=observe, probe=None) as lens:
            within = torch.autocast("cpu", torch.bfloat16)
            within.__enter__()
            loss = model(**tiny_batch(0)).loss
            if inside < 1:
                within.__exit__(None, None, None)
            loss.backward()
            if inside == 1:
                within.__exit__(None, None, None)
            optimizer.step()
            if inside == 2:
                within.__exit__(None, None, None)
        assert all(values.eq(0).all() for values in lens.drift(HOOK))  # of the first batch, which is read in the forward pass
        assert lens.totals[HOOK]["update"].eq(0).all()
        found.append(lens)
    for other in found[1:]:
        assert_same(found[0], other, rtol=1e-12)


def scaled(model, scaler, give=True, break_step=None, steps=3, accumulate=2):
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2)
    with lens_of(model, optimizer, scaler=scaler if give else None) as lens:
        for step in range(steps):
            for part in range(accumulate):
                scaler.scale(model(**tiny_batch(10 * step + part)).loss / accumulate).backward()
            if step == break_step:
                next(model.parameters()).grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return lens


def test_a_gradient_scaler_does_not_scale_readings():
    lens = scaled(tiny_model(), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1))
    other = scaled(tiny_model(), torch.amp.GradScaler("cpu", enabled=False))
    assert_same(lens, other)
    for a, b in zip(steps_of(lens), steps_of(other), strict=True):
        assert a[f"{HOOK}/gradient_norm"] == pytest.approx(b[f"{HOOK}/gradient_norm"], rel=1e-5)


def test_what_a_rule_counted_in_a_skipped_step_goes_with_it_where_that_step_is_not_observed():
    def shares(break_step, batches):
        model = tiny_model().train()
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-2), torch.amp.GradScaler("cpu", init_scale=1024.0)
        rule = Rule(features={HOOK: [1, 2, 3]}, mode="grad", gain=0.5)
        with lens_of(model, optimizer, Policy(rules=(rule,)), scaler=scaler, observe=ObserveSettings(every=100)) as lens:
            for step, number in enumerate(batches):
                scaler.scale(model(**tiny_batch(number)).loss).backward()
                if step == break_step:
                    next(model.parameters()).grad[0, 0] = float("inf")
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        scalars = [record["scalars"] for record in lens.recorder.records]
        return [found[key] for found in scalars if (key := f"rule/{rule.label}/share") in found]

    assert shares(1, (0, 1, 2)) == pytest.approx(shares(None, (0, 2)), rel=1e-5)


def test_a_step_that_the_scaler_skips_leaves_nothing_behind():
    lens = scaled(tiny_model(), torch.amp.GradScaler("cpu", init_scale=1024.0), break_step=1, steps=3)
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with lens_of(model, optimizer) as other:
        for step in (0, 2):
            for part in range(2):
                (model(**tiny_batch(10 * step + part)).loss / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert lens.step == 2
    assert_same(lens, other)
    assert [event["kind"] for event in lens.recorder.events if event["kind"] == "skipped"] == ["skipped"]


def test_a_scaler_that_nobody_told_of_is_refused_at_the_first_step():
    with pytest.raises(ConfigError, match="scaler=scaler"):
        scaled(tiny_model(), torch.amp.GradScaler("cpu", init_scale=1024.0), give=False)


def test_an_optimizer_that_is_given_a_closure_gives_the_same_readings_and_rules():
    policy = Policy(rules=(Rule(mode="param", features={HOOK: [1, 2, 3]}, gain=0.0), Rule(mode="route", features={HOOK: [7]}, gain=0.0)))
    bare, model = tiny_model(), tiny_model()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    with lens_of(model, optimizer, policy) as lens:
        for step in range(2):

            def closure():
                optimizer.zero_grad()
                loss = model(**tiny_batch(10 * step)).loss  # noqa: B023
                loss.backward()
                return loss

            assert float(optimizer.step(closure) if step else optimizer.step(closure=closure)) > 0
    other = plain(bare, policy=policy)
    assert_same(lens, other)
    assert_same_weights(model, bare)
    assert not [event for event in lens.recorder.events if event["kind"] == "gap"]
    mine, theirs = (steps_of(x)[-1]["rule/param:features/share"] for x in (lens, other))
    assert mine == pytest.approx(theirs) and 0 < mine < 1


def test_a_compiled_model_is_read_if_it_was_watched_before_its_first_step_and_else_refused():
    model, other = tiny_model(layers=3).train(), tiny_model(layers=3)
    fast = torch.compile(model, backend="eager")
    fast(**tiny_batch(0)).loss.backward()
    model.zero_grad()
    with pytest.raises(RunError, match="torch.compile"):
        plain(fast)
    torch._dynamo.reset()  # the way out that the message names
    model.zero_grad()
    policy = Policy(rules=(Rule(mode="route", features={HOOK: [1, 2]}, gain=0.25),))
    assert_same(plain(fast, policy=policy), plain(other, policy=policy))
    torch._dynamo.reset()
    assert_same_weights(model, other)


class FourBit(nn.Linear):
    """A frozen layer whose weights are held as 16 levels a row, as in QLoRA; stands in for bitsandbytes' layer."""

    @classmethod
    def of(cls, linear):
        made = cls(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 7
        made.register_buffer("levels", (linear.weight.detach() / scale).round().clamp(-8, 7).to(torch.int8))
        made.register_buffer("scale", scale)
        del made.weight
        return made

    @property
    def weight(self):
        return self.levels.float() * self.scale

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class Packs(FourBit):
    """In a CPU's first evaluation it packs its weights for good, more coarsely, as bitsandbytes' layer does for bfloat16's instructions."""

    support_avx512bf16_for_cpu = True

    def forward(self, x):
        if not self.training and self.support_avx512bf16_for_cpu:
            self.levels = self.levels // 2 * 2
        return super().forward(x)


def test_a_reading_does_not_make_four_bit_layers_pack_their_weights():
    def train(watched):
        base = tiny_model()
        for block in blocks(base):
            block.mlp.down_proj = Packs.of(block.mlp.down_proj)
        model = adapted(base, LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)).train()
        optimizer = torch.optim.SGD(trainable(model), lr=1e-2)
        observe = ObserveSettings(drift_every=1, own_every=1, own_prompts=2, own_tokens=3)
        with lens_of(model, optimizer, observe=observe, tokenizer=word_tokenizer(chat=True)) if watched else nullcontext() as lens:
            for step in range(2):
                model(**tiny_batch(step)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        assert not watched or lens.learning.own_start is not None  # what it writes itself is read too
        return model

    model, bare = train(True), train(False)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), bare.state_dict().values(), strict=True))
    assert all(block.mlp.down_proj.support_avx512bf16_for_cpu for block in blocks(model))  # an evaluation of the loop's own may


def adapted(model, config):
    torch.manual_seed(3)
    return get_peft_model(model, config)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "four-bit"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_of_every_kind_are_read_as_autograd_says(kind, checkpointing):
    targets = ["q_proj", "o_proj", "down_proj"]
    config = {
        "lora": LoraConfig(r=2, target_modules=targets, init_lora_weights=False),
        "dora": LoraConfig(r=2, target_modules=targets, use_dora=True, init_lora_weights=False),
        "ia3": IA3Config(target_modules=targets, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
        "four-bit": LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False),
    }[kind]
    base = tiny_model()
    if kind == "four-bit":
        for block in blocks(base):
            block.mlp.down_proj = FourBit.of(block.mlp.down_proj)
    model = adapted(base, config).train()
    kept, keep, dictionary = {}, read_positions(tiny_batch(0)), tiny_dictionary()
    handle = find_module(model, HOOK).register_forward_hook(lambda m, a, o: kept.update(h=o) or o.retain_grad())
    model(**tiny_batch(0)).loss.backward()
    handle.remove()
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    lens = plain(model, steps=1)
    h, g = kept["h"].detach()[keep], kept["h"].grad[keep]
    torch.testing.assert_close(lens.totals[HOOK]["push"].float(), push_eager(dictionary, g), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lens.totals[HOOK]["attribution"].float(), attribution_eager(dictionary, h, g), rtol=1e-4, atol=1e-6)


def fuse(model, log_probs):
    """Makes the model's forward pass end as in TRL's trainers: log-probabilities in place of logits."""

    def forward(input_ids, attention_mask=None, labels=None, **kwargs):
        if labels is None:
            return original(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        h = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, :-1]
        logits = nn.functional.linear(h, model.lm_head.weight)
        picked = logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp_min(0)[..., None])[..., 0].masked_fill(labels[:, 1:] == -100, 0)
        loss = -picked.sum() / (labels[:, 1:] != -100).sum()
        return type("Output", (), {"loss": loss} | ({"log_probs": picked} if log_probs else {}))()

    original, model.forward = model.forward, forward


def fused_plain(model, log_probs, policy=None):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with lens_of(model, optimizer, policy) as lens:
        fuse(model, log_probs)
        for step in range(2):
            output = model(**tiny_batch(10 * step))
            (-output.log_probs.sum() / (tiny_batch(10 * step)["labels"][:, 1:] != -100).sum() if log_probs else output.loss).backward()
            optimizer.step()
            optimizer.zero_grad()
    return lens


@pytest.mark.parametrize("policy", [None, Policy(rules=(Rule(mode="route", features={HOOK: [1, 2]}, gain=0.25),))])
def test_a_fused_head_that_puts_out_log_probabilities_is_read_and_routed_like_logits(policy):
    model, bare = tiny_model(), tiny_model()
    assert_same(fused_plain(model, True, policy), plain(bare, policy=policy))
    assert_same_weights(model, bare)


def test_a_fused_loss_that_puts_out_nothing_refuses_route_and_says_that_taught_is_not_known():
    lens = fused_plain(tiny_model(), False)
    assert [event["estimator"] for event in lens.recorder.events if event["kind"] == "not_read"] == ["taught"]
    assert lens.totals[HOOK]["push"].abs().max() > 0
    with pytest.raises(RunError, match="use_liger_kernel=False"):
        fused_plain(tiny_model(), False, Policy(rules=(Rule(mode="route", features={HOOK: [1]}, gain=0.0),)))


def test_texts_packed_into_one_row_have_a_first_token_each():
    ids = torch.arange(3, 15)[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]])
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with lens_of(model, optimizer, observe=ObserveSettings(tokens="all")) as lens:
        model(input_ids=ids, position_ids=positions, labels=ids).loss.backward()
        optimizer.step()
    assert lens.recorder.records[0]["scalars"]["train/counted_tokens"] == 9


def test_what_cannot_be_watched_is_refused_with_a_reason():
    model = tiny_model()
    with pytest.raises(ConfigError, match="LBFGS"):
        lens_of(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ConfigError, match="DistributedDataParallel"):
        lens_of(nn.DataParallel(model), torch.optim.SGD(model.parameters()))
    with pytest.raises(ConfigError, match="one torch.optim.Optimizer"):
        lens_of(model, [torch.optim.SGD(model.parameters())])
    handle = next(model.parameters()).register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ConfigError, match="in backward"):
        lens_of(model, torch.optim.SGD(model.parameters()))
    handle.remove()
    engine = type("DeepSpeedEngine", (nn.Module,), {"module": None})()
    engine.module = model
    with pytest.raises(ConfigError, match="FSDP2"):
        lens_of(engine, torch.optim.SGD(model.parameters()))


def test_a_model_spread_over_devices_is_refused_with_a_reason():
    model = tiny_model()
    model.model.layers[3].to("meta")
    with pytest.raises(ConfigError, match="parameters are on cpu and meta.*on one device"):
        lens_of(model, torch.optim.SGD(model.parameters(), lr=0.0))


def test_a_model_left_in_evaluation_mode_is_one_clear_line_at_the_first_step():
    model = tiny_model().eval()  # as from_pretrained gives it, and Lightning leaves it
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    with pytest.raises(RunError, match=r"evaluation mode.*call model.train\(\)"), lens_of(model, optimizer):
        model(**tiny_batch(0)).loss.backward()
        optimizer.step()


def test_a_loop_that_never_calls_the_model_is_refused_at_its_first_step():
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with pytest.raises(RunError, match="must call the model itself"), lens_of(model, optimizer):
        model.lm_head(model.model(input_ids=tiny_batch(0)["input_ids"]).last_hidden_state).logsumexp(-1).mean().backward()
        optimizer.step()
