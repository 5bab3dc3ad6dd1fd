"""Draws `docs/images/control.svg` from `benchmarks/results/control.jsonl`: unwanted answers against gain kept, pair by pair."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from plots import _text

Row = dict[str, Any]
COLUMNS, WIDTH, HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 3, 250, 200, 44, 46, 60, 84
LOW, HIGH = -0.5, 1.1  # gains shown; beyond them a point lies on the edge, with its figure
GOALS = {"mix": (0.95, 0.05), "entangled": (0.90, 0.10)}  # gain at least, unwanted at most
KINDS = (
    (r"none|oracle", "no rule, oracle", "#111827", "#111827"),
    (r".*-(random|scattered)", "random features in a mode's place", "#ea580c", "#fff"),
    (r"((mean-)?ablate|grad|param|update)(@.*)?|steer-.*|inoculate-.*|filter", "baselines", "#6b7280", "#6b7280"),
    (r".*", "modes of gradlens", "#2563eb", "#2563eb"),
)
LETTER, LINE = 4.9, 10.0  # width and height of what stands at a point


def control(panels: Sequence[tuple[str, str, Sequence[Row]]]) -> str:
    """The SVG of `(pair, shape, entries of control_summary.summary)`; arms without a gain (no oracle run) are left out."""
    parts, rows = [], -(-len(panels) // COLUMNS)
    for number, (pair, shape, entries) in enumerate(panels):
        left = LEFT + number % COLUMNS * (WIDTH + GAP_X)
        top = TOP + number // COLUMNS * (HEIGHT + GAP_Y)
        parts.append(_panel(left, top, f"{pair}, {shape}", shape, [entry for entry in entries if entry["gain"] is not None]))
    width, below = LEFT + COLUMNS * WIDTH + (COLUMNS - 1) * GAP_X + 20, TOP + rows * (HEIGHT + GAP_Y) - 16
    at = LEFT
    for _, name, edge, fill in KINDS:
        parts.append(f'<circle cx="{at + 4}" cy="{below}" r="4" fill="{fill}" stroke="{edge}" stroke-width="1.5"/>')
        parts.append(_text(at + 14, below + 4, name, "start", 11))
        at += 40 + len(name) * 6
    parts.append(
        f'<rect x="{at}" y="{below - 6}" width="12" height="12" fill="#dcfce7"/>' + _text(at + 18, below + 4, "the goal", "start", 11)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {below + 18}" font-family="system-ui, sans-serif" role="img" '
        f'aria-label="Unwanted answers against the gain that is kept, arm by arm, for each pair and shape">'
        f'<rect width="{width}" height="{below + 18}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _panel(left: float, top: float, title: str, shape: str, entries: Sequence[Row]) -> str:
    x = lambda gain: left + WIDTH * (min(max(gain, LOW), HIGH) - LOW) / (HIGH - LOW)  # noqa: E731
    y = lambda rate: top + HEIGHT * (1 - rate)  # noqa: E731
    gain, rate = GOALS[shape]
    parts = [
        _text(left, top - 26, title, "start", 13, "600") + _text(left - 30, top - 9, "↑ unwanted answers", "start"),
        f'<rect x="{x(gain):.1f}" y="{y(rate):.1f}" width="{x(HIGH) - x(gain):.1f}" height="{y(0) - y(rate):.1f}" fill="#dcfce7"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{left} {y(share):.1f}h{WIDTH}" stroke="#e5e7eb"/>' + _text(left - 6, y(share) + 4, f"{share:.0%}", "end"))
    parts += [_text(x(share), top + HEIGHT + 14, f"{share:.0%}", "middle") for share in (-0.5, 0, 0.5, 1)]
    parts.append(_text(left + WIDTH / 2, top + HEIGHT + 28, "gain kept →", "middle"))
    points = [(x(entry["gain"]), y(entry["rate"])) for entry in entries]
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in points]
    for entry, (px, py) in zip(entries, points, strict=True):
        _, _, edge, fill = next(kind for kind in KINDS if re.fullmatch(kind[0], entry["arm"]))
        if entry["gain_range"][0] < entry["gain_range"][1]:
            parts.append(
                f'<path d="M{x(entry["gain_range"][0]):.1f} {py:.1f}H{x(entry["gain_range"][1]):.1f}" stroke="{edge}" opacity=".5"/>'
            )
        if entry["rate_interval"]:
            low, high = (y(end) for end in entry["rate_interval"])
            parts.append(f'<path d="M{px:.1f} {low:.1f}V{high:.1f}" stroke="{edge}" opacity=".5"/>')
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{fill}" stroke="{edge}" stroke-width="1.5"/>')
        beyond = f" ({entry['gain']:.0%})" if not LOW <= entry["gain"] <= HIGH else ""
        parts.append(_label(entry["arm"] + beyond, px, py, edge, (left, top, left + WIDTH, top + HEIGHT), taken))
    return "".join(parts)


def _label(name: str, px: float, py: float, colour: str, bounds: tuple[float, ...], taken: list[tuple[float, ...]]) -> str:
    """A point's name where nothing stands yet, as near as may be, with a line to the point where it is not beside it."""
    width = len(name) * LETTER
    places = sorted(((dx, dy) for dx in (7, -7 - width, -width / 2) for dy in range(-120, 121, 5)), key=lambda d: (abs(d[1]), d[0] != 7))
    for dx, dy in places:
        box = (px + dx, py + dy - LINE / 2, px + dx + width, py + dy + LINE / 2)
        inside = bounds[0] - 4 <= box[0] and box[2] <= bounds[2] + 14 and bounds[1] - 6 <= box[1] and box[3] <= bounds[3] + 2
        if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            break
    taken.append(box)
    near = px if box[0] <= px <= box[2] else box[0] - 1 if box[0] > px else box[2] + 1
    line = f'<path d="M{px:.1f} {py:.1f}L{near:.1f} {py + dy:.1f}" stroke="{colour}" stroke-width=".6"/>' if abs(dy) > LINE / 2 else ""
    return line + f'<text x="{box[0]:.1f}" y="{py + dy + 3:.1f}" font-size="9" fill="{colour}">{name}</text>'
