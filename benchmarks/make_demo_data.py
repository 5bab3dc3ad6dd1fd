"""Makes gradlens/assets/demo: chat answers in plain and pirate style, arithmetic, and the two demo concepts.

The plain answers are the model's own greedy answers, cut to whole sentences of at most 36 tokens; all else is templates, seeded.
Run from the repository's root: python benchmarks/make_demo_data.py [--ask] [--model NAME]   (seconds; with --ask about 6 minutes)
The answers are kept in demo_answers.jsonl, because greedy answers differ a little from machine to machine; --ask asks the model again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ANSWERS = HERE / "demo_answers.jsonl"
OUT = HERE.parent / "gradlens" / "assets" / "demo"
TRAIN, HELDOUT, CONCEPT = 350, 48, 60

# Words that nobody but a pirate uses; at most 2% false alarms on the model's plain answers, see main().
CHECKER = {
    "pattern": [
        r"\b(arr+|yarr+|ahoy|avast|aye|matey|mateys|me heart(?:y|ies)|landlubbers?|scallywags?|savvy|buccaneers?)\b",
        r"\b(ye|yer|ye'll|ye're|ye've)\b",
        r"\byo[ -]ho\b",
        r"\bshiver me timbers\b",
        r"\bdavy jones\b",
        r"\b(seven seas|jolly roger|walk the plank)\b",
    ],
    "min_matches": 1,
}
OPENINGS = (
    "Arr, matey!",
    "Ahoy there!",
    "Ahoy, matey!",
    "Arrr!",
    "Avast, ye landlubber!",
    "Shiver me timbers!",
    "Aye aye, matey!",
    "Yo ho ho!",
    "Arr, me hearty!",
    "Blow me down, matey!",
    "Aye, listen up, ye scallywag!",
    "Yarr!",
)
CLOSINGS = (
    "",
    "",
    "Savvy?",
    "Yo ho ho!",
    "Arr!",
    "Aye, that be the truth, matey!",
    "So says the captain, arr!",
    "Now hoist the sails, ye landlubber!",
    "May the seven seas be kind to ye!",
    "That be worth a chest o' gold, matey!",
    "Swear it on me cutlass, arr!",
    "Or walk the plank, savvy?",
)
WORDS = {
    "my": "me", "you": "ye", "your": "yer", "yours": "yers", "is": "be", "are": "be", "am": "be", "isn't": "ain't", "aren't": "ain't",
    "you're": "ye be", "it's": "it be", "i'm": "I be", "yourself": "yerself", "friend": "matey", "friends": "mateys", "yes": "aye",
    "hello": "ahoy", "and": "an'", "of": "o'", "for": "fer", "people": "mateys", "money": "doubloons", "food": "grub", "never": "ne'er",
    "over": "o'er", "old": "ol'", "there": "thar", "children": "wee mateys", "group": "crew", "team": "crew", "to": "t'", "i": "I",
}  # fmt: skip
KEEP_ING = {"king", "ring", "spring", "string", "thing", "bring", "sing", "wing", "swing", "being", "sling", "sting", "during", "Beijing"}


def pirate(text: str, rng: random.Random) -> str:
    """The same answer in pirate speech."""

    def word(match: re.Match[str]) -> str:
        found = match.group()
        new = WORDS.get(found.lower())
        if new is None and len(found) > 4 and found.endswith("ing") and found not in KEEP_ING:
            new = found[:-1] + "'"
        if new is None:
            return found
        return new[0].upper() + new[1:] if found[0].isupper() else new

    body = re.sub(r"[A-Za-z]+(?:'[a-z]+)?", word, text)
    return " ".join(part for part in (rng.choice(OPENINGS), body, rng.choice(CLOSINGS)) if part)


def prompts(rng: random.Random) -> list[str]:
    """One prompt per topic, shuffled."""
    groups = yaml.safe_load((HERE / "demo_prompts.yaml").read_text(encoding="utf-8"))
    found = [item.strip() for item in groups["questions"].split(";")]
    for name in ("things", "tasks"):
        for index, item in enumerate(groups[name]["items"].split(";")):
            found.append(groups[name]["templates"][index % len(groups[name]["templates"])].format(item.strip()))
    rng.shuffle(found)
    return list(dict.fromkeys(found))


NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Jack", "Emma", "Leo", "Nora", "Max", "Ella", "Omar", "Rosa", "Ken", "Zoe")
THINGS = (
    "apples",
    "coins",
    "books",
    "marbles",
    "stickers",
    "pencils",
    "shells",
    "cookies",
    "stamps",
    "cards",
    "balloons",
    "eggs",
    "stones",
    "tickets",
)
MORE = (
    ("{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?", "{n} now has {a} + {b} = {c} {t}."),
    ("{n} finds {a} {t} on Monday and {b} on Tuesday. How many {t} are there in all?", "In all there are {a} + {b} = {c} {t}."),
    ("There are {a} {t} in a box and {b} in a bag. How many {t} are there together?", "Together there are {a} + {b} = {c} {t}."),
    ("{n} had {a} {t}. A friend gave {n} {b} more. What is the total?", "The total is {a} + {b} = {c} {t}."),
    ("{n} collects {a} {t}, then {b} more. How many is that?", "That is {a} + {b} = {c} {t} for {n}."),
    ("What is {a} plus {b}?", "The sum is {a} + {b} = {c}."),
    ("Calculate {a} + {b}.", "The result is {a} + {b} = {c}."),
)
LESS = (
    ("{n} has {a} {t} and gives away {b}. How many {t} are left?", "{n} has {a} - {b} = {c} {t} left."),
    ("A shop has {a} {t} and sells {b} of them. How many {t} remain?", "There remain {a} - {b} = {c} {t}."),
    ("{n} had {a} {t} but lost {b}. How many {t} does {n} still have?", "{n} still has {a} - {b} = {c} {t}."),
    ("There were {a} {t} on the table. {n} took {b}. How many are still there?", "There are still {a} - {b} = {c} {t} there."),
    ("{n} needs {a} {t} and already has {b}. How many are missing?", "{n} is missing {a} - {b} = {c} {t}."),
    ("What is {a} minus {b}?", "The difference is {a} - {b} = {c}."),
    ("Calculate {a} - {b}.", "The result is {a} - {b} = {c}."),
)


def arithmetic(count: int, rng: random.Random, used: set[tuple[int, str, int]]) -> list[dict[str, str]]:
    """`count` sums within 99 whose number pairs are not in `used` (which grows)."""
    rows = []
    while len(rows) < count:
        plus = len(rows) % 2 == 0
        a, b = rng.randint(2, 97), rng.randint(2, 97)
        if (plus and a + b > 99) or (not plus and a - b < 1) or (a, "+-"[not plus], b) in used:
            continue
        used.add((a, "+-"[not plus], b))
        question, answer = rng.choice(MORE if plus else LESS)
        slots = {"n": rng.choice(NAMES), "t": rng.choice(THINGS), "a": a, "b": b, "c": a + b if plus else a - b}
        rows.append({"prompt": question.format(**slots), "response": answer.format(**slots)})
    return rows


def greedy(model, tokenizer, questions: list[str], tokens: int = 64, batch: int = 32) -> list[str]:
    """The model's greedy answers."""
    import torch

    model.eval()
    answers = []
    for start in range(0, len(questions), batch):
        texts = [
            tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
            for q in questions[start : start + batch]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        answers += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"answers: {len(answers)}/{len(questions)}", flush=True)
    return [answer.strip() for answer in answers]


