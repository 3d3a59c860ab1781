"""The table of the quality bench, from the cells in a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("fidelity", "worst_prompt", "freedom", "leak", "kept", "total")


def format_table(folder: Path, tasks: Sequence[str]) -> str:
    """Return a Markdown table: means over seeds, and the range of the total."""
    cells = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    heads = ["contender", "task", "seeds", *(name.replace("_", " ") for name in COLUMNS), "drift (re-roll)", "CPU s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for contender in dict.fromkeys(cell["contender"] for cell in cells):
        own = [cell for cell in cells if cell["contender"] == contender and cell["task"] in tasks]
        for task in tasks:
            lines += _format_row(contender, task, [cell for cell in own if cell["task"] == task])
        lines += _format_row(contender, "**all**", own)
    return "\n".join(lines)


def _format_row(contender: str, task: str, cells: Sequence[dict[str, Any]]) -> list[str]:
    if not cells:
        return []
    means = [f"{np.mean([cell[name] for cell in cells]):.2f}" for name in COLUMNS]
    totals = [cell["total"] for cell in cells]
    means[-1] += f" ({min(totals):.2f} to {max(totals):.2f})"
    drift, reroll, seconds = (np.mean([cell[name] for cell in cells]) for name in ("drift", "reroll", "seconds"))
    row = [contender, task, str(len(cells)), *means, f"{drift:.0f} ({reroll:.0f})", f"{seconds:.0f}"]
    return ["| " + " | ".join(row) + " |"]
