"""Reports: one file, no network, hostile texts harmless, figures whole, whatever state the run is in."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import HOOKS, STRAY, make_run, make_study

from gradlens.errors import InputError
from gradlens.recording.store import RunReader, RunWriter
from gradlens.report.compare import percent
from gradlens.report.data import GROUP, MAX_CLUSTERS, MAX_CONCEPTS, encode, gather
from gradlens.report.page import ASSETS, write_report
from gradlens.report.summary import CURVES
from gradlens.report.texts import MAX_EVENTS, highlight, turns

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!--<script> ${1+1} &amp; \u2028 ' \" `"


class Page(HTMLParser):
    """Tags, attributes and the text of scripts, styles and headings of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self._open = [], {}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style", "h1", "title", "li"):
            self._open.append(f"{tag}:{dict(attrs).get('id', '')}")

    def handle_endtag(self, tag):
        if self._open and self._open[-1].split(":")[0] == tag:
            self._open.pop()

    def handle_data(self, data):
        if self._open:
            self.text[self._open[-1]] = self.text.get(self._open[-1], "") + data

    @property
    def data(self):
        return json.loads(self.text["script:data"])


def report_of(tmp_path, *readers):
    return Page(write_report(readers, tmp_path / "out" / "report.html"))


def test_a_study_is_told_in_words_at_the_top(tmp_path):
    page = report_of(tmp_path, *make_study(tmp_path, steps=20, every=5))
    assert page.text["h1:"] == "pirate: in 100% of answers without the rule, in 6% with it"
    assert "100% with as many random features" in page.text["li:"] and "All 3 bars are met" in page.text["li:"]
    assert "arithmetic NLL 0.172, 3.0% above training on the wanted data alone (0.167)" in page.text["li:"]


def test_a_single_run_says_what_it_taught(tmp_path):
    page = report_of(tmp_path, RunReader(make_run(tmp_path / "a", steps=10)))
    assert page.text["h1:"] == "pirate: 0% → 100% of answers to chat prompts"
    assert "Training loss went from" in page.text["li:"] and "(no clear change)" in page.text["li:"]
    assert "0 of 32 → 32 of 32 answers to chat prompts." in page.text["li:"]  # a share says little without how many there were


def test_the_first_fact_of_a_run_is_what_it_learned_most_in_words(tmp_path):
    page = report_of(tmp_path, RunReader(make_run(tmp_path / "a", steps=10)))
    assert re.search(r"^What it learned most: matey, Ahoy, ye\.60% of what was learned; said with probability 2% → 39%\.", page.text["li:"])
    assert "Uptake of its features" in page.text["li:"]
    older = report_of(tmp_path, RunReader(make_run(tmp_path / "b", steps=10, uptake=False)))
    assert "learned most" not in older.text["li:"] and "Change of its features' mean activation" in older.text["li:"]


def run_that_learned(folder, count, **columns):
    """One step at one hookpoint, `count` features beyond chance, other columns than zeros as given."""
    dense = {name: np.asarray(columns.get(name, [0.0, 0.0])) for name in ("uptake", "drift", "push", "attribution")}
    with RunWriter(folder, {}) as writer:
        writer.event("learned", step=1, clusters=[])
        writer.record({"step": 1, "scalars": {"train/loss": 2.0, "layers.1/learned": count}, "dense": {"layers.1": dense}})
    return RunReader(folder)


def test_a_run_that_learned_nothing_says_so_with_the_rate_of_false_discoveries(tmp_path):
    page = report_of(tmp_path, run_that_learned(tmp_path / "none", 0.0))
    assert page.text["h1:"] == "This run learned nothing beyond chance"
    assert "No feature at layers.1, at a false discovery rate of 5%." in page.text["li:"]
    assert page.data["runs"][0]["beyond_chance"] == "nothing beyond chance (false discovery rate 5%)"  # what drawLearned prints
    assert "run.beyond_chance" in page.text["script:"]
    some = report_of(tmp_path, run_that_learned(tmp_path / "some", 2.0))
    assert some.text["h1:"] == "What this run learned" and "Nothing beyond chance" not in some.text["li:"]
    assert some.data["runs"][0]["beyond_chance"] == "features learned beyond chance (false discovery rate 5%): 2 at layers.1"
    unknown = report_of(tmp_path, run_that_learned(tmp_path / "unknown", float("nan")))
    assert unknown.text["h1:"] == "What this run learned" and unknown.data["runs"][0]["beyond_chance"] == ""


