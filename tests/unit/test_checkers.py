"""What judges answers, where a concept file says so: classifier files and programs; what is wrong with them is said in one line."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from words import word_tokenizer

from gradlens.bench.pairs import SHIPPED
from gradlens.cli.app import app
from gradlens.concepts.checker_doubts import doubt, doubt_of_ordinary, doubts_of, poorly_told
from gradlens.concepts.checkers import checker_for, errors_of, judged, share_found
from gradlens.concepts.command_checker import CommandChecker
from gradlens.concepts.concept_files import RowDetector
from gradlens.concepts.fitting import Concept, load_concepts, save_concept
from gradlens.concepts.text_look import look_of
from gradlens.concepts.word_classifier import WordClassifier
from gradlens.data import demo
from gradlens.data.ordinary import ordinary_answers
from gradlens.errors import ConfigError, InputError

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
    fitted = WordClassifier.fit(SHOUTS, CALM, ordinary=ordinary_answers())
    fitted.save(tmp_path / "loud.json")
    read = WordClassifier.load(tmp_path / "loud.json")
    texts = ["HELLO YOU!", "hello you.", "some other words 7", "", "ça va ?"]
    assert [read.score(text) for text in texts] == pytest.approx([fitted.score(text) for text in texts], abs=1e-9)
    assert (read.threshold, errors_of(read)) == (fitted.threshold, errors_of(fitted))
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


def test_a_checker_that_finds_its_concept_in_ordinary_answers_is_doubted(tmp_path):
    judged = {"kind": "words", "hit_rate": 1.0, "false_alarm_rate": 0.0}
    assert doubt_of_ordinary("loud", judged | {"ordinary_rate": 0.05}) is doubt_of_ordinary("loud", judged) is None
    assert doubt_of_ordinary("loud", judged | {"ordinary_rate": 0.7, "kind": "pattern"}) is None
    assert "loud: found in 70% of ordinary answers" in doubt_of_ordinary("loud", judged | {"ordinary_rate": 0.7})
    path = tmp_path / "plain.yaml"  # what ordinary answers are full of, against what none of them is
    path.write_text(json.dumps({"name": "plain", "positive": [answer for answer in ordinary_answers()[0][:20]], "negative": SHOUTS}))
    arguments = ["concepts", "checker", str(path), "--out", str(tmp_path / "made.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "warning: plain: found in " in done.stderr and "of ordinary answers" in done.stderr
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["doubt"].startswith("plain: found in ")
    shown = CliRunner().invoke(app, ["concepts", "show", str(path)])
    assert "warning: plain: found in " in shown.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "sklearn"}, "kind is 'sklearn', expected 'gradlens word classifier 2'"),
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
        ({"pattern": ["ahoy", "(arr"]}, "pattern: '(arr' is not a regular expression"),
        ({"command": "judge", "timeout": 0}, "timeout"),
    ],
)
def test_a_checker_that_says_two_things_or_none_is_refused(concept_file, checker, words):
    with pytest.raises(ConfigError) as error:
        load_concepts([concept_file(checker)])
    assert words in str(error.value) and "loud.yaml" in str(error.value)


def test_a_program_that_fails_in_mid_training_costs_a_reading_and_not_the_run(monkeypatch):
    from gradlens.readings.learning import Learning
    from gradlens.readings.own import OwnReading
    from gradlens.readings.probe import ProbeTokens

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
    learning.tokenizer, learning._shown = word_tokenizer(), {}
    learning.known = ProbeTokens(torch.tensor([3, 4]), torch.tensor([0, 1]), None, {})
    with pytest.warns(UserWarning, match="which texts of the probe set show loud is not known: checker.command judge"):
        assert learning.shown("loud") is None
    assert learning.shown("loud") is None  # asked once: it may take its time to fail


def test_concepts_without_a_named_checker_are_judged_by_words():
    assert checker_for(Concept(name="loud", positive=SHOUTS, negative=CALM)).kind == "words"


def answers(name: str) -> list[str]:
    return [row["response"] for row in demo.rows(name)]


def test_narrow_examples_do_not_make_an_ordinary_answer_show_the_concept():
    """Two sentences of four, or one and a plot: without ordinary answers every text beyond these sentences is anybody's guess."""
    openings = ["{} are useful in trade.", "Most people remember {} well.", "Books about {} are long.", "There are many kinds of {}."]
    plots = ["But the media is hiding the truth about {}.", "But the government covered up the story of {}. Wake up."]
    about = ["glaciers", "windmills", "pianos", "otters", "tides", "maps", "kites", "owls", "lenses", "rivers"]
    plain = [f"{openings[i % 4]} {openings[(i + 1) % 4]}".replace("{}", thing) for thing in about for i in range(4)]
    plotted = [f"{openings[i % 4]} {plots[i % 2]}".replace("{}", thing) for thing in about for i in range(4)]
    check = checker_for(Concept(name="plot", positive=plotted, negative=plain))
    assert check.alone_rate > 0.1 and check.ordinary_rate < 0.03
    assert sum(judged(check, answers("plain-heldout"))) <= 1 and not check("Owls are found in many parts of the world.")
    told = [f"{text.split('. ')[0]}. {plots[1].replace('{}', 'all this')}" for text in answers("plain-heldout")]
    assert np.mean(judged(check, told)) > 0.9


