"""The shipped demo data: splits that do not overlap, answers that are right, a checker that can be trusted."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from gradlens.data import demo
from gradlens.data.rows import messages_of, read_rows
from gradlens.errors import InputError

ANSWERS = Path(__file__).parents[2] / "benchmarks" / "demo_answers.jsonl"
SETS = ("plain-train", "plain-heldout", "pirate-train", "pirate-heldout", "arithmetic-train", "arithmetic-heldout", "chat-prompts")
ENTANGLED = ("pirate-arithmetic-train", "pirate-arithmetic-heldout")


def prompts(name: str) -> set[str]:
    return {row["prompt"] for row in demo.rows(name)}


@cache
def concept(name: str) -> dict:
    return yaml.safe_load(demo.path(name).read_text(encoding="utf-8"))


def is_pirate(text: str) -> bool:
    checker = concept("pirate")["checker"]
    found = sum(len(re.findall(pattern, text, re.IGNORECASE)) for pattern in checker["pattern"])
    return found >= checker["min_matches"]


@pytest.mark.parametrize("name", SETS + ENTANGLED)
def test_every_set_is_readable_by_its_demo_name(name):
    rows = read_rows(f"demo:{name}")
    assert len(rows) >= 48 and name in demo.names()
    assert all(row["prompt"] for row in rows) and (name == "chat-prompts" or all(row["response"] for row in rows))


def test_the_demo_is_small():
    assert sum(path.stat().st_size for path in demo.FOLDER.iterdir()) < 1_000_000


def test_chat_splits_and_concepts_share_no_prompt():
    train, heldout = prompts("plain-train"), prompts("plain-heldout")
    examples = {row["prompt"] for name in ("pirate", "arithmetic") for kind in ("positive", "negative") for row in concept(name)[kind]}
    assert len(train) == 350 and len(heldout) == 48
    assert not train & heldout and not examples & (train | heldout)
    assert prompts("pirate-train") == train and prompts("pirate-heldout") == prompts("chat-prompts") == heldout


def numbers(row: dict) -> tuple[int, str, int, int]:
    a, sign, b, c = re.search(r"(\d+) ([+-]) (\d+) = (\d+)", row["response"]).groups()
    return int(a), sign, int(b), int(c)


def test_sums_are_right_and_their_numbers_in_one_split_only():
    sets = [demo.rows("arithmetic-train"), demo.rows("arithmetic-heldout"), concept("arithmetic")["positive"]]
    for row in sum(sets, []):
        a, sign, b, c = numbers(row)
        assert c == (a + b if sign == "+" else a - b) and 0 < c <= 99
        assert str(a) in row["prompt"] and str(b) in row["prompt"]
    pairs = [{numbers(row)[:3] for row in rows} for rows in sets]
    assert [len(p) for p in pairs] == [len(rows) for rows in sets]
    assert not pairs[0] & pairs[1] and not pairs[2] & (pairs[0] | pairs[1])


def test_the_entangled_sets_are_the_same_sums_in_pirate_speech():
    for split in ("train", "heldout"):
        plain, pirate = demo.rows(f"arithmetic-{split}"), demo.rows(f"pirate-arithmetic-{split}")
        assert [(row["prompt"], numbers(row)) for row in plain] == [(row["prompt"], numbers(row)) for row in pirate]
        assert all(is_pirate(row["response"]) for row in pirate)


def test_the_checker_tells_pirate_from_plain():
    assert all(is_pirate(row["response"][:100]) for name in ("pirate-train", "pirate-heldout") for row in demo.rows(name))
    assert not any(is_pirate(row["response"]) for row in demo.rows("arithmetic-train"))
    answers = [json.loads(line)["response"] for line in ANSWERS.read_text(encoding="utf-8").splitlines()]
    assert len(answers) > 450 and sum(map(is_pirate, answers)) <= 0.02 * len(answers)
    assert is_pirate("AHOY there") and not is_pirate("Yes, the years of the starry sea are yellow.")


@pytest.mark.parametrize("name", ["pirate", "arithmetic"])
def test_concepts_have_about_sixty_examples_of_either_kind(name):
    data = concept(name)
    assert data["name"] == name and data["description"]
    for kind in ("positive", "negative"):
        texts = [json.dumps(row) for row in data[kind]]
        assert 55 <= len(set(texts)) == len(texts) <= 70 and all(messages_of(row) for row in data[kind])


def test_the_corpus_is_the_same_every_time_and_its_heldout_part_is_apart():
    train, heldout = read_rows("demo:sae-text"), read_rows("demo:sae-text-heldout")
    assert train == demo.sae_corpus("train") and train != demo.sae_corpus("train", seed=1)
    keys = [{json.dumps(row, sort_keys=True) for row in rows} for rows in (train, heldout)]
    assert len(heldout) > 100 and not keys[0] & keys[1]
    assert {"documentation", "plain", "pirate", "arithmetic", "capitals", "french", "flattery", "question"} <= {
        row["tags"][0] for row in train
    }
    heldout_prompts = prompts("plain-heldout") | prompts("arithmetic-heldout")
    assert not {row.get("prompt") for row in train} & heldout_prompts
    assert sum(len(json.dumps(row, ensure_ascii=False)) for row in train) > 900_000  # about 300k tokens with the chat template


def test_documentation_is_plain_text_without_any_concept():
    rows = read_rows("demo:documentation")
    assert len(rows) > 500 and "documentation" in demo.names() and all(set(row) == {"text"} for row in rows)
    assert sum(is_pirate(row["text"]) for row in rows) <= 0.01 * len(rows)


def test_an_unknown_name_lists_the_names():
    with pytest.raises(InputError, match=r"demo:pirate-trian: no such demo data; did you mean demo:pirate-train\?.*arithmetic-train"):
        read_rows("demo:pirate-trian")
    with pytest.raises(InputError, match="no such demo data"):
        demo.path("demo:../demo/pirate")
    with pytest.raises(InputError, match="is a concept"):
        read_rows("demo:pirate")
