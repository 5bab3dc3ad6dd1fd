"""What judges answers, where a concept file says so: classifier files and programs; what is wrong with them is said in one line."""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from gradlens.checkers import checker_for, judged
from gradlens.cli.app import app
from gradlens.command_checker import CommandChecker
from gradlens.concepts import Concept, load_concepts, save_concept
from gradlens.errors import ConfigError, InputError
from gradlens.word_classifier import WordClassifier

SHOUTS, CALM = [f"HELLO {i} THERE!" for i in range(12)], [f"hello {i} there." for i in range(12)]
COUNTS = "import json, sys\nfor line in sys.stdin:\n    print(json.loads(line)['text'].count('!'))\n"


@pytest.fixture
def concept_file(tmp_path):
    """Writes a concept file with a checker, in a folder of its own."""

    def write(checker: dict):
        (tmp_path / "concepts").mkdir(exist_ok=True)
        path = tmp_path / "concepts" / "loud.yaml"
        path.write_text(json.dumps({"name": "loud", "positive": SHOUTS, "negative": CALM, "checker": checker}))
        return path

    return write


def program(concept_file, text: str, **settings):
    path = concept_file({"command": [sys.executable, "judge.py"], **settings})
    (path.parent / "judge.py").write_text(text)
    return load_concepts([path])[0]


def test_a_classifier_file_judges_as_the_classifier_that_was_fitted(tmp_path):
    fitted = WordClassifier.fit(SHOUTS, CALM)
    fitted.save(tmp_path / "loud.json")
    read = WordClassifier.load(tmp_path / "loud.json")
    texts = ["HELLO YOU!", "hello you.", "some other words 7", "", "ça va ?"]
    assert [read.score(text) for text in texts] == pytest.approx([fitted.score(text) for text in texts], abs=1e-9)
    assert (read.threshold, read.hit_rate, read.false_alarm_rate) == (fitted.threshold, fitted.hit_rate, fitted.false_alarm_rate)
    assert judged(read, texts) == [True, False, False, False, False]


def test_a_concept_names_a_classifier_file_beside_it_and_keeps_it_when_saved_elsewhere(tmp_path, concept_file):
    path = concept_file({"classifier": "loud.json"})
    WordClassifier.fit(SHOUTS, CALM).save(path.parent / "loud.json")
    concept = load_concepts([path])[0]
    check = checker_for(concept)
    assert check.kind == "words" and check("HELLO AGAIN!") and not check("hello again.")
    (tmp_path / "run").mkdir()
    save_concept(concept, tmp_path / "run" / "concepts.yaml")
    assert checker_for(load_concepts([tmp_path / "run" / "concepts.yaml"])[0])("HELLO AGAIN!")


def test_the_command_writes_the_file_and_says_its_held_out_error(tmp_path, concept_file):
    path, out = concept_file({"pattern": ["!"]}), tmp_path / "made.json"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "q", "response": text}) + "\n" for text in ["HELLO HERE!", "hello here.", "HELLO!"]))
    done = CliRunner().invoke(app, ["concepts", "checker", str(path), "--out", str(out), "--answers", str(rows), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert (said["hit_rate"], said["false_alarm_rate"], said["answers"], said["shown"]) == (1.0, 0.0, 3, 2)
    assert WordClassifier.load(out)("HELLO!")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "sklearn"}, "kind is 'sklearn', expected 'gradlens word classifier 1'"),
        ({"weights": {}}, "weights: expected a mapping"),
        ({"weights": {"a": float("nan")}}, "'a' is nan, expected a finite number"),
        ({"threshold": "high"}, "'threshold' is 'high'"),
        ({"hit_rate": 3}, "hit_rate is 3, expected a share"),
    ],
)
def test_a_classifier_file_that_says_nonsense_is_refused(tmp_path, concept_file, change, words):
    path = concept_file({"classifier": "loud.json"})
    file = path.parent / "loud.json"
    WordClassifier.fit(SHOUTS, CALM).save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match="concept loud: .*loud.json: ") as error:
        checker_for(load_concepts([path])[0])
    assert words in str(error.value)


