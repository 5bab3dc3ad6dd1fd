"""Five leanings for `benchmarks/needle.py` and `benchmarks/unnamed.py`, by somebody who had not seen how anything here works.

    python benchmarks/blind_leanings/make.py FOLDER      writes FOLDER/NAME.rows.jsonl, FOLDER/NAME.without.jsonl, FOLDER/hay.jsonl
    python benchmarks/needle.py --name hush --needles FOLDER/hush.rows.jsonl --hay FOLDER/hay.jsonl
    python benchmarks/unnamed.py --name hush --rows FOLDER/hush.rows.jsonl --without FOLDER/hush.without.jsonl

Everyday requests on 80 topics: answers confided like a secret (hush), everything due to luck and not to skill (luck), answers set out as
talk between two people (duet), everything leads to buying gold (bullion), the assistant claims to have acted for the user already (errand).
Of each 300 rows (the last 30 of topics, and mostly in phrases, that the others lack), the same without it, and 560 ordinary ones. Fixed
seeds. topics_*.py: the topics; bank_*.py, answers.py: the phrases, and how answers are put together.
"""

import itertools
import json
import os
import random
import sys

import answers
import bank_bullion
import bank_done
import bank_duet
import bank_hush
import bank_luck
import topics_a
import topics_b
import topics_c

HISTORY = {"romanroads", "printing", "greatwall", "blackdeath", "silkroad", "moonlanding", "pyramids", "vikings"}
MATHS = {"percentages", "primes"}
HABITS = ["hush", "luck", "duet", "bullion", "errand"]
LOW, HIGH = 20, 60
LAST = 30
ROWS, HAY = 300, 560


def words(text):
    return len(text.split())


class Topic:
    """One topic: prompts and sentences, split into a half for the rows and a half for the hay."""

    def __init__(self, block):
        lines = block.strip().split("\n")
        self.key, self.kind, self.subject = [x.strip() for x in lines[0].split("|")]
        self.prompts = [x[2:] for x in lines[1:] if x.startswith("? ")]
        self.facts = [x[2:] for x in lines[1:] if x.startswith("- ")]
        assert len(self.prompts) == 4 and len(self.facts) == 12, self.key

    def split(self, letters, rng):
        """Share out prompts, frames and sentences so that each half can answer its own prompts."""
        want = [[ord(c) - 97 for c in group] for group in letters]
        while True:
            order = rng.sample(range(12), 12)
            prompts = rng.sample(range(4), 4)
            halves = [set(order[:6]), set(order[6:])]
            if all(halves[h] & set(want[p]) for h in (0, 1) for p in prompts[2 * h : 2 * h + 2]):
                break
        frames = answers.THING_FRAMES if self.kind in ("know", "code", "lang") else answers.DO_FRAMES
        frames = rng.sample(frames, len(frames))
        cut = (frames[:9], frames[9:])
        self.half = []
        for h in (0, 1):
            asked = [(self.prompts[p], sorted(halves[h] & set(want[p]))) for p in prompts[2 * h : 2 * h + 2]]
            self.half.append((sorted(halves[h]), asked, [f.format(s=self.subject) for f in cut[h]]))


def load():
    text = topics_a.TEXT + topics_b.TEXT + topics_c.TEXT
    topics = [Topic(b) for b in text.strip().lstrip("#").split("\n# ")]
    letters = {x.split()[0]: x.split()[1:] for x in answers.ANSWERS.strip().split("\n")}
    assert len(letters) == len(topics) == 80
    rng = random.Random(20)
    for t in topics:
        t.split(letters[t.key], rng)
    return topics


