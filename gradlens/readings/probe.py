"""Reading the probe set: a fixed batch of texts on which realised change (`drift`, `uptake`) and the dictionary's health are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.data.rows import IGNORE
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import decode_active, encode_active
from gradlens.errors import InputError
from gradlens.model.capture import counted_tokens, read_with_loss
from gradlens.model.hookpoints import canonical
from gradlens.model.reading import encoder_input, places
from gradlens.readings.attribution import feature_sums
from gradlens.readings.said_less import likeliest, shares
from gradlens.readings.uptake import Pairs

CHUNK = 512  # tokens encoded at a time


@dataclass
class ProbeReading:
    """Means over the probe set's counted tokens at one hookpoint."""

    acts: Tensor  # [F] mean feature activation
    rate: Tensor  # [F] share of tokens on which the feature fires
    mean: Tensor  # [O] mean activation, where features act
    fvu: float  # of the dictionary on the live model
    l0: float
    tokens: int
    rows: Tensor | None = None  # [R, F] float32: mean feature activation on each row
    row_means: Tensor | None = None  # [R, O] float32: mean activation on each row, where features act


@dataclass
class ProbeTokens:
    """What is known of every counted token of the probe set, one after another."""

    ids_T: Tensor
    row_T: Tensor  # int64: its text, from 0
    prob_T: Tensor | None  # the probability that the model gave it; None for a model without logits
    pairs: dict[str, Pairs]  # hookpoint -> where features are active; {} if not asked for
    said_ids_C: Tensor | None = None  # what is followed of all that the model could say there (`said_less`); None: not asked for
    said_RC: Tensor | None = None  # mean probability of each over the text's counted tokens


def read_probe(
    model: nn.Module, dictionaries: dict[str, Dictionary], batches: list[dict[str, Tensor]], tokens: str = "response"
) -> dict[str, ProbeReading]:
    """One forward pass over the probe set; everything on CPU in float64. No [T, F] larger than a chunk."""
    return read_tokens(model, dictionaries, batches, tokens)[0]


def read_tokens(
    model: nn.Module,
    dictionaries: dict[str, Dictionary],
    batches: list[dict[str, Tensor]],
    tokens: str = "response",
    pairs: bool = False,
    follow: Tensor | bool = False,
) -> tuple[dict[str, ProbeReading], ProbeTokens]:
    """`read_probe`, and what is known of every token; `pairs`: with the features that are active there; `follow`: with how often the model
    would say these token ids, True: those that it would say most."""
    gathered: dict[str, list[Tensor]] = {name: [] for name in dictionaries}
    inputs: dict[str, list[Tensor]] = {}  # of transcoders: what is encoded, where that is not what is there
    lengths: list[int] = []  # counted tokens of each row
    ids, probs = [], []
    said: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        keep_BS = counted_tokens(batch["input_ids"], batch.get("attention_mask"), batch.get("labels"), tokens)
        if not keep_BS.any():
            continue
        lengths += [n for n in keep_BS.sum(1).tolist() if n]
        if tokens == "all":  # prompts too have probabilities, which labels would hide
            batch = {key: value for key, value in batch.items() if key != "labels"}
        look = None if follow is False else lambda logits, at: said.append(shares(logits, at, keep_BS, follow))  # noqa: B023
        read, loss_BS = read_with_loss(model, places(dictionaries), batch, look)
        kept = lambda h_BSD, dictionary: h_BSD[keep_BS.to(h_BSD.device)].to(dictionary.work_dtype)  # noqa: B023, E731
        for name, dictionary in dictionaries.items():
            gathered[name].append(kept(read[canonical(name)], dictionary))
            if dictionary.hook_in:
                inputs.setdefault(name, []).append(kept(encoder_input(dictionary, name, read), dictionary))
        ids.append(batch["input_ids"][keep_BS].cpu())
        if loss_BS is not None:
            probs.append((-loss_BS[keep_BS.to(loss_BS.device)]).exp().cpu())
    if not lengths:
        raise InputError("the probe set has no token that counts: give rows with an answer (`labels` other than -100)")
    found = {}
    for name, parts in gathered.items():
        y_TO = torch.cat(parts)
        x_TD = torch.cat(inputs[name]) if name in inputs else y_TO
        found[name] = _read(dictionaries[name], x_TD, y_TO, lengths, pairs)
    row_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    known = ProbeTokens(
        torch.cat(ids),
        row_T,
        torch.cat(probs).double() if len(probs) == len(ids) else None,
        {name: active for name, (_, active) in found.items() if active is not None},
        *(likeliest(said) if said and len(said) == len(ids) else (None, None)),
    )
    return {name: reading for name, (reading, _) in found.items()}, known


