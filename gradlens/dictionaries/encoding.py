"""Active pairs: which features fire at which token. Streams over blocks of tokens and features, so that nothing of size [T, F] is made.

Shape suffixes: T tokens, D d_model, F d_sae, K active features per token, P active pairs in a row.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.engine import Impl, choose
from gradlens.dictionaries.products import linear

TILE = 2**21  # activations made at a time: 8 MB in float32, about what a core's cache holds
TOKENS = 256  # of a tile
CHUNK = 1024  # tokens whose pairs `health` keeps at a time
GROUP = 32  # features whose maximum is looked at before they are
ROOM = 256  # pairs kept of a token in a hook on an accelerator


def encode_active(
    dictionary: Dictionary, x_TD: Tensor, impl: Impl = "auto", room: int | None = None, bad_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Active pairs `(idx[T, K], val[T, K])`: feature ids (int64) and activations, padded with id 0 and value 0, in no particular order.

    Equal to `Dictionary.encode`, scattered to pairs; costs 2TDF. K is k for topk, else the largest number of active features of any token.
    To count them an accelerator makes the host wait; `room`, which the CPU does not need, avoids that: at most so many pairs of a token are
    kept, by PyTorch the largest, by the kernels any (see `full`). A token that is not finite has NaN as its only value. `bad_T`: which are
    not, where that is known; it costs several passes over x.
    """
    T = x_TD.shape[0]
    which = choose(impl, x_TD)
    if T == 0:
        return x_TD.new_zeros((0, 1), dtype=torch.long), x_TD.new_zeros((0, 1))
    bad_T1 = ~x_TD.isfinite().all(-1, keepdim=True) if bad_T is None else bad_T[:, None]
    k = dictionary.k if dictionary.activation == "topk" else room if which == "triton" or x_TD.is_cuda else None
    together = dictionary.activation == "batchtopk" and dictionary.threshold is None
    # gated, with its two thresholds, and groupmax are left to the blocks
    by_kernel = which == "triton" and not together and dictionary.activation not in ("gated", "groupmax")
    if not by_kernel:  # the kernels keep every token by itself; else a bad one takes the places of others where a batch chooses together
        x_TD = x_TD.masked_fill(bad_T1, 0)
    if which == "eager":
        idx_TK, val_TK = encode_active_eager(dictionary, x_TD)
    elif together:
        idx_TK, val_TK = _batch_topk(dictionary, x_TD)
    elif by_kernel:
        idx_TK, val_TK = _by_kernel(dictionary, x_TD, k and min(k, dictionary.d_sae))
    else:
        by_token = _group_maxima if dictionary.activation == "groupmax" else _above if k is None else _largest
        parts = [by_token(dictionary, x, k and min(k, dictionary.d_sae)) for x in x_TD.chunk(math.ceil(T / TOKENS))]
        K = max(val.shape[1] for _, val in parts)
        pad = torch.nn.functional.pad
        idx_TK, val_TK = (torch.cat([pad(part[side], (0, K - part[side].shape[1])) for part in parts]) for side in (0, 1))
    val_TK.masked_fill_(bad_T1 | ~(val_TK > 0), 0)
    idx_TK.masked_fill_(val_TK == 0, 0)
    if dictionary.act_scale is not None and which != "eager":
        val_TK = val_TK * dictionary.act_scale[idx_TK].to(val_TK.dtype)
    val_TK[:, :1].masked_fill_(bad_T1, torch.nan)
    return idx_TK, val_TK


