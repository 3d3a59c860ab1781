"""Runs the Node tests of web modules that need no browser, and checks the style of all scripts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = sorted(Path(__file__).parent.glob("*.test.mjs"))
SCRIPTS = sorted((ROOT / "web").rglob("*.js"))
OLDEST_NODE = (20, 19)  # the first version that loads a .js file with imports as a module


def find_node() -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is missing: install Node.js 20.19 or newer to test the web modules")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(int(part) for part in version.removeprefix("v").split(".")[:2]) < OLDEST_NODE:
        pytest.skip(f"node is too old: {version} is on the PATH, the web modules need Node.js 20.19 or newer")
    return node


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name.partition(".")[0])
def test_the_modules_pass_their_node_tests(test: Path):
    options = ["--disable-warning=MODULE_TYPELESS_PACKAGE_JSON", "--test", "--test-reporter=spec"]
    command = [find_node(), *options, str(test)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT / "web")))
def test_every_script_is_type_checked_and_in_the_same_style(script: Path):
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "// @ts-check" and lines[1].startswith("/**")
    assert max(map(len, lines)) <= 100
    code = "\n".join(lines)
    assert "\t" not in code and not re.search(r"^ *import .*'", code, re.MULTILINE)


def test_only_extensions_and_the_seam_import_the_host():
    """ComfyUI imports every script; the pure ones also run in Node."""
    importing = [script for script in SCRIPTS if "/scripts/" in script.read_text(encoding="utf-8")]
    names = {script.relative_to(ROOT / "web").as_posix() for script in importing}
    assert names == {
        *("advanced_inputs.js", "open_settings.js", "review_captions.js", "training_panel.js"),
        *("shared/host.js", "review_captions/host.js", "training_panel/host.js"),
    }
