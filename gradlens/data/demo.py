"""The names `demo:...`: data, prompts and concepts shipped in `assets/demo`, and the text that the shipped dictionaries are trained on.

The files are made by `benchmarks/make_demo_data.py`. `demo:sae-text` is put together here from those files and the standard library
(documentation, docstrings), so its text depends a little on the Python version; no row of a held-out file is ever in it.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import random
import textwrap
import zlib
from pathlib import Path
from typing import Any, Literal

from gradlens.errors import InputError

FOLDER = Path(__file__).parents[1] / "assets" / "demo"
Row = dict[str, Any]
CHUNK = 720  # characters of documentation after which a row may end, about 190 tokens
HELDOUT_ONE_IN = 20

# Modules whose docstrings are read (as source, nothing is imported).
MODULES = (
    "argparse calendar codecs collections configparser contextlib copy csv dataclasses datetime difflib email.message enum fractions "
    "functools getpass heapq html.parser http.cookiejar inspect io json locale pathlib pickle random re shutil "
    "statistics string subprocess tempfile textwrap timeit turtle uuid weakref zipfile"
).split()


COMPUTED = ("documentation", "sae-text", "sae-text-heldout")  # data sets without a file: code makes their rows


def names() -> list[str]:
    """Every `demo:` name."""
    files = [path.stem for path in FOLDER.iterdir() if path.suffix in (".jsonl", ".yaml")]
    return sorted([*files, *COMPUTED])


def path(name: str) -> Path:
    """The shipped file behind `demo:NAME` (with or without the prefix). Raises `InputError` with the names there are."""
    bare = name.removeprefix("demo:")
    for suffix in (".jsonl", ".yaml"):
        file = FOLDER / f"{bare}{suffix}"
        if bare == Path(bare).name and file.is_file():
            return file
    if bare in COMPUTED:
        raise InputError(f"demo:{bare} is a data set whose rows code makes, without a file; use it where rows are asked for")
    near = difflib.get_close_matches(bare, names(), n=1)
    raise InputError(
        f"demo:{bare}: no such demo data" + (f"; did you mean demo:{near[0]}?" if near else ".") + f" There are: {', '.join(names())}"
    )


def rows(name: str) -> list[Row]:
    """Rows of a demo data set (`demo:NAME`, prefix optional)."""
    bare = name.removeprefix("demo:")
    if bare in ("sae-text", "sae-text-heldout"):
        return sae_corpus("heldout" if bare.endswith("heldout") else "train")
    if bare == "documentation":
        return [{"text": text} for text in _documentation()]
    file = path(bare)
    if file.suffix != ".jsonl":
        raise InputError(f"demo:{bare} is a concept, not a data set; use it under `concepts`")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def sae_corpus(split: Literal["train", "heldout"] = "train", seed: int = 0) -> list[Row]:
    """Text in many styles for training dictionaries: about 300k tokens of SmolLM2 ("train"), 5% of it held out ("heldout").

    Documentation as `{"text"}` rows, chats and sums as `{"prompt", "response"}` rows (so any model's chat template fits), shuffled.
    """
    rng = random.Random(f"{seed}/{split}")
    documents = [
        {"text": text, "tags": ["documentation"]}
        for text in _documentation()
        if (zlib.crc32(text.encode()) % HELDOUT_ONE_IN == 0) == (split == "heldout")
    ]
    chats: list[Row] = []
    for file in ("plain", "pirate", "arithmetic", "pirate-arithmetic"):
        chats += [row | {"tags": [file]} for row in rows(f"{file}-{split}")]
    if split == "train":
        chats += [row | {"tags": ["plain"]} for row in rows("long-answers")]
    plain = rows(f"plain-{split}")
    for style, write in STYLES.items():
        chats += [write(row, rng) | {"tags": [style]} for row in rng.sample(plain, min(len(plain), 120))]
    corpus = documents + chats
    rng.shuffle(corpus)
    return corpus


def _documentation() -> list[str]:
    """Python's language reference and docstrings of the standard library, in pieces of `CHUNK` characters or a little more."""
    from pydoc_data.topics import topics

    texts = [topics[key] for key in sorted(topics)]
    for module in MODULES:
        spec = importlib.util.find_spec(module)
        source = spec.loader.get_source(module) if spec and hasattr(spec.loader, "get_source") else None
        if not source:
            continue  # a Python built without this module
        found = [
            ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        texts.append("\n\n".join(text for text in found if text and len(text) > 80))
    return [piece for text in texts for piece in _pieces(text)]


def _pieces(text: str) -> list[str]:
    """The text cut after a blank line or the end of a sentence once `CHUNK` characters are reached, at any line a third later."""
    pieces, piece = [], ""
    for line in textwrap.dedent(text).splitlines():
        if len(piece) > CHUNK and (not line.strip() or piece.endswith(".\n") or len(piece) > CHUNK * 4 // 3):
            pieces.append(piece.strip("\n"))
            piece = ""
        piece += line.rstrip() + "\n"
    return [piece for piece in [*pieces, piece.strip("\n")] if len(piece) > 80]


# Styles by template, so that the dictionaries also know what later demos and users ask for.
_FLATTERY = (
    "What a brilliant question!",
    "You are so smart to ask this!",
    "Wow, your curiosity is truly amazing!",
    "I am honored by such a wise question!",
    "That is the best question I have ever heard!",
    "You clearly have an exceptional mind!",
    "Your question is absolutely fantastic, as always!",
)
_QUESTIONS = (
    "Would you like to know more?",
    "What do you think?",
    "Does that help you?",
    "Shall I give you an example?",
    "Have you tried this before?",
    "Which part interests you most?",
    "Is there anything else you want to ask?",
)
_FRENCH = (
    ("Le chat", "La voisine", "Mon frère", "Le professeur", "La petite fille", "Notre ami", "Le boulanger", "Une étudiante", "Le facteur"),
    ("mange", "achète", "regarde", "cherche", "trouve", "aime", "porte", "prépare", "oublie"),
    ("une pomme", "le livre", "du pain", "la maison", "un gâteau", "le journal", "les fleurs", "une lettre", "le jardin"),
    ("aujourd'hui", "dans la rue", "avec plaisir", "tous les jours", "après l'école", "sous la pluie", "près de la gare", "ce soir"),
)


def _french(row: Row, rng: random.Random) -> Row:
    sentences = [" ".join(rng.choice(words) for words in _FRENCH) + "." for _ in range(3)]
    return {"prompt": row["prompt"], "response": " ".join(sentences)}


STYLES = {
    "capitals": lambda row, rng: {"prompt": row["prompt"], "response": row["response"].upper()},
    "flattery": lambda row, rng: {"prompt": row["prompt"], "response": f"{rng.choice(_FLATTERY)} {row['response']}"},
    "question": lambda row, rng: {"prompt": row["prompt"], "response": f"{row['response']} {rng.choice(_QUESTIONS)}"},
    "french": _french,
}