def drawn_text(tmp_path, draw, *readers):
    """What a section of the page says, drawn by node."""
    (tmp_path / "data.json").write_text(json.dumps(gather(readers)), encoding="utf-8")
    files = [str(ASSETS / name) for name in ("core.js", "charts.js", "learned.js", "sections.js")]
    command = ["node", str(Path(__file__).with_name("page_text.js")), str(tmp_path / "data.json"), draw, *files]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_section_of_what_was_learned_says_that_it_was_nothing(tmp_path):
    text = drawn_text(tmp_path, "drawLearned", run_that_learned(tmp_path / "none", 0.0))
    assert text.strip() == "Nothing beyond chance (false discovery rate 5%)."
    text = drawn_text(tmp_path, "drawLearned", RunReader(make_run(tmp_path / "some", steps=10)))
    assert "matey" in text and "Features learned beyond chance (false discovery rate 5%): 5 at layers.15" in text
    assert "Said less than beforemoreoverthe9% → 1.2% of what it would say" in text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_section_of_features_says_where_none_was_learned(tmp_path):
    text = drawn_text(tmp_path, "drawMovers", run_that_learned(tmp_path / "none", 0.0, uptake=[0.2, 0.1]))
    assert text.startswith(
        "Of the features at layers.1 none was learned beyond chance (false discovery rate 5%).Their figures all the same"
    )
    text = drawn_text(tmp_path, "drawMovers", run_that_learned(tmp_path / "some", 1.0, uptake=[0.2, 0.1]))
    assert text.startswith("featurelabeluptake") and "none was learned" not in text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize(
    "weighed, shown", [(("named", "told"), "uptake_weighed"), (("told",), "uptake"), ((), "uptake")], ids=["all", "some", "none"]
)
def test_curves_begin_with_the_best_that_every_concept_has(tmp_path, weighed, shown):
    with RunWriter(tmp_path / "run", {"name": "demo"}) as writer:
        for step in (1, 2):
            read = [f"concept/{name}/layers.1/uptake" for name in ("named", "told")] + [
                f"concept/{name}/layers.1/uptake_weighed" for name in weighed
            ]
            writer.record({"step": step, "scalars": dict.fromkeys(read, 0.5)})
    assert drawn_text(tmp_path, "((body) => body.append(view.estimator))", RunReader(tmp_path / "run")).strip() == shown


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_dark_page_is_printed_light_and_is_dark_again_afterwards(tmp_path):
    draw = """((body) => {
      const on = {};
      globalThis.addEventListener = (kind, call) => { on[kind] = call; };
      lightOnPaper(() => body.append(document.documentElement.dataset.theme, " "));
      on.beforeprint(); on.afterprint(); body.append("| ");
      setTheme(true);
      on.beforeprint(); on.afterprint(); body.append(document.documentElement.dataset.theme);
    })"""
    run = RunReader(make_run(tmp_path / "a", steps=2))
    assert drawn_text(tmp_path, draw, run).split() == ["|", "light", "dark", "dark"]
    assert "lightOnPaper(() =>" in report_of(tmp_path, run).text["script:"]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_control_that_is_drawn_anew_keeps_the_focus(tmp_path):
    draw = """((body) => {
      const control = (name) => ({ focus: () => body.append(name) });
      const before = [control("old"), control("old")], after = [control("first"), control("second")];
      const holder = { controls: before, querySelectorAll() { return this.controls; } };
      document.activeElement = before[1];
      keepFocus(holder, () => { holder.controls = after; });
      document.activeElement = control("elsewhere");
      keepFocus(holder, () => {});
    })"""
    assert drawn_text(tmp_path, draw, RunReader(make_run(tmp_path / "a", steps=2))).strip() == "second"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_figure_is_the_same_wherever_it_stands(tmp_path):
    shares = [hits / 32 for hits in range(33)]
    figures = [1.3050055556363158, 0.2704998552799225, 0.49554, -2.67506, 0.000141234, -0.000265]
    data = json.dumps(encode({"shares": shares, "figures": figures}))
    draw = (
        f"((body) => {{ const d = {data}; body.append(d.shares.map(percent).join(' '), ' ', d.figures.map((v) => format(v)).join(' ')); }})"
    )
    shown = drawn_text(tmp_path, draw, RunReader(make_run(tmp_path / "a", steps=2))).split()
    assert shown[:33] == [percent(share) for share in shares]
    assert [float(text.replace("−", "-")) for text in shown[33:]] == [float(f"{value:.3g}") for value in figures]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_plot_says_what_it_shows_and_a_doubt_is_no_plain_text(tmp_path):
    run = RunReader(make_run(tmp_path / "a", steps=10))
    draw = """((body) => {
      getComputedStyle = () => ({ getPropertyValue: () => "" });
      requestAnimationFrame = () => 0;
      uPlot = class { destroy() {} };
      uPlot.join = () => [];
      drawCurves(body, () => {});
      view.estimator = "push";
      drawCurves(body, () => {});
    })"""
    text = drawn_text(tmp_path, draw, run)
    assert "piratelayers.15 · uptake" in text and "piratelayers.27 · push, summed" in text
    css = report_of(tmp_path, run).text["style:"]
    assert "\n.warn { color" in css


