"""A config: precedence, paths, and errors that name file and key in words a person can act on."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from gradlens.config import RunConfig, load_config
from gradlens.errors import ConfigError

DATA = "data: {train: [a.jsonl]}\n"


def problem_of(tmp_path, text, *overrides, environ=None):
    """The message of a config, without the folder."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides, environ or {})
    return str(raised.value).replace(str(tmp_path) + "/", "")


def test_command_line_over_environment_over_file_over_default(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(DATA + "train: {steps: 1, seed: 1, lr: 0.5}\n")
    environ = {"GRADLENS__TRAIN__STEPS": "2", "GRADLENS__TRAIN__SEED": "2", "OTHER": "x"}
    train = load_config(path, ["train.steps=3"], environ).train
    assert (train.steps, train.seed, train.lr, train.batch_size) == (3, 2, 0.5, 8)


def test_paths_are_relative_to_the_file_and_rules_are_no_paths(tmp_path):
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "pirate").mkdir()
    (tmp_path / "rules.yaml").touch()
    path = tmp_path / "c.yaml"
    path.write_text(
        DATA + "rules: [rules.yaml, {concept: pirate, name: ''}]\ndictionaries: {15: pirate, layers.2: elsewhere}\nprobe: a.jsonl\n"
        "observe: {reference: a.jsonl}\n"
    )
    config = load_config(path, environ={})
    assert config.data.train == [str(tmp_path / "a.jsonl")] and config.probe == config.data.train[0]
    assert config.observe.reference == config.probe
    assert config.rules[0] == str(tmp_path / "rules.yaml")
    assert (config.rules[1].concept, config.rules[1].name) == ("pirate", "")
    assert config.dictionaries == {"15": str(tmp_path / "pirate"), "layers.2": "elsewhere"}


def test_files_named_from_the_working_directory_are_found_from_any_other(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.jsonl", "smollm2"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "elsewhere" / "c.yaml").write_text(DATA)
    monkeypatch.chdir(tmp_path / "in")
    config = load_config(tmp_path / "elsewhere" / "c.yaml", ["data.train=[a.jsonl]", "probe=./a.jsonl"], environ={})
    assert config.data.train == [str(tmp_path / "in" / "a.jsonl")] == [config.probe]
    assert config.model.name == "smollm2"  # a name, whatever lies here


def test_a_hookpoint_with_dots_can_be_set_on_the_command_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(DATA + "model:\n")
    config = load_config(path, ["dictionaries.layers.15=FOLDER", "model.name=other", "wandb.mode=off"], {})
    assert config.dictionaries == {"layers.15": "FOLDER"} and config.model.name == "other" and config.wandb.mode == "off"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (DATA + "trian: {}", (), "c.yaml: unknown key trian; did you mean train?"),
        (DATA + "train: {step: 3}", (), "c.yaml: unknown key train.step; did you mean train.steps?"),
        (DATA, ("train.step=3",), "--set train.step: unknown key train.step; did you mean train.steps?"),
        (DATA + "ray: {qqq: 1}", (), "c.yaml: unknown key ray.qqq; known keys here: address, lens_actors, max_failures"),
        ("name: x", (), "c.yaml: data is missing"),
        (DATA + "train: {steps: many}", (), "c.yaml: train.steps: expected a valid integer, found 'many'"),
        (DATA + "train: {lr: -1}", (), "c.yaml: train.lr: expected greater than or equal to 0, found -1"),
        (DATA + "model: {lora: {layers: [1]}}", (), "c.yaml: model.lora.layers.1 is missing"),
        ("data: {train: a.jsonl}", (), "c.yaml: data.train: expected a list, for instance [a.jsonl], found 'a.jsonl'"),
        (
            DATA,
            ("rules=[{mode: rout}]",),
            "--set rules: rules.0.mode: unknown value 'rout', expected one of auto, route, rewrite, ablate, mean-ablate, steer, inoculate, "
            "grad, param, update, reweight, penalty, constrain; did you mean route?",
        ),
        (DATA + "rules: [{concpt: x}]", (), "c.yaml: unknown key rules.0.concpt; did you mean rules.0.concept?"),
        (DATA + "rules: [{mode: route}]", (), "c.yaml: rules.0: give either concept or features"),
        (DATA + "rules: [5]", (), "c.yaml: rules.0: expected a mapping of keys or the name of a file, found 5"),
        (
            DATA + "rules: [{features: {layers.1: a}}]",
            (),
            "c.yaml: rules.0.features.layers.1: expected a list, for instance [a], found 'a'",
        ),
        (
            DATA + "model: small",
            ("model.dtype=float32",),
            "--set model.dtype: model is 'small', which has no keys of its own; set model as a whole",
        ),
        ("a: " + "[" * 3000, (), "c.yaml: not valid YAML: nested too deeply"),
        (DATA, ("steps",), "--set steps: expected KEY=VALUE, for instance --set train.steps=20"),
        ("a: [", (), "c.yaml: not valid YAML in line 1, column 5: expected the node content, but found '<stream end>'"),
        ("- a", (), "c.yaml: expected a mapping of keys, found list"),
    ],
)
def test_an_error_is_one_line_that_names_the_key_and_the_way_out(tmp_path, text, overrides, message):
    assert problem_of(tmp_path, text, *overrides) == message


