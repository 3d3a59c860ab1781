"""Builds the generated parts of the help pages in web/docs: the inputs of every node, the presets'
numbers, and what each model family and each Musubi architecture recommends.

A part is between `<!-- make docs: NAME -->` and `<!-- end -->`. Everything else on a page is
written by hand, even the heading lines of its tables.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainers.flow.families import FAMILIES, FlowFamilyRow
from trainers.musubi.architectures import ARCHITECTURES, Architecture
from trainers.training.presets import GOALS, MEMORY_PRESETS

from .schemas import DYNAMIC_COMBO, ROOT

PAGES = ROOT / "web" / "docs"
END = "<!-- end -->"
_PART = re.compile(r"(<!-- make docs: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# %date%, betas=(0.9,0.99), --w 1024, max_train_steps, models/vae, .txt
_CODE = re.compile(
    r"(%[\w:-]+%|\b\w+=[\w.(),]*[\w)]|(?<!\w)--\w[\w-]*(?: \d+)?"
    r"|[\w./-]*\w_\w[\w./-]*\w|\b\w+/[\w/]+\b|(?<!\w)\.[a-z]{3,}\b)"
)
_NO_CHOICE = "[None]"  # the first entry of lists of files on the user's machine
_FEW = 3
_TYPES = {"STRING": "text", "INT": "number", "FLOAT": "number"}
_BOOLEAN = "BOOLEAN"
# The words in the tables of architectures.
_WORDS = {
    "en": ("optional", "at most", {"none": "none", "optional": "optional", "required": "required"}),
    "fr": ("facultatif", "au plus", {"none": "aucune", "optional": "possible", "required": "obligatoire"}),
    "ja": ("任意", "最大", {"none": "なし", "optional": "任意", "required": "必須"}),
    "zh": ("可选", "最多", {"none": "无", "optional": "可选", "required": "必需"}),
}


def build_help_pages(schemas: Sequence[SimpleNamespace]) -> dict[Path, str]:
    """Return every page, with its generated parts up to date."""
    by_node = {schema.node_id: schema for schema in schemas}
    pages = {}
    for path in sorted(PAGES.rglob("*.md")):
        is_english = path.parent == PAGES
        schema = by_node[path.stem if is_english else path.parent.name]
        pages[path] = _replace_parts(path, schema, language="en" if is_english else path.stem)
    return pages


def _replace_parts(path: Path, schema: SimpleNamespace, *, language: str) -> str:
    writers: dict[str, Callable[[str], str]] = {
        "inputs": lambda old: "\n" + "\n".join(describe_inputs(schema.inputs)) + "\n\n",
        "goals": lambda old: _replace_rows(old, build_goal_rows()),
        "memory": lambda old: _replace_rows(old, build_memory_rows()),
        "families": lambda old: _replace_rows(old, build_family_rows()),
        "architectures": lambda old: _replace_rows(old, build_architecture_rows(language)),
    }
    text = path.read_text(encoding="utf-8")
    return _PART.sub(lambda part: part[1] + writers[part[2]](part[3]) + part[4], text)


def _replace_rows(old: str, rows: list[str]) -> str:
    """Replace the rows of a table under its first two lines."""
    heading = [line for line in old.splitlines() if line.startswith("|")][:2]
    return "\n" + "\n".join([*heading, *rows]) + "\n\n"


# ---- tables ----


def build_goal_rows() -> list[str]:
    return [
        _build_row(
            name,
            goal.rank,
            f"{goal.rank * goal.alpha_per_rank:g}",
            f"{goal.learning_rate:g}",
            goal.samples_per_image,
            "–".join(map(str, goal.num_samples)),
        )
        for name, goal in GOALS.items()
    ]


def build_memory_rows() -> list[str]:
    return [
        _build_row(
            name,
            preset.resolution,
            preset.train_batch_size,
            preset.gradient_accumulation_steps,
            "on" if preset.gradient_checkpointing else "off",
            preset.optimizer,
        )
        for name, preset in MEMORY_PRESETS.items()
    ]


def build_family_rows() -> list[str]:
    return [
        _build_row(
            row.name,
            row.rank,
            f"{row.learning_rate:g}",
            row.timestep_sampling,
            _describe_shift(row),
            row.resolution_step,
            _list_markers(row),
        )
        for row in FAMILIES
    ]


def _describe_shift(row: FlowFamilyRow) -> str:
    if row.has_shift_by_size:
        return "by size"
    return "–" if row.discrete_flow_shift is None else f"{row.discrete_flow_shift:g}"


def _list_markers(row: FlowFamilyRow) -> str:
    """List what names of distilled models have, and after ≠ what undistilled ones have."""
    markers = ", ".join(row.distilled_markers) or "–"
    return f"{markers} (≠ {', '.join(row.undistilled_markers)})" if row.undistilled_markers else markers


def build_architecture_rows(language: str) -> list[str]:
    optional, at_most, control = _WORDS[language]
    return [
        _build_row(
            row.name,
            ", ".join(f"`{file.name}`" + ("" if file.required else f" ({optional})") for file in row.models),
            ", ".join(f"`{option.name}`" for option in row.options) or "–",
            *_list_recommended(row),
            f"{at_most} {row.max_blocks_to_swap}",
            control[row.control_images],
        )
        for row in ARCHITECTURES.values()
    ]


def _list_recommended(row: Architecture) -> list[str]:
    names = ("rank", "learning_rate", "resolution", "timestep_sampling", "discrete_flow_shift")
    values = [row.defaults[name] for name in names]
    return [value if isinstance(value, str) else f"{value:g}" if value else "–" for value in values]


def _build_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


# ---- inputs ----


def describe_inputs(inputs: Sequence[Any]) -> list[str]:
    """List the inputs that are visible on the node, then the advanced ones, then those that only
    programs set.
    """
    hidden = [entry for entry in inputs if getattr(entry, "extra_dict", {}).get("hidden")]
    advanced = [entry for entry in inputs if entry.advanced and entry not in hidden]
    visible = [entry for entry in inputs if entry not in advanced and entry not in hidden]
    lines = [line for entry in visible for line in _describe_input(entry)]
    for heading, entries in (("Advanced:", advanced), ("For programs:", hidden)):
        if entries:
            lines += ["", heading, "", *(line for entry in entries for line in _describe_input(entry))]
    return lines


def _describe_input(entry: Any) -> list[str]:
    line = f"- `{entry.id}` ({_describe_facts(entry)}): {as_markdown(entry.tooltip)}"
    return [line, *_describe_choices(entry.options)] if entry.io_type == DYNAMIC_COMBO else [line]


def _describe_choices(options: Sequence[Any]) -> list[str]:
    """Describe the inputs that a choice brings, one line for each. If choices differ, they follow
    in lines of their own.
    """
    by_name: dict[str, list[tuple[str, Any]]] = {}
    for option in options:
        for entry in option.inputs:
            by_name.setdefault(entry.id, []).append((option.key, entry))
    return [line for name, entries in by_name.items() for line in _describe_choice(name, entries)]


def _describe_choice(name: str, entries: Sequence[tuple[str, Any]]) -> list[str]:
    texts = {as_markdown(entry.tooltip) for _, entry in entries}
    if len(texts) == 1:
        return [f"  - `{name}`{_describe_common_facts(entries)}: {texts.pop()}"]
    groups: dict[str, list[str]] = {}
    for key, entry in entries:
        choices = "" if _is_list_of_files(entry) else f" ({_describe_facts(entry)})"
        groups.setdefault(f"{choices}: {as_markdown(entry.tooltip)}", []).append(key)
    return [f"  - `{name}`:", *(f"    - {', '.join(keys)}{text}" for text, keys in groups.items())]


def _describe_common_facts(entries: Sequence[tuple[str, Any]]) -> str:
    """Describe what is the same for every choice, and list the choices if they are few. The table
    of architectures has the differences.
    """
    limits = {_describe_limits(entry) for _, entry in entries if not _is_list_of_files(entry)}
    facts = [", ".join(key for key, _ in entries)] if len(entries) <= _FEW else []
    facts += limits if len(limits) == 1 else []
    facts += ["advanced"] if entries[0][1].advanced else []
    return f" ({'; '.join(facts)})" if facts else ""


def _is_list_of_files(entry: Any) -> bool:
    """Return whether its choices are files on the user's machine."""
    return entry.io_type == "COMBO" and entry.options[:1] in ([], [_NO_CHOICE])


