"""The arm `bergson` of `gradlens bench overhead`: EleutherAI's bergson collects gradients while the same steps are trained.

Its `GradientCollectorCallback`, with its own defaults, is called as transformers' `Trainer` calls it. At every trained linear layer (under
LoRA the adapter's matrices; else every linear layer below the head) a forward hook and a full backward hook form the gradient of each
example, divide it by the root of Adam's second moments, project it at random to 16 x 16 and copy it to the host; after every
micro-batch it is written in half precision to an index on disk, one row an example.

That is what attribution of examples needs afterwards: which rows of training moved an answer. It knows no dictionary and says nothing
of features, so the arm compares the price of collecting gradients for attribution during training, not two ways to the same reading.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from gradlens.errors import ConfigError

MISSING = "not installed; pip install 'gradlens-lab[bergson]', in an environment of its own (docs/performance.md)"


def installed() -> bool:
    """Whether bergson is there. Raises `ConfigError` with the reason where it is but does not import."""
    if importlib.util.find_spec("bergson") is None:
        return False
    try:
        import bergson.huggingface  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"bergson is installed but does not import ({error}); mend it, or name the --arms without it") from error
    return True


class Collecting:
    """Context in which bergson collects the gradients of up to `examples` rows that `model` is trained on with `optimizer`.

    `set_rows` comes before every forward pass. `meter(work, *args)` runs what bergson does at its hooks and between the passes; not on a
    GPU, where it would record two events at each of hundreds of hooks: there the step as a whole tells.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, examples: int, meter: Callable[..., Any]) -> None:
        self.model, self.optimizer, self.examples, self.seen = model, optimizer, examples, 0
        self.meter = meter if next(model.parameters()).device.type != "cuda" else None
        self.stack = ExitStack()

    def __enter__(self) -> Collecting:
        from bergson.huggingface import GradientCollectorCallback

        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradlens-bergson-")))
            self.callback = callback = GradientCollectorCallback(self.folder)
            args, state = SimpleNamespace(**{"__gradient_collection_enabled__": True}), SimpleNamespace(epoch=0, global_step=0)
            callback.on_train_begin(args, state, None, model=self.model)
            stack.callback(callback.on_train_end, args, state, None)
            # only the size of the data is asked for
            callback.on_epoch_begin(args, state, None, train_dataloader=SimpleNamespace(dataset=range(self.examples)))
            written = partial(callback.on_substep_end, args, state, None)
            stepped = partial(callback.on_step_end, args, state, None, model=self.model, optimizer=self.optimizer)
            if self.meter is not None:
                collector = callback.collector
                collector.forward_hook, collector.backward_hook, written, stepped = (
                    partial(self.meter, work) for work in (collector.forward_hook, collector.backward_hook, written, stepped)
                )
            self.written, self.waiting = written, False
            stack.callback(self.optimizer.register_step_post_hook(partial(self._stepped, stepped)).remove)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def set_rows(self, row_ids: list[int]) -> None:
        """The next forward pass is of as many rows; they are numbered as they come, like those of one epoch."""
        if self.waiting:  # the micro-batch before, of the same step
            self.written()
        self.callback.batch_indices = torch.arange(self.seen, self.seen + len(row_ids))
        self.seen, self.waiting = self.seen + len(row_ids), True

    def _stepped(self, stepped: Callable[[], None], *_: Any) -> None:
        self.waiting = False
        stepped()
