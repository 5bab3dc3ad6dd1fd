"""What an installation of gradlens puts where, and that the set-up of the repository pins it."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTION = "gradlens_lab"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is packaged, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source") / "gradlens-lab"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("gradlens", "services", "configs", "tests", "benchmarks"):  # the last three must stay out of the wheel
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return folder


def build(hook: str, source: Path, target: Path) -> zipfile.ZipFile:
    """Call a hook of the build backend, as pip does, in a process of its own."""
    script = f"import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
    result = subprocess.run([sys.executable, "-c", script, str(target)], cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "absent from the `packages` configuration" not in result.stderr, "name the new folder under packages in pyproject.toml"
    return zipfile.ZipFile(target / result.stdout.split()[-1])


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> zipfile.ZipFile:
    return build("build_wheel", source, tmp_path_factory.mktemp("wheel"))


def test_a_wheel_installs_no_top_level_name_but_its_own(wheel):
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == {"gradlens", "gradlens_services", f"{DISTRIBUTION}-0.1.0.dist-info"}


def test_a_wheel_has_every_module_and_asset_of_the_checkout(wheel):
    packaged = set(wheel.namelist())
    expected = set()
    for folder, installed in (("gradlens", "gradlens"), ("services", "gradlens_services")):
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT / folder)
            if path.is_file() and "__pycache__" not in relative.parts and not path.name.startswith("."):
                expected.add(f"{installed}/{relative.as_posix()}")
    assert {"gradlens/cli/app.py", "gradlens_services/__init__.py", "gradlens/py.typed"} <= expected
    assert any(name.startswith("gradlens/assets/") for name in expected)
    missing = sorted(expected - packaged)
    assert not missing, f"not in the wheel (see [tool.setuptools] of pyproject.toml): {missing}"


@pytest.mark.parametrize("folder", ["dictionaries", "demo", "report"])
def test_a_wheel_has_assets(wheel, folder):
    assert any(name.startswith(f"gradlens/assets/{folder}/") for name in wheel.namelist())


def test_a_wheel_has_the_console_script_and_the_licence(wheel):
    info = f"{DISTRIBUTION}-0.1.0.dist-info"
    assert "gradlens = gradlens.cli.app:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "MIT License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "Name: gradlens-lab" in metadata and "License-Expression: MIT" in metadata


def test_an_editable_installation_maps_services_to_a_name_of_its_own(source, tmp_path):
    archive = build("build_editable", source, tmp_path)
    site_packages = tmp_path / "site"
    archive.extractall(site_packages)
    # -S: without the site-packages of the running environment, where an installed gradlens would answer first.
    script = (
        "import site, sys, importlib.util as util; site.addsitedir(sys.argv[1]); "
        "print(*(getattr(util.find_spec(name), 'origin', None) for name in ('gradlens', 'gradlens_services', 'services', 'configs')))"
    )
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", script, str(site_packages)]
    found = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True).stdout.split()
    assert found == [str(source / "gradlens/__init__.py"), str(source / "services/__init__.py"), "None", "None"]


def exact_versions(*files: str) -> dict[str, str]:
    """Package -> version; a later file's line counts before an earlier one's."""
    lines = [line for name in files for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines), "constraints are exact versions, nothing else"
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_constraints_pin_every_dependency_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    common = exact_versions("constraints.txt", "constraints-cpu.txt")
    # An extra with tests of its own may need versions that the others do not bear.
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests/extras").glob("test_*.py")}
    assert tested <= set(project["optional-dependencies"]), "an extra of tests/extras is not in pyproject.toml"
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, wanted in groups.items():
        pins = exact_versions("constraints.txt", "constraints-cpu.txt", f"tests/extras/{extra}.txt") if extra in tested else common
        for text in [*wanted, *(project["dependencies"] if extra in tested else [])]:
            requirement = Requirement(text)
            pinned = pins.get(canonicalize_name(requirement.name))
            command = f"deploy/test_extras.py --only {extra} --update" if extra in tested else "make constraints"
            assert pinned, f"{requirement.name} has no exact version; run `{command}`"
            assert requirement.specifier.contains(pinned), f"{text} is pinned to {pinned}"


def test_a_plain_installation_brings_no_trainer_or_tracker_of_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests/extras").glob("test_*.py")}
    extras = {canonicalize_name(Requirement(text).name) for name in tested for text in project["optional-dependencies"][name]}
    assert {"trl", "sae-lens"} <= extras and not plain & extras
    assert not extras & set(exact_versions("constraints.txt"))


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    # datasets: asked for with a clear message where a Hugging Face data set is named. pydantic_core: a part of pydantic. triton: comes with
    # torch where there is a GPU; `engine.choose` looks whether it is there.
    # lightning, bergson: extras, whose absence has a message of its own
    optional = {"datasets", "pydantic_core", "triton", "lightning", "pytorch_lightning", "bergson"}
    distributions = packages_distributions()
    undeclared = {}
    for path in (*(ROOT / "gradlens").rglob("*.py"), *(ROOT / "services").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in (name.partition(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name not in {"gradlens", "gradlens_services"} | optional:
                    if not {canonicalize_name(d) for d in distributions.get(name, [name])} & declared:
                        undeclared.setdefault(name, str(path.relative_to(ROOT)))
    assert undeclared == {}


def load_setup():
    spec = importlib.util.spec_from_file_location("setup_venv", ROOT / "deploy/setup_venv.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_set_up_tells_a_cuda_build_of_torch_from_a_cpu_build():
    setup = load_setup()

    def report(*requirements):
        return {"install": [{"metadata": {"name": "torch", "requires_dist": list(requirements)}}]}

    cpu = report("filelock", "sympy>=1.13.3", 'optree>=0.13.0; extra == "optree"')
    cuda = report("filelock", 'nvidia-cublas<=13.1.1.3,>=13.1; platform_system == "Linux"', "cuda-toolkit[cudart]==13.0.2", "triton==3.7.0")
    assert setup.cuda_requirements(cpu) == []
    assert setup.cuda_requirements(cuda) == ["nvidia-cublas", "cuda-toolkit", "triton"]
    assert setup.cuda_requirements({"install": []}) == []  # torch is there already


def test_set_up_refuses_a_cuda_build_where_no_gpu_is(monkeypatch):
    setup = load_setup()
    answer = '{"install": [{"metadata": {"name": "torch", "requires_dist": ["nvidia-nccl-cu13==2.29.7"]}}]}'
    calls = []

    class Environment:
        def pip(self, what, *arguments):
            calls.append(arguments)
            return answer if "--dry-run" in arguments else ""

    monkeypatch.setattr(setup.sys, "platform", "linux")
    monkeypatch.setattr(setup, "has_nvidia_gpu", lambda: False)
    for name in ("TORCH_INDEX_URL", "ALLOW_CUDA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(setup.SetupError, match="TORCH_INDEX_URL.*ALLOW_CUDA=1"):
        setup.install_torch(Environment(), "torch==2.13.0")
    assert all("--dry-run" in arguments for arguments in calls), "nothing was installed"

    monkeypatch.setenv("TORCH_INDEX_URL", "file:///wheels")
    setup.install_torch(Environment(), "torch==2.13.0")
    assert calls[-1] == ("install", "--no-deps", "--index-url", "file:///wheels", "torch==2.13.0")
    monkeypatch.delenv("TORCH_INDEX_URL")
    monkeypatch.setenv("ALLOW_CUDA", "1")
    setup.install_torch(Environment(), "torch==2.13.0")
    assert "--dry-run" not in calls[-1]


def test_set_up_does_nothing_when_nothing_changed_and_works_again_when_something_did(monkeypatch, tmp_path):
    setup = load_setup()
    installed = []

    def install(env, constraints, target):
        installed.append(target)
        env.python.parent.mkdir(parents=True, exist_ok=True)
        env.python.touch()
        env.stamp.write_text(setup.identity())

    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==2.13.0\n")
    monkeypatch.setattr(setup, "install", install)
    monkeypatch.setattr(setup, "CONSTRAINTS", constraints)
    monkeypatch.setattr(sys, "argv", ["setup_venv.py", "--venv", str(tmp_path / "venv")])
    for _ in range(3):
        assert setup.main() == 0
    assert len(installed) == 1
    constraints.write_text("torch==2.13.1\n")
    assert setup.main() == 0
    assert len(installed) == 2
