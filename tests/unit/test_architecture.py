"""docs/architecture.md names every file of the training core, and no file that does not exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# Folders that the page names as a whole.
WHOLE_FOLDERS = ("commands", "captions/florence2", "check/drawing", "embedded_base")


def test_every_file_of_the_training_core_has_its_place_on_the_page():
    paths = [path.relative_to(ROOT / "trainers") for path in (ROOT / "trainers").rglob("*.py")]
    assert len(paths) > 100
    missing = [
        path.as_posix()
        for path in paths
        if path.name not in ("__init__.py", "__main__.py")
        and not path.as_posix().startswith(WHOLE_FOLDERS)
        and not re.search(rf"`([\w/]*/)?{re.escape(path.name)}`", PAGE)
    ]
    assert missing == []


def test_every_file_that_the_page_names_exists():
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(named) > 100
    places = [
        ROOT,
        ROOT / "nodes",
        *(path for path in (ROOT / "trainers").rglob("*") if path.is_dir()),
        ROOT / "trainers",
    ]
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []
