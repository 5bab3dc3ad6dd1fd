"""What differs on an accelerator, without one: what is looked at for a rule, how much is made, how many operations are started."""

from collections import Counter

import pytest
import torch
from conftest import tiny_dictionary, tiny_model  # fmt: skip
from test_lens import HOOK, KINDS, route, train

from gradlens import hooks
from gradlens.bench.peak_memory import PeakMemory
from gradlens.config import ObserveSettings
from gradlens.control.rules import Policy
from gradlens.dictionaries import engine, kernels, kernels_encode
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import by_feature, encode_active, encode_some
from gradlens.readings import projection
from gradlens.readings.projection import Projection, Tokens

SEPARATE = [kind for kind in KINDS if kind != "topk"]


@pytest.mark.parametrize("kind", SEPARATE)
def test_some_features_alone_are_what_they_are_among_all(kind):
    dictionary, x, ids = tiny_dictionary(activation=kind, **KINDS[kind]), torch.randn(40, 32), torch.tensor([3, 70, 5])
    idx, val = encode_some(dictionary, x, ids)
    torch.testing.assert_close(val, dictionary.encode(x)[:, ids])
    assert by_feature(dictionary) and (val > 0).any() and idx.equal(ids.expand(40, -1))
    x[4, 0], x[5, 0] = torch.nan, torch.inf
    assert encode_some(dictionary, x, ids)[1][4:6].eq(0).all()  # as of `encode_active`: such a token shows nothing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimators", [[], ["push"], ["push", "taught"]])
def test_a_rule_that_nobody_reads_along_with_looks_at_its_own_features(kind, estimators, monkeypatch):
    dictionary, asked, losses = tiny_dictionary(activation=kind, **KINDS[kind]), Counter(), {}

    def counting(*args, **options):
        asked["all"] += 1
        return encode_active(*args, **options)

    monkeypatch.setattr(hooks, "encode_active", counting)
    for where in ("elsewhere", "cpu"):
        asked.clear()
        monkeypatch.setattr(hooks, "ALONE", (where,))
        model = tiny_model()
        observe = ObserveSettings(estimators=estimators, drift_every=0, update_every=0)
        policy = Policy(version=1, rules=(route(gain=0.0, tokens="own"),))
        train(model, lens_args={"dictionaries": {HOOK: dictionary}, "policy": policy, "observe": observe})
        losses[where] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        alone = where == "cpu" and kind != "topk" and "taught" not in estimators
        assert bool(asked["all"]) is not alone
    torch.testing.assert_close(losses["cpu"], losses["elsewhere"], rtol=1e-4, atol=1e-5)


@pytest.fixture
def launched(monkeypatch):
    """Kernels that are counted in place of being started."""
    counts: Counter = Counter()
    for module in (kernels, kernels_encode):
        monkeypatch.setattr(module, "launch", lambda kernel, grid, *args, **options: counts.update([getattr(kernel, "fn", kernel)]))
    monkeypatch.setattr(engine, "choose", lambda impl, x: "triton")
    for name in ("readings.attribution", "dictionaries.encoding", "dictionaries.pair_sums", "dictionaries.precision"):
        monkeypatch.setattr(f"gradlens.{name}.choose", lambda impl, x: "triton")
    monkeypatch.setattr(Projection, "_generator", lambda self, device, step: None)
    return counts


def on_nothing(D: int, F: int, T: int) -> tuple[Dictionary, Tokens]:
    make = lambda *shape, dtype=torch.float32: torch.empty(*shape, dtype=dtype, device="meta")  # noqa: E731
    half, level = torch.bfloat16, make(F)
    dictionary = Dictionary(make(D, F, dtype=half), make(F), make(F, D, dtype=half), make(D), activation="jumprelu", threshold=level)
    dictionary.__dict__["norms"], dictionary.__dict__["folded_bias"] = make(F), make(F)
    h, g = make(T, D, dtype=half), make(T, D, dtype=half)
    row = make(T, dtype=torch.int64)
    return dictionary, Tokens(h, g, make(T, dtype=torch.bool), row, row, 8, tuple(range(8)), make(T))


@pytest.mark.parametrize("estimators", [["push"], ["push", "energy"], ["push", "taught", "attribution", "unexplained"]])
def test_a_micro_batch_needs_less_than_a_copy_of_its_tokens(estimators, launched):
    dictionary, tokens = on_nothing(512, 16_384, 65_536)  # a token's vector in half precision: 64 MB, in float32 128
    if "taught" in estimators:
        dictionary, tokens = on_nothing(2304, 65_536, 8192)
    made = Projection({HOOK: dictionary}, {}, ObserveSettings(estimators=estimators, precision="bfloat16"))
    with PeakMemory() as memory:
        made.add(HOOK, tokens)
    assert memory.peak < 64e6, f"{memory.peak / 1e6:.0f} MB"


def test_all_readings_of_a_step_are_some_hundreds_of_operations(launched):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operations(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += not function.is_view and not str(function).startswith(("aten.empty", "aten.new_empty", "aten._unsafe_view"))
            return function(*args, **(kwargs or {}))

    dictionary, tokens = on_nothing(2304, 65_536, 8192)
    estimators = ["push", "taught", "attribution", "energy", "unexplained"]
    made = Projection({HOOK: dictionary}, {}, ObserveSettings(estimators=estimators, precision="bfloat16"))
    with Operations() as operations:
        made.add(HOOK, tokens)
        made._contents(1)
    assert operations.count + launched.total() < 400  # at some five microseconds each
    assert projection.EXPLAINED_TOKENS == 64
