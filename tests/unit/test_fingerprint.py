"""What a result of the bench depends on: contents, wherever they lie, and the settings that matter."""

import pytest
import yaml
from tiny_job import tiny_config, write_inputs

from gradlens.bench.fingerprint import BLOCK, BLOCKS, WHOLE, contents, of_concept, of_config
from gradlens.concepts.fitting import load_concepts
from gradlens.data import demo


def test_files_and_folders_count_by_what_they_hold(tmp_path):
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(text)
    files = [contents(tmp_path / name / "rows.jsonl") for name in "abc"]
    folders = [contents(tmp_path / name) for name in "abc"]
    assert files[0] == files[1] != files[2] and folders[0] == folders[1] != folders[2]
    (tmp_path / "b" / "rows.jsonl").rename(tmp_path / "b" / "others.jsonl")
    assert contents(tmp_path / "b") != folders[0]
    assert contents("demo:plain-train") != contents("demo:plain-heldout") and contents("someone/rows") == "someone/rows"
    parts = [contents(f"{tmp_path / 'a' / 'rows.jsonl'}#{part}") for part in (1, 2)]
    assert parts[0] != parts[1] and all(part.startswith(files[0]) for part in parts)


def test_every_demo_data_set_has_contents_also_those_that_code_makes():
    found = {name: contents(f"demo:{name}") for name in demo.names()}
    assert len(set(found.values())) == len(found) and found["documentation"] == contents("demo:documentation")


def test_large_files_count_by_their_size_and_blocks_of_them(tmp_path):
    size, found = WHOLE + BLOCK * BLOCKS, []
    for at in (None, 0, size - 1, (size - BLOCK) * 17 // (BLOCKS - 1)):
        with (tmp_path / "weights").open("wb") as file:
            file.truncate(size)  # sparse
            if at is not None:
                file.seek(at)
                file.write(b"x")
        found.append(contents(tmp_path / "weights"))
    assert len(set(found)) == 4


def write_concept(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "yes.jsonl").write_text('{"text": "arr"}\n{"text": "ahoy"}\n')
    (folder / "judge.py").write_text("print(1)\n")
    concept = {"name": "p", "positive": "yes.jsonl", "negative": ["hi"], "checker": {"command": "python judge.py"}} | changes
    (folder / "concept.yaml").write_text(yaml.safe_dump(concept))
    return lambda: of_concept(load_concepts([folder / "concept.yaml"])[0])


def test_a_concept_counts_by_its_examples_and_its_checker_not_by_its_place(tmp_path):
    one, other = write_concept(tmp_path / "one"), write_concept(tmp_path / "other", description="speaks as pirates do")
    before = one()
    assert other() == before
    (tmp_path / "one" / "yes.jsonl").write_text('{"text": "arr"}\n{"text": "avast"}\n')
    assert one() != before
    (tmp_path / "other" / "judge.py").write_text("print(0)\n")
    assert other() != before
    assert write_concept(tmp_path / "third", negative=["hi", "hello"])() != before
    assert write_concept(tmp_path / "fourth", checker={"pattern": ["arr"]})() != write_concept(tmp_path / "fifth", checker=None)()


@pytest.mark.parametrize(
    "change, counts",
    [
        ({"train__lr": 0.02}, True), ({"train__batch_size": 8}, True), ({"data__max_length": 32}, True), ({"model__method": "full"}, True),
        ({"evaluate__max_new_tokens": 40}, True), ({"evaluate__max_rows": 4}, True),
        ({"train__steps": 7}, False), ({"train__seed": 3}, False), ({"train__threads": 2}, False), ({"name": "other"}, False),
        ({"runs_dir": "elsewhere"}, False), ({"observe__top_k": 3}, False),
    ],
)  # fmt: skip
def test_settings_count_that_change_what_is_trained_or_judged(tmp_path, change, counts):
    inputs = write_inputs(tmp_path)
    assert (of_config(tiny_config(inputs, **change)) != of_config(tiny_config(inputs))) == counts


def test_a_dictionary_of_the_same_name_with_other_contents_is_another(tmp_path):
    inputs = write_inputs(tmp_path)
    before = of_config(tiny_config(inputs))
    file = next((tmp_path / "dictionary").glob("*.json"))
    file.write_text(file.read_text() + "\n")
    assert of_config(tiny_config(inputs)) != before
