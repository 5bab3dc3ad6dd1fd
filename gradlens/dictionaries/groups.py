"""Groups: the subspace that some features span, as one thing, and where groups come from. Pure functions of directions; angles in degrees.

Some things a model knows are not one direction but several that belong together (days of the week on a circle). Their features have decoder
rows that are alike, so groups are found by cosine and described by the principal axes of their rows (arXiv 2405.14860).
Shape suffixes: D d_model, F d_sae, N features of the group, r axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradlens.control.edits import orthonormal_basis
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.directions import Directions


def group_basis(dictionary: Dictionary, members: Sequence[int] | Tensor) -> Tensor:
    """Orthonormal basis `Q[D, r]` of the span of some features' directions."""
    return orthonormal_basis(dictionary.unit_directions(torch.as_tensor(members, device=dictionary.W_dec.device)))


def angle(inside: float, whole: float) -> float:
    """Degrees between a vector of length `whole` and a subspace in which `inside` of it lies; 90: none of it. nan for no vector."""
    return math.degrees(math.acos(min(1.0, inside / whole))) if whole > 0 else math.nan


def group_change(dictionary: Dictionary, members: Tensor, moved_D: Tensor) -> dict[str, float]:
    """`group_drift` = ||Qᵀ Δh̄||: how far the mean residual moved within a group's span; `group_drift_angle`: between Δh̄ and the span."""
    inside = (group_basis(dictionary, members).double().cpu().T @ moved_D).norm().item()
    return {"group_drift": inside, "group_drift_angle": angle(inside, moved_D.norm().item())}


def clusters(dictionary: Dictionary, cosine: float = 0.3, smallest: int = 4, live_F: Tensor | None = None) -> list[list[int]]:
    """Features whose decoder rows are alike: around the feature with most neighbours of at least that cosine all of them, then around the
    next that is left. The largest cluster first; a feature is in one at most, its centre the first. `live`: features that may be in one.
    """
    units_FD, F = dictionary.unit_directions(), dictionary.d_sae
    live_F = torch.ones(F, dtype=torch.bool) if live_F is None else live_F.cpu()
    near: list[Tensor] = []
    for rows_ND in units_FD.split(max(1, 2**24 // F)):
        near += [row_F.nonzero().flatten() for row_F in ((rows_ND @ units_FD.T) >= cosine).cpu() & live_F]
    free_F, found = live_F.clone(), []
    for i in sorted(range(F), key=lambda i: -len(near[i])):
        if len(near[i]) < smallest:
            break
        members = near[i][free_F[near[i]]]
        if free_F[i] and len(members) >= smallest:
            free_F[members] = False
            found.append([i, *(j for j in members.tolist() if j != i)])
    return sorted(found, key=lambda members: (-len(members), members))


def axes(dictionary: Dictionary, members: Sequence[int], share: float = 0.9) -> Tensor:
    """The fewest principal axes of a group's unit rows that hold that share of their squares, `[r, D]`, orthonormal, the largest first."""
    units_ND = dictionary.unit_directions(torch.as_tensor(members, device=dictionary.W_dec.device)).double().cpu()
    _, singular, axes_ND = torch.linalg.svd(units_ND, full_matrices=False)
    held = singular.square().cumsum(0) / singular.square().sum()
    return axes_ND[: int((held < share - 1e-9).sum()) + 1].float()


def group_directions(dictionary: Dictionary, groups: Mapping[str, Sequence[int]], hook: str, share: float = 0.9) -> Directions:
    """The axes of every group as signed directions, read from the dictionary's `b_dec`."""
    parts = {name: axes(dictionary, members, share) for name, members in groups.items()}
    w_FD = torch.cat(list(parts.values()))
    starts = [0, *torch.tensor([len(part) for part in parts.values()]).cumsum(0).tolist()]
    rows = {name: list(range(start, end)) for name, start, end in zip(parts, starts[:-1], starts[1:], strict=True)}
    labels = tuple(f"{name} axis {axis + 1}" for name, part in parts.items() for axis in range(len(part)))
    facts = {"kind": "groups", "members": {name: list(map(int, members)) for name, members in groups.items()}, "share": share}
    return Directions(w_FD, -(w_FD @ dictionary.b_dec.float().cpu()), None, labels, hook, True, rows, facts)


def levels(sizes: Sequence[int]) -> dict[str, list[int]]:
    """The groups of a Matryoshka dictionary, from the sizes of its levels: `level-1` are its first features."""
    ends = torch.tensor(list(sizes)).cumsum(0).tolist()
    return {f"level-{i + 1}": list(range(end - size, end)) for i, (size, end) in enumerate(zip(sizes, ends, strict=True))}
