"""Lens actors without Ray: what an actor makes of what the ranks send it."""

import copy
import gc
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_dictionary
from gradlens_services import lens
from gradlens_services.lens import NOT_READY, LensService, RemoteProjection, Task

from gradlens.config import ObserveSettings
from gradlens.dictionaries.formats import load_dictionary, save_dictionary
from gradlens.readings.projection import Projection, Tokens
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

    mine, remote = Lens(), RemoteProjection([], {}, {}, ObserveSettings(), Single(), lambda kind, **fields: None)
    remote.skip({"step": 1}, mine.emit)
    remote.close()
    gone = weakref.ref(mine)
    assert mine.step == 1
    del mine
    gc.collect()
    assert gone() is None


class Actor:
    """A lens actor that hangs until `answers`; a reference to an answer of its is `(actor, method, arguments)`."""

    answers = False

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *arguments: (self, name, arguments))


def test_an_actor_that_hangs_is_waited_for_once(monkeypatch):
    ray = pytest.importorskip("ray")
    reading = {"scalars": {f"{HOOK}/unexplained": 0.5}, "features": {}, "examples": [], "lessons": []}

    def get(reference, timeout=None):
        if not reference[0].answers:
            time.sleep(timeout)
            raise ray.exceptions.GetTimeoutError
        return {"result": reading, "totals": {HOOK: {}}}.get(reference[1])

    def wait(references, num_returns=1, timeout=0):
        ready = [reference for reference in references if reference[0].answers]
        return ready, [reference for reference in references if not reference[0].answers]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(lens, "ANSWER_SECONDS", 0.3)
    actor, told, handed_on = Actor(), [], []
    remote = RemoteProjection(
        [(actor, [HOOK])], {HOOK: "sae"}, {}, ObserveSettings(), Single(), lambda kind, **fields: told.append((kind, fields))
    )
    began = time.monotonic()
    for step in range(1, 41):
        remote.finish({"step": step, "scalars": {"train/loss": 1.0}}, Single(), handed_on.append)
    remote.flush(20)
    assert remote.totals() == {HOOK: {}}  # a checkpoint does not wait either
    assert time.monotonic() - began < 3  # 40 x 0.3 seconds where each step waits
    assert [record["step"] for record in handed_on] == list(range(1, 41))
    assert [kind for kind, _ in told] == ["service_lost"] and told[0][1]["hookpoints"] == [HOOK]
    actor.answers = True
    remote.finish({"step": 41, "scalars": {}}, Single(), handed_on.append)
    remote.close()
    assert f"{HOOK}/unexplained" in handed_on[-1]["scalars"]
    assert [(fields["from_step"], fields["to_step"], fields["count"]) for kind, fields in told if kind == "gap"] == [(1, 40, 40)]


class InThisProcess:
    """A lens actor whose process can be replaced; a reference to an answer of its is what it says, or the error."""

    def __init__(self, ray):
        self.service, self.error = LensService(), ray.exceptions.RayError

    def __getattr__(self, name):
        def remote(*arguments):
            try:
                return [copy.deepcopy(getattr(self.service, name)(*arguments))]
            except AttributeError:  # a new one that has not been told yet
                return [self.error("died")]

        return SimpleNamespace(remote=remote)


@pytest.mark.parametrize("resumed", [False, True])
def test_an_actor_that_dies_goes_on_with_the_totals_that_were_last_heard_of(task, monkeypatch, resumed):
    ray = pytest.importorskip("ray")

    def get(reference, timeout=None):
        if isinstance(reference[0], Exception):
            raise reference[0]
        return reference[0]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda references, num_returns=1, timeout=0: (references, []))
    actor, told, handed_on = InThisProcess(ray), [], []
    remote = RemoteProjection(
        [(actor, [HOOK])], dict(task.sources), {}, ObserveSettings(), Single(), lambda kind, **fields: told.append({"kind": kind, **fields})
    )
    whole = Projection({HOOK: load_dictionary(task.sources[HOOK])}, {}, ObserveSettings())
    if resumed:
        kept = {HOOK: {"push": torch.arange(80, dtype=torch.float64)}}
        remote.set_totals(kept), whole.set_totals(kept)
    died, dense, lost = (5, 3, (4, 5)) if not resumed else (5, 0, (1, 2, 3, 4, 5))
    for step in range(1, 9):
        if step == died:
            actor.service = LensService()
        if step == died + 1:  # while nobody has told it yet: a checkpoint has what was last heard of
            assert {name: part.keys() for name, part in remote.totals().items()}[HOOK] >= {"push"}
        remote.add(HOOK, tokens(step))
        remote.finish({"step": step, "scalars": {}, **({"dense": {HOOK: {}}} if step == dense else {})}, Single(), handed_on.append)
        remote.flush(20)
        if step not in lost:
            whole.add(HOOK, tokens(step))
            whole.take(1)
    assert torch.allclose(remote.totals()[HOOK]["push"], whole.totals()[HOOK]["push"])
    remote.close()
    (gap,) = [event for event in told if event["kind"] == "gap"]
    assert (gap["from_step"], gap["to_step"], gap["count"]) == (5, 5, 1)
    assert gap["reason"].endswith(f"what is summed over the run lacks {'steps 1 to 4' if resumed else 'step 4'} as well")


def test_readings_that_nobody_waited_for_are_not_kept(task):
    service = LensService()
    service.begin(task)
    for step in range(5):
        for rank in range(3):
            service.observe("session", step, rank, [(HOOK, tokens(rank))])
    assert service.result("session", 4, dense=False)["features"]
    assert service._results == {}