def _describe_facts(entry: Any) -> str:
    """Describe a socket's type, or a widget's choices or range and its default."""
    if entry.io_type == DYNAMIC_COMBO:
        names = [f"`{option.key}`" for option in entry.options]
        return f"{', '.join(names)}; default {names[0]}"
    if not hasattr(entry, "default"):
        return entry.io_type + ("; optional" if entry.optional else "")
    return f"{_describe_limits(entry)}; default {_format_default(entry.default)}"


def _describe_limits(entry: Any) -> str:
    if entry.io_type == "COMBO":
        if entry.options[:1] == [_NO_CHOICE]:
            return f"`{_NO_CHOICE}` or one of the list"
        if not entry.options:
            return "one of ComfyUI's list"
        return ", ".join(f"`{option}`" for option in entry.options)
    if entry.io_type == _BOOLEAN:
        return "on or off"
    if getattr(entry, "max", None) is not None:
        return f"{entry.min:.16g} to {entry.max:.16g}"
    return _TYPES[entry.io_type]


def _format_default(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, str):
        return f"`{default}`" if default else "empty"
    return f"{default:g}"


def as_markdown(text: str) -> str:
    """Convert plain text to Markdown: names, files and flags become code, < and * are escaped."""
    parts = _CODE.split(text)
    parts[::2] = [re.sub(r"[<*]", r"\\\g<0>", part) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    return "".join(parts)