def _read(dictionary: Dictionary, h_TD: Tensor, y_TO: Tensor, lengths: list[int], with_pairs: bool) -> tuple[ProbeReading, Pairs | None]:
    """From what is encoded and what it should decode to: for all but transcoders the same."""
    T, F = len(h_TD), dictionary.d_sae
    row_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(h_TD.device)
    rows_RF = torch.zeros(len(lengths), F, dtype=torch.float32, device=h_TD.device)
    acts_F, fires_F = torch.zeros(2, F, dtype=torch.float64, device=h_TD.device)
    residual = torch.zeros((), dtype=torch.float64, device=h_TD.device)
    pairs: list[Pairs] = []
    for first in range(0, T, CHUNK):
        h, y, row = (part[first : first + CHUNK] for part in (h_TD, y_TO, row_T))
        idx_TK, val_TK = encode_active(dictionary, h)
        rows_RF.view(-1).index_add_(0, (row[:, None] * F + idx_TK).flatten(), val_TK.flatten().float())
        acts_F += feature_sums(idx_TK, val_TK.double(), F)
        fires_F += feature_sums(idx_TK, (val_TK > 0).double(), F)
        residual += (y - decode_active(dictionary, idx_TK, val_TK, h)).double().square().sum()
        if with_pairs:
            pairs.append(Pairs.of(idx_TK.cpu(), val_TK.cpu(), first))
    mean_O = y_TO.double().mean(0)
    variance = (y_TO.double() - mean_O).square().sum().clamp_min(1e-30)
    lengths_R1 = torch.tensor(lengths, device=rows_RF.device)[:, None]
    rows_RF = (rows_RF / lengths_R1).cpu()
    row_means_RO = (y_TO.new_zeros(len(lengths), y_TO.shape[1]).index_add_(0, row_T, y_TO) / lengths_R1).float().cpu()
    fvu, l0 = (residual / variance).item(), fires_F.sum().item() / T
    reading = ProbeReading(acts_F.cpu() / T, fires_F.cpu() / T, mean_O.cpu(), fvu, l0, T, rows_RF, row_means_RO)
    return reading, Pairs.cat(pairs) if with_pairs else None


def unpacked(ids_BS: Tensor, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """A copy of a batch (`input_ids`, `attention_mask`, `position_ids`, `labels` of `given`) with one text in each row: texts packed into
    one row, told apart by `position_ids` alone, are put below each other. What is not of the shape of the ids is left out."""
    found = {name: given.get(name) for name in ("attention_mask", "labels", "position_ids")}
    found = {"input_ids": ids_BS} | {name: x for name, x in found.items() if isinstance(x, Tensor) and x.shape == ids_BS.shape}
    found = {name: x.detach().clone() for name, x in found.items()}
    positions_BS = found.get("position_ids")
    if positions_BS is None or "attention_mask" in found or not (positions_BS[:, 1:] == 0).any():
        return found
    del found["position_ids"]
    begins_BS = positions_BS == 0
    begins_BS[:, 0] = True
    lengths = begins_BS.flatten().nonzero().flatten().diff(append=torch.tensor([ids_BS.numel()], device=ids_BS.device)).tolist()
    texts = {name: x.flatten().split(lengths) for name, x in {**found, "attention_mask": torch.ones_like(ids_BS)}.items()}
    pad = torch.nn.utils.rnn.pad_sequence
    return {name: pad(parts, batch_first=True, padding_value=IGNORE if name == "labels" else 0) for name, parts in texts.items()}


def evenly(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread."""
    count = min(count, total)
    return [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]


def spread(batches: list[dict[str, Tensor]], rows: int, tokens: str = "response") -> list[dict[str, Tensor]]:
    """At most `rows` rows of the batches, evenly spread over those in which a token counts; padding that no picked row needs is cut."""
    counting = [
        counted_tokens(batch["input_ids"], batch.get("attention_mask"), batch.get("labels"), tokens).any(1).nonzero().flatten().tolist()
        for batch in batches
    ]
    wanted = set(evenly(sum(map(len, counting)), rows))
    picked: list[dict[str, Tensor]] = []
    number = 0
    for batch, able in zip(batches, counting, strict=True):
        mine = [index for at, index in enumerate(able) if number + at in wanted]
        number += len(able)
        if mine:
            used = slice(None)
            if batch.get("attention_mask") is not None:
                used = batch["attention_mask"][mine].bool().any(0)
            shape = batch["input_ids"].shape
            tokens_of = {key: x for key, x in batch.items() if isinstance(x, Tensor) and x.shape[:2] == shape}  # not a row's `length`
            picked.append({key: x_BS[mine][:, used] for key, x_BS in tokens_of.items()})
    return picked
