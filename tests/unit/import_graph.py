"""Reads from the source which file of the pack imports which, inside functions and under
TYPE_CHECKING too.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
Graph = dict[str, set[str]]


def build_import_graph(*folders: str) -> Graph:
    """Map each module of the folders, such as "trainers.sdxl.config", to the modules it imports."""
    files = {_get_module_name(path): path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return {name: set(_find_imports(name, path, files)) - {name} for name, path in files.items()}


def find_reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Find all modules that `start` imports, directly or indirectly."""
    seen, waiting = {start}, [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen - {start}


def find_circles(graph: Mapping[str, set[str]]) -> set[str]:
    return {module for module in graph if any(module in find_reachable(graph, other) for other in graph[module])}


def group_by_wing(graph: Mapping[str, set[str]]) -> Graph:
    """Group the graph by folders, such as "trainers.sdxl.model". A file directly in trainers/ or
    nodes/ is a wing alone.
    """
    wing_of = {module: _find_wing(module, graph) for module in graph}
    folders: Graph = {}
    for module, imported in graph.items():
        own = folders.setdefault(wing_of[module], set())
        own |= {wing_of[other] for other in imported} - {wing_of[module]}
    return folders


def _find_wing(module: str, graph: Mapping[str, set[str]]) -> str:
    is_package = any(other.startswith(module + ".") for other in graph)
    return module if is_package or module.count(".") < 2 else _find_parent(module)


def _find_parent(module: str) -> str:
    return module.rpartition(".")[0] or module


def _get_module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _find_imports(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    package = (name if path.name == "__init__.py" else _find_parent(name)).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        target = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
        for alias in node.names:
            module = next((each for each in (f"{target}.{alias.name}", target) if each in files), None)
            if module:
                yield module