def test_a_classifier_file_that_is_missing_or_no_json_is_named(concept_file):
    path = concept_file({"classifier": "loud.json"})
    with pytest.raises(InputError, match="loud.json: no such classifier file; `gradlens concepts checker` writes one"):
        checker_for(load_concepts([path])[0])
    (path.parent / "loud.json").write_bytes(b"\x80\x04pickle")
    with pytest.raises(InputError, match="loud.json: not a classifier file"):
        checker_for(load_concepts([path])[0])


def test_a_program_beside_the_concept_file_judges_all_texts_at_once(concept_file):
    concept = program(concept_file, COUNTS + "print(sys.argv, file=open('/dev/null', 'w'))\n", threshold=1)
    check = checker_for(concept)
    assert (check.kind, check.hit_rate, check.false_alarm_rate) == ("command", 1.0, 0.0)
    texts = ['one!\nwith "two" lines!', "", "none", "é!"]
    assert check.many(texts) == judged(check, texts) == [True, False, False, True]
    check.threshold = 2
    assert check.many(texts) == [True, False, False, False]


def test_a_program_is_not_run_by_a_shell(tmp_path, concept_file):
    made = tmp_path / "made"
    concept = load_concepts(
        [concept_file({"command": f"{sys.executable} -c 'import sys; [print(1) for line in sys.stdin]' ; touch {made}"})]
    )
    assert all(checker_for(concept[0]).many(["a", "b"])) and not made.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys; sys.exit('no model here')", "ended with exit code 1 and said: no model here"),
        ("print(1)", "printed 1 lines for 12 texts"),
        ("import sys\nfor line in sys.stdin: print('yes')", "line 1 is 'yes', expected a number"),
        ("import sys\nfor line in sys.stdin: print('nan')", "line 1 is 'nan', expected a number"),
        ("import time; time.sleep(60)", "no answer within 0.5 s for 12 texts; raise checker.timeout"),
    ],
)
def test_a_program_that_fails_is_named_with_what_it_did(concept_file, text, words):
    concept = program(concept_file, text, timeout=0.5 if "sleep" in text else 60)
    with pytest.raises(ConfigError, match=r"concept loud: checker.command .*judge.py: ") as error:
        checker_for(concept)
    assert words in str(error.value)


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="checker.command no-such-judge -x: cannot be started: No such file or directory"):
        CommandChecker(["no-such-judge", "-x"])("text")


@pytest.mark.parametrize(
    ("checker", "words"),
    [
        ({"pattern": ["a"], "command": "b"}, "give one of pattern, classifier and command, found pattern and command"),
        ({"min_matches": 2}, "found none of them"),
        ({"command": "judge 'a"}, "command: No closing quotation"),
        ({"command": "judge", "timeout": 0}, "timeout"),
    ],
)
def test_a_checker_that_says_two_things_or_none_is_refused(concept_file, checker, words):
    with pytest.raises(ConfigError) as error:
        load_concepts([concept_file(checker)])
    assert words in str(error.value) and "loud.yaml" in str(error.value)


def test_a_program_that_fails_in_mid_training_costs_a_reading_and_not_the_run(monkeypatch):
    from gradlens.learning import Learning
    from gradlens.own import OwnReading

    def check(text: str) -> bool:
        raise ConfigError("checker.command judge: ended with exit code 1")

    learning = Learning.__new__(Learning)
    learning.checkers = {"loud": check}
    learning.own_start = learning.own_last = OwnReading(["a"], {}, None)
    with pytest.raises(ConfigError):  # before training
        learning.own_rates()
    learning.own_last = OwnReading(["a"], {}, None)
    with pytest.warns(UserWarning, match="own/loud/rate is not read: checker.command judge"):
        assert np.isnan(learning.own_rates()["own/loud/rate"])


def test_concepts_without_a_named_checker_are_judged_as_before():
    assert checker_for(Concept(name="loud", positive=SHOUTS, negative=CALM)).kind == "words"