def test_every_problem_is_told_at_once_with_where_it_comes_from(tmp_path):
    message = problem_of(tmp_path, DATA + "wandb: {mode: of}\nname: a b", environ={"GRADLENS__TRAIN__STEPS": "x"})
    assert message.splitlines() == [
        "c.yaml: name: string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', found 'a b'",
        "environment variable GRADLENS__TRAIN__STEPS: train.steps: expected a valid integer, found 'x'",
        "c.yaml: wandb.mode: unknown value 'of', expected one of online, offline, off; did you mean off?",
    ]


def test_a_missing_file_suggests_a_near_one(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(ConfigError, match="no such file; did you mean .*quickstart.yaml"):
        load_config(tmp_path / "quikstart.yaml")


def test_every_field_says_what_it_means():
    def fields(model, prefix=""):
        for name, field in model.model_fields.items():
            yield f"{prefix}{name}", field.description
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from fields(field.annotation, f"{prefix}{name}.")

    assert [key for key, description in fields(RunConfig) if not description] == []


def invoke(*arguments):
    import typer

    from gradlens.cli import config

    app = typer.Typer()
    config.register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["config", *map(str, arguments)])


def test_schema_show_and_check_on_the_command_line(tmp_path):
    schema = json.loads(invoke("schema", "--json").stdout)
    assert schema["properties"]["train"] and schema["additionalProperties"] is False
    assert "train.steps whole number = 100" in invoke("schema").stdout

    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    path = tmp_path / "c.yaml"
    path.write_text(DATA + "train: {steps: 7}\nobserve: {reference: null}\ndictionaries: {layers.27: smollm2-l27}\n")
    shown = yaml.safe_load(invoke("show", path, "--set", "train.seed=3").stdout)
    assert (shown["train"]["steps"], shown["train"]["seed"]) == (7, 3)
    assert json.loads(invoke("show", path, "--json").stdout)["train"]["steps"] == 7

    good = invoke("check", path, "--json")
    assert good.exit_code == 0 and json.loads(good.stdout)["ok"] is True
    bad = invoke("check", path, "--json", "--set", "rules=[{concept: pirate}]", "--set", "probe=nope.jsonl")
    assert bad.exit_code == 3
    found = {check["key"]: check for check in json.loads(bad.stdout)["checks"]}
    assert found["data.train.0"]["ok"] and not found["probe"]["ok"] and not found["rules"]["ok"]
    assert "unknown concept 'pirate'" in found["rules"]["found"]
