"""The lens: watches one model and optimizer, step by step, and carries out the policy.

Order within a step: forward (capture h, `ablate`) -> backward (edit g, observe g) -> before the optimizer's step (reduce over
ranks, `param`) -> step -> after it (`update`, drift every N steps, record). A context manager owns every hook. With no rule in
force no hook changes any tensor, so training is bit-identical to training without gradlens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.concepts.concept_files import Detector
from gradlens.config import ObserveSettings
from gradlens.control.active_rules import Lookup
from gradlens.control.constrainer import constrainer_of
from gradlens.control.control import Control
from gradlens.control.rules import Policy
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.precision import chosen, kept
from gradlens.errors import ConfigError, InputError
from gradlens.hooks import Hooks
from gradlens.model.capture import counted_tokens, outside_autocast, without_autocast
from gradlens.model.hookpoints import canonical, d_model, in_stream
from gradlens.model.selftest import check_passed, self_test
from gradlens.model.start import forget, remember
from gradlens.model.trainable import (
    after_closure,
    check_policy,
    check_scaler,
    check_trainable,
    is_sharded,
    left_to_others,
    scaler_of,
    stepped,
)
from gradlens.readings.displaced import Displaced, held_by
from gradlens.readings.flaws import as_number, flaws_in
from gradlens.readings.learning import Learning
from gradlens.readings.probe import ProbeReading, unpacked
from gradlens.readings.projection import Members, Projection, Projector, RowDetectors
from gradlens.readings.routers import Routers, event_of
from gradlens.report.top import table
from gradlens.world import Single, World, flat_sum_

log = logging.getLogger(__name__)

NOTHING_COUNTS = (
    "so far no batch has had a token to learn (all labels are -100?): nothing is read, and the probe set waits for the first that has one"
)


class Lens:
    """Watches `model` while `optimizer` trains it. See `gradlens.watch` for the friendly way to make one."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        dictionaries: dict[str, Dictionary],
        *,
        policy: Policy | None = None,
        concepts: dict[str, dict[str, list[int]]] | None = None,
        thresholds: dict[str, dict[str, list[float]]] | None = None,
        quorums: dict[str, dict[str, float]] | None = None,
        observe: ObserveSettings | None = None,
        recorder: Any = None,
        probe: list[dict[str, Tensor]] | None = None,
        world: World | None = None,
        projector: Callable[[Members, ObserveSettings, RowDetectors | None], Projector] | None = None,
        tokenizer: Any = None,
        reference: list[dict[str, Tensor]] | None = None,
        checkers: dict[str, Callable[[str], bool]] | None = None,
        steps: int | None = None,
        scaler: Any = None,
        detectors: dict[str, dict[str, Detector]] | None = None,
        row_detectors: RowDetectors | None = None,
        exemplars: Callable[[str | None], list[dict[str, Tensor]]] = lambda concept: [],
        contrasts: Callable[[str | None], dict[str, Tensor]] = lambda concept: {},
    ) -> None:
        """`dictionaries`: hookpoint -> dictionary. `concepts`: name -> hookpoint -> feature ids; `thresholds`: for `route`, the
        activation above which each of them expresses the concept, and `quorums` (see `Lookup`). `probe`: batches on which drift is
        measured (default: the first micro-batch trained on). `recorder`: gets one record a step (docs/architecture.md).
        `projector`: makes who computes the readings (default: this process). `tokenizer`, `reference`, `checkers`: see `Learning`.
        `steps`: how long the run is, where that is known: its last step reads everything. `scaler`: the `torch.amp.GradScaler` that scales
        the loss, if any (accelerate's wrapper of an optimizer brings its own): readings are of the loss without it. `detectors`: concept ->
        hookpoint -> which tokens express it, which rows show it; `row_detectors`: by what rows are said to teach it. `exemplars(concept)`:
        batches that show it, for `constrain`. `contrasts(concept)`: which features no random control should draw.
        Raises `InputError` for a dictionary that does not fit the model, `ConfigError` for what is not there or cannot be watched.
        """
        self.model, self.optimizer = model, optimizer
        observe = observe or ObserveSettings()
        self.observe = observe.model_copy(update={"precision": chosen(observe.precision, model, optimizer)})
        self.recorder, self.world = recorder, world or Single()
        check_trainable(model, optimizer, self.world)
        remember(model, again=False)
        self.sharded = is_sharded(model)
        self.scaler = scaler if scaler is not None else scaler_of(optimizer)
        if self.sharded and self.observe.update == "exact":
            raise ConfigError("observe.update: exact has no forward mode through FSDP2; use difference")
        device = next(model.parameters()).device
        # float32 whatever the model trains in; float64 only where the model itself is (tests of exactness)
        self.dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
        self.dictionaries = {
            canonical(name): kept(dictionary, self.observe.precision, device, self.dtype) for name, dictionary in dictionaries.items()
        }
        self.concepts = {
            concept: {
                canonical(name): list(dict.fromkeys(ids)) for name, ids in features.items() if canonical(name) in self.dictionaries and ids
            }
            for concept, features in (concepts or {}).items()
        }
        self.probe, self.steps, self.step = probe, steps, 0
        members = {(concept, name): ids for concept, features in self.concepts.items() for name, ids in features.items()}
        self._members = {key: torch.tensor(ids) for key, ids in members.items()}
        # The other ranks need no more than live features; but where parameters are sharded, all ranks must run each forward pass.
        self._reads = self.world.rank == 0 or self.sharded
        spoken = (tokenizer, reference, checkers) if self._reads else ()
        observed = self.observe.model_copy(update={"own_prompts": 0}) if self.sharded else self.observe
        self.routers = Routers(model) if self.observe.routers else None
        self.learning = Learning(model, self.dictionaries, observed, self._members, *spoken, routers=self.routers, tells=row_detectors)
        self.displaced = Displaced(self.learning)
        constrainers = partial(
            constrainer_of, model=model, optimizer=optimizer, world=self.world, dictionaries=self.dictionaries, exemplars=exemplars
        )
        lookup = Lookup(
            model, self.dictionaries, self.concepts, self._rates, thresholds or {}, quorums or {}, detectors or {}, tokenizer,
            self._mean, contrasts, constrainers, self._event, row_detectors or {},
        )  # fmt: skip
        self.projector: Projector = (projector or partial(Projection, self.dictionaries))(members, self.observe, row_detectors)
        self.control = Control(lookup)
        self._policy = policy or Policy()
        self.hooks = Hooks(
            model, self.dictionaries, self.control, self.projector, self.observe,
            begin=self._begin, look_at_scale=self._look_at_scale, clock=self._clock, tell_once=self._tell_once,
        )  # fmt: skip
        self._stepped = False
        self._scalars: dict[str, float] = {}
        self._told: set[str] = set()  # flaws that an event has told of: once a run is enough
        self._spent: dict[str, float] = {}  # seconds of this step that went into readings
        self._finished: int | None = None  # the step of the last readings at the end, so that a second call adds none
        self._goes_on: dict[str, Any] | None = None  # of `control` before them: with what they decide nobody trains on
        self._stack = ExitStack()

    # -- life -----------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Lens:
        try:
            self._check_fit()
            if self.observe.self_test:
                widths = {name: dictionary.d_out for name, dictionary in self.dictionaries.items()}
                self_test(self.model, self.hooks.hookpoints, widths, self.world if self.sharded else None)
            self._register()
            if self.probe is not None and self.start is None:
                self._measure_start()
            self.set_policy(self._policy)
            self.hooks.open = True
            if (others := left_to_others(self.model, self.optimizer)) and self._tell_once("others", "other_optimizer", reason=others):
                log.warning("%s", others)
            if self.routers is not None and self.routers.unread:
                reason = f"{', '.join(self.routers.unread)}: experts, and no router that is known beside them"
                self._tell_once("routers", "not_read", reading="routers", reason=reason)
            if self._reads:
                self.learning.watch_updates()
                if self.step == 0 and self.learning.own_rates():  # what later rates are compared with
                    self._emit({"step": 0, "time": time.time(), "scalars": self.learning.own_rates()})
                    for found in self.learning.doubts():
                        self._tell_once(f"doubt/{found['concept']}", "doubtful_checker", **found)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.hooks.open = False
        self._stack.close()
        self.finish() if kind is None else self._hand_on()
        forget(self.model)

    def _hand_on(self) -> None:
        """What has been read is on its way from the accelerator yet, the steps before an error above all."""
        try:
            self.projector.settle()
        except Exception as error:  # a device that failed has nothing to hand on, and what it failed of is already on its way up
            log.warning("the last steps' readings are lost: %s", error)

    def _check_fit(self) -> None:
        width = d_model(self.model)
        for name, dictionary in self.dictionaries.items():
            if in_stream(name) and dictionary.d_out != width:
                raise InputError(f"dictionary at {name}: its width is {dictionary.d_out}, the model's residual stream has {width}")

    def _register(self) -> None:
        hook = self._stack.callback
        self.hooks.register(hook, self.routers)
        optimizer = stepped(self.optimizer)
        hook(optimizer.register_step_pre_hook(self._on_step).remove)
        hook(optimizer.register_step_post_hook(lambda *_: self._after_step()).remove)

    # -- what the training loop says ------------------------------------------------------------------------------------------

    def set_rows(self, row_ids: Iterable[int]) -> None:
        """Numbers of the rows of the next forward pass, one for each row of its batch: what each taught is kept (`gradlens examples`).
        To be said before each forward pass; one whose batch has another number of rows raises `RunError`."""
        self.hooks.rows = tuple(int(row) for row in row_ids)

    def log(self, scalars: dict[str, float]) -> None:
        """Scalars that belong to the current step's record. Raises `ConfigError` for what is no number."""
        self._scalars.update({key: as_number(value, f"lens.log: {key}") for key, value in scalars.items()})

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch to train on: with the `rewrite` rules carried out (`input_ids`, `attention_mask`, `labels`; shapes stay).

        Loops that compute their loss from the labels they hold need it; where labels go into the model, the model's hook does it, until
        this has been called once. Costs forward passes for rows that are new.
        """
        return self.hooks.prepare(batch)

    def rewrites(self) -> bool:
        """Whether a `rewrite` rule acts at this step, or counts what it would do."""
        return bool(self.control.in_force("rewrite", dry=True))

    def balance(self, clipped: float | None = None) -> float:
        """Make the step's gradient that of the mean over the tokens that rules leave to teach (`balance.py`); returns the factor.

        Call it between the last backward pass and clipping, or with the norm it was `clipped` to. Readings are of the loss without it.
        """
        return self.control.balance(self.model.parameters(), self.world, clipped) if self.control.leaves_tokens_out() else 1.0

    def read_generated(self, batch: dict[str, Tensor] | list[dict[str, Tensor]]) -> None:
        """Read texts that the model itself wrote during training: rollouts of a reinforcement learning loop, reasoning traces.

        `batch`, or a list of them: `input_ids[B, S]`, `attention_mask`, and `labels` with -100 wherever the model did not write. They are
        read by the model without its adapter where that can be switched off, so that a change is one of the texts. Call it with what
        is generated anyway, every so many steps; `rising` says what changed since the first call, beyond what prompts differ by: answers
        to one prompt count as one text, and it takes six prompts or more a call. Curves:
        `concept/NAME/HOOKPOINT/generated`. Costs a forward pass; does nothing on other ranks than the first.
        """
        if not self._reads:
            return
        with self._clock("generated"):
            self.learning.read_generated([batch] if isinstance(batch, dict) else batch)
        for (concept, name), members in self._members.items():
            found = self.learning.generated_change(name)
            if found is not None:
                self._scalars[f"concept/{concept}/{name}/generated"] = found[0][members].mean().item()

    def rising(self, n: int = 20) -> list[dict[str, Any]]:
        """Features that rise or fall in generated texts by more than chance: `hookpoint, feature, change` (mean activation, latest
        minus first reading), the largest first; at most `n`, at a false discovery rate of 5%. Empty before the second reading."""
        return self.learning.rising(n)

    def set_policy(self, policy: Policy) -> None:
        """Put a policy in force from the next forward pass on. Raises `ConfigError` and keeps the old one where it does not fit."""
        check_policy(policy, self._policy, self.model, self.sharded, self.observe)
        self.control.set_policy(policy)
        self._policy = policy
        if policy.rules or policy.version:
            self._event("policy", version=policy.version, rules=[active.describe() for active in self.control.rules])

    @property
    def policy(self) -> Policy:
        return self.control.policy

    def _begin(self, batch: dict) -> None:
        """Where no probe set was given, the first batch of training with something to learn is the probe set."""
        ids = batch.get("input_ids")
        if self.probe is not None or not isinstance(ids, Tensor):
            return
        found = self.world.broadcast([unpacked(ids, batch)])
        if not counted_tokens(found[0]["input_ids"], found[0].get("attention_mask"), found[0].get("labels"), self.observe.tokens).any():
            return
        self.probe = found
        with without_autocast(ids.device):  # later readings are made outside
            self._measure_start()
            if self._reads:
                self.learning.watch_updates()
        if any(rule.random_control is not None for rule in self._policy.rules):
            self.control.set_policy(self._policy)  # drawn again, now that it is known how often features fire

    # -- around the optimizer's step ------------------------------------------------------------------------------------------

    def _on_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the optimizer's step; where it is given a closure (Lightning), between that closure's backward pass and the step."""
        if not self._stepped:
            check_scaler(self.scaler)
        return after_closure(args, kwargs, self._before_step)

    @outside_autocast
    def _before_step(self) -> None:
        self._check_fired()
        if self.dictionaries and self.hooks.observing() and not self.hooks.saw_gradients and self.world.size == 1:
            self._event("gap", reason="no gradient reached a hookpoint in this step")
        if self.probe is None and self.hooks.fired and self._tell_once("no_tokens", "not_read", reading="steps", reason=NOTHING_COUNTS):
            log.warning("%s", NOTHING_COUNTS)
        flat_sum_(self.world, self.control.counters())
        self.control.step = self.step
        self.control.before_step()

    def _check_fired(self) -> None:
        """After the first backward pass: hooks that were not passed read nothing, for ever. Compiled models do that."""
        if self._stepped or not self.dictionaries:
            return
        self._stepped = True
        check_passed([name for name in self.dictionaries if name not in self.hooks.fired], self.model, self.optimizer)

    def _look_at_scale(self) -> None:
        """A scaler that skips a step (its gradients were not finite) lowers the scale: what was read of that step goes with it."""
        if self.scaler is None or not self.scaler.is_enabled():
            return
        scale = float(self.scaler.get_scale())
        if self.hooks.saw_gradients and scale != self.hooks.scale:  # in a step that is not observed rules have counted all the same
            self._let_go()
        self.hooks.scale = scale

    def _let_go(self) -> None:
        self.projector.drop()
        self.control.drain(made=False)
        self.hooks.saw_gradients = False
        self._tell_once("skipped", "skipped", reason="the gradient scaler skipped a step; what was read of it is dropped")

    @outside_autocast
    def _after_step(self) -> None:
        self.control.after_step()
        observed = self.hooks.observing()
        policy_scalars = self.control.drain()
        self.step += 1
        self.control.step = self.step
        record: dict[str, Any] = {"step": self.step, "time": time.time(), "scalars": {**self._scalars, **policy_scalars}}
        if self.routers is not None and self._due(self.observe.drift_every):
            flat_sum_(self.world, self.routers.sums())
            self.routers.drain(record["scalars"])
        self._measure(record, self._due(self.observe.drift_every), self._due(self.observe.own_every))
        self._decide(record["scalars"])
        record["scalars"] |= {f"observe/{name}_seconds": seconds for name, seconds in self._spent.items()}
        self._spent = {}
        self._scalars = {}
        self.hooks.end_step()
        with self._clock("step"):  # on a CPU tokens have waited for this; told with the next step
            if observed:
                self.projector.finish(record, self.world, self._emit)
            else:
                self.projector.skip(record, self._emit)

    # -- drift ----------------------------------------------------------------------------------------------------------------

    @property
    def start(self) -> dict[str, ProbeReading] | None:
        """The readings of the probe set before training."""
        return self.learning.start

    @property
    def last(self) -> dict[str, ProbeReading] | None:
        """The latest readings of the probe set."""
        return self.learning.last

    def drift(self, hookpoint: str) -> tuple[Tensor, Tensor]:
        """See `Learning.drift`."""
        return self.learning.drift(hookpoint)

    def _measure_start(self) -> None:
        self.learning.begin(self.probe)

    def _rates(self, hookpoint: str) -> Tensor | None:  # share of tokens on which each feature fires, as far as that is known
        return self.start[hookpoint].rate if self.start is not None else self.dictionaries[hookpoint].metadata.get("firing_rate")

    def _mean(self, hookpoint: str) -> Tensor | None:
        return None if self.start is None else self.start[hookpoint].mean

    def _measure(self, record: dict[str, Any], drift: bool, own: bool) -> None:
        """What is read of the model after a step: `update` when that is due, the probe set, the model's own words. On rank 0; where
        parameters are sharded on all."""
        if not self._reads or self.start is None:
            return
        scalars = record["scalars"]
        # a snapshot holds both, so an open window of `update` is read with it
        if self.observe.update_every and (drift or self.step % self.observe.update_every == 0):
            with self._clock("update"):
                self.learning.read_updates(scalars)
        dense: dict[str, Any] = {}
        if drift:
            with self._clock("probe"):
                dense = self.learning.read_drift(scalars)
        if own and drift:
            with self._clock("own"):
                self.learning.read_own(scalars, dense)
        if dense:
            record["dense"] = dense
            with self._clock("probe"):
                self._tell(scalars)

    def _decide(self, scalars: dict[str, float]) -> None:
        """New gains of rules with a target, from a reading just made: rank 0 decides, everyone hears."""
        if not self.control.governor.loops or not self._due(self.observe.drift_every):
            return
        found = self.control.governor.read(self.step, scalars) if self.world.rank == 0 else None
        self.control.governor.decided(self.world.broadcast(found), scalars)

    def _event(self, kind: str, **fields: Any) -> None:
        if self.recorder is not None and self.world.rank == 0:
            self.recorder.event(kind, step=self.step, **fields)

    def _tell(self, scalars: dict[str, float]) -> None:
        """Events: what was learned so far, and alarms."""
        if self.recorder is None or self.world.rank != 0:
            return
        self.displaced.read(self.step, held_by(self.control), scalars, self.recorder.event)
        start, last = self.learning.routed_start, self.learning.routed_last
        if start is not None and last is not None and last.load:
            self.recorder.event("routers", step=self.step, **event_of(start, last))
        clusters = self.learning.clusters()
        if clusters is None:
            return
        self.recorder.event("learned", step=self.step, clusters=[entry.as_dict() for entry in clusters], less=self.learning.less())
        taken_out = {active.rule.concept for active, _ in self.control.in_force("rewrite") if active.rule.random_control is None}
        self.learning.alarms(self.step, clusters, self.recorder.event, taken_out)

    def finish(self) -> bool:
        """Last readings and dense snapshot, which the state holds afterwards; does nothing where the last step had them. Whether it did."""
        lacking = self.step not in (0, self._finished) and not self._due(self.observe.drift_every)
        if lacking:
            self._finished, self._goes_on = self.step, self.control.state_dict()
        if lacking and self.start is not None:
            record: dict[str, Any] = {"step": self.step, "time": time.time(), "scalars": {}}
            if self.routers is not None and self.world.size == 1:  # only here is it known that nobody waits for the others
                self.routers.drain(record["scalars"])
            self._measure(record, True, True)
            if self.world.rank == 0:  # the last word; nobody trains on with it
                self.control.governor.decided(self.control.governor.read(self.step, record["scalars"]), record["scalars"])
            self.projector.skip(record, self._emit)
        if lacking or self._finished != self.step:
            self.control.governor.settle(self.step)
        if self._scalars:  # said since the last step
            self.projector.skip({"step": self.step, "time": time.time(), "scalars": self._scalars}, self._emit)
            self._scalars = {}
        self.projector.settle()
        return lacking

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        """Counts what a reading costs: seconds of the host. On an accelerator the hooks only queue work, so `step` is a lower bound."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[part] = self._spent.get(part, 0.0) + time.perf_counter() - began

    def _due(self, every: int) -> bool:
        return self.step == self.steps or (bool(every) and self.step % every == 0)

    def _emit(self, record: dict[str, Any]) -> None:
        if self.recorder is None or self.world.rank != 0:
            return
        for flaw, kind, words in flaws_in(record["scalars"]):
            self._tell_once(flaw, kind, step=record["step"], **words)
        self.recorder.record(record)

    def _tell_once(self, key: str, kind: str, **fields: Any) -> bool:
        """Whether it has been told now."""
        if key in self._told or self.recorder is None:
            return False
        self._told.add(key)
        self.recorder.event(kind, **{"step": self.step, **fields})
        return True

    # -- results and state ----------------------------------------------------------------------------------------------------

    @property
    def totals(self) -> dict[str, dict[str, Tensor]]:
        """Sums over all steps, float64 `[F]`: hookpoint -> estimator -> sum."""
        return {name: {**part, **self.learning.updates[name]} for name, part in self.projector.totals().items()}

    def table(self, n: int = 20) -> list[dict[str, Any]]:
        """The `n` features that this run taught most, over all hookpoints: hookpoint, feature, then every reading there is.

        By uptake, where none is above zero by |drift|, before any reading of the probe set by |push|; hookpoints each in units of their
        largest.
        """
        columns = {name: dict(part) for name, part in self.totals.items()}
        if self.last is not None and self.last is not self.start:
            for name, part in columns.items():
                part["drift"] = self.drift(name)[0]
                if self.learning.has_uptake(name):
                    part["uptake"] = self.learning.uptake(name)[0]
        return table(columns, n)

    def state_dict(self) -> dict[str, Any]:
        """Step, totals and the probe readings before training: tensors and numbers only.

        A window of `update` that is open is read first, so that a run that goes on from here misses none of it.
        """
        if self._reads and self.observe.update_every and self.step % self.observe.update_every:
            self.learning.read_updates({})
        control = self._goes_on if self._goes_on and self.step == self._finished else self.control.state_dict()
        return {"step": self.step, "finished": self._finished, "totals": self.totals, "control": control, **self.learning.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.step, self._finished = state["step"], state.get("finished")
        self.control.step = self.step
        updates = ("update", "update_direction")
        self.projector.set_totals({n: {k: v for k, v in part.items() if k not in updates} for n, part in state["totals"].items()})
        self.learning.updates = {n: {k: v.clone() for k, v in part.items() if k in updates} for n, part in state["totals"].items()}
        self.probe = state.get("probe") if self.probe is None else self.probe  # another first batch would be another start
        self.learning.load_state_dict(state, self.probe)
        if "control" in state:
            self.control.load_state_dict(state["control"])
        if self.start is not None:  # random controls are drawn from features live before training
            self.control.set_policy(self._policy)
