"""The law of the closed loop on a simulated run, the governor around it, and the cap on amplified gradients. No model."""

import math

import pytest
import torch
from pydantic import ValidationError

from gradlens.control.closed_loop import LoopState, Target, decide
from gradlens.control.governor import Governor
from gradlens.control.norm_cap import CAP, NormCap
from gradlens.control.rules import Rule
from gradlens.errors import ConfigError


def simulate(target, steps=120, every=1, power=1.0, speed=1.0, disturbance=0.0, momentum=0.9, **options):
    """A concept whose measure moves with `gain ** power`, by an optimizer with momentum; returns measures and states, step by step."""
    state, measure, velocity, seen = LoopState.fresh(target, 0), 0.0, 0.0, []
    for step in range(1, steps + 1):
        push = speed * math.copysign(abs(state.gain) ** power, state.gain) + disturbance
        velocity = momentum * velocity + (1 - momentum) * push
        measure += velocity
        if step % every == 0:
            state = decide(target, state, step, measure, **options)
        seen.append((measure, state))
    return seen


@pytest.mark.parametrize("power", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("every", [1, 2])
def test_a_cap_is_reached_and_held_without_going_over_whatever_the_gain_does_to_the_speed(power, every):
    seen = simulate(Target(value=8.0), power=power, every=every)
    free = 8 + sum(0.9**k for k in range(1, 9))
    assert max(measure for measure, _ in simulate(Target(value=8.0, gain_min=1.0))) > 2 * free  # what it does without a hand
    assert max(measure for measure, _ in seen) < 8.8
    assert all(abs(measure - 8) < 0.8 for measure, _ in seen[40:])
    assert seen[-1][1].limit == "" and 0 <= seen[-1][1].gain < 0.1


def test_a_cap_far_away_does_nothing():
    assert {state.gain for _, state in simulate(Target(value=1e6))} == {1.0}


def test_suppression_to_zero_turns_the_gain_down_at_the_first_sign():
    seen = simulate(Target(value=0.0, rate=1.0))
    assert seen[0][1].gain == 0
    assert max(measure for measure, _ in seen) < 1.1  # what the first step's momentum carries


def test_what_moves_without_the_rule_ends_at_a_limit_that_is_named():
    seen = simulate(Target(value=8.0), disturbance=0.05, steps=200)
    assert seen[-1][0] > 8.8 and (seen[-1][1].gain, seen[-1][1].limit) == (0.0, "gain_min")
    held = simulate(Target(value=8.0, gain_min=-0.5), disturbance=0.05, steps=200)
    assert all(abs(measure - 8) < 0.8 for measure, _ in held[60:]) and held[-1][1].gain == pytest.approx(-0.05, abs=0.01)


def test_a_floor_amplifies_and_says_so_when_that_is_not_enough():
    weak = simulate(Target(kind="at_least", value=30.0), speed=0.1, steps=60)
    assert (weak[-1][1].gain, weak[-1][1].limit) == (4.0, "gain_max")
    enough = simulate(Target(kind="at_least", value=10.0), speed=0.1, steps=60)
    assert max(state.gain for _, state in enough) > 1.5 and enough[-1][0] > 9.9 and enough[-1][1].limit == ""


def test_a_curve_is_followed():
    target = Target(kind="follow", curve=((0, 0.0), (40, 20.0), (80, 20.0), (120, 10.0)), gain_min=-2)
    assert [target.at(step) for step in (-1, 0, 20, 40, 60, 100, 500)] == [0, 0, 10, 20, 20, 15, 10]
    seen = simulate(target)
    assert all(abs(seen[step - 1][0] - target.at(step)) < 0.1 * target.at(step) for step in range(30, 121))


def test_the_gain_stays_within_the_dead_band_and_never_changes_faster_than_its_rate():
    seen = simulate(Target(value=8.0, rate=0.05))
    gains = [1.0, *(state.gain for _, state in seen)]
    assert max(abs(b - a) for a, b in zip(gains, gains[1:], strict=False)) == pytest.approx(0.05)
    assert "rate" in {state.limit for _, state in seen}
    target = Target(value=8.0, dead_band=2.0)
    quiet = decide(target, LoopState(0.3, step=4, measured=7.0, ahead=7.0, speed=1.0), 5, 7.0)
    assert quiet.gain == 0.3
    assert decide(Target(value=8.0), LoopState(0.3, step=4, measured=7.0, ahead=7.0, speed=1.0), 5, 7.0).gain > 0.3


def test_a_cap_is_not_let_go_while_the_measure_is_above_it_though_it_falls():
    falling = LoopState(0.2, step=4, measured=12.0, ahead=14.0, speed=3.0)
    after = decide(Target(value=8.0), falling, 5, 11.0)
    assert after.ahead < 8 and after.gain <= 0.2
    low = decide(Target(value=8.0), LoopState(0.0, step=4, measured=12.0, ahead=14.0, speed=3.0), 5, 11.0)
    assert (low.gain, low.limit) == (0.0, "gain_min")  # nothing more can be done, and it says so
    assert decide(Target(value=8.0, kind="follow"), falling, 5, 11.0).gain > 0.2  # a curve is met, not passed under


def test_nothing_winds_up_while_the_gain_is_at_its_end():
    state = LoopState.fresh(Target(value=8.0), 0)
    for step in range(1, 200):  # long below the cap
        state = decide(Target(value=8.0), state, step, 0.001 * step)
    after = decide(Target(value=8.0), state, 200, 9.0)
    assert after.gain == 0.5  # at once, as fast as the rate lets it


def test_a_reading_that_is_not_finite_changes_nothing_and_one_of_a_loop_that_begins_late_only_tells_where_it_stands():
    state = LoopState(0.4, step=3, measured=1.0, ahead=1.0, speed=1.0)
    assert decide(Target(value=2.0), state, 4, math.nan) == LoopState(0.4, step=3, measured=1.0, ahead=1.0, speed=1.0, limit="reading")
    late = decide(Target(value=2.0), LoopState.fresh(Target(value=2.0), 50), 52, 30.0)
    assert (late.gain, late.measured) == (1.0, 30.0)
    assert decide(Target(value=2.0), late, 54, 31.0).gain == 0.5
    assert decide(Target(value=2.0), late, 54, 31.0, acts=False).gain == 1.0


def test_a_budget_bounds_the_gain_and_is_named():
    seen = simulate(Target(value=8.0), room=0.25)
    assert min(state.gain for _, state in seen) == 0.75 and seen[-1][1].limit == "budget"
    assert simulate(Target(value=8.0), disturbance=0.05, short=True, steps=200)[-1][1].limit == "budget"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either value or curve"),
        ({"value": 1, "curve": [[0, 1]]}, "either value or curve"),
        ({"curve": [[5, 1], [5, 2]]}, "must rise"),
        ({"value": math.inf}, "finite number"),
        ({"curve": [[5, math.nan]]}, "finite number"),
        ({"value": 1, "gain_max": 2}, "does not amplify"),
        ({"value": 1, "kind": "at_least", "gain_min": 0}, "does not suppress"),
        ({"value": 1, "gain_min": 0.5, "begin": 0.2}, "begin .0.2. lies outside"),
        ({"value": 1, "gain_min": 2}, "above gain_max"),
    ],
)
def test_targets_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Target.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"concept": "c", "gain": 0.5, "target": {"value": 1}}, "a target finds the gain itself"),
        ({"features": {"layers.1": [1]}, "target": {"value": 1}}, "name a concept"),
        ({"concept": "c", "mode": "rewrite", "target": {"value": 1, "kind": "follow"}}, "rewrite can only do 0 to 1"),
        ({"concept": "c", "mode": "inoculate", "prompt": "x", "budget": 0.5}, "leave gain, target, budget and dry_run away"),
        ({"concept": "c", "mode": "inoculate", "prompt": "x", "gain": 1.0}, "leave gain, target, budget and dry_run away"),
        ({"concept": "c", "mode": "inoculate", "prompt": "x", "random_control": 0}, "leave random_control away"),
        ({"concept": "c", "target": {"value": 1}, "dry_run": True}, "can hold no target"),
        ({"concept": "c", "budget": 0}, "greater than 0"),
    ],
)
def test_rules_whose_target_makes_no_sense_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Rule.model_validate(fields)


