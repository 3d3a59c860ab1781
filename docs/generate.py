"""`make docs`: write docs/reference.md and the generated parts of the help pages from the configs'
fields and the nodes' schemas. Needs neither ComfyUI nor a GPU.
"""

import sys
from pathlib import Path

from .help_pages import help_pages
from .reference import reference
from .schemas import ROOT, read_schemas


def generated_files() -> dict[Path, str]:
    """Every file that has a generated part, with the text that it should have."""
    return {**help_pages(read_schemas()), ROOT / "docs" / "reference.md": reference()}


def outdated_files() -> dict[Path, str]:
    """Those whose text is another one now."""
    return {path: text for path, text in generated_files().items() if not _has_text(path, text)}


def main() -> int:
    for path, text in outdated_files().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))
    return 0


def _has_text(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
