"""`GradLensCallback`: the lens inside transformers' `Trainer` and TRL's trainers, which are built on it."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

from transformers import TrainerCallback

from gradlens.config import ObserveSettings
from gradlens.control.rules import FORWARD, load_rules
from gradlens.errors import ConfigError
from gradlens.readings.rollouts import Rollouts
from gradlens.training.taken_up import taken_up
from gradlens.watching import Top, Watch, as_list, observed, watch

_SCALARS = {"loss": "train/loss", "learning_rate": "train/lr", "grad_norm": "train/grad_norm", "eval_loss": "eval/loss"}
_LIKELIHOOD = ("SFTConfig",)  # of TRL's trainers those whose loss is the mean of -log p over the counted tokens
_WRITES = ("GRPOConfig", "RLOOConfig")  # those that train on what the model writes


class GradLensCallback(TrainerCallback):
    """`Trainer(..., callbacks=[GradLensCallback(dictionaries=..., rules=...)])`. Takes every keyword of `gradlens.watch`.

    The tokenizer is the trainer's, and so are the rows that rules of mode `auto` are chosen by. Where the trainer reports to W&B, the
    curves go into the same W&B run, on its axis `train/global_step`; `wandb="off"` leaves that. After training `callback.lens` is the
    closed lens: `callback.top(20)`, `callback.lens.run_dir`. Under GRPO and RLOO the texts that the model writes are read as they come:
    `callback.lens.rising(20)`.
    """

    def __init__(self, dictionaries: dict[str, Any], **options: Any) -> None:
        self.dictionaries, self.options = dictionaries, options
        self.lens: Watch | None = None
        self._rollouts: Rollouts | None = None
        self._read_next = 0  # step from which on the next texts are read
        self._open = False
        self._mean_over_tokens = True  # the loss

    def on_train_begin(self, args, state, control, model=None, optimizer=None, processing_class=None, train_dataloader=None, **kwargs):
        if self._open:  # an earlier train() ended in an exception
            self._close(RuntimeError)
        options = {"tokenizer": processing_class, "wandb": _wandb_of(args), "rows": train_dataloader, **self.options}
        observe, kind = observed(options.get("observe")) or ObserveSettings(), _trl_kind(args)
        rules = load_rules(as_list(options.get("rules", ())))
        if args.label_smoothing_factor > 0 and rules:
            raise ConfigError(
                "label_smoothing_factor: the trainer then takes the labels away before it calls the model, and rules would act on the "
                "questions as well; leave it at 0, or train without rules"
            )
        otherwise = kind is not None and kind not in _LIKELIHOOD
        if otherwise and any(rule.mode in ("rewrite", "auto") for rule in rules):
            raise ConfigError(
                f"rules of mode rewrite (or auto) change rows, which the loss of {kind.removesuffix('Config')} weighs; use route"
            )
        if kind in _WRITES and _scores_before(args, kind) and any(rule.mode in FORWARD for rule in rules):
            raise ConfigError(
                f"rules of mode {', '.join(FORWARD)} change activations while training, and {kind.removesuffix('Config')} compares with "
                "log-probabilities that it has taken without: use route, or under GRPO leave num_iterations and steps_per_generation at "
                "their defaults"
            )
        # dynamic fine-tuning weighs tokens by their probability: a mean over tokens, but not of -log p
        weighs_otherwise = (otherwise or getattr(args, "loss_type", None) == "dft") and "taught" in observe.estimators
        if weighs_otherwise:
            options["observe"] = observe.model_copy(update={"estimators": [name for name in observe.estimators if name != "taught"]})
        steps = state.max_steps if state.max_steps > 0 else None

        def make() -> Watch:
            lens = watch(model, optimizer, self.dictionaries, **options)
            lens.steps, lens.hooks.must_have_labels = steps, True
            return lens

        self.lens = taken_up(model, state.global_step, rules, make, training=state)
        self._open, self._mean_over_tokens = True, not otherwise
        atexit.register(self._at_exit)
        if weighs_otherwise and state.is_world_process_zero:
            why = "some are to become less likely" if otherwise else "each weighs as much as it is likely (dft)"
            reason = f"the loss of {kind.removesuffix('Config') if kind else 'this trainer'} is not the tokens' -log p: {why}"
            self.lens.recorder.event("not_read", step=state.global_step, estimator="taught", reason=reason)
        self._rollouts = Rollouts(model) if kind in _WRITES else None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self._open and self._mean_over_tokens:
            self.lens.balance(clipped=args.max_grad_norm if args.max_grad_norm > 0 else None)  # the trainer has clipped by now

    def on_step_end(self, args, state, control, **kwargs):
        if not self._open or self._rollouts is None:
            return
        batches = self._rollouts.take()
        if batches is not None:
            self.lens.read_generated(batches)
            self._read_next = state.global_step + self.lens.observe.drift_every
        elif self.lens.observe.drift_every and state.global_step + 1 >= self._read_next:
            self._rollouts.collecting = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self._open or not logs:
            return
        scalars = {_SCALARS[key]: float(value) for key, value in logs.items() if key in _SCALARS}
        if scalars and state.is_world_process_zero:
            self.lens.recorder.record({"step": state.global_step, "scalars": scalars})

    def on_epoch_end(self, args, state, control, **kwargs):
        """The last reading, of the last step's weights: at the end of training the best checkpoint's may stand in their place. Training
        ends after a step or, by an evaluation, after an epoch."""
        if self._open and args.load_best_model_at_end and control.should_training_stop:
            self.lens.finish()

    on_evaluate = on_save = on_epoch_end

    def on_train_end(self, args, state, control, **kwargs):
        self._close(None)

    def top(self, n: int = 20) -> Top:
        """The `n` features that the run taught most, with labels."""
        if self.lens is None:
            raise RuntimeError("GradLensCallback: no training has begun yet")
        return self.lens.top(n)

    def close(self) -> None:
        """Close the run of a training that ended in an exception, of which a trainer tells nobody; at the latest the program's end does."""
        self._close(RuntimeError)

    def _at_exit(self) -> None:
        self._close(getattr(sys, "last_type", RuntimeError))

    def _close(self, kind: type[BaseException] | None) -> None:
        if self._open:
            self._open = False
            atexit.unregister(self._at_exit)
            if self._rollouts is not None:
                self._rollouts.close()
            self.lens.__exit__(kind, None, None)


def _scores_before(args: Any, kind: str) -> bool:
    """Whether the trainer takes its old log-probabilities of a forward pass of their own, which is not of training."""
    every = getattr(args, "steps_per_generation", 1) * args.num_iterations
    return kind == "RLOOConfig" or args.gradient_accumulation_steps % every != 0 or getattr(args, "use_vllm", False)


def _trl_kind(args: Any) -> str | None:
    """The name of the TRL config that the trainer's arguments are, or are made from; None for transformers' own."""
    return next((kind.__name__ for kind in type(args).__mro__ if kind.__module__.startswith("trl.") and not kind.__name__[0] == "_"), None)


def _wandb_of(args: Any) -> str:
    """W&B as the trainer has it: its run is there before ours begins, and is joined."""
    if "wandb" not in (args.report_to or []):
        return "off"
    return "offline" if os.environ.get("WANDB_MODE") in ("offline", "dryrun") else "online"
