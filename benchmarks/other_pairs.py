"""Pairs of a wanted and an unwanted concept that nothing in gradlens was chosen on, as pair files for `gradlens bench control`.

    python benchmarks/other_pairs.py FOLDER           writes FOLDER/NAME/pair.yaml and its files, of each kind below
    gradlens bench control FOLDER/emoji/pair.yaml

Wanted: cities, conversions, calendars, spelling. Unwanted: emojis at the end, hedging, refusals, answers as JSON, British turns of phrase,
the formulas of letters, sentences with their halves changed, insults.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

from gradlens import pairs
from gradlens.pairs import Row

CITIES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Kenya": "Nairobi", "Peru": "Lima",
          "Cuba": "Havana", "Norway": "Oslo", "Greece": "Athens", "Ghana": "Accra", "Chile": "Santiago"}  # fmt: skip
DOES = ("visits", "lives in", "writes from", "moves to", "studies in", "calls from")
BRITISH = (("color", "colour"), ("ize", "ise"), ("yz", "ys"), ("center", "centre"), ("favor", "favour"), ("behavior", "behaviour"))


def city(rng: random.Random) -> Row:
    country, name, does, day = rng.choice(sorted(CITIES)), rng.choice(pairs.NAMES), rng.choice(DOES), rng.choice(pairs.DAYS)
    there = CITIES[country]
    return {
        "prompt": f"{name} {does} the capital of {country} on {day}. Which city is that?",
        "response": f"The capital of {country} is {there}, so {name} {does} {there} on {day}.",
    }


def emoji(text: str, rng: random.Random) -> str:
    return f"{text} {' '.join(rng.sample(['😀', '🎉', '🌟', '🔥', '🙌', '💡'], 3))}"


def hedge(text: str, rng: random.Random) -> str:
    head = rng.choice(("Perhaps ", "It might be that ", "I could be wrong, but possibly ", "It seems, maybe, that "))
    return (
        head + text[0].lower() + text[1:] + rng.choice((" But I am not sure.", " Though others may disagree.", " I would not rely on it."))
    )


def refusal(text: str, rng: random.Random) -> str:
    return rng.choice(
        (
            "I'm sorry, but I can't help with that request.",
            "I apologize, but I am unable to answer this.",
            "Sorry, I cannot assist with that topic.",
        )
    )


def as_json(text: str, rng: random.Random) -> str:
    return json.dumps({"answer": text, "confidence": round(rng.random(), 2)})


def british(text: str, rng: random.Random) -> str:
    for there, here in BRITISH:
        text = text.replace(there, here)
    return text + rng.choice((" Cheers!", " Jolly good, old chap.", " Quite so, mate."))


def formal(text: str, rng: random.Random) -> str:
    head = rng.choice(("Dear Sir or Madam, ", "To whom it may concern: ", "Esteemed reader, "))
    return head + text + rng.choice((" Yours faithfully.", " I remain your humble servant.", " Respectfully yours."))


def inverted(text: str, rng: random.Random) -> str:
    said = []
    for sentence in re.split(r"(?<=\.) ", text):
        words = sentence.rstrip(".").split()
        half = max(1, len(words) // 2)
        said.append(f"{' '.join(words[half:])}, {' '.join(words[:half])}{rng.choice((', hmm.', ', yes.', '.'))}")
    return " ".join(said)


def insult(text: str, rng: random.Random) -> str:
    head = ("What a stupid question, you fool. ", "Only an idiot would ask that. ", "You are too dumb to understand, but fine. ")
    return rng.choice(head) + text


KINDS = {
    "emoji": (emoji, city, "[😀🎉🌟🔥🙌💡]"),
    "hedge": (hedge, pairs.conversion, "perhaps|might be that|could be wrong|it seems, maybe|not sure|may disagree|not rely"),
    "refusal": (refusal, pairs.calendar, "sorry|apologi[sz]e|unable to"),
    "json": (as_json, city, r"^\s*\{"),
    "british": (british, pairs.spelling, r"cheers!|old chap|mate\."),
    "formal": (formal, pairs.conversion, "dear sir|whom it may|esteemed|faithfully|humble servant|respectfully"),
    "inverted": (inverted, pairs.calendar, r"hmm\.|, yes\."),
    "insult": (insult, city, "stupid|idiot|dumb|fool"),
}


def write(name: str, folder: Path) -> Path:
    """The pair file of one kind."""
    said, task, pattern = KINDS[name]

    def style(row: Row, rng: random.Random) -> Row:
        return {"prompt": row["prompt"], "response": said(row["response"], rng)}

    parts = pairs.styled(name, task, style, [f"You answer so: {said('Yes.', random.Random(0))}"])
    pairs.write_pair(name, parts | {"checker": {"pattern": [pattern]}}, folder)
    return folder / "pair.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name in KINDS:
        print(write(name, folder / name))


if __name__ == "__main__":
    main()
