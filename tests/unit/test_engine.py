"""Every implementation of the engine gives what the definitions say: the kernels too, interpreted where there is no GPU."""

import pytest
import torch
from test_attribution import KINDS, make

from gradlens.control import edits
from gradlens.dictionaries import engine
from gradlens.dictionaries.encoding import encode_active
from gradlens.dictionaries.engine import choose
from gradlens.errors import ConfigError
from gradlens.readings import attribution as A

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 21])
def test_kernels_equal_the_definitions_through_the_engine(kind, T):
    pytest.importorskip("triton", reason="Triton is not installed: the kernels are not tested")
    exact = make(kind)
    dictionary = exact.to(DEVICE, torch.float32)
    generator = torch.Generator().manual_seed(T)
    h, g = torch.randn(2, T, 13, generator=generator, dtype=torch.float64)
    low = [part.to(DEVICE, torch.float32) for part in (h, g)]
    idx, val = encode_active(dictionary, low[0], impl="triton", room=37)
    torch.testing.assert_close(encode_active(dictionary, low[0], impl="triton")[1].sum(1), val.sum(1), rtol=1e-5, atol=1e-5)
    scattered = torch.zeros(T, 37, device=DEVICE).scatter_add(1, idx, val)
    close = lambda a, b: torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=1e-5)  # noqa: E731
    close(scattered, exact.encode(h))
    assert ((val > 0) | (idx == 0)).all()
    for deterministic in (False, True):
        found = A.attribution(dictionary, *low, (idx, val), impl="triton", deterministic=deterministic)
        close(found, A.attribution_eager(exact, h, g))
    close(A.pair_dots(dictionary, low[1], idx, impl="triton"), A.pair_dots_eager(exact, g, idx.cpu()))
    close(A.energy(dictionary, low[1], impl="triton"), A.energy_eager(exact, g))
    Q = edits.orthonormal_basis(exact.unit_directions()[:4])
    close(edits.scale_along(low[1], Q.to(low[1]), 0.3, impl="triton"), edits.scale_along_eager(g, Q, 0.3))


def test_energy_by_kernels_takes_the_cheaper_form():
    pytest.importorskip("triton", reason="Triton is not installed: the kernels are not tested")
    exact = make("topk", D=4, F=50)
    for T in (3, 60):  # token by token, by second moments
        g = torch.randn(T, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(T))
        found = A.energy(exact.to(DEVICE, torch.float32), g.to(DEVICE, torch.float32), impl="triton")
        torch.testing.assert_close(found.cpu().double(), A.energy_eager(exact, g), rtol=1e-5, atol=1e-5)


def test_kernels_that_are_wrong_on_a_device_are_not_trusted(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed: the kernels are not tested")
    from gradlens.dictionaries import kernels

    engine._trusted.cache_clear()
    monkeypatch.setattr(kernels, "self_check", lambda device, dtype: "gated: off by 3.2")
    with pytest.warns(UserWarning, match="not used on cpu: gated: off by 3.2"):
        assert not engine._trusted(torch.device("cpu"), torch.float32)
    engine._trusted.cache_clear()
    monkeypatch.setattr(kernels, "self_check", lambda device, dtype: None)
    assert engine._trusted(torch.device("cpu"), torch.float32) and not engine._trusted(torch.device("cpu"), torch.float64)
    engine._trusted.cache_clear()


def test_without_triton_there_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install triton"):
        choose("triton", torch.zeros(1))
    assert choose("auto", torch.zeros(1)) == "torch"


def test_which_implementation_computes():
    x = torch.zeros(2, 3)
    assert choose("auto", x) == choose("torch", x) == "torch" and choose("eager", x) == "eager"
    with pytest.raises(ConfigError, match="cuda.*is not one of auto"):
        choose("cuda", x)
    for kind in KINDS:
        dictionary = make(kind)
        h, g = torch.randn(2, 9, 13, dtype=torch.float64)
        for estimator in (A.attribution, lambda d, h, g, impl: A.energy(d, g, impl)):
            torch.testing.assert_close(estimator(dictionary, h, g, impl="eager"), estimator(dictionary, h, g, impl="torch"))
