"""docs/own-pair.md names every key of a pair file and every arm, and its example is one."""

import re
from pathlib import Path

import pytest
import yaml

from gradlens.bench.control import ARMS
from gradlens.bench.pairs import Pair

SECTION = (Path(__file__).parents[2] / "docs" / "own-pair.md").read_text(encoding="utf-8")


def test_the_example_is_a_pair_file_with_every_key():
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", SECTION, re.DOTALL).group(1))
    assert Pair.model_validate(example) and example.keys() == Pair.model_fields.keys()


@pytest.mark.parametrize("key, field", Pair.model_fields.items())
def test_every_key_has_a_line_with_its_default(key, field):
    line = next(line for line in SECTION.splitlines() if line.startswith(f"| `{key}` |"))
    if isinstance(field.default, str):
        assert f"default `{field.default}`" in line


def test_every_arm_is_named():
    named = set(re.findall(r"`([\w-]+)`", "".join(line for line in SECTION.splitlines() if line.startswith("| `"))))
    named |= {"steer-2", "steer-4", "inoculate"}  # `steer-1` to `steer-8`, `inoculate-1` and so on
    assert {arm for arm in ARMS if not arm.endswith("-random")} <= named and {"MODE-random", "rewrite-scattered"} <= named
