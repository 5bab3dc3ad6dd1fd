"""`GradLensCallback`: the lens inside transformers' `Trainer` (and TRL's trainers, which are built on it)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from gradlens.watching import Top, Watch, watch


class GradLensCallback(TrainerCallback):
    """`Trainer(..., callbacks=[GradLensCallback(dictionaries=..., rules=...)])`. Takes every keyword of `gradlens.watch`.

    After training `callback.lens` is the closed lens: `callback.top(20)`, `callback.lens.run_dir`.
    """

    def __init__(self, dictionaries: dict[str, Any], **options: Any) -> None:
        self.dictionaries, self.options = dictionaries, options
        self.lens: Watch | None = None
        self._open = False

    def on_train_begin(self, args, state, control, model=None, optimizer=None, processing_class=None, **kwargs):
        if self._open:  # an earlier train() ended in an exception
            self._close(RuntimeError)
        options = {"tokenizer": processing_class, **self.options}
        # accelerate's wrapper does not call the base class's constructor, so hooks go on the optimizer inside it
        self.lens = watch(model, getattr(optimizer, "optimizer", optimizer), self.dictionaries, **options)
        self.lens.step = self.lens.control.step = state.global_step
        self.lens.__enter__()
        self._open = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self._open or not logs:
            return
        names = {"loss": "train/loss", "learning_rate": "train/lr", "grad_norm": "train/grad_norm", "eval_loss": "eval/loss"}
        scalars = {names[key]: float(value) for key, value in logs.items() if key in names}
        if scalars and state.is_world_process_zero:
            self.lens.recorder.record({"step": state.global_step, "scalars": scalars})

    def on_train_end(self, args, state, control, **kwargs):
        self._close(None)

    def top(self, n: int = 20) -> Top:
        """The `n` features that the run taught most, with labels."""
        if self.lens is None:
            raise RuntimeError("GradLensCallback: no training has begun yet")
        return self.lens.top(n)

    def _close(self, kind: type[BaseException] | None) -> None:
        if self._open:
            self._open = False
            self.lens.__exit__(kind, None, None)
