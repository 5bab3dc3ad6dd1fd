"""How one config becomes the arms of a study."""

import pytest
import torch

from gradlens.config import RunConfig
from gradlens.dictionaries.directions import Directions, save_directions
from gradlens.errors import ConfigError
from gradlens.training.study import arms_of

BASE = {
    "name": "s",
    "data": {"train": ["a.jsonl", "b.jsonl"], "wanted": ["b.jsonl"]},
    "dictionaries": {"layers.1": "d"},
    "rules": [{"concept": "c", "gain": 0.0}],
}


def test_arms_differ_in_rules_and_rows_alone():
    config = RunConfig.model_validate(BASE)
    arms = {arm.arm: arm for arm in arms_of(config)}
    assert list(arms) == ["none", "rules", "random", "oracle"]
    assert arms["rules"].rules == config.rules
    assert not arms["none"].rules and not arms["oracle"].rules
    assert [rule.random_control for rule in arms["random"].rules] == [0]
    assert arms["oracle"].data.keep == ["b.jsonl"]
    assert all(arm.data.keep is None for name, arm in arms.items() if name != "oracle")
    assert {arm.train for arm in arms.values()} == {config.train}


def test_every_arm_is_run_with_every_seed():
    arms = arms_of(RunConfig.model_validate(BASE), ["none", "random"], [3, 4])
    assert [(arm.name, arm.train.seed) for arm in arms] == [
        ("s-none-seed3", 3), ("s-random-seed3", 3), ("s-none-seed4", 4), ("s-random-seed4", 4),
    ]  # fmt: skip
    assert [rule.random_control for arm in arms for rule in arm.rules] == [3, 4]


def test_arms_without_ground_are_left_out_or_refused():
    config = RunConfig.model_validate({**BASE, "rules": [], "data": {"train": ["a.jsonl"]}})
    assert [arm.arm for arm in arms_of(config)] == ["none"]
    with pytest.raises(ConfigError, match="--arms oracle: the config does not say what is wanted"):
        arms_of(config, ["oracle"])
    with pytest.raises(ConfigError, match="--arms rules: the config has no `rules`"):
        arms_of(config, ["rules"])
    with pytest.raises(ConfigError, match="'nome' is not one of none, rules"):
        arms_of(config, ["nome"])
    with pytest.raises(ConfigError, match="different arms"):
        arms_of(config, ["none", "none"])


def test_there_is_no_random_arm_where_nothing_can_be_drawn(tmp_path):
    save_directions(Directions(torch.eye(4)[:1], torch.zeros(1), hook="layers.1"), tmp_path / "d.safetensors")
    (tmp_path / "own.yaml").write_text("name: own\ndirections: d.safetensors\n")
    config = RunConfig.model_validate(BASE | {"concepts": [str(tmp_path / "own.yaml")], "rules": [{"concept": "own", "mode": "ablate"}]})
    assert [arm.arm for arm in arms_of(config)] == ["none", "rules", "oracle"]
    with pytest.raises(ConfigError, match="--arms random: concept own is a direction of its own"):
        arms_of(config, ["random"])
    config = RunConfig.model_validate(BASE | {"rules": [{"concept": "c", "mode": "inoculate", "prompt": "Talk like a pirate."}]})
    with pytest.raises(ConfigError, match="--arms random: rule inoculate:c looks at no features"):
        arms_of(config, ["random"])
