"""Scripts that run in ComfyUI's interpreter import the pack as `lora_trainer`, out of sight of the
type checker: every name that they take must be there.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests", "benchmarks")
PACKAGE = "lora_trainer."


def list_imports(source: str) -> Iterator[tuple[str, str]]:
    """Yield each (module, name) that the source takes from the pack."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            module = (node.module or "").removeprefix(PACKAGE)
            yield from ((module, alias.name) for alias in node.names)


def find_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def list_names(file: Path) -> set[str]:
    """Name what a module defines or imports at its top level, and its submodules."""
    names = {path.stem for path in file.parent.iterdir()} if file.name == "__init__.py" else set[str]()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def has_name(module: str, name: str) -> bool:
    file = find_file(module)
    return name in list_names(file) if file else (ROOT.joinpath(*module.split(".")) / f"{name}.py").is_file()


SCRIPTS = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if f"from {PACKAGE}" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_takes_only_names_that_exist(script: Path):
    taken = list(list_imports(script.read_text(encoding="utf-8")))
    assert [f"{module}.{name}" for module, name in taken if not has_name(module, name)] == []