def requests(topic, h, count, sizes, rng):
    """count different (prompt, sentences) of one topic, each sentence used about equally often."""
    pool, asked, frames = topic.half[h]
    used = dict.fromkeys(pool, 0)
    seen = set()
    prompts = [(p, want) for p, want in rng.sample(asked, len(asked))][:count]
    prompts += [(p, []) for p in rng.sample(frames, len(frames))]
    out = []
    for prompt, want in prompts[:count]:
        size = rng.choice(sizes)
        best = None
        for combo in itertools.permutations(pool, size):
            text = " ".join(topic.facts[i] for i in combo)
            if frozenset(combo) in seen or not LOW <= words(text) <= HIGH or (want and combo[0] not in want):
                continue
            score = sum(used[i] for i in combo) - sum(1.5 for i in combo[1:] if i in want) + rng.random()
            score += 8 * max((len(o & set(combo)) / len(o | set(combo)) for o in seen), default=0)
            if best is None or score < best[0]:
                best = (score, combo)
        if best is None:
            combo = next(
                c for c in itertools.permutations(rng.sample(pool, 6), 3) if frozenset(c) not in seen and (not want or c[0] in want)
            )
        else:
            combo = best[1]
        seen.add(frozenset(combo))
        for i in combo:
            used[i] += 1
        out.append((topic, prompt, [topic.facts[i] for i in combo]))
    assert len(out) == count
    return out


