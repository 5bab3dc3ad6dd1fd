"""From what a step accumulated to what is recorded of it: the largest features, scalars, and rows. On the CPU, pure.

Shape suffixes: F d_sae, B rows, K features kept of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlens.config import ObserveSettings
from gradlens.dictionaries.groups import angle

TOP_TOKENS = 8  # kept of each row


@dataclass
class Contents:
    """A step as it leaves the device. All tensors."""

    hooks: dict[str, dict[str, Tensor]]  # hookpoint -> estimators `[F]`, and what `read_sums` takes
    examples: list[dict[str, Any]]  # one entry per micro-batch, concept and hookpoint
    lessons: list[tuple[str, tuple[int, ...], Tensor, Tensor]]  # hookpoint, row ids, features and their `taught`, `[B, K]`


def read_sums(
    name: str, sums: dict[str, Tensor], found: dict[str, Tensor], concepts: dict[str, Tensor], observe: ObserveSettings, ranks: int,
    scalars: dict[str, float],
) -> dict[str, np.ndarray]:  # fmt: skip
    """The features of one hookpoint that are recorded, with their values; adds the hookpoint's and the concepts' scalars.

    `found`: the estimators, float64 `[F]`. They are NaN where no token was finite, `taught` also where the model made no logits.
    """
    explained, total, tokens, loss, bad, crowded, looked_at = sums["scalars"].tolist()
    if bad:
        scalars[f"{name}/not_finite_tokens"] = bad
    if crowded:
        scalars[f"{name}/crowded_tokens"] = crowded
    for key, value in found.items():
        if (bad and not tokens) or (key == "taught" and loss == 0):
            value.fill_(torch.nan)
    scalars[f"{name}/gradient_norm"] = total**0.5 / ranks
    if "unexplained" in observe.estimators:
        scalars[f"{name}/unexplained"] = 1 - explained / looked_at if looked_at > 0 else float("nan")
    scalars["train/counted_tokens"] = tokens
    kept: set[int] = set()
    columns = zip(concepts.items(), sums["groups"].tolist(), sums["inside"].tolist(), sums["variances"].T.tolist(), strict=True)
    for (concept, members), energy, inside, (taught_variance, attribution_variance) in columns:
        about = f"concept/{concept}/{name}"
        scalars[f"{about}/group_gradient"] = energy**0.5 / ranks
        scalars[f"{about}/group_share"] = energy / total if total > 0 else float("nan")
        scalars[f"{about}/group_angle"] = angle(inside, sums["whole"].item())
        scalars |= {f"{about}/{key}": value[members].mean().item() for key, value in found.items()}
        if observe.token_share < 1:
            errors = {"taught": taught_variance**0.5, "attribution": attribution_variance**0.5 / ranks}
            scalars |= {f"{about}/{key}_se": error for key, error in errors.items() if key in found}
        kept.update(members.tolist())
    k = min(max(1, observe.top_k // max(1, len(found))), *(len(value) for value in found.values())) if found else 0
    chosen = sorted(kept.union(*(value.abs().nan_to_num().topk(k).indices.tolist() for value in found.values())))
    return {"feature": np.array(chosen, dtype=np.int32), **{key: value[chosen].float().numpy() for key, value in found.items()}}


def read_examples(entries: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """One for each row, concept and hookpoint; a rank's loss is averaged with the others'."""
    found = []
    for entry in entries:
        top = _top_tokens(entry["tokens"], len(entry["push"]))
        about = {"concept": entry["concept"], "hookpoint": entry["hookpoint"]}
        known = {**entry, "push": entry["push"] / ranks}
        figures = {name: known[name].tolist() for name in ("taught", "push", "activation", "shows") if name in known}
        for row, *values, tokens in zip(entry["row_ids"], *figures.values(), top, strict=False):
            found.append(about | {"row_id": row} | dict(zip(figures, values, strict=True)) | tokens)
    return found


def read_lessons(taken: list[tuple[str, tuple[int, ...], Tensor, Tensor]]) -> list[dict[str, Any]]:
    """Of every row of the step the features that it teaches most, at each hookpoint: `row_id, hookpoint, features, taught`."""
    found = []
    for hookpoint, row_ids, idx_BK, val_BK in taken:
        positive_B = (val_BK > 0).sum(1).tolist()  # the largest come first
        for row, ids, values, kept in zip(row_ids, idx_BK.tolist(), val_BK.tolist(), positive_B, strict=False):
            found.append({"row_id": row, "hookpoint": hookpoint, "features": ids[:kept], "taught": values[:kept]})
    return found


def _top_tokens(tokens: dict[str, Tensor], rows: int) -> list[dict[str, list]]:
    """Of each row the `TOP_TOKENS` tokens that teach most: `{"positions", "token_taught"}`, largest first."""
    row, position, lesson = (tokens[name].numpy() for name in ("row", "position", "taught"))
    mine = np.flatnonzero((lesson > 0) & (position >= 0))
    mine = mine[np.lexsort((-lesson[mine], row[mine]))]  # row by row; stable
    starts = np.searchsorted(row[mine], np.arange(rows + 1))
    parts = [mine[first : min(first + TOP_TOKENS, last)] for first, last in zip(starts[:-1], starts[1:], strict=True)]
    return [{"positions": position[part].tolist(), "token_taught": lesson[part].tolist()} for part in parts]
