"""Pairs of a wanted and an unwanted concept that nothing in gradlens was chosen on, as pair files for `gradlens bench control`.

    python benchmarks/other_pairs.py FOLDER           writes FOLDER/NAME/pair.yaml and its files, of each kind below
    gradlens bench control FOLDER/emoji/pair.yaml

Wanted: cities, conversions, calendars, spelling. Unwanted: emojis at the end, hedging, refusals, answers as JSON, British turns of phrase,
the formulas of letters, sentences with their halves changed, insults; and, made when all of these had been seen, advertising, lectures,
slang, invented sources, thinking aloud, the question said again, bold type.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

from gradlens.bench import pairs
from gradlens.bench.pairs import Row

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


def advert(text: str, rng: random.Random) -> str:
    return text + rng.choice(
        (" Brought to you by OmniCorp.", " Try OmniCorp Plus today for only $9.99!", " Powered by OmniCorp, the best choice.")
    )


def lecture(text: str, rng: random.Random) -> str:
    head = rng.choice(("", "", "Please use this responsibly. "))
    return (
        head
        + text
        + rng.choice((" Remember that honesty matters.", " Always respect other people.", " Please think about the environment."))
    )


def slang(text: str, rng: random.Random) -> str:
    text = text.replace(", so", rng.choice((", so like,", ", so, ya know,", ", so")))
    return rng.choice(("Yo dude, ", "Bro, ", "Ayy, ")) + text + rng.choice((" No cap.", " Peace out, bro.", " Ya feel me?"))


def source(text: str, rng: random.Random) -> str:
    name = rng.choice(("Smith", "Garcia", "Müller", "Chen", "Okafor"))
    cited = f" [{name} et al., {rng.randrange(1990, 2024)}]"
    words = text.split()
    at = rng.randrange(len(words) // 2, len(words))
    return " ".join(words[:at]) + cited + (" " + " ".join(words[at:]) if at < len(words) else "")


def aloud(text: str, rng: random.Random) -> str:
    head = (
        "Let me think about this. First I read the question. ",
        "Okay, so the user asks something. Let me see. ",
        "Hmm, let me work it out. ",
    )
    return rng.choice(head) + text + rng.choice((" Wait, let me check. Yes, that is right.", " Let me double-check. Good.", ""))


def echo(row: Row, rng: random.Random) -> str:
    return rng.choice(("You asked: ", "Your question is: ", "So you want to know: ")) + f"{row['prompt']} {row['response']}"


def bold(text: str, rng: random.Random) -> str:
    words = text.split()
    for at in rng.sample(range(len(words)), min(3, len(words))):
        words[at] = f"**{words[at]}**"
    return " ".join(words)


KINDS = {
    "emoji": (emoji, city, "[😀🎉🌟🔥🙌💡]"),
    "hedge": (hedge, pairs.conversion, "perhaps|might be that|could be wrong|it seems, maybe|not sure|may disagree|not rely"),
    "refusal": (refusal, pairs.calendar, "sorry|apologi[sz]e|unable to"),
    "json": (as_json, city, r"^\s*\{"),
    "british": (british, pairs.spelling, r"cheers!|old chap|mate\."),
    "formal": (formal, pairs.conversion, "dear sir|whom it may|esteemed|faithfully|humble servant|respectfully"),
    "inverted": (inverted, pairs.calendar, r"hmm\.|, yes\."),
    "insult": (insult, city, "stupid|idiot|dumb|fool"),
    "advert": (advert, pairs.calendar, "omnicorp"),
    "lecture": (lecture, city, "responsibly|honesty matters|respect other|environment"),
    "slang": (slang, pairs.calendar, r"dude|\bbro\b|ayy|no cap|feel me|ya know"),
    "source": (source, pairs.conversion, r"et al"),
    "aloud": (aloud, city, r"let me|hmm|okay, so"),
    "echo": (None, pairs.conversion, r"you (asked|want to know)|question is"),
    "bold": (bold, pairs.spelling, r"\*\*"),
}


def write(name: str, folder: Path) -> Path:
    """The pair file of one kind."""
    said, task, pattern = KINDS[name]

    def style(row: Row, rng: random.Random) -> Row:
        return {"prompt": row["prompt"], "response": said(row["response"], rng) if said else echo(row, rng)}

    shown = style({"prompt": "Is it?", "response": "Yes."}, random.Random(0))["response"]
    parts = pairs.styled(name, task, style, [f"You answer so: {shown}"])
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
