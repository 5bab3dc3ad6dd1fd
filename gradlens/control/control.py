"""Carries out the rules of a policy: at the model's output, at hookpoints, and around the optimizer's step.

| mode | acts on | when |
| --- | --- | --- |
| rewrite | the rows themselves | before the forward pass |
| route, reweight | the gradient of the loss with respect to each token's output | backward |
| ablate, mean-ablate, steer | the activation at the hookpoint | forward, while training |
| grad, penalty | the gradient at the hookpoint | backward |
| param | the gradient of matrices that write to the residual stream, up to the hookpoint's block | before the optimizer's step |
| update | the change of those matrices | after the optimizer's step |
| constrain | the change of all parameters | after the optimizer's step; its examples are read before it |

Several rules act one after another, in the policy's order. `governor` keeps them within targets and budgets; what rules that amplify do to
the gradient is capped (`norm_cap`). Nothing here synchronises with an accelerator, but for that cap, `balance`, rows that are told or
rewritten, and what is said once a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradlens.control.active_rules import ActiveRule, Lookup
from gradlens.control.balance import Balance
from gradlens.control.constrainer import Constrainer
from gradlens.control.edits import expresses, gate_strength, scale_along, within_budget
from gradlens.control.governor import Governor
from gradlens.control.norm_cap import NormCap
from gradlens.control.penalty import acts_of, penalty_gradient
from gradlens.control.row_teller import Row
from gradlens.control.rules import FORWARD, GATES, QUORUM, Policy
from gradlens.errors import ConfigError, RunError
from gradlens.model.capture import MicroBatch, read_activations
from gradlens.model.hookpoints import canonical, layer_of, unwrap
from gradlens.model.trainable import is_sharded
from gradlens.model.writers import Turn
from gradlens.readings.own import before_training

NO_GRADIENT = ("rewrite", "inoculate", "steer", "constrain", "update")  # modes whose gain does not multiply a gradient or an activation


class Control:
    """The rules in force, looked up once per policy."""

    def __init__(self, lookup: Lookup) -> None:
        self.lookup, self.model, self.tell = lookup, lookup.model, lookup.tell
        self.policy, self.rules, self.step = Policy(), [], 0
        self.governor, self.cap, self.balance = Governor(self.tell), NormCap(), Balance(lookup.device)
        self._before: list[tuple[Tensor, Tensor, Turn, Tensor, ActiveRule]] = []
        self._shares: dict[str, float] = {}  # label of a rule -> the share that it touched in the step before, over all ranks
        self._loaded: dict[str, dict[str, Any]] = {}  # rule -> what a checkpoint says it had come to know

    def set_policy(self, policy: Policy) -> None:
        """Look up every rule's features and directions. Raises `ConfigError` where a rule names what does not exist."""
        rules = [self.lookup.activate(rule) for rule in policy.rules]
        for active in rules:
            if active.rule.mode == "constrain":
                active.constrainer = self._constrainer(active)
            self._keep_what_is_known(active)
        self.governor.set_rules([(active.rule, self._measured_at(active)) for active in rules], self.step)
        self.rules = rules
        self.policy = policy

    def gain(self, active: ActiveRule) -> float:
        """The gain of a rule at this step: its own or its target's, within its budget."""
        return self.governor.gain(active.rule, self.step)

    def in_force(self, mode: str, hookpoint: str | None = None, dry: bool = False) -> list[tuple[ActiveRule, float]]:
        """Rules of a mode that act at this step, with their gains; at gain 1 a rule does not act. `dry`: with those on a dry run, for
        whoever counts what they would touch. `route` means `reweight` too: all its tokens of a row have one gain."""
        modes = GATES if mode == "route" else (mode,)
        found = [(active, self.gain(active)) for active in self.rules if active.rule.mode in modes and (dry or not active.rule.dry_run)]
        return [(active, gain) for active, gain in found if gain != 1 and (hookpoint is None or hookpoint in active.features)]

    def leaves_tokens_out(self) -> bool:
        return bool(self.in_force("route") or self.in_force("rewrite"))

    def acts(self) -> bool:
        """Whether any rule acts at this step, or counts what it would touch."""
        return any(self.gain(active) != 1 for active in self.rules)

    def routed_hookpoints(self) -> set[str]:
        """Hookpoints whose active features decide which tokens teach at this step."""
        rules = [active for active, _ in self.in_force("route", dry=True)]
        every = rules + [active.instead_of for active in rules if active.instead_of is not None]
        return {hookpoint for active in every for hookpoint in active.reads}

    def routed_features(self, hookpoint: str) -> Tensor:
        """The features there that decide it, `[N]`; one may come twice."""
        rules = [active for active, _ in self.in_force("route", dry=True)]
        every = rules + [active.instead_of for active in rules if active.instead_of is not None]
        return torch.cat([active.features[hookpoint] for active in every if hookpoint in active.reads])

    def weighs_rows(self) -> bool:
        """Whether a rule acts in whole rows."""
        return self.tells_rows() or any(active.rule.mode == "reweight" for active, _ in self.in_force("route", dry=True))

    def tells_rows(self) -> bool:
        """Whether a rule acts in rows that show its concept only."""
        return any((active.instead_of or active).rows_by is not None for active, _ in self.in_force("route", dry=True))

    def tell_rows(self, batch: MicroBatch, ids_BS: Tensor, mask_BS: Tensor | None, labels_BS: Tensor | None) -> None:
        """Note which rows show the concepts of the `route` rules that act in such rows only. Reads rows that are new with the model before
        training."""
        for active, _ in self.in_force("route", dry=True):
            teller = (active.instead_of or active).rows_by
            if teller is not None:
                batch.shown[id(teller)] = teller.shows(ids_BS, mask_BS, labels_BS)

    def leaves_rows_out(self) -> bool:
        """Whether it is known of whole rows, before they are trained on, that they teach nothing: with rules that tell rows, and no others
        that gate or rewrite tokens, or have a price that these rows would pay. Not where a model is split over ranks: all must run each
        forward pass."""
        acting = self.in_force("route", dry=True)
        by_rows = all(not active.reads and active.instead_of is None and active.rule.budget is None for active, _ in acting)
        some = any(gain == 0 and not active.rule.dry_run for active, gain in acting)
        others = any(self.in_force(mode, dry=True) for mode in ("rewrite", "penalty"))
        return some and by_rows and not others and not is_sharded(self.model)

    def leave_out(self, rows: Sequence[Row]) -> list[bool]:
        """Which rows teach nothing. They are counted here as what rules touch, and are not to be given to the model."""
        acting = [(active, gain, active.rows_by.tell(rows)) for active, gain in self.in_force("route", dry=True)]
        gone = [any(shows[row] for active, gain, shows in acting if gain == 0 and not active.rule.dry_run) for row in range(len(rows))]
        for active, _, shows in acting:
            for (_, counted), out, shown in zip(rows, gone, shows, strict=True):
                active.touched += out * shown * sum(counted)
                active.total += out * sum(counted)
        return gone

    def rewrite(self, batch: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """The batch after the `rewrite` rules, one after another; and where each token stood in its row before, `[B, S]` (-1: padding)."""
        at_BS = None
        for active, gain in self.in_force("rewrite", dry=True):
            found = active.rewriter.batch(batch, gain, active.rows_by)
            if not active.rule.dry_run:
                batch = found.batch
                at_BS = found.at_BS if at_BS is None else at_BS.gather(1, found.at_BS.clamp_min(0)).where(found.at_BS >= 0, -1)
            active.touched += found.touched
            active.total += found.counted
            active.silent += found.silent
            active.rows += len(found.at_BS)
        return batch, at_BS

    def edits_activation(self, hookpoint: str) -> bool:
        """Whether a rule changes the activation at this hookpoint at this step."""
        return any(self.in_force(mode, hookpoint, dry=True) for mode in FORWARD)

    def edit_activation(self, hookpoint: str, h: Tensor, count: bool = True) -> Tensor:
        """The activation after the `ablate`, `mean-ablate` and `steer` rules at this hookpoint; `count`: False where checkpointing runs it
        a second time."""
        order = {id(active): number for number, active in enumerate(self.rules)}
        found = [pair for mode in FORWARD for pair in self.in_force(mode, hookpoint, dry=True)]
        for active, gain in sorted(found, key=lambda pair: order[id(pair[0])]):
            if count:
                self._count(active, h, active.basis[hookpoint])
            if active.rule.dry_run:
                continue
            before = h
            if active.rule.mode == "steer":
                h = h + (1 - gain) * active.shift[hookpoint].to(h.dtype)
            elif active.rule.mode == "ablate":
                h = scale_along(h, active.basis[hookpoint], gain)
            else:
                mean_D = active.shift[hookpoint].to(h.dtype)
                h = mean_D + scale_along(h - mean_D, active.basis[hookpoint], gain)
            self._guard(active, before, h)
        return h

    def edit_gradient(self, hookpoint: str, g: Tensor) -> Tensor:
        """The gradient after the `grad` rules at this hookpoint."""
        for active, gain in self.in_force("grad", hookpoint, dry=True):
            self._count(active, g, active.basis[hookpoint])
            if not active.rule.dry_run:
                before, g = g, scale_along(g, active.basis[hookpoint], gain)
                self._guard(active, before, g)
        return g

    def references(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Of the `penalty` rules what they compare with: hookpoint -> the activation `[B, S, D]` in the model before training."""
        wanted = {hookpoint for active, _ in self.in_force("penalty", dry=True) for hookpoint in active.features}
        if not wanted:
            return {}
        if not isinstance(batch.get("input_ids"), Tensor) or any(batch.get(key) is not None for key in ("position_ids", "inputs_embeds")):
            raise ConfigError("penalty reads each row with the model before training: train on plain padded batches of input_ids")
        with before_training(unwrap(self.model)):
            return read_activations(self.model, sorted(wanted), batch)

    def add_penalty(self, hookpoint: str, h_BSD: Tensor, g_BSD: Tensor, batch: MicroBatch) -> Tensor:
        """The gradient with that of the `penalty` rules at this hookpoint."""
        if batch.token_weight is None:
            raise RunError(
                "penalty is in units of the model's own loss (`.loss` of its output), and backward does not come from there: "
                "call backward on that loss, or a multiple of it"
            )
        for active, gain in self.in_force("penalty", hookpoint, dry=True):
            dictionary, ids_N = self.lookup.dictionaries[hookpoint], active.features[hookpoint]
            with torch.no_grad():
                before_BSN = acts_of(dictionary, batch.reference[hookpoint], ids_N)
            weight_BS = batch.loss_BS * batch.token_weight
            price_BSD, paid_BS = penalty_gradient(dictionary, h_BSD, ids_N, before_BSN, weight_BS, gain, active.rule.strength)
            active.touched += paid_BS.sum()
            active.total += batch.loss_BS.sum()
            if not active.rule.dry_run:
                before, g_BSD = g_BSD, g_BSD + price_BSD.to(g_BSD.dtype)
                self._guard(active, before, g_BSD)
        return g_BSD

    def token_gains(self, batch: MicroBatch, active_pairs: dict[str, tuple[Tensor, Tensor]]) -> Tensor | None:
        """`gain[B, S]` of each token's loss gradient under the `route` rules; None where none acts (but on a dry run).

        `active_pairs[hookpoint]` are the active features of the counted tokens, in the order of `MicroBatch.select`.
        """
        gains_BS = None
        for active, gain in self.in_force("route", dry=True):
            rule = active.rule
            if active.instead_of is None:
                gate_BS = self._gate(batch, active_pairs, active)
            else:
                own_BS = self._gate(batch, active_pairs, active.instead_of)
                strength_BS = self._gate(batch, active_pairs, active, share=True)
                gate_BS = active.same_share(own_BS, strength_BS, batch.loss_BS, whole=rule.mode == "reweight")
            if rule.budget is not None:
                wanted_BS, most = gate_BS * batch.loss_BS, rule.budget * batch.loss_BS.sum().float()
                if rule.gate == "hard":
                    gate_BS = within_budget(wanted_BS > 0, most).float()
                else:
                    gate_BS = wanted_BS * (most / wanted_BS.sum().clamp_min(1e-9)).clamp(max=1)
                active.wanted += wanted_BS.sum() - gate_BS.sum()
            active.touched += (gate_BS * batch.loss_BS).sum()
            active.total += batch.loss_BS.sum()
            if rule.dry_run:
                continue
            factor_BS = 1 + gate_BS * (gain - 1) if rule.gate != "hard" else torch.where(gate_BS > 0, gain, torch.ones_like(gate_BS))
            gains_BS = factor_BS if gains_BS is None else gains_BS * factor_BS
        if gains_BS is not None:
            self.balance.add(gains_BS, batch.loss_BS)
        return gains_BS

    def _gate(self, batch: MicroBatch, active_pairs: dict[str, tuple[Tensor, Tensor]], active: ActiveRule, share: bool = False) -> Tensor:
        """How far a rule gates each token, `[B, S]` in 0 to 1; `share`: no gate, but the share of tokens around that are active."""
        rule, gate_BS = active.rule, torch.zeros_like(batch.keep_BS, dtype=torch.float32)
        if not active.reads:
            return gate_BS + batch.shown[id(active.rows_by)][:, None].float()
        tokens = "row" if rule.mode == "reweight" else rule.tokens
        for hookpoint, above_F in active.above.items():
            activity_BS = self._activity(batch, *active_pairs[hookpoint], above_F, rule.gate == "graded" and not share)
            quorum = rule.quorum or self.lookup.quorums.get(rule.concept or "", {}).get(hookpoint, QUORUM)
            if rule.gate == "hard" and not share:
                found_BS = expresses(activity_BS > 0, batch.keep_BS, tokens, rule.window, quorum, batch.texts).float()
            else:
                found_BS = gate_strength(activity_BS, batch.keep_BS, tokens, rule.window, 1.0 if share else quorum, batch.texts)
            gate_BS = torch.maximum(gate_BS, found_BS)
        if active.rows_by is not None:
            gate_BS = gate_BS * batch.shown[id(active.rows_by)][:, None]
        return gate_BS

    @classmethod
    def _activity(cls, batch: MicroBatch, idx_TK: Tensor, val_TK: Tensor, above_F: Tensor, graded: bool) -> Tensor:
        """How much each token shows of a rule's features, `[B, S]`: 1 where one is above its level; graded: half at the level, 1 from twice
        it on."""
        level_TK = above_F[idx_TK]
        fires_TK = (val_TK > level_TK).float()
        if graded:
            fires_TK = fires_TK * (val_TK / (2 * level_TK).clamp_min(1e-9)).clamp(max=1).float()
        return cls._at_tokens(batch, torch.nn.functional.pad(fires_TK, (0, 1)).amax(-1))  # also where no token has an active feature at all

    @staticmethod
    def _at_tokens(batch: MicroBatch, value_T: Tensor) -> Tensor:
        """Values of the tokens that are read (float32) at their places, `[B, S]`, 0 elsewhere."""
        if value_T.shape[0] == batch.read_BS.numel():  # all positions, on an accelerator
            return value_T.view_as(batch.read_BS)
        return torch.zeros_like(batch.read_BS, dtype=torch.float32).masked_scatter(batch.read_BS, value_T)

    def before_step(self) -> None:
        """Edit gradients of writing matrices (`param`), cap what was amplified, and remember matrices whose change will be edited."""
        for active, gain in self.in_force("param", dry=True):
            for parameter, turn, Q in active.writers:
                if parameter.grad is not None:
                    grad = turn(parameter.grad)
                    self._count(active, grad, Q)
                    if not active.rule.dry_run:
                        edited = scale_along(grad, Q.to(grad.dtype), gain)
                        self._guard(active, grad, edited)
                        parameter.grad.copy_(turn(edited))
        if any(self._amplifies(active, max(map(abs, active.rule.gains))) for active in self.rules):
            self._cap_gradients()
        self._before = [
            (parameter, parameter.detach().clone(), turn, Q, active)
            for active, _ in self.in_force("update", dry=True)
            for parameter, turn, Q in active.writers
        ]
        for active, _ in self.in_force("constrain", dry=True):
            active.constrainer.before_step(self.step)

    @torch.no_grad()
    def after_step(self) -> None:
        """Edit the change that the optimizer has just made (`update`): exact whatever the optimizer did."""
        for parameter, before, turn, Q, active in self._before:
            change = turn(parameter - before)
            self._count(active, change, Q)
            if not active.rule.dry_run:
                edited = scale_along(change, Q.to(change.dtype), self.gain(active))
                self._guard(active, change, edited)
                parameter.copy_(before + turn(edited))
        self._before = []
        for active, gain in self.in_force("constrain", dry=True):
            beyond, total, broken = active.constrainer.after_step(1.0 if active.rule.dry_run else gain)
            active.touched += beyond
            active.total += total
            active.broken += broken

    def counters(self) -> list[Tensor]:
        """Sums of this step, to be added over ranks in place."""
        return [tensor for active in self.rules for tensor in active.sums]

    def acting(self) -> list[str]:
        """The rules that act at this step, with their gains, in words."""
        found = [(active, self.gain(active)) for active in self.rules if not active.rule.dry_run]
        return [f"{active.rule.label} (gain {gain:g})" for active, gain in found if gain != 1]

    def drain(self, made: bool = True) -> dict[str, float]:
        """Scalars of this step: gain and touched share of each rule; resets the sums. `made`: the optimizer has made the step, so it counts
        for budgets, and a rule that has made something not finite ends the run: `RunError`."""
        scalars = {"policy/version": float(self.policy.version)}
        for active in self.rules:
            label, total = active.rule.label, float(active.total)
            scalars[f"rule/{label}/gain"] = gain = self.gain(active)
            if made and gain != 1 and float(active.broken) > 0:
                text = f"rule {label} (gain {gain:g}) has made finite numbers infinite or NaN"
                self.tell("not_finite", rule=label, gain=gain, text=text)
                raise RunError(f"step {self.step + 1}: {text}; give it a gain nearer to 1, or switch it off. Its weights are void")
            if total > 0:
                scalars[f"rule/{label}/share"] = self._shares[label] = float(active.touched) / total
            if active.constrainer is not None and active.constrainer.seen is not None:
                scalars[f"rule/{label}/measure"] = float(active.constrainer.seen)
            if active.rewriter is not None and float(active.rows) > 0:
                scalars[f"rule/{label}/silent_rows"] = float(active.silent / active.rows)
            if made and total > 0:
                self.governor.spend(active.rule, self.step, float(active.touched) / total, float(active.touched + active.wanted) / total)
            for tensor in active.sums:
                tensor.zero_()
        if self.cap.scale != 1:
            scalars["policy/norm_scale"], self.cap.scale = self.cap.scale, 1.0
        if self.balance.scale != 1:
            scalars["policy/balance"] = self.balance.scale
        self.balance.clear()
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """What rules have come to know: tensors and plain numbers. Each rank has its own of `rules`."""
        rules = {active.rule.model_dump_json(): state for active in self.rules if (state := active.state_dict())}
        return {"governor": self.governor.state_dict(), "cap": self.cap.state_dict(), "shares": self._shares, "rules": rules}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Before the policy is set."""
        self.governor.load_state_dict(state["governor"])
        self.cap.load_state_dict(state["cap"])
        self._shares = dict(state.get("shares", {}))
        self._loaded = dict(state.get("rules", {}))

    def _measured_at(self, active: ActiveRule) -> str:
        """The hookpoint at which a rule's target is measured; "" without one."""
        rule = active.rule
        if rule.target is None:
            return ""
        known = self.lookup.concepts.get(rule.concept, {})
        place = canonical(rule.target.hookpoint) if rule.target.hookpoint else max(active.features, key=lambda name: layer_of(name) or -1)
        if place not in known:
            raise ConfigError(
                f"rule {rule.label}: target: concept {rule.concept} has no features at {place} to measure; it has some at "
                f"{', '.join(known) or 'no hookpoint'} (target.hookpoint)"
            )
        return place

    def _constrainer(self, active: ActiveRule) -> Constrainer:
        """That of a rule already in force goes on: it knows how far the measure has risen."""
        known = (before.constrainer for before in self.rules if before.rule == active.rule and before.constrainer is not None)
        return next(known, None) or self.lookup.constrainers(active.rule, active.features)

    def _keep_what_is_known(self, active: ActiveRule) -> None:
        """Which rows show the concept of a rule already in force, and how its random control has gated so far; what a checkpoint holds."""
        active.load_state_dict(self._loaded.pop(active.rule.model_dump_json(), {}))
        for before in self.rules:
            if before.rule == active.rule:
                active.same_share = before.same_share
                active.rows_by, active.rewriter = before.rows_by, before.rewriter
                if active.instead_of is not None:
                    active.instead_of.rows_by = before.instead_of.rows_by

    def _amplifies(self, active: ActiveRule, size: float) -> bool:
        return size > 1 and active.rule.mode not in NO_GRADIENT and not active.rule.dry_run

    def _cap_gradients(self) -> None:
        now = [(active, abs(self.gain(active))) for active in self.rules]
        now = [(active, size) for active, size in now if self._amplifies(active, size)]
        names = [active.rule.label for active, _ in now]

        def tell(norm: float, most: float) -> None:
            text = f"the gradient's norm under {', '.join(names)} was {norm:.3g}; it is scaled down to {most:.3g}"
            self.tell("norm_capped", rules=names, norm=norm, most=most, text=text)

        shares = [self._shares.get(active.rule.label) for active, _ in now]
        growth = None if None in shares else 1.0
        for (active, size), share in zip(now, shares, strict=True) if growth else ():
            # of a gradient its energy is counted, else tokens, whose gradients are taken to be of one size
            growth *= math.sqrt(1 + (size**2 - 1) * share) if active.rule.mode in ("grad", "param") else 1 + (size - 1) * share
        self.cap(self.model.parameters(), max((size for _, size in now), default=1.0), tell, growth)

    def _guard(self, active: ActiveRule, before: Tensor, after: Tensor) -> None:
        """Note where an edit has made what was finite not finite."""
        active.broken += torch.isfinite(before.detach()).all() & ~torch.isfinite(after.detach()).all()

    def _count(self, active: ActiveRule, x: Tensor, Q: Tensor) -> None:
        x = x.detach()
        active.touched += (x @ Q.to(x.dtype)).double().square().sum()
        active.total += x.double().square().sum()