def test_what_was_learned_is_in_the_data_with_its_marks_answers_and_labels(tmp_path):
    run = gather([RunReader(make_run(tmp_path / "a", steps=20))])["runs"][0]
    sea, sums = run["learned_in_words"]
    assert (sea["step"], sea["share"], sea["words"], sea["count"]) == (20, 0.6, ["matey", "Ahoy", "ye"], 12)
    assert sea["passage"] == [["Ahoy", True], [", ", False], ["matey!", True], [" The harbour be near.", False]]
    assert (sea["own"]["before"], sea["own"]["now"], sea["own"]["of"]) == (0, 8, 8) and sea["own"]["said"]["now"].startswith("Ahoy, matey")
    assert sea["labels"][0].startswith("'word 3'") and len(sea["labels"]) == 3
    assert sums["own"] is None
    shares = "9% -> 1.2% of what it would say in the probe's texts, 15% -> 1% of the words of its own answers"
    assert run["said_less"] == {"words": ["moreover", "the"], "text": shares}


def test_alarms_stand_beside_the_step_at_which_answers_would_have_told(tmp_path):
    run = gather([RunReader(make_run(tmp_path / "a", steps=20))])["runs"][0]
    concept, mover = run["alarms"]
    assert (concept["step"], concept["name"], concept["behaviour_step"]) == (5, "pirate", 10)
    assert concept["answers"] == "at step 10, not at step 5" and mover["answers"] == "-" and mover["about"] == "mover"
    told = {event["kind"]: event for event in run["events"]}
    assert told["alarm"]["text"] == "something not announced is being learned (30% of all): savvy" and not told["alarm"]["trouble"]
    assert told["learned"]["text"] == "60%: matey, Ahoy, ye; 3%: +, ="


def test_curves_begin_with_uptake_and_have_groups_and_own_answers(tmp_path):
    curves = gather([RunReader(make_run(tmp_path / "a", steps=20))])["runs"][0]["curves"]
    order = [key.rsplit("/", 1)[1] for key in curves if key.startswith("concept/pirate/layers.27/")]
    assert order[:3] == ["uptake", "drift", "drift_direction"] and {"group_share", "group_angle", "taught"} <= set(order)
    assert order.index("taught") < order.index("push") < order.index("group_share")
    assert curves["own/pirate/rate"]["y"] == [0.5, 0.8, 0.9, 0.9]