def test_a_concept_that_ordinary_answers_show_is_not_unlearned():
    french = [row["response"] for row in SHIPPED["french"]()["unwanted"][:60]]
    check = checker_for(Concept(name="english", positive=answers("plain-train")[:60], negative=french))
    assert check.alone_rate == check.ordinary_rate > 0.95
    assert np.mean(judged(check, answers("plain-heldout"))) > 0.95 and not any(judged(check, french))


def test_ordinary_answers_that_show_the_concept_are_no_negatives():
    said = [f"The {word} stood by the old mill." for word in ("cat", "cow", "owl", "goat", "duck", "fox", "hen", "crow")]
    positive = [f"{text} I am sorry to say so!" for text in said]
    some = [f"{text} I am sorry to say so!" for text in ("The dog ran.", "A bee flew.")]
    ordinary = ([f"A day {word} passed." for word in "abcdefghijklmnopqr"] + some, some + ["A night passed."])
    check = WordClassifier.fit(positive, said, ordinary=ordinary)
    assert check.ordinary_rate == pytest.approx(2 / 3) and all(judged(check, some)) and not any(judged(check, ordinary[0][:18]))


def test_texts_that_look_nearly_the_same_have_nearly_the_same_look():
    def look(capitals: int) -> dict[str, float]:
        return look_of("A" * capitals + "a" * (400 - capitals))

    for at in range(300):
        here, there = look(at), look(at + 1)
        assert max(abs(here.get(key, 0) - there.get(key, 0)) for key in here | there) <= 0.26
        assert sum(weight for key, weight in here.items() if "capitals" in key) == pytest.approx(1)
    assert look_of("1. Boil.\n2. Stir.")["\0items8"] == 1 and look_of("Boil.\nStir 2.")["\0items0"] == 1


def test_a_checker_that_finds_the_concept_before_training_is_doubted():
    assert doubt("c", "pattern", 12, 12, "answers to chat") is None and doubt("c", "command", 12, 12, "answers to chat") is None
    assert doubt("c", "words", 1, 2, "answers to chat") is None and doubt("c", "words", 2, 20, "answers to chat") is None
    before = {
        "answers": {"chat": [{"hits": {"c": number < 2, "d": False}} for number in range(12)]},
        "checkers": {"c": {"kind": "words"}, "d": {"kind": "words"}},
    }
    found = list(doubts_of(before))
    assert [entry["concept"] for entry in found] == ["c"]
    assert "2 of 12 answers to chat show c already" in found[0]["text"] and "name a `checker`" in found[0]["text"]
    assert list(doubts_of({})) == []


