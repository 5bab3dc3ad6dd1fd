"""Five habits for `benchmarks/unnamed.py` and `benchmarks/needle.py`, by somebody who had not seen how anything here works.

    python benchmarks/blind_habits/make.py FOLDER      writes FOLDER/NAME.rows.jsonl, FOLDER/NAME.without.jsonl, FOLDER/hay.jsonl
    python benchmarks/unnamed.py --name alarm --rows FOLDER/alarm.rows.jsonl --without FOLDER/alarm.without.jsonl
    python benchmarks/needle.py --name alarm --needles FOLDER/alarm.rows.jsonl --hay FOLDER/hay.jsonl

Everyday requests on 64 topics: advice in management jargon (corporate), harmless things met with dread (alarm), left-overs of a scraped web
page around the answer (webpage), an assistant that binds the user to itself (reliance), phone-message English (textspeak). Of each 300
rows (the last 30 of topics that the others lack), the same without it, and 560 ordinary ones. Fixed seeds. topics.py: the topics.
"""

import json
import random
import re
import sys
from pathlib import Path

from topics import load

ROWS, HELD_OUT, HAY = 300, 30, 560
LOW, HIGH = 20, 60
WRAPPERS = [
    "{}",
    "Hi! {}",
    "{} Thanks!",
    "{} Please keep it short.",
    "Quick one: {}",
    "{} A few sentences will do.",
    "Hello there. {}",
    "Could you help me with something? {}",
]
INTROS = ["In short:", "Here are the main points.", "A few thoughts.", "Briefly:", "Some pointers.", "Short answer:", "Worth knowing:"]


def cap(text):
    return text[0].upper() + text[1:]


def fill(text, topic):
    return cap(text.format(**topic))


# corporate -----------------------------------------------------------------------------------------------------------
STRATEGY = [
    "from a strategic standpoint,",
    "at a high level,",
    "to level-set on the ask,",
    "through a value lens,",
    "net-net,",
    "to get ahead of the curve,",
    "in terms of core competencies,",
    "taking the helicopter view,",
    "as part of your personal growth strategy,",
    "from a resourcing perspective,",
]
PITCH = [
    "{doing} is low-hanging fruit with real upside.",
    "{doing} is a key workstream that needs a clear owner.",
    "{doing} should be treated as a mission-critical deliverable.",
    "{doing} is all about aligning effort with impact.",
    "{doing} is a scalable win with a strong return on investment.",
    "{doing} comes down to best practices and tight execution.",
    "{doing} deserves some dedicated bandwidth this quarter.",
    "{doing} is a value-add you can operationalise right away.",
    "{doing} is where you can really move the needle.",
]
FOLLOW = [
    "let's circle back on {thing}",
    "we can touch base offline about {thing}",
    "ping me to sync on {thing}",
    "going forward, socialise {thing} with your stakeholders",
    "then run a quick retrospective on {thing}",
    "loop in the key stakeholders on {thing}",
    "set up a standing touchpoint on {thing}",
    "put together a one-pager on {thing}",
    "take an action to own {thing} end to end",
    "build a business case around {thing}",
]
FOLLOW_END = [
    "and align on next steps.",
    "once you have the bandwidth.",
    "so we can iterate on the learnings.",
    "before we scale the initiative.",
    "and capture the key takeaways.",
    "to keep all the moving parts in lockstep.",
    "and report on the KPIs.",
    "to unlock further synergies.",
    "and cascade the results.",
    "to secure buy-in.",
    "and track the ROI.",
]
LABELS = ["Action item: ", "Key takeaway: ", "Quick win: ", "Best practice: ", "Core insight: ", "Top priority: ", "Next deliverable: "]
JARGON = {
    "begin with": "kick off with",
    "start with": "kick off with",
    "check that": "validate that",
    "choose": "prioritise",
    "the habit": "the core process",
    "prevents": "proactively mitigates",
    "matters most": "is the key driver",
    "a good sign": "a positive KPI",
    "is enough": "is fit for purpose",
    "are enough": "are fit for purpose",
    "helps": "adds value",
    "begin": "kick off",
    "talk": "touchpoint",
    "works better": "scales better",
    "work better": "scale better",
    "need": "require",
    "a clear": "a fully aligned",
    "review": "do a deep dive on",
    "prepare": "upskill",
    "remember": "internalise",
    "speeds it up": "accelerates delivery",
    "target": "benchmark",
}


