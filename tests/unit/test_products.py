"""Products on a CPU: as exact as PyTorch's own, for any strides, shapes and precisions."""

import pytest
import torch

from gradlens.dictionaries import products
from gradlens.dictionaries.products import linear


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch):
    """As on a CPU where MKL is slow, whatever this one is."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)


def laid_out(W_FD, how):
    """The same values in another layout."""
    wide = torch.zeros(W_FD.shape[0] + 3, W_FD.shape[1] + 5)
    return {
        "rows": lambda: W_FD.contiguous(),
        "columns": lambda: W_FD.T.contiguous().T,
        "part of longer rows": lambda: wide[1 : 1 + len(W_FD), 2 : 2 + W_FD.shape[1]].copy_(W_FD),
        "part of longer columns": lambda: torch.zeros(W_FD.shape[1], W_FD.shape[0] + 7)[:, :-7].copy_(W_FD.T).T,
    }[how]()


@pytest.mark.parametrize("how", ["rows", "columns", "part of longer rows", "part of longer columns"])
@pytest.mark.parametrize("T, D, F", [(1, 13, 7), (32, 192, 64), (33, 193, 65), (100, 576, 300), (257, 700, 33)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_errs_no_more_than_pytorchs_and_one_rounding(how, T, D, F, biased):
    torch.manual_seed(0)
    x, W, b = torch.randn(T, D), laid_out(torch.randn(F, D), how), torch.randn(F) if biased else None
    truth = torch.nn.functional.linear(x.double(), W.double(), None if b is None else b.double())
    own = torch.nn.functional.linear(x, W, b)
    found = linear(x, W, b)
    assert found.shape == (T, F)
    magnitude = (x.abs() @ W.abs().T).max()
    assert (found - truth).abs().max() <= (own - truth).abs().max() + torch.finfo(torch.float32).eps * magnitude
    assert torch.equal(found, linear(x, W, b))


def test_weights_with_gaps_never_reach_the_library(monkeypatch):
    """It would be right, and take a thousand times as long."""
    seen = []

    class Watched:
        def __call__(self, x, W, *rest):
            seen.append(W)
            return real(x, W, *rest)

        def binary(self, x, out, W, *rest):
            seen.append(W)
            return real.binary(x, out, W, *rest)

    real = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", Watched())
    for how in ("rows", "columns", "part of longer rows", "part of longer columns"):
        linear(torch.randn(64, 500), laid_out(torch.randn(90, 500), how))
    assert len(seen) == 4 * 3 and all(W.is_contiguous() or W.T.is_contiguous() for W in seen)


def test_what_the_fast_form_cannot_do_is_left_to_pytorch():
    x, W = torch.randn(64, 40, requires_grad=True), torch.randn(30, 40)
    linear(x, W).sum().backward()
    torch.testing.assert_close(x.grad, W.sum(0).expand_as(x))
    with torch.no_grad():
        assert products._by_onednn(x, W)
        for other, weights in ((x.double(), W.double()), (x.bfloat16(), W.bfloat16()), (x[:0], W), (x, W[:0])):
            torch.testing.assert_close(linear(other, weights), other @ weights.T)


def test_one_token_that_is_not_finite_stays_alone():
    x, W = torch.randn(50, 300), torch.randn(20, 300)
    x[7, 250] = torch.nan
    assert linear(x, W).isnan().any(-1).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("cpu, faster", [("vendor_id\t: GenuineIntel\n", False), ("vendor_id\t: AuthenticAMD\n", True)])
def test_mkl_stays_where_it_is_the_faster_one(monkeypatch, tmp_path, cpu, faster):
    monkeypatch.undo()
    (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(products, "Path", lambda _: tmp_path / "cpuinfo")
    assert products._mkl_is_slow.__wrapped__() == (faster and torch.backends.mkl.is_available())
