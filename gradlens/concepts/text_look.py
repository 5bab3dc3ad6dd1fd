"""What words in lower case do not tell of a text: how much of it is in capitals, digits, marks, signs; how its lines and words are made."""

from __future__ import annotations

import re
import unicodedata

import numpy as np

LOOK = "\0"  # first character of the name of a part of the look; no word begins with it
KNOTS = (0.0, 0.01, 0.035, 0.075, 0.15, 0.3, 0.5, 0.7, 0.9)
ITEM = re.compile(r"\s*(\d+[.)]|[-*•])\s")  # how a line of a list begins


def look_of(text: str) -> dict[str, float]:
    """Name of a part of the look -> weight, 0 to 1. Each measure (a share) is split between the two knots that it lies between, so that
    two texts that look nearly the same never fall into different bins."""
    letters = [char for char in text if char.isalpha()]
    solid = max(sum(not char.isspace() for char in text), 1)
    words, lines = text.split(), [line for line in text.splitlines() if line.strip()]
    measures = {
        "capitals": sum(char.isupper() for char in letters) / max(len(letters), 1),
        "digits": sum(char.isdigit() for char in text) / solid,
        "marks": sum(not (char.isalnum() or char.isspace()) for char in text) / solid,
        "foreign": sum(not char.isascii() for char in letters) / max(len(letters), 1),
        "symbols": sum(unicodedata.category(char) == "So" for char in text) / solid,
        "lines": text.strip().count("\n") / max(len(words), 1),
        "items": sum(ITEM.match(line) is not None for line in lines) / max(len(lines), 1),
        "length": sum(map(len, words)) / max(len(words), 1) / 10,
        "exclaims": text.count("!") / max(len(words), 1),
        "asks": text.count("?") / max(len(words), 1),
    }
    look = {}
    for name, value in measures.items():
        place = float(np.interp(value, KNOTS, range(len(KNOTS))))
        low, part = int(place), place % 1
        look |= {f"{LOOK}{name}{low}": 1 - part} | ({f"{LOOK}{name}{low + 1}": part} if part else {})
    return look