def encode_active_eager(dictionary: Dictionary, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Active pairs by their definition, with the whole [T, F]."""
    acts_TF = dictionary.encode(x_TD)
    val_TK, idx_TK = acts_TF.topk(max(1, int((acts_TF > 0).sum(-1).max())), dim=-1)
    return idx_TK, val_TK


def by_feature(dictionary: Dictionary) -> bool:
    """Whether a feature's activation does not depend on the other features'."""
    return dictionary.activation in ("relu", "jumprelu", "gated") or (
        dictionary.activation == "batchtopk" and dictionary.threshold is not None
    )


def encode_some(dictionary: Dictionary, x_TD: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Of `encode_active` the pairs of some features, `(idx[T, N], val[T, N])`, where they are told `by_feature`; costs 2TDN."""
    parts, step = [], max(1, 2 * TILE // max(x_TD.shape[1], 1))
    for x in x_TD.split(step):  # what is made in the precision that is computed in stays small
        pre = dictionary.preactivations(x.to(dictionary.work_dtype), ids_N)
        if dictionary.activation == "gated":
            on = pre + dictionary.b_gate[ids_N] > 0
            val = (pre * dictionary.r_mag[ids_N].exp() + dictionary.b_mag[ids_N]).relu() * on
        else:
            val = pre.relu() if dictionary.threshold is None else pre.relu() * (pre > dictionary.threshold[ids_N])
        parts.append(val if dictionary.act_scale is None else val * dictionary.act_scale[ids_N])
    val_TN = torch.cat(parts) if parts else x_TD.new_zeros((0, len(ids_N)), dtype=dictionary.work_dtype)
    val_TN = val_TN.masked_fill_(~val_TN.isfinite(), 0)
    return ids_N.expand(len(x_TD), -1), val_TN


def full(dictionary: Dictionary, val_TK: Tensor) -> Tensor:
    """Tokens that may have had more active features than there was room for, `bool[T]`."""
    chosen = dictionary.activation in ("topk", "groupmax") or (dictionary.activation == "batchtopk" and dictionary.threshold is None)
    limited = val_TK.is_cuda and not chosen and val_TK.shape[1] < dictionary.d_sae  # those that choose take no room
    return (val_TK > 0).all(-1) if limited else torch.zeros(len(val_TK), dtype=torch.bool, device=val_TK.device)


def decode_active(dictionary: Dictionary, idx_TK: Tensor, val_TK: Tensor, x_TD: Tensor | None = None) -> Tensor:
    """Reconstruction `[T, O]` from active pairs; costs 2TKO. `x`: what was encoded, see `Dictionary.decode`."""
    parts = []
    for idx, val in zip(idx_TK.split(TOKENS), val_TK.split(TOKENS), strict=True):
        W_dec, idx = used_rows(dictionary.W_dec, idx, val.dtype)
        parts.append(torch.nn.functional.embedding_bag(idx, W_dec, per_sample_weights=val, mode="sum"))
    return dictionary.completed(torch.cat(parts), x_TD)


def used_rows(W_FD: Tensor, idx_TK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`(rows, idx)`: the matrix in `dtype` with the ids into it; of one that is kept in another dtype only the rows that are used."""
    if W_FD.dtype == dtype:
        return W_FD, idx_TK
    used, idx_TK = idx_TK.unique(return_inverse=True)
    return W_FD[used].to(dtype), idx_TK


@dataclass(frozen=True)
class Health:
    """How well a dictionary fits live activations."""

    fvu: float  # fraction of variance unexplained, sum ||x - x̂||² / sum ||x - mean x||²; NaN where there is no variance
    l0: float  # mean number of active features per token
    dead: float  # share of features that fired on no token
    tokens: int


def health(dictionary: Dictionary, x_TD: Tensor, y_TO: Tensor | None = None) -> Health:
    """FVU, L0 and dead fraction of a dictionary on activations `x[T, D]`; of a transcoder `y[T, O]` is what it should decode to."""
    y_TO = x_TD if y_TO is None else y_TO
    fired = torch.zeros(dictionary.d_sae, dtype=torch.long, device=x_TD.device)
    residual = 0.0
    for x, y in zip(x_TD.split(CHUNK), y_TO.split(CHUNK), strict=True):
        idx_TK, val_TK = encode_active(dictionary, x)
        fired += torch.bincount(idx_TK[val_TK > 0], minlength=dictionary.d_sae)
        residual += (y - decode_active(dictionary, idx_TK, val_TK, x)).double().square().sum().item()
    total = (y_TO - y_TO.mean(0)).double().square().sum().item()
    T = x_TD.shape[0]
    dead = 1 - (fired > 0).double().mean().item()
    return Health(fvu=residual / total if total > 0 else math.nan, l0=fired.sum().item() / max(T, 1), dead=dead, tokens=T)


def _blocks(dictionary: Dictionary, tokens: int) -> list[slice]:
    """Features of one tile of `tokens` tokens (and of weights that are converted), block after block; whole groups in all but the last."""
    rows = dictionary.W_enc.shape[0] if dictionary.W_enc.element_size() < 4 else 0  # in half precision: a block of them is converted
    size = max(GROUP, TILE // max(tokens, rows, 1) // GROUP * GROUP)
    return [slice(first, min(first + size, dictionary.d_sae)) for first in range(0, dictionary.d_sae, size)]


def _acts(dictionary: Dictionary, x_TD: Tensor, block: slice) -> Tensor:
    """`feature_acts[T, block]` of an input from which b_dec is gone where it has to be; of topk dictionaries before the choice of k."""
    W_enc, b_enc = dictionary.W_enc[:, block].to(x_TD.dtype), dictionary.b_enc[block].to(x_TD.dtype)
    pre = linear(x_TD, W_enc.T, b_enc)
    if dictionary.activation == "gated":
        on = pre + dictionary.b_gate[block] > 0
        return pre.mul_(dictionary.r_mag[block].to(pre.dtype).exp()).add_(dictionary.b_mag[block]).relu_().mul_(on)
    if dictionary.threshold is not None and dictionary.activation not in ("topk", "groupmax"):
        return pre.masked_fill_(pre <= dictionary.threshold[block], 0).relu_()
    return pre.relu_()


def _largest(dictionary: Dictionary, x_TD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest activations of each token, block after block."""
    x_TD, found = dictionary.encoder_input(x_TD), []
    for block in _blocks(dictionary, len(x_TD)):
        val, idx = _topk(_acts(dictionary, x_TD, block), k)
        found.append((idx + block.start, val))
        if len(found) == 16:  # now and then, so that they do not pile up
            found = [_merge(found, k)]
    return _merge(found, k)


def _group_maxima(dictionary: Dictionary, x_TD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The largest activation of each group, some groups at a time; k pairs of each token whatever the room."""
    x_TD, size, found = dictionary.encoder_input(x_TD), dictionary.d_sae // dictionary.k, []
    step = max(1, TILE // max(len(x_TD), 1) // size) * size
    for first in range(0, dictionary.d_sae, step):
        block = slice(first, min(first + step, dictionary.d_sae))
        val, idx = _acts(dictionary, x_TD, block).unflatten(-1, (-1, size)).max(-1)
        found.append((idx + torch.arange(first, block.stop, size, device=idx.device), val))
    return tuple(torch.cat(parts, -1) for parts in zip(*found, strict=True))


def _merge(found: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    if len(found) == 1:
        return found[0]
    idx, val = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    val, at = val.topk(min(k, val.shape[-1]), dim=-1, sorted=False)
    return idx.gather(-1, at), val


def _topk(acts_TF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`topk`, in long rows by the largest groups first: the k groups with the largest maxima hold k values no smaller than all others."""
    T, F = acts_TF.shape
    k = min(k, F)
    if F % GROUP or F < 4 * GROUP * k:
        return acts_TF.topk(k, dim=-1, sorted=False)
    grouped = acts_TF.view(T, F // GROUP, GROUP)
    group_TK = grouped.amax(-1).topk(k, dim=-1, sorted=False)[1]
    val, at = grouped.gather(1, group_TK[..., None].expand(-1, -1, GROUP)).flatten(1).topk(k, dim=-1, sorted=False)
    return val, group_TK.gather(1, at // GROUP) * GROUP + at % GROUP


def _above(dictionary: Dictionary, x_TD: Tensor, k: None) -> tuple[Tensor, Tensor]:
    """Every active pair, however many a token has."""
    x_TD, T, parts = dictionary.encoder_input(x_TD), len(x_TD), []
    for block in _blocks(dictionary, T):
        acts = _acts(dictionary, x_TD, block)
        if acts.shape[1] % GROUP == 0 and acts.shape[1] >= 4 * GROUP:  # most groups hold nothing: they are looked at once
            grouped = acts.view(T, -1, GROUP)
            token_P, group_P = (grouped.amax(-1) > 0).nonzero(as_tuple=True)
            held = grouped[token_P, group_P]
            at_P, in_P = (held > 0).nonzero(as_tuple=True)
            token_P, feature_P, val_P = token_P[at_P], group_P[at_P] * GROUP + in_P, held[at_P, in_P]
        else:
            token_P, feature_P = (acts > 0).nonzero(as_tuple=True)
            val_P = acts[token_P, feature_P]
        parts.append((token_P, feature_P + block.start, val_P))
    token_P, feature_P, val_P = (torch.cat(part) for part in zip(*parts, strict=True))
    return _by_token(token_P, feature_P, val_P, T)


def _batch_topk(dictionary: Dictionary, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """The k*T largest activations of the whole batch, tile after tile."""
    T, F = len(x_TD), dictionary.d_sae
    wanted, x_TD, found = min(dictionary.k * T, T * F), dictionary.encoder_input(x_TD), []
    for first in range(0, T, TOKENS):
        for block in _blocks(dictionary, TOKENS):
            acts = _acts(dictionary, x_TD[first : first + TOKENS], block)
            val, at = acts.flatten().topk(min(wanted, acts.numel()), sorted=False)
            at = (first + at // acts.shape[1]) * F + block.start + at % acts.shape[1]
            found = [_merge([*found, (at, val)], wanted)]
    [(at, val)] = found
    at, val = at[val > 0], val[val > 0]
    return _by_token(at // F, at % F, val, T)


def _by_token(token_P: Tensor, feature_P: Tensor, val_P: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Pairs in a row, in any order, as `(idx[T, K], val[T, K])`."""
    token_P, order = token_P.sort(stable=True)
    counts = torch.bincount(token_P, minlength=T)
    slot_P = torch.arange(len(token_P), device=token_P.device) - (counts.cumsum(0) - counts)[token_P]
    K = max(1, int(counts.max()))
    idx_TK, val_TK = feature_P.new_zeros(T, K), val_P.new_zeros(T, K)
    idx_TK[token_P, slot_P], val_TK[token_P, slot_P] = feature_P[order], val_P[order]
    return idx_TK, val_TK


def _by_kernel(dictionary: Dictionary, x_TD: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """`k`: how many pairs of a token there is room for; None: for all there are, in order, which the host waits to hear."""
    from gradlens.dictionaries import kernels

    b_F = dictionary.b_enc
    if x_TD.element_size() < 4 and dictionary.input_norm == "none":
        b_F = dictionary.folded_bias  # x - b_dec would be rounded once more
    else:
        x_TD = dictionary.encoder_input(x_TD)
    if dictionary.activation == "topk":
        return kernels.encode_topk(x_TD, dictionary.W_enc, b_F, k)
    encode = functools.partial(kernels.encode_threshold, x_TD, dictionary.W_enc, b_F, dictionary.threshold)
    if k is not None:
        return encode(k, ordered=False)[:2]
    k = min(ROOM, dictionary.d_sae)
    idx_TK, val_TK, count_T = encode(k)
    most = max(1, int(count_T.max()))
    if most > k:
        idx_TK, val_TK, _ = encode(most)
    return idx_TK[:, :most], val_TK[:, :most]
