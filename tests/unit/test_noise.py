"""The noise floor beside a concept's figures: what it is, that figures are the sums it is of, where it is shown."""

import itertools
import math
import re
import shutil

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from test_report import drawn_text
from words import word_tokenizer

from gradlens.concepts.concept_files import RowDetector
from gradlens.config import ObserveSettings
from gradlens.readings.learning import Learning
from gradlens.readings.noise import by_text, noise_floor
from gradlens.recording.store import RunReader, RunWriter
from gradlens.report.compare import compare_runs, render
from gradlens.report.data import gather
from gradlens.report.page import page
from gradlens.report.summary import build_summary, render_summary, summarize

HOOK = "layers.2"


def test_it_is_what_all_ways_to_flip_signs_say():
    parts_R = torch.rand(10, generator=torch.Generator().manual_seed(3)).double() - 0.3
    sums = torch.tensor(
        [abs(sum(s * p for s, p in zip(signs, parts_R.tolist(), strict=True))) for signs in itertools.product((-1, 1), repeat=10)]
    )
    floor = noise_floor(parts_R)
    assert 0.93 <= (sums <= floor + 1e-9).double().mean() <= 0.97
    assert noise_floor(-parts_R) == noise_floor(parts_R) == floor and noise_floor(3 * parts_R) == pytest.approx(3 * floor)


def test_chance_stays_within_it_in_95_of_100_cases_and_texts_that_agree_do_not():
    drawn = torch.randn(400, 16, generator=torch.Generator().manual_seed(0)).double()
    within = sum(abs(float(parts_R.sum())) <= noise_floor(parts_R) for parts_R in drawn)
    assert 0.92 <= within / 400 <= 0.98
    half = torch.tensor([1.0] * 8 + [0.0] * 8)  # a concept that half of the texts show
    assert noise_floor(half) < 8 and noise_floor(torch.tensor([5.0] + [0.0] * 15)) == 5  # one text alone is never beyond it


def test_it_is_not_told_of_few_texts_nor_of_what_is_not_finite():
    assert noise_floor(torch.ones(5)) is None and noise_floor(torch.ones(6)) < 6
    assert math.isnan(noise_floor(torch.tensor([1.0, float("nan"), *[0.0] * 6])))
    assert noise_floor(torch.zeros(8)) == 0.0


def trained(**extra) -> Learning:
    """Read on twelve texts, then changed."""
    members = {("c", HOOK): torch.tensor([1, 2, 7])}
    model = tiny_model().eval()
    observe = ObserveSettings(own_prompts=8, own_tokens=4)
    made = Learning(model, {HOOK: tiny_dictionary()}, observe, members, word_tokenizer(), **extra)
    made.begin([tiny_batch(seed) for seed in range(4)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


def test_figures_are_the_sums_that_their_floors_are_of():
    made = trained(tells={("c", HOOK): RowDetector(features=[1, 2], weights=[1.0, 1.0], bias=0.0)})
    scalars: dict[str, float] = {}
    made.read_drift(scalars)
    figures = [f"concept/c/{HOOK}/{name}" for name in ("uptake", "uptake_weighed", "drift", "drift_direction")]
    for key, parts_R in made._by_text(HOOK, torch.tensor([1, 2, 7])).items():
        assert float(parts_R.sum()) == pytest.approx(scalars[f"concept/c/{HOOK}/{key}"], rel=1e-4, abs=1e-7)
        assert scalars[f"concept/c/{HOOK}/{key}_noise"] == noise_floor(parts_R) > 0
    assert {f"{key}_noise" for key in figures} == {key for key in scalars if key.endswith("_noise")}
    assert float(by_text(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([1, 3])).sum()) == 2.0


def test_own_answers_are_compared_prompt_by_prompt_also_after_a_restart():
    made = trained()
    again = Learning(made.model, made.dictionaries, made.observe, made.members, made.tokenizer)
    again.load_state_dict(made.state_dict(), made.probe)
    floors = []
    for learning in (made, again):
        scalars: dict[str, float] = {}
        learning.read_own(scalars, {})
        floors.append(scalars[f"concept/c/{HOOK}/own_noise"])
    assert floors[0] == floors[1] > 0
    made.own_start.lengths = made.own_start.lengths[:-1]  # one prompt had no answer then: nothing to compare it with
    made.read_own(scalars := {}, {})
    assert f"concept/c/{HOOK}/own" in scalars and f"concept/c/{HOOK}/own_noise" not in scalars


def written(folder, uptake: float) -> RunReader:
    with RunWriter(folder, {"name": "demo"}) as writer:
        for step in (1, 2):
            key = "concept/pirate/layers.1/uptake"
            writer.record({"step": step, "scalars": {key: uptake * step, f"{key}_noise": 0.15 * step, "train/loss": 1.0}})
    (folder / "concepts.yaml").write_text("[{name: pirate, features: {layers.1: [3]}}]")
    return RunReader(folder)


def on_screen(renderable) -> str:
    from rich.console import Console

    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return re.sub(r"\s+", " ", console.export_text())


@pytest.mark.parametrize("uptake, beyond", [(0.2, True), (-0.2, True), (0.1, False)])
def test_a_figure_within_it_stands_in_brackets_and_both_are_in_the_data(tmp_path, uptake, beyond):
    reader = written(tmp_path / "run", uptake)
    figure = f"{2 * uptake:+.3g}"
    for screen in (render_summary(summarize(reader)), render(compare_runs([reader, reader]))):
        text = on_screen(screen)
        assert (f" {figure}" in text) == beyond and (f"({figure})" in text and "In brackets" in text) == (not beyond)
    assert build_summary(reader, "done")["concepts"]["pirate"]["layers.1"]["uptake_noise"] == 0.3
    assert ("within its noise" in page(gather([reader]))) == (not beyond)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_curves_are_drawn_with_it(tmp_path):
    draw = """((body) => {
      getComputedStyle = () => ({ getPropertyValue: () => "" });
      requestAnimationFrame = () => 0;
      const points = [], nothing = () => 0;
      const ctx = { save: nothing, restore: nothing, beginPath: nothing, rect: nothing, clip: nothing, fill: nothing, lineTo: (x, y) => points.push(`${x}:${y.toFixed(2)}`) };
      uPlot = class {
        constructor(settings, data) {
          if (settings.hooks.drawClear) settings.hooks.drawClear[0]({ bbox: {}, ctx, valToPos: (v) => v });
          points.push(settings.scales.y.range(null, 0.1, 0.2).map((v) => v.toFixed(2)).join(" to "));
        }
        destroy() {}
      };
      uPlot.join = () => [];
      drawCurves(body, () => {});
      body.append(points.join(" "));
    })"""  # noqa: E501
    text = drawn_text(tmp_path, draw, written(tmp_path / "run", 0.1))
    assert "0:0.00 1:0.15 2:0.30 2:-0.30 1:-0.15 0:0.00" in text.replace("-0.00", "0.00")
    assert "-0.33 to 0.33" in text.replace("-0.34", "-0.33").replace("0.34", "0.33")  # the band has room
    assert "The band around zero is what chance makes" in text
