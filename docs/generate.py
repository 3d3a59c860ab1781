"""`make docs`: writes docs/reference.md and the generated parts of the help pages from the configs'
fields and the nodes' schemas. Needs neither ComfyUI nor a GPU.
"""

import sys
from pathlib import Path

from .help_pages import build_help_pages
from .reference import build_reference
from .schemas import ROOT, read_schemas


def build_files() -> dict[Path, str]:
    """Return every file with a generated part, and the text that it should have."""
    return {**build_help_pages(read_schemas()), ROOT / "docs" / "reference.md": build_reference()}


def find_outdated_files() -> dict[Path, str]:
    """Return the files whose text must change, with their new text."""
    return {path: text for path, text in build_files().items() if not _has_text(path, text)}


def main() -> int:
    for path, text in find_outdated_files().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))
    return 0


def _has_text(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