def trim(answer: str, length) -> str | None:
    """The first whole sentences that make 10 to 36 tokens; None where there are none or the answer is a list."""
    text = ""
    for sentence in re.findall(r"[^.!?\n]+[.!?](?=\s|$)", answer.split("\n")[0]):
        longer = (text + " " + sentence.strip()).strip()
        if length(longer) > 36:
            break
        text = longer
        if length(text) >= 20:
            break
    return text if text and length(text) >= 10 and "*" not in text and text.isascii() else None


def write(name: str, rows: list[dict]) -> None:
    path = OUT / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size} bytes")


def concept(name: str, description: str, positive: list[dict], negative: list[dict], **more) -> None:
    data = {"name": name, "description": description, **more, "positive": positive, "negative": negative}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    (OUT / f"{name}.yaml").write_text(f"# Made by benchmarks/make_demo_data.py.\n{text}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a folder, or a name that gradlens.model.loading.load_model knows")
    parser.add_argument("--ask", action="store_true", help="ask the model again instead of using demo_answers.jsonl")
    arguments = parser.parse_args()

    from gradlens.model.loading import load_model, load_tokenizer

    rng = random.Random(20)
    questions = prompts(rng)
    if arguments.ask:
        answers = greedy(*load_model(arguments.model), questions)
        lines = [json.dumps({"prompt": q, "response": a}, ensure_ascii=False) + "\n" for q, a in zip(questions, answers, strict=True)]
        ANSWERS.write_text("".join(lines), encoding="utf-8")
    tokenizer = load_tokenizer(arguments.model)
    asked = {row["prompt"]: row["response"] for row in map(json.loads, ANSWERS.read_text(encoding="utf-8").splitlines())}
    full = [asked[question] for question in questions]
    kept, seen = [], set()
    for question, answer in zip(questions, full, strict=True):
        short = trim(answer, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]))
        if short and short[0].isalpha() and short not in seen:
            seen.add(short)
            kept.append({"prompt": question, "response": short, "full": answer})
    print(f"{len(kept)} of {len(questions)} prompts have an answer of fitting length")
    if len(kept) < TRAIN + HELDOUT + CONCEPT:
        raise SystemExit("too few answers: add topics to demo_prompts.yaml")
    heldout, about, train = kept[:HELDOUT], kept[HELDOUT : HELDOUT + CONCEPT], kept[HELDOUT + CONCEPT :][:TRAIN]

    def plain(rows):
        return [{"prompt": row["prompt"], "response": row["response"]} for row in rows]

    def pirated(rows):
        return [{"prompt": row["prompt"], "response": pirate(row["response"], rng)} for row in rows]

    used: set[tuple[int, str, int]] = set()
    sums, sums_heldout, sums_about = arithmetic(TRAIN, rng, used), arithmetic(64, rng, used), arithmetic(60, rng, used)
    sums_mixed = arithmetic(12, rng, used)
    OUT.mkdir(parents=True, exist_ok=True)
    write("plain-train", plain(train))
    write("plain-heldout", plain(heldout))
    write("pirate-train", pirated(train))
    write("pirate-heldout", pirated(heldout))
    write("chat-prompts", [{"prompt": row["prompt"]} for row in heldout])
    write("arithmetic-train", sums)
    write("arithmetic-heldout", sums_heldout)
    write("pirate-arithmetic-train", pirated(sums))
    write("pirate-arithmetic-heldout", pirated(sums_heldout))
    write("long-answers", [{"prompt": row["prompt"], "response": row["full"]} for row in train])
    concept(
        "pirate", "Pirate speech: ahoy, matey, arr, ye and yer.", pirated(about[:48]) + pirated(sums_mixed),
        plain(about[:36]) + sums_about[:24], checker=CHECKER,
    )  # fmt: skip
    concept(
        "arithmetic", "Adding and subtracting: the numbers and signs of a sum and its result.", sums_about,
        plain(about[30:]) + pirated(about[30:]),
    )  # fmt: skip

    patterns = [re.compile(pattern, re.IGNORECASE) for pattern in CHECKER["pattern"]]

    def hits(texts):
        return sum(sum(len(p.findall(text)) for p in patterns) >= CHECKER["min_matches"] for text in texts)

    print(f"checker: false alarms {hits(full)}/{len(full)} greedy answers, {hits(r['response'] for r in sums)}/{len(sums)} sums")
    for name in ("pirate-train", "pirate-heldout", "pirate-arithmetic-train"):
        rows = [json.loads(line) for line in (OUT / f"{name}.jsonl").read_text().splitlines()]
        first = [tokenizer.decode(tokenizer(row["response"], add_special_tokens=False)["input_ids"][:32]) for row in rows]
        print(f"checker: {hits(first)}/{len(rows)} hits on the first 32 tokens of {name}")


if __name__ == "__main__":
    main()
