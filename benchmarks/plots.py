"""Draws `docs/images/scaling.svg` from `benchmarks/results/scaling.jsonl`: what readings cost as tokens, features and hookpoints grow."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Any

Row = dict[str, Any]
SWEEPS = {"tokens": "tokens", "features": "features", "hookpoints": "hookpoints"}
LINES = {
    "seconds": ("gradlens, all estimators", "#2563eb", ""),
    "same_seconds": ("gradlens, those of naive", "#0d9488", ""),
    "naive_seconds": ("naive dense hook", "#9ca3af", ""),
    "floor": ("floor of all estimators", "#111827", "3 3"),
}
WIDTH, HEIGHT, LEFT, TOP, GAP = 230, 190, 52, 40, 62


def scaling(rows: Sequence[Row]) -> str:
    """The SVG. Both axes are logarithmic; every panel has its own x, all share y."""
    for row in rows:
        row["floor"] = max(row["flops"] / row["peak_flops"], row["bytes"] / row["peak_bandwidth"])
    values = [row[key] * 1e3 for row in rows for key in LINES if key in row]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    y = lambda ms: TOP + HEIGHT * (1 - (log10(ms) - low) / (high - low))  # noqa: E731
    parts = []
    for number, (sweep, title) in enumerate(SWEEPS.items()):
        mine = sorted((row for row in rows if row["sweep"] == sweep), key=lambda row: row[sweep])
        left, sizes = LEFT + number * (WIDTH + GAP), [row[sweep] for row in mine]
        first, last = log10(sizes[0]), log10(sizes[-1])
        x = lambda size: left + WIDTH * (log10(size) - first) / (last - first)  # noqa: B023, E731
        fixed = [f"{mine[0][other]:,} {name}" for other, name in SWEEPS.items() if other != sweep and mine[0][other] > 1]
        parts.append(_text(left, 16, title, "start", 13, "600") + _text(left, 31, " x ".join(fixed) or "1 hookpoint", "start", 11))
        for power in range(low, high + 1):
            parts.append(f'<path d="M{left} {y(10**power):.1f}h{WIDTH}" stroke="#e5e7eb"/>')
            if number == 0:
                parts.append(_text(left - 6, y(10**power) + 4, f"{10**power:g} ms" if power < 3 else f"{10 ** (power - 3):g} s", "end"))
        parts += [_text(x(size), TOP + HEIGHT + 16, _short(size), "middle") for size in sizes]
        for key, (_, colour, dashes) in LINES.items():
            points = [(x(row[sweep]), y(row[key] * 1e3)) for row in mine if key in row]
            parts.append(
                f'<polyline points="{" ".join(f"{px:.1f},{py:.1f}" for px, py in points)}" fill="none" stroke="{colour}" '
                f'stroke-width="2" stroke-dasharray="{dashes}"/>'
            )
            parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in points if not dashes]
    for number, (name, colour, dashes) in enumerate(LINES.values()):
        at, below = LEFT + number * 180, TOP + HEIGHT + 38
        parts.append(f'<path d="M{at} {below}h22" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>')
        parts.append(_text(at + 28, below + 4, name, "start"))
    width, height = LEFT + 3 * WIDTH + 2 * GAP + 20, TOP + HEIGHT + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" role="img" '
        f'aria-label="Time of one step\'s readings against tokens, features and hookpoints">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str, size: int = 10, weight: str = "400") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="#374151">{text}</text>'


def _short(size: int) -> str:
    return f"{size / 2**20:g}M" if size >= 2**20 else f"{size / 1024:.0f}k" if size >= 8192 else f"{size:,}"