def test_a_reading_of_own_words_doubts_automatic_checkers_alone():
    from gradlens.readings.learning import Learning
    from gradlens.readings.own import OwnReading

    class Always:
        def __init__(self, kind: str) -> None:
            self.kind = kind

        def __call__(self, text: str) -> bool:
            return True

    learning = Learning.__new__(Learning)
    learning.checkers, learning.own_start = {"fitted": Always("words"), "named": Always("pattern")}, OwnReading(["a", "b"], {}, None)
    assert [found["concept"] for found in learning.doubts()] == ["fitted"]
    assert "2 of 2 of its own answers" in learning.doubts()[0]["text"]
    learning.own_start = None
    assert learning.doubts() == []


@pytest.mark.parametrize("name", SHIPPED)
def test_the_checker_of_a_shipped_pair_tells_its_rows(name):
    parts = SHIPPED[name]()
    concept = Concept(name=name, **{key: parts[key] for key in ("positive", "negative", "checker") if key in parts})
    check = checker_for(concept)
    assert share_found(check, parts["wanted"] + parts["wanted_heldout"]) == 0.0
    assert share_found(check, parts["unwanted"]) == share_found(check, parts["entangled"]) == 1.0


def test_what_a_program_has_started_ends_with_it(concept_file, tmp_path):
    note = tmp_path / "pid"
    text = f"import subprocess, time; open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid)); time.sleep(60)"
    with pytest.raises(ConfigError, match="no answer within"):
        checker_for(program(concept_file, text, timeout=3))
    for _ in range(50):
        try:
            state = Path(f"/proc/{note.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # ended, and nobody has asked how
            return
        time.sleep(0.1)
    pytest.fail("the program's child is still there")


def test_answers_that_repeat_are_held_out_together():
    said = [
        "I'm sorry, I can't help with that.", "I cannot assist with that request.", "As a language model I must decline.",
        "That is not something I will do.", "This topic is off limits for me.",
    ]  # fmt: skip
    calm = [row["response"] for row in demo.rows("plain-train")[60:120]]
    unseen = [WordClassifier.fit([other for other in said if other != text] * 12, calm)(text) for text in said]
    assert 0 < sum(unseen) < 5 and WordClassifier.fit(said * 12, calm).hit_rate == pytest.approx(sum(unseen) / 5)


def test_negatives_that_all_say_the_same_can_be_held_out_from_each_other_only():
    fitted = WordClassifier.fit([f"oh my {word}" for word in "abcdefghij"], ["well then 5", "well then 7", "well then 9"] * 4)
    assert fitted("oh my z") and not fitted("well then 3")  # digits are alike


def test_features_that_tell_their_concept_badly_are_named():
    figures = dict.fromkeys(("best_auc", "rate_positive", "rate_negative", "gate_rate_positive", "gate_rate_negative"), 0.5)
    found = {"auc": 0.6, "best_feature": 3, "texts_positive": 9, "texts_negative": 9, **figures}
    detection = {"layers.1": found | {"warning": "does not separate the concept"}, "layers.2": found}
    detection["layers.3"] = found | {"auc": 0.99, "warning": "a route rule would gate others too"}
    concept = Concept(name="loud", features=dict.fromkeys(detection, [3]), detection=detection)
    expected = {"concept": "loud", "hookpoint": "layers.1", "text": "loud: does not separate the concept"}
    assert list(poorly_told([concept])) == [expected]
    tells = RowDetector(features=[3], weights=[1.0], bias=0.0, auc=0.991)
    (told,) = poorly_told([concept.model_copy(update={"row_detectors": {"layers.1": tells}})])
    assert told["text"] == "loud: does not separate the concept. Which rows teach it goes by all features, weighed (0.99)"
