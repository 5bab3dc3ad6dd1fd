"""What the guide and the files of deploy/ promise: they parse, and every gradlens command and option they name exists."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from gradlens.cli.app import app
from gradlens.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "deploy/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# Where a command line starts: at the head of a line (after a prompt, the venv, a variable), after `then`, or in YAML.
COMMAND = re.compile(r"(?:^\s*(?:\$ |RUN )?|then |entrypoint: )(?:\S*/)?gradlens +([^\n;#]+)", re.MULTILINE)


def command_lines(path: Path) -> list[list[str]]:
    """The arguments of every `gradlens ...` in a file; of Markdown, in its shell blocks and inline code."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    if path.suffix == ".md":
        blocks = re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        text = "\n".join([*(body for language, body in blocks if language in ("sh", "bash", "")), *inline])
    return [shlex.split(line.replace("'", "")) for line in COMMAND.findall(text) if re.match(r"[a-z-]", line)]


def unknown(arguments: list[str]) -> str | None:
    """What of a command line gradlens does not know, walking the tree of commands as the command line would."""
    command = typer.main.get_command(app)
    for argument in arguments:
        if hasattr(command, "commands") and not argument.startswith("-"):  # a group
            if argument not in command.commands:
                return argument
            command = command.commands[argument]
        elif argument.startswith("--"):
            options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
            if argument.partition("=")[0] not in options:
                return argument
    return None


def test_the_walker_finds_commands_and_tells_wrong_ones(tmp_path):
    shell, python = "```sh\n.venv/bin/gradlens models fetch smollm2  # once\n```\n", "```python\ngradlens = 1\n```\n"
    (tmp_path / "guide.md").write_text("Type `gradlens run CONFIG --set a=b`.\n" + shell + python)
    assert command_lines(tmp_path / "guide.md") == [["models", "fetch", "smollm2"], ["run", "CONFIG", "--set", "a=b"]]
    assert unknown(["run", "c.yaml", "--set", "a=b"]) is None
    assert unknown(["runn", "c.yaml"]) == "runn"
    assert unknown(["models", "fetsh"]) == "fetsh"
    assert unknown(["run", "c.yaml", "--sett", "a=b"]) == "--sett"


@pytest.mark.parametrize("name", [*DOCUMENTS, "Makefile", "deploy/Dockerfile", "deploy/rayjob.yaml", "deploy/slurm.sh"])
def test_every_gradlens_command_and_option_that_is_named_exists(name):
    lines = command_lines(ROOT / name)
    assert lines or name.startswith("docs/"), f"{name} names no gradlens command: has the pattern gone wrong?"
    assert {" ".join(line): wrong for line in lines if (wrong := unknown(line))} == {}


def test_the_rayjob_is_one_config_and_one_job_with_token_authentication():
    config, job = yaml.safe_load_all((ROOT / "deploy/rayjob.yaml").read_text())
    RunConfig.model_validate(yaml.safe_load(config["data"]["run.yaml"]))
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in constraints
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert "/config/run.yaml" in job["spec"]["entrypoint"]


@pytest.mark.parametrize("script", ["deploy/slurm.sh", ".ci/run"])
def test_shell_scripts_have_no_syntax_error(script):
    result = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_slurm_script_says_what_it_needs():
    result = subprocess.run(["bash", "deploy/slurm.sh"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "CONFIG" in result.stderr
    missing = {"PATH": "/usr/bin:/bin", "GRADLENS_VENV": "/nowhere"}
    result = subprocess.run(["bash", "deploy/slurm.sh", "c.yaml"], cwd=ROOT, env=missing, capture_output=True, text=True)
    assert result.returncode == 2 and "make setup" in result.stderr and "/nowhere" in result.stderr


def test_the_image_copies_only_what_exists_and_does_not_run_as_root():
    text = (ROOT / "deploy/Dockerfile").read_text()
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    copied = [source for line in re.findall(r"^COPY (.+)", text, re.MULTILINE) for source in line.split()[:-1]]
    assert copied and all((ROOT / source).exists() for source in copied)
    assert all(f"!{source}" in ignored for source in copied)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] not in ("root", "0")
