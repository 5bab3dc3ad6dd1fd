"""Reading the probe set: a fixed batch of texts on which realised change (`drift`) and the dictionary's health are measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradlens.capture import counted_tokens, read_activations
from gradlens.dictionary import Dictionary

CHUNK = 512  # tokens encoded at a time


@dataclass
class ProbeReading:
    """Means over the probe set's counted tokens at one hookpoint."""

    acts: Tensor  # [F] mean feature activation
    rate: Tensor  # [F] share of tokens on which the feature fires
    mean: Tensor  # [D] mean activation
    fvu: float  # of the dictionary on the live model
    l0: float
    tokens: int
    rows: Tensor | None = None  # [R, F] float32: mean activation on each row


def read_probe(
    model: nn.Module, dictionaries: dict[str, Dictionary], batches: list[dict[str, Tensor]], tokens: str = "response"
) -> dict[str, ProbeReading]:
    """One forward pass over the probe set; everything on CPU in float64. No [T, F] larger than a chunk."""
    gathered: dict[str, list[Tensor]] = {name: [] for name in dictionaries}
    lengths: list[int] = []  # counted tokens of each row
    for batch in batches:
        labels = batch.get("labels")
        keep_BS = counted_tokens(batch["input_ids"], batch.get("attention_mask"), labels, tokens)
        if not keep_BS.any():
            continue
        lengths += [n for n in keep_BS.sum(1).tolist() if n]
        for name, h_BSD in read_activations(model, list(dictionaries), batch).items():
            gathered[name].append(h_BSD[keep_BS.to(h_BSD.device)].to(dictionaries[name].W_dec.dtype))
    return {name: _read(dictionaries[name], torch.cat(parts), lengths) for name, parts in gathered.items()}


def _read(dictionary: Dictionary, h_TD: Tensor, lengths: list[int]) -> ProbeReading:
    T, F = len(h_TD), dictionary.d_sae
    row_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(h_TD.device)
    rows_RF = torch.zeros(len(lengths), F, device=h_TD.device)
    acts_F, fires_F = torch.zeros(2, F, dtype=torch.float64, device=h_TD.device)
    residual = torch.zeros((), dtype=torch.float64, device=h_TD.device)
    for h, row in zip(h_TD.split(CHUNK), row_T.split(CHUNK), strict=True):
        acts_TF = dictionary.encode(h)
        rows_RF.index_add_(0, row, acts_TF.float())
        acts_F += acts_TF.sum(0)
        fires_F += (acts_TF > 0).sum(0)
        residual += (h - dictionary.decode(acts_TF)).double().square().sum()
    mean_D = h_TD.double().mean(0)
    variance = (h_TD.double() - mean_D).square().sum().clamp_min(1e-30)
    rows_RF = (rows_RF / torch.tensor(lengths, device=rows_RF.device)[:, None]).cpu()
    fvu, l0 = (residual / variance).item(), fires_F.sum().item() / T
    return ProbeReading(acts_F.cpu() / T, fires_F.cpu() / T, mean_D.cpu(), fvu, l0, T, rows_RF)