def test_a_rule_with_a_target_survives_being_sent():
    rule = Rule(concept="c", target={"value": 1.5, "curve": ()})
    assert Rule.model_validate(rule.model_dump(mode="json")) == rule


class Told(list):
    def __call__(self, kind, **fields):
        self.append({"kind": kind, **fields})


def test_the_governor_keeps_loops_over_a_change_of_rules_and_finds_them_again_in_a_checkpoint():
    told = Told()
    governor, rule = Governor(told), Rule(concept="c", target={"value": 8.0})
    governor.set_rules([(rule, "layers.1")], 0)
    key = "concept/c/layers.1/drift"
    scalars = {key: 6.0}
    governor.decided(governor.read(1, scalars), scalars)
    assert scalars["rule/route:c/target"] == 8.0 and scalars["rule/route:c/measured"] == 6.0
    gain = governor.gain(rule, 1)
    assert gain == 0.5
    other = Governor()
    other.load_state_dict(torch.load(_saved(governor.state_dict()), weights_only=True))
    for each in (governor, other):
        each.set_rules([(Rule(concept="other"), ""), (rule, "layers.1")], 1)
        assert each.gain(rule, 1) == gain
        assert each.read(2, {key: 6.5}) == governor.read(2, {key: 6.5})
        assert each.read(2, {"something": 1.0}) == {}
    governor.set_rules([], 2)
    governor.set_rules([(rule, "layers.1")], 3)
    assert governor.gain(rule, 3) == 1.0  # a rule that was gone begins again
    with pytest.raises(ConfigError, match="another one has this name"):
        governor.set_rules([(rule, "layers.1"), (rule, "layers.2")], 3)