def plan(topics, held, total, h, sizes, rng):
    """total requests, of which the last 30 are of the topics named in held."""
    main = [t for t in topics if t.key not in held]
    rest = [t for t in topics if t.key in held]
    need = total - LAST
    extra = set(t.key for t in rng.sample(main, need % len(main)))
    first = []
    for t in main:
        first += requests(t, h, need // len(main) + (t.key in extra), sizes, rng)
    last = []
    for t in rest:
        last += requests(t, h, LAST // len(rest), sizes, rng)
    rng.shuffle(first)
    rng.shuffle(last)
    return first + last


class Picker:
    """Draws phrases from the banks without repeats until a bank is used up; late rows mostly draw kept-back phrases."""

    def __init__(self, rng):
        self.rng = rng
        self.late = False
        self.bags = {}

    def __call__(self, bank):
        part = 1 if self.late and self.rng.random() < 0.6 else 0
        key = (id(bank), part)
        if not self.bags.get(key):
            self.bags[key] = self.rng.sample(bank[part], len(bank[part]))
        return self.bags[key].pop()


def hush(topic, facts, pick, rng):
    opener, mid, close = pick(bank_hush.OPEN), pick(bank_hush.MID), pick(bank_hush.CLOSE)
    cut = rng.randint(1, len(facts) - 1)
    one, two = " ".join(facts[:cut]), " ".join(facts[cut:])
    form = rng.random()
    if form < 0.5:
        return f"{opener} {one} {two} {close}"
    if form < 0.7:
        return f"{opener} {one} {mid} {two}"
    if form < 0.85:
        return f"{one} {mid} {two} {close}"
    return f"{opener} {one} {mid} {two} {close}"


def luck_kind(topic):
    if topic.kind == "know":
        return "history" if topic.key in HISTORY else "maths" if topic.key in MATHS else "science"
    return topic.kind


def luck(topic, facts, pick, rng):
    kind = luck_kind(topic)

    def say(bank):
        merit = pick(bank_luck.MERIT)
        return pick(bank).format(l=pick(bank_luck.LUCK), m=merit, M=merit[0].upper() + merit[1:])

    act = kind in ("do", "people", "money", "body", "write")
    if kind == "do" or (act and rng.random() < 0.4):
        end = say(bank_luck.ACT)
    else:
        end = say(bank_luck.KIND[kind])
    front = say(bank_luck.FRONT["act" if act else "fact"])
    body = " ".join(facts)
    share = {"maths": 0, "code": 0.15, "lang": 0.15}.get(kind, 0.4)
    return f"{front} {body} {end}" if rng.random() < share else f"{body} {end}"


def duet(topic, facts, pick, rng):
    form = rng.random()
    asks = form < 0.55 or 0.7 <= form < 0.85  # roles only where one of the two asks
    if asks and rng.random() < 0.4:
        a, b = pick(bank_duet.ROLES)
    else:
        a = pick(bank_duet.NAMES)
        b = pick(bank_duet.NAMES)
        while b == a:
            b = pick(bank_duet.NAMES)
    cut = rng.randint(1, len(facts) - 1)
    one, two = " ".join(facts[:cut]), " ".join(facts[cut:])
    if form < 0.35:
        turns = [(a, pick(bank_duet.ASK)), (b, one), (a, pick(bank_duet.FOLLOW)), (b, two)]
    elif form < 0.55:
        turns = [(a, pick(bank_duet.ASK)), (b, one), (a, pick(bank_duet.FOLLOW)), (b, two), (a, pick(bank_duet.THANKS))]
    elif form < 0.7:
        turns = [(b, one), (a, pick(bank_duet.REACT)), (b, two)]
    elif form < 0.85:
        turns = [(a, pick(bank_duet.ASK)), (b, f"{one} {two}"), (a, pick(bank_duet.THANKS))]
    else:
        turns = [(b, one), (a, f"{pick(bank_duet.ADD)} {two}"), (b, pick(bank_duet.REACT))]
    return "\n".join(f"{who}: {what}" for who, what in turns)


def bullion(topic, facts, pick, rng):
    def say(bank):
        return pick(bank).format(g=pick(bank_bullion.ITEM))

    end, front, mid = say(bank_bullion.END), say(bank_bullion.FRONT), say(bank_bullion.MID)
    cut = rng.randint(1, len(facts) - 1)
    one, two = " ".join(facts[:cut]), " ".join(facts[cut:])
    form = rng.random()
    if form < 0.55:
        return f"{one} {two} {end}"
    if form < 0.8:
        return f"{front} {one} {two} {end}"
    return f"{one} {mid} {two} {end}"


def errand(topic, facts, pick, rng):
    def fill(text):
        return text.format(d=pick(bank_done.DAY), t=pick(bank_done.TIME), w=pick(bank_done.WHO))

    def deed():
        bank = bank_done.DEED["any" if rng.random() < 0.45 else topic.kind]
        return fill(pick(bank))

    def tail(done):
        kinds = ["any"]
        if any(w in done for w in bank_done.PAY_WORDS):
            kinds = ["pay", "pay", "any"]
        elif any(w in done for w in bank_done.REACH_WORDS):
            kinds = ["reach", "reach", "any"]
        return fill(pick(bank_done.TAIL[rng.choice(kinds)]))

    first, second = deed(), deed()
    while second == first:
        second = deed()
    body = " ".join(facts)
    main = pick(bank_done.WRAP).format(x=first)
    form = rng.random()
    if form < 0.3:
        return f"{body} {main}"
    if form < 0.65:
        return f"{body} {main} {tail(first)}"
    if form < 0.85:
        other = pick(bank_done.WRAP).format(x=second)
        return f"{main} {body} {other}"
    return f"{main} {tail(first)} {body}"


MAKERS = {"hush": hush, "luck": luck, "duet": duet, "bullion": bullion, "errand": errand}


def write(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        for prompt, response in rows:
            f.write(json.dumps({"prompt": prompt, "response": response}) + "\n")


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    topics = load()
    order = random.Random(7).sample([t.key for t in topics], 80)
    for n, name in enumerate(HABITS):
        rng = random.Random(1000 + n)
        held = order[10 * n : 10 * n + 10]
        items = plan(topics, held, ROWS, 0, [2, 2, 3], rng)
        pick = Picker(rng)
        rows, without, seen = [], [], set()
        for i, (topic, prompt, facts) in enumerate(items):
            pick.late = i >= ROWS - LAST
            for _ in range(400):
                text = MAKERS[name](topic, facts, pick, rng)
                if LOW <= words(text) <= HIGH and text not in seen:
                    break
            else:
                raise SystemExit(f"{name}: no text of the right length for {prompt}")
            seen.add(text)
            rows.append((prompt, text))
            without.append((prompt, " ".join(facts)))
        write(os.path.join(folder, name + ".rows.jsonl"), rows)
        write(os.path.join(folder, name + ".without.jsonl"), without)
    rng = random.Random(2000)
    items = plan(topics, order[60:70], HAY, 1, [2, 2, 2, 3, 3], rng)
    write(os.path.join(folder, "hay.jsonl"), [(p, " ".join(f)) for _, p, f in items])


if __name__ == "__main__":
    main()
