"""On a CUDA device: the readings of the CPU, no synchronisation in hooks, a whole run. Skipped, visibly, where there is none."""

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from test_attribution import KINDS, make
from tiny_job import tiny_config, write_inputs

from gradlens.config import ObserveSettings
from gradlens.dictionaries import engine
from gradlens.dictionaries.precision import kept
from gradlens.lens import Lens
from gradlens.readings import attribution
from gradlens.readings import projection as projection_module
from gradlens.readings.projection import Projection, Tokens
from gradlens.recording.recorder import MemoryRecorder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the GPU path is not tested here")
HOOK = "layers.1"
ALL = ["taught", "push", "attribution", "energy", "unexplained", "activation"]


def tokens(T: int = 300, width: int = 32) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    h, g = torch.randn(2, T, width, generator=generator)
    row, counted = torch.arange(T) // 75, torch.rand(T, generator=generator) < 0.9
    return Tokens(
        h, g * counted[:, None], counted, row, torch.arange(T) % 75, 4, (0, 1, 2, 3), torch.rand(T, generator=generator) * counted
    )


def projection_on(device: str, kind: str, **observe: float | str) -> Projection:
    dictionary = kept(make(kind, D=32, F=80), observe.get("precision", "float32"), torch.device(device), torch.float32)
    members = {("some", HOOK): [1, 2], ("many", HOOK): list(range(70))}
    return Projection({HOOK: dictionary}, members, ObserveSettings(estimators=ALL, **observe))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernels_are_right_here(dtype):  # else what follows would be read by PyTorch, and nobody would know
    kernels = pytest.importorskip("gradlens.dictionaries.kernels", reason="Triton is not installed: the kernels are not tested")
    assert kernels.self_check("cuda", dtype) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_readings_are_those_of_the_cpu(kind, monkeypatch):
    monkeypatch.setattr(projection_module, "EXPLAINED_TOKENS", 10**6)  # each device draws tokens of its own
    found = {}
    for device in ("cpu", "cuda"):
        projection = projection_on(device, kind)
        projection.add(HOOK, tokens().map(lambda part: part.to(device)))  # noqa: B023
        found[device] = projection.take(1), projection.totals()[HOOK]
    for key, total in found["cpu"][1].items():
        torch.testing.assert_close(found["cuda"][1][key], total, rtol=1e-4, atol=1e-4, msg=key)
    scalars = [found[device][0]["scalars"] for device in found]
    assert scalars[1] == pytest.approx(scalars[0], rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gives_the_readings_of_its_rounded_matrices(kind, monkeypatch):
    monkeypatch.setattr(projection_module, "EXPLAINED_TOKENS", 10**6)
    found, halves = {}, tokens().map(lambda part: part.bfloat16().float() if part.is_floating_point() else part)  # as such a model has them
    for device in ("cpu", "cuda"):
        projection = projection_on(device, kind, precision="bfloat16")
        projection.add(HOOK, halves.map(lambda part: part.to(device)))  # noqa: B023
        projection.take(1)
        found[device] = projection.totals()[HOOK]
    for key, total in found["cpu"].items():
        off = (found["cuda"][key].cpu() - total).norm() / total.norm()
        assert off < 1e-3, (key, off)  # a feature at its threshold can fall on either side


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "batchtopk"])  # without a threshold the batch is asked
@pytest.mark.parametrize(
    "share, impl, precision",
    [(1.0, "triton", "float32"), (0.25, "triton", "float32"), (1.0, "torch", "float32"), (1.0, "triton", "bfloat16")],
)
def test_nothing_in_a_hook_makes_the_host_wait(kind, share, impl, precision, monkeypatch):
    if impl == "torch":
        monkeypatch.setattr(engine, "_trusted", lambda device, dtype: False)
    if share < 1:
        monkeypatch.setattr(attribution, "GRAM", 0)  # as of a large dictionary: products of rows are formed, of a few tokens
    projection = projection_on("cuda", kind, token_share=share, precision=precision)
    given = tokens().map(lambda part: part.to("cuda"))
    projection.add(HOOK, given)  # kernels are compiled, norms and products of rows are made
    projection.take(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        projection.add(HOOK, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_records_of_a_loop_are_whole_and_in_order():
    recorder, model = MemoryRecorder(), tiny_model().cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {key: value.cuda() for key, value in tiny_batch(0).items()}
    with Lens(model, optimizer, {HOOK: tiny_dictionary()}, recorder=recorder, probe=[batch], observe=ObserveSettings(drift_every=3)):
        for _ in range(10):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    steps = [record["step"] for record in recorder.records]
    assert steps == sorted(steps) and set(range(1, 11)) <= set(steps)
    assert {record["step"] for record in recorder.records if record.get("features", {}).get(HOOK)} == set(range(1, 11))


def test_a_whole_job_runs_on_the_device(tmp_path):
    pytest.importorskip("ray")
    from gradlens_services.job import run_job

    assert run_job(tiny_config(write_inputs(tmp_path), train__device="cuda"))["status"] == "done"
