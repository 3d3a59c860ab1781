"""Imports run one way: __init__ -> nodes -> trainers -> torch, diffusers, peft, transformers."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.import_graph import build_import_graph, find_circles, find_reachable, group_by_wing

ROOT = Path(__file__).parents[2]
HOST_MODULES = {"comfy", "comfy_api", "folder_paths", "nodes", "server"}
SOURCES = sorted((ROOT / "trainers").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=[path.relative_to(ROOT).as_posix() for path in SOURCES])
def test_training_core_imports_nothing_from_the_host(path: Path) -> None:
    assert not HOST_MODULES & set(_list_imported_packages(path))


FAMILIES = ("trainers.sdxl", "trainers.flow", "trainers.musubi")
# Programs that may use families: the command line, the demo and the base model of the tests.
PROGRAMS = ("trainers.__main__", "trainers.commands", "trainers.demo", "trainers.embedded_base")


def is_inside(module: str, packages: str | tuple[str, ...]) -> bool:
    packages = (packages,) if isinstance(packages, str) else packages
    return any(module == package or module.startswith(package + ".") for package in packages)


def test_no_imports_are_circular() -> None:
    graph = build_import_graph("trainers", "nodes")
    assert len(graph) > 150
    assert find_circles(graph) == set()
    assert find_circles(group_by_wing(graph)) == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_programs_and_nodes_reach_a_model_family(family: str) -> None:
    """Shared packages import no family, and no family imports another, directly or indirectly."""
    graph = build_import_graph("trainers")
    others = [module for module in graph if not is_inside(module, (family, *PROGRAMS))]
    assert len(others) > 80
    reaching = {
        module: [each for each in find_reachable(graph, module) if is_inside(each, family)] for module in others
    }
    assert {module: reached for module, reached in reaching.items() if reached} == {}


def test_nodes_host_imports_no_node() -> None:
    graph = build_import_graph("nodes")
    schemas = {
        f"nodes.{path.stem}"
        for path in (ROOT / "nodes").glob("*.py")
        if "io.ComfyNode" in path.read_text(encoding="utf-8")
    }
    assert len(schemas) == 19
    for module in graph:
        if is_inside(module, "nodes.host"):
            assert not find_reachable(graph, module) & schemas, module


@pytest.mark.parametrize("module", ["trainers.config", "trainers.training.events", "trainers.sdxl.config"])
def test_reading_a_configuration_imports_neither_torch_nor_diffusers(module: str) -> None:
    loaded = _run_python(f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert not {"torch", "diffusers", "transformers", "peft"} & set(json.loads(loaded))


def test_importing_the_pack_outside_comfyui_registers_nothing() -> None:
    names = _import_as_custom_node(search_path=[])
    assert names["INSIDE_COMFYUI"] is False
    assert not {"NODE_CLASS_MAPPINGS", "WEB_DIRECTORY", "comfy_entrypoint"} & set(names)


def test_the_pack_knows_that_it_is_inside_comfyui(tmp_path: Path) -> None:
    (tmp_path / "comfy_api").mkdir()
    (tmp_path / "comfy_api" / "__init__.py").touch()
    # A stand-in for nodes/, which needs the real comfy_api (tests/host has it).
    stand_in = "import types; sys.modules['custom_pack.nodes'] = types.SimpleNamespace(comfy_entrypoint=1)"
    names = _import_as_custom_node(search_path=[tmp_path], stand_in=stand_in)
    assert names["INSIDE_COMFYUI"] is True and names["comfy_entrypoint"] == 1 and names["WEB_DIRECTORY"] == "./web"
    # Even an empty NODE_CLASS_MAPPINGS makes ComfyUI ignore comfy_entrypoint.
    assert "NODE_CLASS_MAPPINGS" not in names


@pytest.mark.parametrize(("folder", "is_banned"), [("trainers", True), ("trainers/sdxl", True), ("nodes", False)])
@pytest.mark.parametrize(
    "statement",
    [
        "import comfy.sd",
        "from comfy_api.latest import io",
        "import folder_paths",
        "from server import x",
        "import nodes",
    ],
)
def test_ruff_enforces_the_layer_rule(folder: str, is_banned: bool, statement: str) -> None:
    ruff = shutil.which("ruff", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if ruff is None:
        pytest.skip("ruff is not installed: its layer rule was not checked")
    # The file need not exist, but with its name ruff uses the project's configuration.
    command = [
        ruff,
        "check",
        "--no-cache",
        "--select=TID251",
        "--output-format=concise",
        "--stdin-filename",
        f"{folder}/example.py",
        "-",
    ]
    result = subprocess.run(command, input=statement + "\n", capture_output=True, text=True, cwd=ROOT, check=False)
    assert ("TID251" in result.stdout) is is_banned, result.stdout + result.stderr


def _find_imports(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def _list_imported_packages(path: Path) -> Iterator[str]:
    """Yield the top-level names of absolute imports, also inside functions, and of relative imports
    that leave trainers/.
    """
    depth = len(path.relative_to(ROOT).parts) - 1
    for node in _find_imports(path):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif node.level == 0 or node.level > depth:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]


def _import_as_custom_node(*, search_path: list[Path], stand_in: str = "") -> dict[str, object]:
    """Import the pack as ComfyUI does, as custom_pack. Return its public names with values that
    JSON can hold.
    """
    return json.loads(
        _run_python(f"""
            import importlib.util, json, sys
            sys.path[:0] = {[str(path) for path in search_path]!r}
            init, folders = {str(ROOT / "__init__.py")!r}, [{str(ROOT)!r}]
            spec = importlib.util.spec_from_file_location("custom_pack", init, submodule_search_locations=folders)
            {stand_in}
            module = sys.modules["custom_pack"] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            public = {{name: value for name, value in vars(module).items() if not name.startswith("__")}}
            print(json.dumps(public, default=str))
        """)
    )


def _run_python(code: str) -> str:
    lines = code.strip().splitlines()
    source = "\n".join(line.strip() for line in lines)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, check=True).stdout
