"""docs/reference.md: the commands of `python -m trainers` and their flags, as argparse has them."""

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


def reference() -> str:
    """The whole file."""
    parser = make_parser()
    return "\n".join([_INTRODUCTION, *_commands(parser, level=2)])


def _commands(parser: argparse.ArgumentParser, *, level: int) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for command in action.choices.values():
            yield f"{'#' * level} {command.prog.removeprefix('python -m trainers ')}\n"
            yield f"{' '.join(as_markdown(command.description or '').split())}\n"
            yield from _tables(command)
            yield from _commands(command, level=level + 1)


def _tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    for group in parser._action_groups:
        rows = [_row(action) for action in group._group_actions if not _is_left_out(action)]
        if not rows:
            continue
        if group.title not in ("options", "positional arguments"):
            yield f"**{group.title}**" + (f": {group.description}\n" if group.description else "\n")
        yield "\n".join(["| flag | what it does |", "|---|---|", *rows, ""])


def _is_left_out(action: argparse.Action) -> bool:
    return isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def _row(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction) else f" {_value(action)}"
    flags = [f"`{flag}{value}`" for flag in action.option_strings] or [f"`{_value(action)}`"]
    required = " (required)" if action.required and action.option_strings else ""
    text = as_markdown(_help(action)) + required
    return f"| {', '.join(flags)} | {text} |"


def _value(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    return "{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper()


def _help(action: argparse.Action) -> str:
    return ((action.help or "") % {"default": action.default, "prog": "python -m trainers"}).replace("|", "\\|")
