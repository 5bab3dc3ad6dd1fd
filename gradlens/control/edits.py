"""Edits along concepts: pure functions. A gain multiplies: 0 removes, 1 changes nothing, >1 amplifies, <0 reverses.

Shape suffixes: B rows, S positions, D d_model, N directions, r rank of their span.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from gradlens.control.rules import QUORUM, WINDOW
from gradlens.dictionaries.engine import Impl, choose


def orthonormal_basis(directions_ND: Tensor) -> Tensor:
    """Orthonormal basis `Q[D, r]` of the span of `directions[N, D]`; directions that depend on others add nothing.

    Directions are not orthogonal: summing their single projections would remove shared parts twice.
    """
    rows = directions_ND.double()
    rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    _, singular, Vh = torch.linalg.svd(rows, full_matrices=False)
    rank = int((singular > 1e-6 * singular.max().clamp_min(1e-30)).sum())
    return Vh[:rank].T.contiguous().to(directions_ND.dtype)


def scale_along(x: Tensor, Q_Dr: Tensor, gain: float, impl: Impl = "auto") -> Tensor:
    """`x[..., D]` with its part in the span of Q multiplied by `gain`: x M with M = I + (gain - 1) Q Qᵀ. Differentiable in x."""
    which = choose(impl, x)
    if which == "eager":
        return scale_along_eager(x, Q_Dr, gain)
    if which == "triton":
        from gradlens.dictionaries import kernels

        if Q_Dr.shape[1] <= kernels.MAX_RANK:
            return kernels.scale_along(x, Q_Dr, gain)
    work = torch.promote_types(x.dtype, Q_Dr.dtype)  # a model in half precision: what is taken out is found in the basis's own
    Q_Dr = Q_Dr.to(work)
    return x + ((gain - 1) * ((x.to(work) @ Q_Dr) @ Q_Dr.T)).to(x.dtype)


def scale_along_eager(x: Tensor, Q_Dr: Tensor, gain: float) -> Tensor:
    """The same through the full matrix M = I + Q(A - I)Qᵀ, A = gain · I."""
    eye_D = torch.eye(Q_Dr.shape[0], dtype=x.dtype, device=x.device)
    A = gain * torch.eye(Q_Dr.shape[1], dtype=x.dtype, device=x.device)
    return x @ (eye_D + Q_Dr @ (A - torch.eye(len(A), dtype=x.dtype, device=x.device)) @ Q_Dr.T)


Texts = tuple[Tensor, Tensor]  # of each position of a row that holds several texts the first and the last position of its own, [B, S]


def expresses(
    active_BS: Tensor, counted_BS: Tensor, tokens: str = "around", window: int = WINDOW, quorum: float = QUORUM, texts: Texts | None = None
) -> Tensor:
    """Positions whose loss a route rule gates, `bool[B, S]`; position p's loss is that of predicting token p + 1.

    `own`: the concept is active at p; `next`: at p + 1; `own_or_next`: at either. `around`: at no less than `quorum` of the counted tokens
    within `window` of p + 1. One feature that fires by chance gates nothing there, and one word that no feature knows is gated with its
    neighbours. `row`: at no less than `quorum` of the row's counted tokens, for the whole row. `texts`: where rows hold several, `around` a
    token is of its own text.
    """
    active_BS = active_BS & counted_BS
    following = {"own_or_next": active_BS | _shifted(active_BS), "own": active_BS, "next": _shifted(active_BS)}
    if tokens in following:
        return following[tokens]
    if tokens == "row":
        sums_B = [mask.sum(-1).float() for mask in (active_BS, counted_BS)]
        return ((sums_B[1] > 0) & (sums_B[0] >= (quorum - 1e-6) * sums_B[1]))[:, None].expand_as(active_BS)
    sums = [_around(mask.float(), window, texts) for mask in (active_BS, counted_BS)]
    around_BS = (sums[1] > 0) & (sums[0] >= (quorum - 1e-6) * sums[1])
    return _shifted(around_BS)


def gate_strength(
    activity_BS: Tensor,
    counted_BS: Tensor,
    tokens: str = "around",
    window: int = WINDOW,
    quorum: float = QUORUM,
    texts: Texts | None = None,
) -> Tensor:
    """How much of a position's loss a soft gate takes, `[B, S]` in 0 to 1: `expresses` without its step.

    `activity[B, S]` in 0 to 1: how much each token shows of the concept. `around`, `row`: the mean activity there (counted tokens only)
    over `quorum`, at most 1; the others: the activity of the token (or the larger of both) itself.
    """
    activity_BS = activity_BS * counted_BS
    following = {"own_or_next": torch.maximum(activity_BS, _shifted(activity_BS)), "own": activity_BS, "next": _shifted(activity_BS)}
    if tokens in following:
        return following[tokens]
    if tokens == "row":
        mean_B1 = activity_BS.sum(-1, keepdim=True) / counted_BS.sum(-1, keepdim=True).clamp_min(1)
        return (mean_B1 / quorum).clamp(max=1).expand_as(activity_BS)
    kept_BS = counted_BS.to(activity_BS.dtype)
    sums = [_around(x, window, texts) for x in (activity_BS, kept_BS)]
    return _shifted((sums[0] / sums[1].clamp_min(1e-9) / quorum).clamp(max=1))


def _around(x_BS: Tensor, window: int, texts: Texts | None) -> Tensor:
    """To one factor the sum over the positions within `window` of each, in its own text."""
    if texts is None:
        return avg_pool1d(x_BS[:, None], 2 * window + 1, stride=1, padding=window)[:, 0]
    at_S = torch.arange(x_BS.shape[1], device=x_BS.device)
    first_BS, last_BS = torch.maximum(texts[0], at_S - window), torch.minimum(texts[1], at_S + window)
    total_BS = torch.nn.functional.pad(x_BS.double().cumsum(-1), (1, 0))
    return (total_BS.gather(1, last_BS + 1) - total_BS.gather(1, first_BS)).to(x_BS.dtype)


def texts_of(begins_BS: Tensor) -> Texts:
    """First and last position of the text of each position, from where texts begin, `bool[B, S]`."""
    S = begins_BS.shape[1]
    at_BS = torch.arange(S, device=begins_BS.device).expand_as(begins_BS)
    first_BS = torch.where(begins_BS, at_BS, 0).cummax(-1).values
    next_BS = torch.nn.functional.pad(torch.where(begins_BS, at_BS, S)[:, 1:], (0, 1), value=S)
    return first_BS, next_BS.flip(-1).cummin(-1).values.flip(-1) - 1


def within_budget(gated_BS: Tensor, most: Tensor) -> Tensor:
    """At most `most` (a number, as a tensor) of the gated positions, `bool[B, S]`, evenly spread over them in reading order."""
    number_N = gated_BS.flatten().cumsum(0).double()  # of each gated position, from 1
    share = (most.double() / number_N[-1].clamp_min(1)).clamp(max=1)
    return gated_BS & ((number_N * share).floor() > ((number_N - 1) * share).floor()).view_as(gated_BS)


def _shifted(mask_BS: Tensor) -> Tensor:
    """The mask of p + 1 at p."""
    return torch.cat([mask_BS[:, 1:], torch.zeros_like(mask_BS[:, :1])], dim=1)