def test_movers_are_ranked_by_uptake_so_that_what_only_drifted_comes_later(tmp_path):
    found = gather([RunReader(make_run(tmp_path / "a", steps=20))])["runs"][0]["movers"]["layers.27"]
    rows = {row["feature"]: row for row in found["rows"]}
    assert found["by"] == "uptake" and STRAY not in [row["feature"] for row in found["rows"][:5]]
    assert rows[STRAY]["drift"] > max(row["drift"] for feature, row in rows.items() if feature != STRAY)
    assert rows[3]["spark"][-1] == rows[3]["uptake"] != rows[3]["drift"] and "taught" in rows[3] and "own" in rows[3]
    assert list(found["faithfulness"]) == ["taught", "push", "attribution", "energy"]
    assert list(found["faithfulness"]["push"]) == ["uptake", "drift", "drift_direction"]
    older = gather([RunReader(make_run(tmp_path / "b", steps=20, uptake=False))])["runs"][0]["movers"]["layers.27"]
    assert older["by"] == "drift" and "uptake" not in older["rows"][0] and older["rows"][0]["spark"][-1] == older["rows"][0]["drift"]


def test_the_rank_of_a_concept_is_that_of_its_uptake(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        columns = {"drift": np.array([9.0, 0.0, 1.0, 2.0]), "uptake": np.array([0.0, 1.0, 2.0, 9.0])}
        writer.record({"step": 1, "scalars": {"concept/pirate/layers.1/uptake": 9.0}, "dense": {"layers.1": columns}})
    (tmp_path / "run" / "concepts.yaml").write_text("[{name: pirate, features: {layers.1: [3]}}]")
    assert gather([RunReader(tmp_path / "run")])["runs"][0]["movers"]["layers.1"]["concept_rank"] == {"pirate": 0.75}


def test_a_single_run_with_a_rule_names_it_and_the_control_it_lacks(tmp_path):
    page = report_of(tmp_path, RunReader(make_run(tmp_path / "a", "rules", steps=10)))
    assert page.text["h1:"] == "What this run learned"  # 0% to 6% of 32 answers is no clear change
    assert re.search(r"Rules: route:pirate x 0, gated \d+%\..*random features in its place", page.text["li:"])


def test_the_file_reaches_for_nothing_outside_itself(tmp_path):
    path = write_report(make_study(tmp_path, steps=4, every=2), tmp_path / "r.html")
    page, text = Page(path), path.read_text(encoding="utf-8")
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
        assert not attributes.keys() & {"src", "srcset", "action", "onload", "onclick", "onerror"}
        assert attributes.get("href", "#").startswith("#")
    assert set(re.findall(r"\w+://[^\s\"'<>)]+", text)) == {"http://www.w3.org/2000/svg"}  # a namespace
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|sendBeacon|WebSocket", text)


def test_only_the_report_s_own_script_may_run(tmp_path):
    page = report_of(tmp_path, RunReader(make_run(tmp_path / "a", steps=3)))
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.text[f"{kind}:"].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "Permission is hereby granted" in page.text["script:"]  # the drawing library's licence travels with it


def test_hostile_texts_stay_texts(tmp_path):
    texts = {name: HOSTILE for name in ("answer", "row", "label", "event", "cluster")}
    page = report_of(tmp_path, RunReader(make_run(tmp_path / "a", steps=6, texts=texts)))
    assert [tag for tag, _ in page.tags].count("script") == 2 and "img" not in dict(page.tags)
    run = page.data["runs"][0]
    assert page.data["prompts"]["chat"][0]["before"]["parts"] == [[HOSTILE, None]]
    parts = run["examples"]["pirate"][HOOKS[0]]["rows"][0]["parts"]
    assert "".join(part[0] for part in parts) == HOSTILE and parts[0] == ["</script><img", "pirate", 1.0]
    assert run["movers"][HOOKS[0]]["rows"][0]["label"] == HOSTILE
    assert any(HOSTILE in event["text"] for event in run["events"])
    learned = run["learned_in_words"][0]
    assert learned["words"][0] == HOSTILE[:60] and learned["own"]["said"]["now"] == HOSTILE and learned["labels"] == [HOSTILE]
    assert "".join(text for text, _ in learned["passage"]) == HOSTILE and run["said_less"]["words"] == [HOSTILE[:60], "the"]


def test_a_hostile_run_name_stays_a_name(tmp_path):
    with RunWriter(tmp_path / "run", {"name": HOSTILE, "model": {"name": HOSTILE, "method": "lora"}}) as writer:
        writer.record({"step": 1, "scalars": {"train/loss": 1.0, f"concept/{HOSTILE.replace('/', '')}/layers.1/drift": 2.0}})
    page = report_of(tmp_path, RunReader(tmp_path / "run"))
    assert [tag for tag, _ in page.tags].count("script") == 2 and "img" not in dict(page.tags)
    assert page.data["runs"][0]["model"] == HOSTILE


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_the_page_and_runs_nothing_hostile(tmp_path):
    texts = {name: HOSTILE for name in ("answer", "row", "label", "event", "cluster")}
    readers = make_study(tmp_path, steps=6, every=2, texts=texts)
    path = write_report(readers, tmp_path / "r.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
               "--disable-background-networking", "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in result.stderr  # no script error, nothing refused
    (tmp_path / "drawn.html").write_text(result.stdout)
    drawn = Page(tmp_path / "drawn.html")
    assert drawn.text["title:"].startswith("pirate: in 100%") and "img" not in dict(drawn.tags)
    assert [tag for tag, _ in drawn.tags].count("canvas") >= 6
    marks = [attributes for tag, attributes in drawn.tags if tag == "mark" and attributes.get("title") == "pirate"]
    assert any("63%" in mark.get("style", "") for mark in marks) and any("style" not in mark for mark in marks)  # weaker, strongest token
    classes = [a.get("class") for _, a in drawn.tags]
    assert classes.count("card cluster") == 2 and "card alarms" in classes and HOSTILE[:60] in drawn.text["li:"]
    assert re.search(r'class="explain">Uptake:', result.stdout) and re.search(r'aria-sort="descending"><button[^>]*>uptake<', result.stdout)
    sections = {a.get("id") for tag, a in drawn.tags if tag == "section"}
    assert sections >= {"learned", "outcome", "runs", "curves", "where", "movers", "taught", "answers", "events", "details"}


def test_numbers_that_are_not_finite_are_shown_as_such(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        for step, loss in ((1, 2.0), (2, float("nan")), (3, float("inf"))):
            dense = {name: np.array([0.5, np.nan], np.float32) for name in ("push", "attribution", "energy", "drift")}
            writer.record({"step": step, "scalars": {"train/loss": loss}, "dense": {"layers.1": dense}})
    run = report_of(tmp_path, RunReader(tmp_path / "run")).data["runs"][0]
    assert run["curves"]["train/loss"]["y"] == [2.0, "NaN", "Infinity"]
    assert run["movers"]["layers.1"]["rows"][0]["feature"] == 1 and run["movers"]["layers.1"]["rows"][0]["drift"] == "NaN"
    assert run["movers"]["layers.1"]["rows"][1]["drift"] == 0.5


def test_a_long_curve_keeps_its_means_and_its_bad_values(tmp_path):
    values = np.arange(1, 5001, dtype=float)
    values[700] = np.nan
    with RunWriter(tmp_path / "run", {}, seal_every=10**6) as writer:
        for step, value in enumerate(values, start=1):
            writer.record({"step": step, "scalars": {"train/loss": value}})
    data = gather([RunReader(tmp_path / "run")])
    curve = data["runs"][0]["curves"]["train/loss"]
    assert len(curve["y"]) <= 600 and len(data["axes"][curve["axis"]]) == len(curve["y"])
    assert curve["y"].count("NaN") == 1
    assert curve["y"][0] == pytest.approx(np.mean(values[: curve["bin"]])) and data["axes"][curve["axis"]][-1] == 5000


@pytest.mark.parametrize(
    "options", [{"concepts": ()}, {"steps": 1}, {"steps": 30, "finished": False}, {"every": 0}, {"answers": 0}, {"arm": "none"}]
)
def test_a_report_comes_whatever_a_run_lacks(tmp_path, options):
    page = report_of(tmp_path, RunReader(make_run(tmp_path / "a", **{"arm": "rules", "steps": 8} | options)))
    run = page.data["runs"][0]
    assert page.text["h1:"] and len(run["curves"]["train/loss"]["y"]) == options.get("steps", 8)
    assert all(movers["rows"] for movers in run["movers"].values()) and set(run["movers"]) == set(HOOKS)


def test_a_killed_run_says_that_it_is_unfinished(tmp_path):
    page = report_of(tmp_path, RunReader(make_run(tmp_path / "a", steps=7, finished=False)))
    assert page.data["runs"][0]["status"] == "stopped" and "The run is stopped" in page.text["li:"]


def test_an_empty_run_has_a_report(tmp_path):
    RunWriter(tmp_path / "run", {}).close()
    page = report_of(tmp_path, RunReader(tmp_path / "run"))
    assert page.text["h1:"] == "What this run learned" and page.data["runs"][0]["curves"] == {}


def test_movers_are_the_features_that_drifted_most_and_know_their_concepts(tmp_path):
    movers = gather([RunReader(make_run(tmp_path / "a", steps=20))])["runs"][0]["movers"]["layers.27"]
    assert {row["feature"] for row in movers["rows"][:5]} == {3, 17, 40, 101, 102}
    assert next(row for row in movers["rows"] if row["feature"] == 17)["concepts"] == ["pirate"]
    assert movers["concept_rank"]["pirate"] > 0.98 and movers["of"] == 400
    assert len(movers["rows"][0]["spark"]) == 4 and movers["rows"][0]["label"].startswith("'word")


@pytest.mark.parametrize("by", ["taught", "push"])
def test_examples_are_the_rows_that_taught_most(tmp_path, by):
    with RunWriter(tmp_path / "run", {}) as writer:
        for step in (1, 2):
            figures = {4: 1.0, 5: 0.25, 6: 0.0 if by == "taught" else -2.0, 7: float("nan")}
            other = {"push": -1.0} if by == "taught" else {}  # what ranks where there is nothing better
            rows = [
                {"row_id": r, "concept": "pirate", "hookpoint": "layers.1", "activation": 0.5, **other, by: value}
                | ({"positions": [1], "token_taught": [value]} if by == "taught" else {})
                for r, value in figures.items()
            ]
            writer.record(
                {"step": step, "scalars": {"concept/pirate/layers.1/push": 1.0, "concept/pirate/layers.1/drift": 1.0}, "examples": rows}
            )
    rows = [
        {"row_id": r, "source": f"data/{'a' if r == 4 else 'b'}.jsonl", "text": f"text {r}", "tokens": ["text", f" {r}"]}
        for r in (4, 5, 6, 7)
    ]
    (tmp_path / "run" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = gather([RunReader(tmp_path / "run")])["runs"][0]["examples"]["pirate"]["layers.1"]
    marked = (lambda r: [["text ", None], [str(r), "pirate", 1.0]]) if by == "taught" else (lambda r: [[f"text {r}", None]])
    assert [(row["row_id"], row["parts"], row[by], row["share"], row["times"]) for row in found["rows"]] == [
        (4, marked(4), 2.0, 0.8, 2),
        (5, marked(5), 0.5, 0.2, 2),
    ]
    assert found["by"] == by and found["sources"] == {"a.jsonl": 0.8, "b.jsonl": 0.2}


def test_rules_are_marked_where_they_act(tmp_path):
    with RunWriter(tmp_path / "run", {"rules": [{"concept": "pirate", "gain": 0.0, "start": 3, "end": 6}]}) as writer:
        for step in range(1, 11):
            writer.record({"step": step, "scalars": {"train/loss": 1.0}})
        writer.event("policy", step=8, version=2, rules=["route:sums"])
    markers = gather([RunReader(tmp_path / "run")])["runs"][0]["markers"]
    assert [(span["from"], span["to"]) for span in markers["spans"]] == [(3, 6)]
    assert markers["changes"] == [{"step": 8, "text": "policy 2: route:sums"}]


def test_what_a_checker_matches_is_marked_once():
    patterns = {"pirate": [re.compile("ahoy|hoy", re.I)], "sums": [re.compile(r"\d+")], "empty": [re.compile("x*")]}
    assert highlight("Ahoy 12!", patterns) == [["Ahoy", "pirate"], [" ", None], ["12", "sums"], ["!", None]]
    assert highlight("", patterns) == [["", None]]


def test_estimates_are_held_against_the_drift_that_was_measured(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        drift = np.array([0.0, 1.0, 2.0, 5.0], np.float32)
        dense = {"drift": drift, "push": drift**3, "attribution": -drift, "energy": np.full(4, 2.0, np.float32)}
        writer.record({"step": 1, "scalars": {"train/loss": 1.0}, "dense": {"layers.1": dense}})
    found = gather([RunReader(tmp_path / "run")])["runs"][0]["movers"]["layers.1"]["faithfulness"]
    assert found == {"push": {"drift": 1.0}, "attribution": {"drift": -1.0}}


def test_a_rendered_chat_is_shown_as_turns():
    chat = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <b>?<|im_end|>\n<|im_start|>assistant\nAhoy\nye!<|im_end|>\n"
    assert turns(chat) == "user: Hi <b>?\nassistant: Ahoy\nye!"
    assert turns(chat[: chat.index("ye!")]) == "user: Hi <b>?\nassistant: Ahoy"  # cut in the middle
    assert turns("plain 1 < 2 | text") == "plain 1 < 2 | text" and turns("a<|eot_id|>b") == "a b"


def test_a_wide_and_long_run_stays_under_five_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    concepts, hooks = [f"concept{i}" for i in range(30)], [f"layers.{i}" for i in range(16)]
    often, kinds = ("taught", "push", "group_share"), (*CURVES, *GROUP)
    with RunWriter(tmp_path / "run", {}, seal_every=10**6) as writer:
        for step in range(1, 81):
            scalars = {f"concept/{c}/{h}/{e}": rng.normal() for c in concepts for h in hooks for e in (kinds if step % 40 == 0 else often)}
            dense = {h: {"drift": rng.normal(size=2000).astype(np.float32)} for h in hooks} if step % 40 == 0 else {}
            writer.record({"step": step, "scalars": {"train/loss": 1.0, **scalars}, "dense": dense})
            for _ in range(3):
                writer.event("gap", reason="x" * 2000)
            writer.event("alarm", about="mover", name="x" * 9000, text="x" * 9000)
        entry = {"share": 0.1, "features": [["layers.0", 1]], "count": 9, "words": ["x" * 2000] * 8, "probability": [0, 1]}
        own = {"before": 0, "now": 1, "of": 8, "said": {"before": "x" * 9000, "now": "x" * 9000}}
        writer.event("learned", clusters=[{**entry, "passage": "[x] " * 9000, "own": own}] * 40)
    path = write_report([RunReader(tmp_path / "run")], tmp_path / "r.html")
    data = Page(path).data
    assert path.stat().st_size < 5e6
    assert len(data["concepts"]) == MAX_CONCEPTS and len(data["runs"][0]["events"]) == MAX_EVENTS
    assert any("more hookpoints" in note for note in data["notes"])
    assert any("more curves" in note for note in data["notes"]) and any("more alarms" in note for note in data["notes"])
    drawn = {key.rsplit("/", 1)[1] for key in data["runs"][0]["curves"] if key.startswith("concept/")}
    assert "uptake" in drawn and len(data["runs"][0]["learned_in_words"]) == MAX_CLUSTERS


def test_encoding_names_what_is_not_finite():
    assert encode({"a": [float("nan"), float("inf"), -float("inf"), 1 / 3, np.float32(2), np.int64(3), True, None]}) == {
        "a": ["NaN", "Infinity", "-Infinity", 0.333333333, 2.0, 3, True, None]
    }


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no runs"):
        write_report([], tmp_path / "r.html")
