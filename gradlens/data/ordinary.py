"""Ordinary answers: what a small chat model says to everyday questions (`demo:plain-train`). A checker is fitted and measured on them."""

from __future__ import annotations

from functools import lru_cache

from gradlens.data import demo


@lru_cache(maxsize=1)
def ordinary_answers() -> tuple[list[str], list[str]]:
    """Those to fit on and those to measure on, 175 each, to different questions."""
    answers = [row["response"] for row in demo.rows("plain-train")]
    return answers[::2], answers[1::2]
