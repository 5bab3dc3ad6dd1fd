"""Groups: clusters of decoder rows that were planted are found, their axes span them, and what is written can be used by a run."""

import json
from dataclasses import replace

import pytest
import torch
import typer
from conftest import tiny_dictionary
from typer.testing import CliRunner

from gradlens.cli import concepts, directions
from gradlens.concepts.fitting import load_concepts
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import load_dictionary, save_dictionary
from gradlens.dictionaries.groups import axes, clusters, group_basis, group_directions, levels
from gradlens.errors import ConfigError

CIRCLE = list(range(7))  # seven features on half a circle, in two dimensions
TIGHT = [20, 21, 22, 23, 24]


def planted() -> Dictionary:
    dictionary = replace(tiny_dictionary(D=32, F=30), b_dec=torch.randn(32))
    rows = torch.nn.functional.normalize(torch.randn(30, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    first, second, third = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(2)))[0].T
    angles = torch.linspace(-0.7, 0.7, 7)
    rows[CIRCLE] = torch.cos(angles)[:, None] * first + torch.sin(angles)[:, None] * second
    rows[TIGHT] = third + 0.02 * torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    return replace(dictionary, W_dec=3 * rows)


def test_features_with_rows_that_are_alike_are_found_and_no_others():
    found = clusters(planted(), cosine=0.7)
    assert [sorted(members) for members in found] == [CIRCLE, TIGHT]
    assert found[0][0] == 3  # the middle of the arc is the centre
    assert clusters(planted(), cosine=0.7, smallest=6) == [found[0]]
    assert clusters(planted(), cosine=0.7, live_F=torch.arange(30) != 22) == [found[0], [i for i in found[1] if i != 22]]


def test_axes_are_as_few_as_hold_the_group():
    dictionary = planted()
    circle, tight = axes(dictionary, CIRCLE, 0.99), axes(dictionary, TIGHT, 0.9)
    assert circle.shape == (2, 32) and tight.shape == (1, 32)
    torch.testing.assert_close(circle @ circle.T, torch.eye(2), rtol=1e-5, atol=1e-5)
    units = dictionary.unit_directions(torch.tensor(CIRCLE))
    torch.testing.assert_close(units @ circle.T @ circle, units, rtol=1e-4, atol=1e-4)


def test_the_axes_as_a_dictionary_read_both_sides_and_span_the_group():
    dictionary = planted()
    found = group_directions(dictionary, {"week": CIRCLE, "tight": TIGHT}, "layers.2", 0.99)
    part, x_TD = found.rows(found.groups["week"]).dictionary(), torch.randn(40, 32)
    assert part.d_sae == 4
    torch.testing.assert_close(part.decode(part.encode(x_TD)), (x_TD - dictionary.b_dec) @ (q := axes(dictionary, CIRCLE, 0.99)).T @ q)
    Q, R = group_basis(part, range(4)), group_basis(dictionary, CIRCLE)
    torch.testing.assert_close(Q @ Q.T, R @ R.T, rtol=1e-4, atol=1e-4)


def test_levels_of_a_matryoshka_dictionary_follow_each_other():
    assert levels([2, 3]) == {"level-1": [0, 1], "level-2": [2, 3, 4]}


def test_the_command_writes_concepts_and_axes(tmp_path):
    root = typer.Typer()
    concepts.register(root)
    directions.register(root)

    def call(*arguments):
        result = CliRunner().invoke(root, ["concepts", "groups", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return json.loads(result.stdout)

    save_dictionary(planted(), tmp_path / "sae", torch.float32)
    out = tmp_path / "groups.yaml"
    printed = call(f"layers.2={tmp_path / 'sae'}", "--out", out, "--cosine", 0.7, "--json")
    assert [(row["group"], sorted(row["features"])) for row in printed["groups"]] == [("group-1", CIRCLE), ("group-2", TIGHT)]
    assert [sorted(concept.features["layers.2"]) for concept in load_concepts([out])] == [CIRCLE, TIGHT]
    assert load_dictionary(f"{tmp_path / 'groups.safetensors'}#group-1").hookpoint == "layers.2"
    (tmp_path / "axes.yaml").write_text("name: week\ndirections: groups.safetensors#group-1\n")
    assert load_concepts([tmp_path / "axes.yaml"])[0].features == {"layers.2#week": [0, 1, 2, 3]}
    with pytest.raises(ConfigError, match="no 9 features with decoder rows of cosine 0.7 or more"):
        call(f"layers.2={tmp_path / 'sae'}", "--out", out, "--cosine", 0.7, "--smallest", 9)
