"""Some of the rows that a loop of somebody's own will train on, seen before its first step: what suits them, and what their questions are.

`gradlens run` reads its data itself; `watch(rows=...)` and the trainers' callbacks come by them here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from gradlens.control.row_teller import rows_of
from gradlens.data.rows import IGNORE, Example, build_examples, checked, load_examples
from gradlens.errors import InputError
from gradlens.model.capture import counted_tokens
from gradlens.readings.probe import evenly

AHEAD = 256  # rows looked at, of each source


def rows_ahead(rows: Any, tokenizer: Any, max_length: int = 256) -> list[list[Example]]:
    """Some rows of each source, evenly spread; none of what can only be gone through once, since training would miss them, and none of a
    `DataLoader` whose batches have no `input_ids`.

    `rows`: a `DataLoader` (of its data set, through its `collate_fn`, which draws no random number that training would have drawn), files
    as in a config's `data.train`, or rows: as such files hold them, or with `input_ids` and `labels`, one by one or as batches.
    Raises `InputError` for rows of neither kind.
    """
    if rows is None:
        return []
    if isinstance(rows, (str, Path)):
        return [load_examples(rows, tokenizer, max_length)]
    rows, collate = (rows.dataset, rows.collate_fn) if isinstance(rows, DataLoader) else (rows, None)
    if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        return []
    if isinstance(rows, Sequence) and rows and all(isinstance(source, (str, Path)) for source in rows):
        return [load_examples(source, tokenizer, max_length) for source in rows]
    with torch.random.fork_rng(devices=[]):
        picked = {i: rows[i] if collate is None else collate([rows[i]]) for i in evenly(len(rows), AHEAD)}
    if collate is not None:
        picked = {i: row for i, row in picked.items() if isinstance(row, Mapping) and "input_ids" in row}
    found = [example for row in picked.values() for example in _tokenised(row)]
    if not found and picked and collate is None:
        found = build_examples([checked(row, f"rows[{i}]") for i, row in picked.items()], tokenizer, max_length, source="rows")
    return [[found[i] for i in evenly(len(found), AHEAD)]] if found else []


def packs(rows: Any) -> bool:
    """Whether the batches of a `DataLoader` hold several texts in a row, told apart by their positions (TRL's packing and padding_free)."""
    if not isinstance(rows, DataLoader) or not (hasattr(rows.dataset, "__len__") and hasattr(rows.dataset, "__getitem__")):
        return False
    if len(rows.dataset) == 0:
        return False
    with torch.random.fork_rng(devices=[]):
        batch = rows.collate_fn([rows.dataset[i] for i in range(min(2, len(rows.dataset)))])
    found = batch.get("position_ids") if isinstance(batch, Mapping) else None
    return isinstance(found, torch.Tensor) and found.dim() == 2 and bool((found[:, 1:] == 0).any()) and batch.get("attention_mask") is None


def _tokenised(row: Any) -> list[Example]:
    """The rows of a batch, or the one row, that holds token ids; none where it holds texts."""
    if not isinstance(row, Mapping):
        raise InputError(f"rows: found {type(row).__name__}, expected mappings: with input_ids and labels, or as the rows of a JSONL file")
    if "input_ids" not in row:
        return []
    given = {key: torch.as_tensor(row[key]) for key in ("input_ids", "attention_mask", "labels") if row.get(key) is not None}
    ids, mask, labels = (torch.atleast_2d(given[key]) if key in given else None for key in ("input_ids", "attention_mask", "labels"))
    if labels is None and row.get("completion_mask") is not None:  # TRL's preference trainers say so what is an answer
        labels = ids.masked_fill(torch.atleast_2d(torch.as_tensor(row["completion_mask"])) == 0, IGNORE)
    examples = []
    for tokens, counted in rows_of(ids, mask, counted_tokens(ids, mask, labels)):
        if any(counted):
            examples.append(Example(tokens, [token if own else IGNORE for token, own in zip(tokens, counted, strict=True)], 0, "rows", ""))
    return examples