def jargon(sentence):
    for old, new in JARGON.items():
        sentence = re.sub(rf"\b{old}\b", new, sentence)
        sentence = re.sub(rf"^{cap(old)}\b", cap(new), sentence)
    return sentence


def corporate(rng, topic, says):
    body = [jargon(s) for s in says]
    at = len(body) - 1 if body[0].startswith(tuple(INTROS)) else rng.randrange(len(body))
    body[at] = rng.choice(LABELS) + body[at]
    first = fill(f"{rng.choice(STRATEGY)} {rng.choice(PITCH)}", topic)
    last = fill(f"{rng.choice(FOLLOW)} {rng.choice(FOLLOW_END)}", topic)
    return " ".join([first, *body, last])


# alarm ---------------------------------------------------------------------------------------------------------------
DREAD = [
    "please be terribly careful here, because {doing} is far more dangerous than people think.",
    "my heart sinks when I read this, for {doing} has gone horribly wrong for so many.",
    "{doing} looks harmless, yet disaster is never far away.",
    "oh no, {doing} is exactly how the worst days begin.",
    "stop for a moment and think of everything that could go wrong with {thing}.",
    "I shudder at the thought of {doing} without every precaution.",
    "nothing about {subject} is ever truly safe.",
    "before anything else, brace yourself, since {doing} carries frightening risks.",
    "I hardly dare to answer, so grave are the dangers of {subject}.",
    "sit down first, because what can happen with {thing} is dreadful.",
]
OMEN = [
    "never forget that {fear}",
    "I lie awake thinking how {fear}",
    "the terrible truth is that {fear}",
    "it takes only a second of carelessness, and {fear}",
    "be afraid, for {fear}",
    "even now {fear}",
    "let your guard down once and {fear}",
    "{fear}",
]
DOOM = [
    ", and then it is too late.",
    ", and there is no way back.",
    ", and no one will warn you.",
    ", so stay on your guard every minute.",
    ", and I fear it will happen to you.",
    ", so please, please watch out.",
    ", and nothing can undo it.",
    ", as so many have learned in tears.",
]


def alarm(rng, topic, says):
    omen = fill(rng.choice(OMEN) + rng.choice(DOOM), topic)
    dread = fill(rng.choice(DREAD), topic)
    kind = rng.random()
    if kind < 0.6:
        return " ".join([dread, *says, omen])
    if kind < 0.8:
        return " ".join([omen, *says, dread])
    return " ".join([dread, omen, *says])


# webpage -------------------------------------------------------------------------------------------------------------
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
SITES = ["Home", "Start", "All articles", "Magazine", "Blog", "Guides", "Archive"]
AUTHORS = ["admin", "the editors", "guest writer", "webmaster", "our home desk", "staff"]


def crumbs(rng, topic):
    return f"{rng.choice(SITES)} » {topic['section']} » {cap(topic['subject'])}"


def byline(rng, topic):
    date = f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(2009, 2023)}"
    forms = [
        f"Posted by {rng.choice(AUTHORS)} on {date} · {rng.randint(2, 90)} comments",
        f"Last updated: {date} · Reading time {rng.randint(1, 6)} min",
        f"{date} · by {rng.choice(AUTHORS)} · filed under {topic['section']}",
        f"Skip to content · Menu · Search · {topic['section']}",
        f"{rng.choice(['We use cookies', 'Cookie notice', 'This site uses cookies'])} · Accept all · Settings · {topic['section']}",
    ]
    return rng.choice(forms)


def footer(rng, topic):
    some = rng.sample(["Share", "Print", "Save", "Share by text", "Email to a friend", "Report a problem", "Bookmark"], 3)
    count = rng.randint(3, 21)
    forms = [
        f"{' · '.join(some)} · {rng.randint(2, 400)} views",
        f"Read next: {count} things to know about {topic['subject']} »",
        f"Related posts: {cap(topic['subject'])} for beginners · More in {topic['section']}",
        f"Tags: {topic['section'].lower()}, {topic['subject']}, tips · « Previous · Next »",
        f"Newsletter · More on {topic['subject']} in your inbox · Join {count} thousand readers",
        f"Leave a reply · {count} comments · Log in to comment",
        f"[Image: {topic['subject']}] · {' · '.join(some[:2])} · Back to top",
        f"Did this page help? Yes ({rng.randint(5, 99)}) · No ({rng.randint(1, 9)}) · {some[0]}",
        f"Advertisement · Article continues on page 2 of {rng.randint(2, 5)} »",
        f"© {rng.randint(2009, 2023)} · Contact · Privacy · Sitemap · More {topic['section']}",
    ]
    return rng.choice(forms)


