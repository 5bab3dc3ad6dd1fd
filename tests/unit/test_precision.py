"""In which precision dictionaries are kept and multiplied: what `observe.precision` means where. The kernels' part is in test_kernels."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model

from gradlens import precision
from gradlens.config import ObserveSettings
from gradlens.lens import Lens
from gradlens.recorder import MemoryRecorder

HOOK = "layers.1"


def test_auto_is_the_models_half_precision_on_an_accelerator_and_float32_elsewhere():
    here, there = tiny_model(), tiny_model().to("meta")  # stands in for a GPU
    assert precision.chosen("auto", here.bfloat16()) == "float32"
    assert precision.chosen("auto", there) == "float32"
    assert precision.chosen("auto", there.bfloat16()) == "bfloat16"
    assert precision.chosen("auto", there.half()) == "float16"
    assert precision.chosen("float32", there) == "float32" and precision.chosen("bfloat16", here) == "bfloat16"
    for mixed, expected in (("bf16", "bfloat16"), ("fp16", "float16"), ("no", "float32")):  # accelerate's wrapper of an optimizer
        optimizer = SimpleNamespace(accelerator_state=SimpleNamespace(mixed_precision=mixed))
        assert precision.chosen("auto", tiny_model().to("meta"), optimizer) == expected


def test_a_loop_with_autocast_is_told_that_readings_could_be_cheaper(monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    assert "set observe.precision to bfloat16" in precision.needless("float32", torch.device("cuda"))
    assert precision.needless("bfloat16", torch.device("cuda")) is None and precision.needless("float32", torch.device("cpu")) is None
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    assert precision.needless("float32", torch.device("cuda")) is None


def test_a_dictionary_kept_in_half_precision_reads_what_it_read():
    losses, readings = {}, {}
    for setting in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model, recorder = tiny_model().train(), MemoryRecorder()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        observe = ObserveSettings(precision=setting, estimators=["push", "attribution", "taught", "energy"])
        with Lens(model, optimizer, {HOOK: tiny_dictionary()}, recorder=recorder, probe=[tiny_batch(1)], observe=observe) as lens:
            assert lens.dictionaries[HOOK].W_enc.dtype == getattr(torch, setting)
            assert lens.dictionaries[HOOK].b_enc.dtype == torch.float32
            losses[setting] = []
            for step in range(3):
                loss = model(**tiny_batch(step)).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses[setting].append(loss.item())
            readings[setting] = lens.projector.totals()[HOOK]
    assert losses["float32"] == losses["bfloat16"]  # reading changes nothing
    for key, total in readings["float32"].items():
        off = (readings["bfloat16"][key] - total).norm() / total.norm()
        # where a feature begins to fire, it can fall on either side
        assert 0 < off < (0.1 if key in ("attribution", "taught") else 0.01), (key, off)
    with pytest.raises(ValueError):
        ObserveSettings(precision="int8")
