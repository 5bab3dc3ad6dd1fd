"""Lens actors without Ray: what an actor makes of what the ranks send it."""

import gc
import weakref

import pytest
import torch
from conftest import tiny_dictionary
from gradlens_services.lens import NOT_READY, LensService, RemoteProjection, Task

from gradlens.config import ObserveSettings
from gradlens.formats import save_dictionary
from gradlens.projection import Projection, Tokens
from gradlens.world import Single

HOOK = "layers.1"


def tokens(seed: int, T: int = 40) -> Tokens:
    """Gradients of very different size, so that the order of a sum shows in its last bits."""
    generator = torch.Generator().manual_seed(seed)
    h, g = torch.randn(2, T, 32, generator=generator)
    size = torch.logspace(-6, 6, T)[torch.randperm(T, generator=generator), None]
    rows = torch.zeros(T, dtype=torch.int64)
    return Tokens(h, g * size, torch.ones(T, dtype=torch.bool), rows, torch.arange(T), 1)


@pytest.fixture
def task(tmp_path) -> Task:
    save_dictionary(tiny_dictionary(), tmp_path / "sae")
    return Task("session", {HOOK: str(tmp_path / "sae")}, {}, ObserveSettings(), 3)


def test_readings_do_not_depend_on_which_rank_comes_first(task):
    found = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        service = LensService()
        service.begin(task)
        for rank in order:
            assert service.result("session", 0, dense=False) == NOT_READY
            service.observe("session", 0, rank, [(HOOK, tokens(rank))])
        found.append(service.result("session", 0, dense=True))
    for other in found[1:]:
        assert other["scalars"] == found[0]["scalars"]
        assert all(torch.equal(other["totals"][HOOK][key], total) for key, total in found[0]["totals"][HOOK].items())


EVERY = ["taught", "push", "attribution", "energy"]


def test_totals_of_a_checkpoint_that_lack_something_go_on_from_zero():
    projection = Projection({HOOK: tiny_dictionary(), "layers.2": tiny_dictionary(1)}, {}, ObserveSettings(estimators=EVERY))
    kept = torch.arange(80, dtype=torch.float64)
    projection.set_totals({HOOK: {"push": kept, "no longer computed": kept}})
    projection.add(HOOK, tokens(0))
    step = projection.take(1)
    assert step["features"].keys() == {HOOK, "layers.2"}
    totals = projection.totals()
    assert set(totals[HOOK]) == set(EVERY)
    fresh = Projection({HOOK: tiny_dictionary()}, {}, ObserveSettings(estimators=EVERY))
    fresh.add(HOOK, tokens(0))
    fresh.take(1)
    assert torch.allclose(totals[HOOK]["push"], kept + fresh.totals()[HOOK]["push"])
    assert torch.equal(totals[HOOK]["energy"], fresh.totals()[HOOK]["energy"])


def test_a_run_that_is_over_is_not_held_by_the_thread_that_recorded_it():
    class Lens:
        def emit(self, record):
            self.step = record["step"]

    lens, remote = Lens(), RemoteProjection([], {}, {}, ObserveSettings(), Single(), lambda kind, **fields: None)
    remote.skip({"step": 1}, lens.emit)
    remote.close()
    gone = weakref.ref(lens)
    assert lens.step == 1
    del lens
    gc.collect()
    assert gone() is None
