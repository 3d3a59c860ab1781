"""Builds docs/reference.md: the commands of `python -m trainers` and their flags, from argparse."""

import argparse
from collections.abc import Iterator

from trainers.__main__ import make_parser

from .help_pages import as_markdown

_INTRODUCTION = """\
# Command line reference

<!-- Written by `make docs`. -->

`python -m trainers COMMAND` runs one of these commands. `--help` after a command prints the same.

A setting in the tables below is also a line of the TOML file that `--config` names, with `_` for
`-` and without the leading `--`: `--max-train-steps 2000` is `max_train_steps = 2000`,
`--no-random-flip` is `random_flip = false`. Flags win over the file. `[[datasets]]` tables in the
file give several folders, each with its own settings of the first table below.
"""


def build_reference() -> str:
    """Return the text of the whole file."""
    parser = make_parser()
    return "\n".join([_INTRODUCTION, *_describe_commands(parser, level=2)])


def _describe_commands(parser: argparse.ArgumentParser, *, level: int) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for command in action.choices.values():
            yield f"{'#' * level} {command.prog.removeprefix('python -m trainers ')}\n"
            yield f"{' '.join(as_markdown(command.description or '').split())}\n"
            yield from _build_tables(command)
            yield from _describe_commands(command, level=level + 1)


def _build_tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    for group in parser._action_groups:
        rows = [_build_row(action) for action in group._group_actions if not _is_left_out(action)]
        if not rows:
            continue
        if group.title not in ("options", "positional arguments"):
            yield f"**{group.title}**" + (f": {group.description}\n" if group.description else "\n")
        yield "\n".join(["| flag | what it does |", "|---|---|", *rows, ""])


def _is_left_out(action: argparse.Action) -> bool:
    return isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def _build_row(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction) else f" {_name_value(action)}"
    flags = [f"`{flag}{value}`" for flag in action.option_strings] or [f"`{_name_value(action)}`"]
    required = " (required)" if action.required and action.option_strings else ""
    text = as_markdown(_read_help(action)) + required
    return f"| {', '.join(flags)} | {text} |"


def _name_value(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    return "{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper()


def _read_help(action: argparse.Action) -> str:
    return ((action.help or "") % {"default": action.default, "prog": "python -m trainers"}).replace("|", "\\|")