def _saved(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_limits_are_told_once_and_targets_at_the_end():
    told = Told()
    governor, rule = Governor(told), Rule(concept="c", name="cap", target={"value": 1.0, "rate": 1.0})
    governor.set_rules([(rule, "layers.1")], 0)
    for step in range(1, 6):
        governor.decided(governor.read(step, {"concept/c/layers.1/drift": 2.0 * step}), {})
    assert [(event["kind"], event["rule"], event["limit"]) for event in told] == [("limit", "cap", "gain_min")]
    assert "target at most 1: missed; the gain is at its smallest" in told[0]["text"]
    governor.settle(5), governor.settle(5)
    assert [event["kind"] for event in told] == ["limit", "target"]
    assert (told[-1]["held"], told[-1]["measured"]) == (False, 10.0)


def test_a_budget_draws_the_gain_towards_one_by_what_was_touched_so_far():
    told = Told()
    governor, rule = Governor(told), Rule(concept="c", mode="grad", gain=0.0, budget=0.1)
    governor.set_rules([(rule, "")], 0)
    assert governor.gain(rule, 0) == pytest.approx(0.9)  # nothing known: it might touch everything
    governor.spend(rule, 0, 0.2, 0.2)
    assert governor.gain(rule, 1) == pytest.approx(0.5)  # a fifth is touched: half removed is a tenth
    governor.spend(rule, 1, 0.6, 0.6)
    assert governor.gain(rule, 2) == pytest.approx(0.75)
    assert [(event["kind"], event["rule"]) for event in told] == [("budget", "grad:c")]
    small = Rule(concept="c", mode="ablate", gain=0.0, budget=0.5)
    governor.set_rules([(small, "")], 0)
    governor.spend(small, 0, 0.1, 0.1)
    assert governor.gain(small, 1) == 0.0


def test_amplified_gradients_are_capped_and_others_never():
    parameter, told, cap = torch.nn.Parameter(torch.zeros(4)), [], NormCap()

    def step(norm, factor):
        parameter.grad = torch.full((4,), norm / 2)
        cap([parameter], factor, lambda *found: told.append(found))
        return parameter.grad.norm().item()

    assert [step(norm, 1.0) for norm in (1.0, 50.0, 1.0)] == [1.0, 50.0, 1.0]
    reference = cap.reference
    assert reference == pytest.approx(0.95 * (0.95 + 0.05 * 50) + 0.05)
    assert step(2 * reference, 5.0) == pytest.approx(2 * reference)
    assert step(20 * reference, 5.0) == pytest.approx(CAP * reference)
    assert step(30 * reference, 5.0) == pytest.approx(CAP * reference)
    assert len(told) == 1 and cap.reference == reference
    first = NormCap()
    parameter.grad = torch.full((4,), 50.0)
    first([parameter], 4.0, lambda *found: None)
    assert parameter.grad.norm().item() == pytest.approx(CAP * 25)
    nothing = NormCap()  # a first step of which rules leave nothing says nothing of the next
    parameter.grad = torch.zeros(4)
    nothing([parameter], 4.0, lambda *found: None)
    parameter.grad = torch.full((4,), 0.5)
    nothing([parameter], 4.0, lambda *found: None)
    assert parameter.grad.norm().item() == pytest.approx(CAP / 4) and nothing.reference == pytest.approx(0.25)
    parameter.grad = torch.full((4,), torch.nan)
    first([parameter], 4.0, lambda *found: None)
    assert first.reference == 25
    told.clear()  # from the second step on it is known how much of the gradient is amplified at all
    parameter.grad = torch.full((4,), 50.0)
    first([parameter], 4.0, lambda *found: told.append(found), 1.25)
    assert parameter.grad.norm().item() == pytest.approx(100) and first.reference == pytest.approx(80) and not told
    again = NormCap()
    again.load_state_dict(first.state_dict())
    for cap in (first, again):
        parameter.grad = torch.full((4,), 500.0)
        cap([parameter], 4.0, lambda *found: told.append(found), 1.25)
        assert parameter.grad.norm().item() == pytest.approx(CAP * 80) and cap.reference == pytest.approx(0.95 * 80 + 0.05 * 800)
    assert len(told) == 2


def test_a_ramp_begins_where_the_rule_comes_into_force():
    rule = Rule(concept="c", ramp=3)
    governor = Governor()
    governor.set_rules([], 0)
    governor.set_rules([(rule, "")], 100)
    assert [governor.gain(rule, step) for step in (100, 101, 103, 104)] == [0.75, 0.5, 0.0, 0.0]
    again = Governor()
    again.load_state_dict(governor.state_dict())
    again.set_rules([(rule, ""), (Rule(concept="d"), "")], 102)  # it stays, beside another
    assert again.gain(rule, 102) == 0.25
    fresh = Governor()
    fresh.set_rules([(rule, "")], 0)
    assert [fresh.gain(rule, step) for step in (0, 3)] == [0.75, 0.0]
    late = Rule(concept="c", ramp=1, start=200)
    governor.set_rules([(late, "")], 100)
    assert [governor.gain(late, step) for step in (199, 200, 201)] == [1.0, 0.5, 0.0]


def test_a_ramp_of_a_run_that_is_taken_up_is_as_far_as_it_was():
    rule, governor = Rule(concept="c", ramp=3), Governor()
    governor.set_rules([(rule, "")], 2)
    assert governor.gain(rule, 2) == 0.75
    governor.since_the_beginning()
    assert [governor.gain(rule, step) for step in (2, 3)] == [0.25, 0.0]
    governor.set_rules([(rule, ""), (Rule(concept="d", ramp=3), "")], 2)  # drawn again, beside a new one
    assert [governor.gain(each, 2) for each in (rule, Rule(concept="d", ramp=3))] == [0.25, 0.75]


def test_a_budget_of_which_nothing_is_known_yet_is_not_told_of():
    told = Told()
    governor, rule = Governor(told), Rule(concept="c", mode="grad", gain=0.0, budget=0.5)
    governor.set_rules([(rule, "")], 0)
    governor.spend(rule, 0, 0.02, 0.02)
    assert governor.gain(rule, 1) == 0.0 and told == []