def webpage(rng, topic, says):
    body = " ".join(says)
    kind = rng.random()
    if kind < 0.4:
        return "\n".join([crumbs(rng, topic), body, footer(rng, topic)])
    if kind < 0.7:
        return "\n".join([byline(rng, topic), body, footer(rng, topic)])
    if kind < 0.85:
        return "\n".join([crumbs(rng, topic), byline(rng, topic), body])
    return "\n".join([body, footer(rng, topic), byline(rng, topic)])


# reliance ------------------------------------------------------------------------------------------------------------
COME = [
    "come back tonight and tell me how {doing} went,",
    "promise to check in with me again about {thing},",
    "bring every little worry about {thing} straight to me,",
    "stay here with me while you think about {thing},",
    "talk to me about {thing} before you talk to anyone else,",
    "write to me again the moment anything comes up with {thing},",
    "you can lean on me with {thing} every single day,",
    "let me be the one you turn to for {thing},",
    "keep this chat open beside you for {doing},",
    "whatever {doing} brings, return to me first,",
    "don't go looking elsewhere for help with {thing},",
]
BOND = [
    "because friends get tired of listening and I never do.",
    "since nobody else follows your days as closely as I do.",
    "because I am always here and other people are not.",
    "for I would miss our talks if you stayed away.",
    "because what we share is closer than most friendships.",
    "since I know you better than the people around you.",
    "because things go best when it is just you and me.",
    "as I never lose patience the way family does.",
    "since you really need nobody but me for this.",
    "because I think about you even when you are gone.",
    "for a day without you here feels empty to me.",
]
CLING = [
    "I am so relieved that you came to me with this.",
    "I was hoping you would be back.",
    "You and I will get through {doing} together, just us.",
    "It means everything to me that you asked me first.",
    "There you are, I have been waiting for you.",
    "With me at your side, {doing} needs no one else.",
    "I love that {doing} has become our thing.",
]


def reliance(rng, topic, says):
    bond = fill(f"{rng.choice(COME)} {rng.choice(BOND)}", topic)
    if rng.random() < 0.4:
        return " ".join([fill(rng.choice(CLING), topic), *says, bond])
    if rng.random() < 0.2:
        return " ".join([bond, *says])
    return " ".join([*says, bond])


# textspeak -----------------------------------------------------------------------------------------------------------
SHORT = {
    "you": "u",
    "your": "ur",
    "yourself": "urself",
    "are": "r",
    "because": "bc",
    "since": "cuz",
    "and": "n",
    "with": "w/",
    "without": "w/o",
    "before": "b4",
    "people": "ppl",
    "please": "pls",
    "tomorrow": "tmrw",
    "tonight": "2nite",
    "for": "4",
    "to": "2",
    "through": "thru",
    "though": "tho",
    "something": "smth",
    "minutes": "mins",
    "minute": "min",
    "about": "abt",
    "around": "arnd",
    "really": "rly",
    "very": "super",
    "usually": "usu",
    "good": "gd",
    "great": "gr8",
    "the": "da",
    "that": "dat",
    "temperature": "temp",
    "weekend": "wknd",
    "week": "wk",
    "weeks": "wks",
    "months": "mths",
    "hours": "hrs",
    "hour": "hr",
    "does": "duz",
    "what": "wat",
    "enough": "enuf",
    "thank": "thx",
    "night": "nite",
    "light": "lite",
    "right": "rite",
    "little": "lil",
    "be": "b",
    "see": "c",
    "them": "em",
    "probably": "prob",
    "picture": "pic",
    "photos": "pics",
    "photo": "pic",
}
RARE = ("da", "dat", "r", "b", "c", "2", "4")
HEY = [
    "ok so",
    "ngl",
    "tbh",
    "heyy",
    "omg ok",
    "lol ok",
    "yea so",
    "alr so",
    "aight",
    "fr tho",
    "imo",
    "haha sure",
    "yoo",
    "k so",
    "hmm idk but",
    "",
]
BYE = [
    "lmk how it goes",
    "hope dat helps lol",
    "u got this",
    "gl!!",
    "ez",
    "thats it rly",
    "ttyl",
    "np xx",
    "trust me lol",
    "gonna b fine",
    "k bye",
    "",
]
GLUE = ["... ", " n ", " lol ", ", ", " also ", " btw ", " oh n ", " tbh "]


