"""What is said when a package is missing or broken: its name, the cause, the remedy."""

import re
import sys

import pytest

from trainers.packages import pip_install, require_packages


def test_the_packages_of_this_installation_are_all_right():
    require_packages()


def test_the_command_runs_pip_of_this_very_interpreter(monkeypatch):
    monkeypatch.setattr(sys, "executable", r"C:\\Program Files\\python\\python.exe")
    assert pip_install("peft") == r'"C:\\Program Files\\python\\python.exe" -m pip install peft'


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    command = re.escape(pip_install("peft"))
    with pytest.raises(ImportError, match=f"the package peft is not installed. Run: {command}$"):
        require_packages()


@pytest.mark.parametrize(
    "content",
    [
        "import a_package_that_another_one_removed",
        "raise ImportError('cannot import name shard_checkpoint')",
        "raise RuntimeError('needs a newer tokenizers')",
        "",  # too old: it has not what we need
    ],
)
def test_a_broken_package_is_named_with_the_cause(tmp_path, monkeypatch, content):
    (tmp_path / "peft.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    expected = r"peft is installed but cannot be imported \(.+\)\. .* Run: .* -m pip install --upgrade peft$"
    with pytest.raises(ImportError, match=expected):
        require_packages()
