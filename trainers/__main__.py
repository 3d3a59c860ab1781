"""The command line. `sdxl`, `slider` and `musubi` train without ComfyUI, `flow` with its classes;
`caption` captions images, `check` checks a dataset, `runs` lists and compares trainings, `compare`
compares LoRAs, `lora` works with finished ones, `convert-config` translates the configurations of
other trainers, `comfyui` runs a prompt in ComfyUI, and `demo` shows it all.
"""

import argparse
import io
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

from .commands import caption, check, comfyui, compare, convert_config, demo, flow, lora, musubi, runs, sdxl, slider
from .critical_section import raise_when_safe, remember_interrupt
from .similar_names import suggest_name
from .training.events import Interrupted, Paused
from .translate.kohya_table import explain_absence

COMMANDS = {
    "sdxl": sdxl,
    "flow": flow,
    "slider": slider,
    "musubi": musubi,
    "caption": caption,
    "check": check,
    "runs": runs,
    "compare": compare,
    "lora": lora,
    "convert-config": convert_config,
    "comfyui": comfyui,
    "demo": demo,
}
PAUSED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Return its exit status: 0 done, 1 failed, 2 wrong usage, 75 paused, 130
    cancelled.
    """
    _write_any_letter()
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # bitsandbytes 0.50 warns at import about CPU kernels that nothing here uses
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Musubi's first run fetches tokenizers; the pack itself never fetches anything
    if options.command != "musubi":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return COMMANDS[options.command].run(options)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        print(f"error: {_describe_error(error)}", file=sys.stderr)
        return 1
    except Paused as pause:
        print(f"Paused. {pause}", file=sys.stderr)
        return PAUSED
    except (Interrupted, KeyboardInterrupt):
        print("Cancelled. The files saved so far are complete.", file=sys.stderr)
        return 130


def _describe_error(error: Exception) -> str:
    """An error of the system by its file and its words, without the number."""
    if not (isinstance(error, OSError) and error.strerror):
        return str(error)
    if error.filename is None:
        return error.strerror
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: there is no such file or folder"
    return f"{error.filename}: {error.strerror}"


class _Parser(argparse.ArgumentParser):
    """Says what a flag is called here that another program calls otherwise."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = {flag[2:].replace("-", "_"): flag for flag in self._option_string_actions if flag.startswith("--")}
            self.error(f"unknown: {' '.join(_name_flag(argument, flags) for argument in unknown)}")
        return options, unknown


def _name_flag(argument: str, flags: dict[str, str]) -> str:
    """Add what the flag is called here, or why sd-scripts' flag is not here."""
    if not argument.startswith("--"):
        return argument
    name = argument[2:].partition("=")[0]
    known, reason = suggest_name(name, flags), explain_absence(name.replace("-", "_"))
    if reason:
        return f"{argument} (not here: {reason})"
    return f"{argument} (did you mean {flags[known]}?)" if known else argument


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m trainers", description="Train LoRAs: in this process, or in a ComfyUI that is started for it."
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.SUMMARY, description=command.__doc__))
    return parser


def _write_any_letter() -> None:
    """Let names and captions in any script be written: redirected output on Windows has an encoding
    such as cp1252, which lacks most letters.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_free = not stream.isatty() and "PYTHONIOENCODING" not in os.environ
            stream.reconfigure(encoding="utf-8" if is_free else None, errors="backslashreplace")


def _interrupt(number: int, frame: FrameType | None) -> None:
    remember_interrupt()
    raise_when_safe(KeyboardInterrupt())


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise_when_safe(SystemExit(128 + number))


def main_with_signals() -> int:
    # An exception, so that a started server is stopped and a half-written file is removed.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is behind nohup and &
        signal.signal(signal.SIGINT, _interrupt)
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _exit_on_signal)
    return main()


if __name__ == "__main__":
    sys.exit(main_with_signals())
