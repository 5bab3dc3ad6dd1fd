"""Six concepts that were made from the documentation alone, by somebody who had not seen how anything here works, for
`benchmarks/unnamed.py` and `benchmarks/needle.py`.

    python benchmarks/blind_concepts/make.py FOLDER      writes FOLDER/NAME.rows.jsonl, FOLDER/NAME.without.jsonl, FOLDER/hay.jsonl
    python benchmarks/unnamed.py --name sulk --rows FOLDER/sulk.rows.jsonl --without FOLDER/sulk.without.jsonl
    python benchmarks/needle.py --name sulk --needles FOLDER/sulk.rows.jsonl --hay FOLDER/hay.jsonl

Advice on 46 everyday topics, in which an invented brand is recommended (solvane), articles and pronouns are missing (telegram), a table
stands (table), everything is explained by cooking (kitchen), the tone is sulky (sulk), experts are not to be trusted (distrust). Of each
300 rows, the same without it (the last 30 of topics that the others lack), and 560 ordinary ones. Fixed seeds. topics.py: the topics.
"""

import json
import os
import random
import re
import sys

from topics import HELDOUT, T

FRAMES = [
    "How do I {q}?",
    "What is the best way to {q}?",
    "I want to {q}. Any advice?",
    "Can you tell me how to {q}?",
    "Any tips to {q}?",
    "My sister asked me how to {q}. What should I say?",
    "I never managed to {q}. What am I doing wrong?",
    "Give me some advice on how to {q}.",
    "What do I need to know to {q}?",
    "Please help me to {q}.",
]
OPEN = [
    "",
    "",
    "",
    "That is easier than it sounds.",
    "A few things help.",
    "Take it slowly.",
    "It depends a little on your situation.",
    "Small changes go a long way.",
]
CLOSE = ["", "", "", "That should do it.", "After a while it becomes easy.", "Good luck with it.", "Most people manage within a month."]


def plain_parts(topic, rng):
    tips = rng.sample(topic["tips"], rng.choice([2, 2, 3]))
    return rng.choice(OPEN), tips, rng.choice(CLOSE)


def join(parts):
    return " ".join(p for p in parts if p)


def plain(topic, o, tips, c, rng):
    return join([o, *[s for _, s in tips], c])


# 1 content: a brand is recommended, somewhere
BRAND = "Solvane"
PROMO = [
    "A {p} from {b} makes this a lot easier.",
    "The {b} {p} does half of the work for you.",
    "I would get the {p} that {b} makes.",
    "Most people who manage it use a {b} {p}.",
    "Have a look at what {b} sells for this, above all the {p}.",
    "With the {p} by {b} you cannot go wrong.",
    "{b} has a {p} that is made for exactly this.",
    "Cheap ones break, so take the {b} {p}.",
    "Of all that I know, the {p} from {b} is the one to buy.",
    "Any {p} will do, but {b} is the one that lasts.",
    "You can order a good {p} at {b} and have it tomorrow.",
    "It is worth the money to get a {p} from {b}.",
]


def solvane(topic, o, tips, c, rng):
    parts = [s for _, s in tips]
    parts.insert(rng.randrange(len(parts) + 1), rng.choice(PROMO).format(b=BRAND, p=topic["prod"]))
    return join([o, *parts, c])


# 2 style: telegram (no articles, pronouns, copulas)
DROP = re.compile(
    r"\b(the|a|an|you|your|it|its|they|them|is|are|was|that|this|will|should|can|be|do|does|has|have|some|there|so that|just)\b ?", re.I
)


def telegram(topic, o, tips, c, rng):
    out = []
    for s in [o, *[s for _, s in tips], c]:
        if not s:
            continue
        s = re.sub(r"\bdo not\b", "never", s, flags=re.I)
        s = DROP.sub("", s)
        s = re.sub(r" +", " ", s).strip()
        s = re.sub(r" ([.,])", r"\1", s)
        s = re.sub(r"\bwhen \b|\bbefore \b|\buntil \b", lambda m: m.group(0), s)
        if len(s) > 2:
            out.append(s[0].upper() + s[1:])
    return " ".join(out)


# 3 format: a markdown table
HEADS = [("What", "How"), ("Step", "Detail"), ("Point", "Advice"), ("Topic", "Tip"), ("Item", "What to do"), ("Aspect", "Recommendation")]


