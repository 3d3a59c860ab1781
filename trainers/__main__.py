"""The command line. `sdxl` and `musubi` train without ComfyUI, `caption` captions images, `check`
checks a dataset, `comfyui` runs a prompt in ComfyUI, and `demo` shows it all.
"""

import argparse
import logging
import os
import signal
import sys
from types import FrameType

from .commands import caption, check, comfyui, demo, musubi, sdxl
from .training.events import Interrupted

COMMANDS = {
    "sdxl": sdxl,
    "musubi": musubi,
    "caption": caption,
    "check": check,
    "comfyui": comfyui,
    "demo": demo,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Return its exit status: 0 done, 1 failed, 2 wrong usage, 130 cancelled."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # bitsandbytes 0.50 warns at import about CPU kernels that nothing here uses
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Musubi's first run fetches tokenizers; the pack itself never fetches anything
    if options.command != "musubi":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return COMMANDS[options.command].run(options)
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt):
        print("Cancelled. The files saved so far are complete.", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainers", description="Train LoRAs: in this process, or in a ComfyUI that is started for it."
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.SUMMARY, description=command.__doc__))
    return parser


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    # An exception, so that a started server is stopped and a half-written file is removed.
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _exit_on_signal)
    sys.exit(main())
