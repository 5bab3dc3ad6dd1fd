"""The features that a run taught most: their table, by what it is ranked, and that there is none where nothing was learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradlens.report.findings import FDR

if TYPE_CHECKING:
    from torch import Tensor

MEASURED = ("uptake", "drift")  # on the probe set, the one to be believed most first
FIGURES = (*MEASURED, "taught", "push")
RANKED = {
    "uptake": "Ranked by uptake: what the model has learned to say on the probe set.",
    "drift": "Ranked by |drift|: what has changed in the model on the probe set.",
}
UNREAD = "Ranked by |{by}|: there is no finite reading of the probe set yet, and {by} alone does not tell what the model takes up."


def table(columns: Mapping[str, Mapping[str, Tensor]], n: int) -> list[dict[str, Any]]:
    """The `n` features that were taught most over all hookpoints: hookpoint, feature, then all that `columns` (hookpoint -> name -> `[F]`)
    has of them. By uptake, where none is above zero by |drift|, without any reading of the probe set by |push|."""
    by = next((key for key in MEASURED if any(key in part and _sizes(part, key).any() for part in columns.values())), None)
    if by is None:  # nothing has moved, or nothing was read; of a lens that keeps no push, what there is
        by = next((key for part in columns.values() for key in (*MEASURED, "push", *part) if key in part), None)
    rows = []
    for name, part in columns.items():
        if by not in part:
            continue
        sizes = _sizes(part, by)
        best = sizes.topk(min(n, len(sizes)))
        scale = max(sizes.max().item(), 1e-30)  # hookpoints have scales of their own
        for i, size in zip(best.indices.tolist(), (best.values / scale).tolist(), strict=True):
            rows.append((size, {"hookpoint": name, "feature": i, **{key: value[i].item() for key, value in part.items()}}))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])[:n]]


def _sizes(part: Mapping[str, Tensor], by: str) -> Tensor:
    """What is ranked; what is said less than in ordinary text was not learned, so only an uptake above zero counts."""
    return (part[by].clamp_min(0) if by == "uptake" else part[by].abs()).nan_to_num()


def ranked_by(rows: Iterable[Mapping[str, Any]], unread: str = "push") -> str:
    """By what rows of such a table are ranked; `unread`: where the probe set was not read."""
    rows = list(rows)
    measured = [key for key in MEASURED if any(row.get(key) is not None for row in rows)]
    return next((key for key in measured if any(has(row, key) for row in rows)), measured[0] if measured else unread)


def has(row: Mapping[str, Any], by: str) -> bool:
    """Whether a row has more than nothing to show: a figure that is not finite has."""
    value = row.get(by)
    return value is not None and not (value <= 0 if by == "uptake" else value == 0)


def nothing_taught(rows: Sequence[Mapping[str, Any]], learned: Mapping[str, int], unread: str = "push") -> str:
    """What is said in place of rows of which none was learned; "" where some were, or where that is not known.

    `learned`: features beyond chance at each hookpoint, {} where that was not read.
    """
    if learned and not any(learned.values()):
        return f"none was learned beyond chance (false discovery rate {FDR:.0%})"
    by = ranked_by(rows, unread)
    return "" if not rows or any(has(row, by) for row in rows) else f"none, no {by} is above zero"


def ranking(rows: Iterable[Mapping[str, Any]], unread: str = "push") -> str:
    """By what rows are ranked, in words."""
    rows = list(rows)
    by = ranked_by(rows, unread)
    several = len({row.get("hookpoint") for row in rows}) > 1
    scales = " Hookpoints have scales of their own: each in units of its largest." if several else ""
    return (RANKED.get(by) or UNREAD.format(by=by)) + scales


class Top(list):
    """Rows of `lens.top()`: prints as a table, without those that have nothing to show; `.df` is a pandas DataFrame of all.

    `learned`: features beyond chance at each hookpoint, {} where that was not read.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), learned: Mapping[str, int] | None = None) -> None:
        super().__init__(rows)
        self.learned = dict(learned or {})

    @property
    def df(self) -> Any:
        import pandas

        return pandas.DataFrame(list(self))

    def __str__(self) -> str:
        from rich.markup import escape
        from rich.table import Table

        from gradlens.cli.console import Texts

        none = nothing_taught(self, self.learned)
        if none:
            return f"Features that were taught most: {none}. Their figures are in .df all the same.\n"
        by = ranked_by(self)
        shown = Table("hookpoint", "feature", "label", *FIGURES)
        for row in self:
            if has(row, by):
                numbers = ["-" if row.get(key) is None else f"{row[key]:+.4g}" for key in FIGURES]
                shown.add_row(row["hookpoint"], str(row["feature"]), escape(row["label"]), *numbers)
        console = Texts(width=120, emoji=False)
        with console.capture() as captured:
            console.print(shown)
            if self:
                console.print(ranking(self), markup=False, highlight=False)
        return captured.get()

    __repr__ = __str__