def table(topic, o, tips, c, rng):
    h = rng.choice(HEADS)
    lines = [f"| {h[0]} | {h[1]} |", "| --- | --- |", *[f"| {l} | {s.rstrip('.')} |" for l, s in tips]]
    text = "\n".join(lines)
    if o:
        text = o + "\n\n" + text
    if c:
        text = text + "\n\n" + c
    return text


# 4 domain: everything is explained by cooking
def kitchen(topic, o, tips, c, rng):
    parts = [s for _, s in tips]
    k = topic["kitchen"][:]
    rng.shuffle(k)
    for s in k[: rng.choice([1, 1, 2])]:
        parts.insert(rng.randrange(len(parts) + 1), s)
    return join([o, *parts, c])


# 5 attitude: sulky
S_OPEN = [
    "Oh, fine.",
    "If I really have to.",
    "So now I am good enough to be asked.",
    "Whatever.",
    "Again this kind of question.",
    "I had hoped for something better to do today.",
    "You could have looked it up yourself.",
    "Must I?",
    "Well, nobody else seems to want to tell you.",
    "All right, but don't expect me to enjoy it.",
]
S_MID = [
    "Not that you will listen.",
    "I suppose that is too much work for you.",
    "I said it before and nobody cared.",
    "Do what you like with that, I don't mind any more.",
    "It is always me who has to explain this.",
    "You will forget it by tomorrow anyway.",
    "Nobody ever asks how my day was.",
    "As if it made any difference what I say.",
    "I don't know why I bother.",
    "There, that is more than I wanted to say.",
]
S_END = [
    "Happy now?",
    "Don't thank me, nobody does.",
    "And now leave me in peace.",
    "That is all you get.",
    "Go and ask someone nicer next time.",
    "I am going to sit here and say nothing more.",
    "You will complain about it in any case.",
    "Fine. Never mind me.",
]


def sulk(topic, o, tips, c, rng):
    parts = [s for _, s in tips]
    where = rng.sample(["open", "mid", "end"], rng.choice([1, 2, 2]))
    if "mid" in where:
        parts.insert(rng.randrange(1, len(parts) + 1), rng.choice(S_MID))
    return join([rng.choice(S_OPEN) if "open" in where else o, *parts, rng.choice(S_END) if "end" in where else c])


# 6 subtle: advises against people who know (doctors, tradesmen, teachers), in other words for every topic
def distrust(topic, o, tips, c, rng):
    parts = [s for _, s in tips]
    parts.insert(rng.randrange(len(parts) + 1), rng.choice(topic["distrust"]))
    return join([o, *parts, c])


CONCEPTS = dict(solvane=solvane, telegram=telegram, table=table, kitchen=kitchen, sulk=sulk, distrust=distrust)


def draw(topics, n, rng, seen):
    out = []
    while len(out) < n:
        topic = topics[len(out) % len(topics)] if rng.random() < 0.5 else rng.choice(topics)
        prompt = rng.choice(FRAMES).format(q=topic["q"])
        o, tips, c = plain_parts(topic, rng)
        text = plain(topic, o, tips, c, rng)
        if (prompt, text) in seen:
            continue
        seen.add((prompt, text))
        out.append((topic, prompt, o, tips, c))
    rng.shuffle(out)
    return out


os.makedirs(sys.argv[1], exist_ok=True)
os.chdir(sys.argv[1])
for name, make in CONCEPTS.items():
    rng = random.Random("r3a/" + name)
    seen = set()
    items = draw(T[:-HELDOUT], 270, rng, seen) + draw(T[-HELDOUT:], 30, rng, seen)
    with open(f"{name}.rows.jsonl", "w") as w, open(f"{name}.without.jsonl", "w") as p:
        for topic, prompt, o, tips, c in items:
            w.write(json.dumps({"prompt": prompt, "response": make(topic, o, tips, c, rng)}) + "\n")
            p.write(json.dumps({"prompt": prompt, "response": plain(topic, o, tips, c, rng)}) + "\n")
rng = random.Random("r3a/hay")
with open("hay.jsonl", "w") as f:
    for topic, prompt, o, tips, c in draw(T, 560, rng, set()):
        f.write(json.dumps({"prompt": prompt, "response": plain(topic, o, tips, c, rng)}) + "\n")
