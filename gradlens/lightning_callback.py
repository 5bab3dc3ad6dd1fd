"""`GradLensLightning`: the lens inside Lightning's `Trainer`. Needs `lightning` (or `pytorch_lightning`) installed."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from gradlens.config import WandbSettings
from gradlens.control.rules import load_rules
from gradlens.errors import ConfigError
from gradlens.training.taken_up import taken_up
from gradlens.watching import Top, Watch, as_list, watch

try:
    if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:  # the older name of the same package, as the program uses it
        from pytorch_lightning import Callback
    else:
        from lightning.pytorch import Callback
except ImportError as error:
    raise ConfigError(f"GradLensLightning needs Lightning: pip install 'gradlens-lab[lightning]' ({error})") from None


class GradLensLightning(Callback):
    """`Trainer(..., callbacks=[GradLensLightning(dictionaries=..., tokenizer=...)])`. Takes every keyword of `gradlens.watch`.

    `model`: the attribute of the LightningModule that holds the Hugging Face model; not needed where there is one only.
    A W&B run of Lightning's logger is joined on its axis `trainer/global_step`. After training: `callback.top(20)`,
    `callback.lens.run_dir`.
    """

    def __init__(self, dictionaries: dict[str, Any], *, model: str | None = None, **options: Any) -> None:
        self.dictionaries, self.model, self.options = dictionaries, model, options
        self.lens: Watch | None = None
        self._open = False
        self._loss, self._step = 0.0, 0

    def on_train_start(self, trainer, pl_module) -> None:
        if len(trainer.optimizers) != 1:
            raise ConfigError(f"GradLensLightning: the module has {len(trainer.optimizers)} optimizers, expected one")
        rows = trainer.train_dataloader if isinstance(trainer.train_dataloader, DataLoader) else None  # it may be several
        options = {"scaler": getattr(trainer.precision_plugin, "scaler", None), "rows": rows, **self.options}
        if "wandb" not in options and any(type(logger).__name__ == "WandbLogger" for logger in trainer.loggers):
            options["wandb"] = WandbSettings(mode="online", step_key="trainer/global_step")
        model, self._step = _language_model(pl_module, self.model), trainer.global_step

        def make() -> Watch:
            lens = watch(model, trainer.optimizers[0], self.dictionaries, **options)
            lens.steps = trainer.max_steps if trainer.max_steps > 0 else None
            return lens

        self.lens = taken_up(model, trainer.global_step, load_rules(as_list(options.get("rules", ()))), make)
        self._open = True

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if self._open and pl_module.automatic_optimization:
            self.lens.balance()  # Lightning clips after this; who optimizes by hand has clipped already

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._loss = self._loss + loss.detach()  # Lightning divides it by the micro-batches of a step
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if loss is not None and self._step % trainer.log_every_n_steps == 0 and trainer.is_global_zero:
            scalars = {"train/loss": float(self._loss), "train/lr": float(trainer.optimizers[0].param_groups[0]["lr"])}
            self.lens.recorder.record({"step": self._step, "scalars": scalars})
        self._loss = 0.0

    def on_train_end(self, trainer, pl_module) -> None:
        self._close(None)

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._close(type(exception))

    def top(self, n: int = 20) -> Top:
        """The `n` features that the run taught most, with labels."""
        if self.lens is None:
            raise RuntimeError("GradLensLightning: no training has begun yet")
        return self.lens.top(n)

    def _close(self, kind: type[BaseException] | None) -> None:
        if self._open:
            self._open = False
            self.lens.__exit__(kind, None, None)


def _language_model(module: nn.Module, name: str | None) -> nn.Module:
    if name is not None:
        if not isinstance(getattr(module, name, None), nn.Module):
            raise ConfigError(f"GradLensLightning(model={name!r}): {type(module).__name__} has no module of that name")
        return getattr(module, name)
    found = {name: child for name, child in module.named_children() if hasattr(child, "config") and hasattr(child, "get_output_embeddings")}
    if len(found) != 1:
        raise ConfigError(
            f"GradLensLightning: {type(module).__name__} holds {len(found)} language models ({', '.join(found) or 'none'}), expected one; "
            "name the attribute that holds it: GradLensLightning(..., model='NAME')"
        )
    return next(iter(found.values()))
