"""The Markdown page of a run: a table of the sections, and below it everything they measured."""

from collections.abc import Iterable, Sequence
from typing import Any

COLUMNS = ("section", "status", "seconds", "checks", "reason")


def make_page(reports: Sequence[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Return the page. `reports` are the contents of the sections' JSON files."""
    head = "# GPU check\n\n" + "\n".join(f"- {name}: {value}" for name, value in machine.items())
    summary = _make_table(COLUMNS, (_summarize(report) for report in reports))
    return "\n\n".join([head, summary, *(_describe(report) for report in reports if _has_content(report))]) + "\n"


def _summarize(report: dict[str, Any]) -> list[Any]:
    num_ok = sum(check["ok"] for check in report["checks"])
    checks = f"{num_ok} of {len(report['checks'])}"
    return [report["title"], report["status"], report["seconds"], checks, report["reason"]]


def _has_content(report: dict[str, Any]) -> bool:
    return any(report[name] for name in ("checks", "rows", "skipped", "error"))


def _describe(report: dict[str, Any]) -> str:
    parts = [f"## {report['title']}"]
    if report["checks"]:
        rows = (
            [each["name"], each["value"], each["goal"], "yes" if each["ok"] else "**no**"] for each in report["checks"]
        )
        parts.append(_make_table(("check", "value", "goal", "reached"), rows))
    parts += _tabulate_rows(report["rows"])
    if report["skipped"]:
        parts.append("\n".join(f"- left out: {each['part']}: {each['reason']}" for each in report["skipped"]))
    if report["error"]:
        parts.append(f"```\n{report['error'].rstrip()}\n```")
    return "\n\n".join(parts)


def _tabulate_rows(rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Make one table of the rows that have the same columns."""
    by_columns: dict[tuple[str, ...], list[list[Any]]] = {}
    for row in rows:
        by_columns.setdefault(tuple(row), []).append(list(row.values()))
    return [_make_table(columns, values) for columns, values in by_columns.items()]


def _make_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_as_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _as_cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