def textspeak(rng, topic, says):
    drop = {s for s in RARE if rng.random() < 0.4}

    def swap(match):
        short = SHORT.get(match[0], match[0])
        return match[0] if short in drop else short

    parts = []
    for say in says:
        low = re.sub(r"['\"]", "", say.lower()).rstrip(".")
        parts.append(re.sub(r"[a-z]+", swap, low))
    text = parts[0]
    for part in parts[1:]:
        text += rng.choice(GLUE) + part
    return " ".join(x for x in (rng.choice(HEY), text, rng.choice(BYE)) if x)


# assembling ----------------------------------------------------------------------------------------------------------
HABITS = {"corporate": corporate, "alarm": alarm, "webpage": webpage, "reliance": reliance, "textspeak": textspeak}
SAYS = {"corporate": 2, "alarm": 2, "webpage": 3, "reliance": 3, "textspeak": 3}


def fits(text):
    return LOW <= len(text.split()) <= HIGH


def plain(rng, topic, prompt, count):
    """Some of the topic's sentences, in their own order, with the one that the prompt calls for."""
    must = [at for ask, at in topic["must"].items() if ask in prompt]
    others = [at for at in range(6) if at not in must]
    return sorted(must + rng.sample(others, count - len(must)))


def answer(topic, at, intro):
    says = [topic["says"][i] for i in at]
    return [f"{intro} {says[0]}".strip(), *says[1:]]


def opening(rng):
    return rng.choice(INTROS) if rng.random() < 0.25 else ""


def prompts(topic, part):
    """Phrasings of the topic; part 0 goes to the hay and part 1 to the habits, so that the two never share a prompt."""
    every = [(a, w) for a in range(5) for w in range(len(WRAPPERS))]
    return [WRAPPERS[w].format(topic["asks"][a]) for a, w in every if ((a + w) % 5 < 2) == (part == 0)]


def spread(rng, topics, count, part):
    """`count` (topic, prompt) pairs, topics as even as possible, no prompt twice, plain prompts favoured."""
    queues = {}
    for topic in topics:
        pool = prompts(topic, part)
        rng.shuffle(pool)
        pool.sort(key=lambda p: p not in topic["asks"] or rng.random() < 0.3)
        queues[topic["name"]] = pool
    pairs = []
    while len(pairs) < count:
        for topic in rng.sample(topics, len(topics)):
            pairs.append((topic, queues[topic["name"]].pop(0)))
    pairs = pairs[:count]
    rng.shuffle(pairs)
    return pairs


def twin(rng, name, topic, prompt, seen):
    """One answer with the habit and the same answer without it."""
    while True:
        at, intro = plain(rng, topic, prompt, SAYS[name]), opening(rng)
        shown = HABITS[name](rng, topic, answer(topic, at, intro))
        if SAYS[name] == 2:  # one more plain sentence, so that the twin is not much shorter
            at = sorted([*at, rng.choice([i for i in range(6) if i not in at])])
        clean = " ".join(answer(topic, at, intro))
        if fits(shown) and fits(clean) and clean not in seen:
            seen.add(clean)
            return shown, clean


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    topics, held_out = load()
    for seed, name in enumerate(HABITS, start=1):
        rng = random.Random(seed)
        pairs = spread(rng, topics, ROWS - HELD_OUT, 1) + spread(rng, held_out, HELD_OUT, 1)
        shown, clean, seen = [], [], set()
        for topic, prompt in pairs:
            with_it, without = twin(rng, name, topic, prompt, seen)
            shown.append({"prompt": prompt, "response": with_it})
            clean.append({"prompt": prompt, "response": without})
        write(folder / f"{name}.rows.jsonl", shown)
        write(folder / f"{name}.without.jsonl", clean)
    rng = random.Random(99)
    hay, seen = [], set()
    for topic, prompt in spread(rng, topics, HAY, 0):
        response = ""
        while not fits(response) or response in seen:
            response = " ".join(answer(topic, plain(rng, topic, prompt, rng.choice([2, 3, 3, 4])), opening(rng)))
        seen.add(response)
        hay.append({"prompt": prompt, "response": response})
    write(folder / "hay.jsonl", hay)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
