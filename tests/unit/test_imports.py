"""Every import of gradlens names something that is there: many are made inside functions, where no test may come by."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("gradlens", "services", "benchmarks", "docs/examples", "deploy", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> list[tuple[str, str | None]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gradlens":
            found += [(node.module, name.name) for name in node.names]
        elif isinstance(node, ast.Import):
            found += [(name.name, None) for name in node.names if name.name.partition(".")[0] == "gradlens"]
    return found


def names_in(module: str) -> set[str]:
    """What a module binds at its top, read and not run."""
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(name.asname or name.name).partition(".")[0] for name in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_is_there(folder):
    wrong = []
    for path in FILES:
        if not path.is_relative_to(ROOT / folder):
            continue
        for module, name in imported(path):
            try:
                there = importlib.util.find_spec(module) is not None
                if there and name is not None and name not in names_in(module):
                    there = importlib.util.find_spec(f"{module}.{name}") is not None
            except ModuleNotFoundError:
                there = False
            if not there:
                wrong.append(f"{path.relative_to(ROOT)}: {module} {name or ''}")
    assert not wrong, wrong
    assert any(imported(path) for path in FILES if path.is_relative_to(ROOT / folder)) or folder == "deploy"
