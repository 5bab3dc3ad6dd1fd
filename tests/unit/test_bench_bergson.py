"""The arm `bergson` of `gradlens bench overhead`: a stand-in for the library is called as transformers' Trainer would call it. The library
itself: tests/extras/test_bergson.py."""

import sys

import pytest
import torch
from torch import nn

from gradlens.bench.bergson import Collecting, installed
from gradlens.errors import ConfigError

STAND_IN = """
from types import SimpleNamespace

calls = []

class GradientCollectorCallback:
    def __init__(self, path):
        self.path, self.batch_indices = path, None

    def on_train_begin(self, args, state, control, *, model, **kwargs):
        assert hasattr(args, "__gradient_collection_enabled__")
        self.collector = SimpleNamespace(forward_hook=lambda: calls.append("forward"), backward_hook=lambda: calls.append("backward"))
        self.handle = model.register_forward_hook(lambda *_: self.collector.forward_hook())

    def on_epoch_begin(self, args, state, control, *, train_dataloader, **kwargs):
        calls.append(("index of", len(train_dataloader.dataset)))

    def on_substep_end(self, args, state, control, **kwargs):
        calls.append(("write", self.batch_indices.tolist()))

    def on_step_end(self, args, state, control, *, model, optimizer, **kwargs):
        assert optimizer.state  # the step has been taken
        calls.append(("step", self.batch_indices.tolist()))

    def on_train_end(self, args, state, control, **kwargs):
        self.handle.remove()
        calls.append("end")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder that `import bergson` finds first; what is in it now is a whole stand-in."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "bergson"}
    (tmp_path / "bergson").mkdir()
    (tmp_path / "bergson" / "__init__.py").touch()
    (tmp_path / "bergson" / "huggingface.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "bergson" / "huggingface.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "bergson"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_micro_batches_are_written_before_the_next_and_the_last_with_the_step(stand_in):
    assert installed()
    from bergson.huggingface import calls

    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    metered = []

    def meter(work, *args):
        metered.append(1)
        return work(*args)

    with Collecting(model, optimizer, 10, meter) as collecting:
        folder = collecting.folder
        assert folder.is_dir()
        for _ in range(2):
            for rows in ([7, 8], [9, 3, 4]):  # whatever the rows are called, they are numbered as they come
                collecting.set_rows(rows)
                model(torch.ones(len(rows), 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert calls == [
        ("index of", 10), "forward", ("write", [0, 1]), "forward", ("step", [2, 3, 4]),
        "forward", ("write", [5, 6]), "forward", ("step", [7, 8, 9]), "end",
    ]  # fmt: skip
    assert len(metered) == 8 and not folder.exists()
    optimizer.step()  # nobody listens any more
    assert calls[-1] == "end" and not model._forward_hooks


def test_a_library_that_does_not_import_is_an_error_not_a_missing_arm(stand_in):
    stand_in.write_text("import a_module_that_nobody_has")
    with pytest.raises(ConfigError, match="does not import.*a_module_that_nobody_has"):
        installed()
