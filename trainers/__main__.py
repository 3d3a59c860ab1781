"""The command line: `sdxl` and `musubi` train without ComfyUI, `check` looks at the images
before, `comfyui` runs a prompt in one; and `demo`.
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
    """Run one command; returns the exit status: 0 done, 1 failed, 2 wrong usage, 130 cancelled."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # 0.50 warns at import about kernels for a CPU that nothing here uses
    if options.command != "musubi":  # whose first run fetches tokenizers; the pack itself never fetches anything
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return COMMANDS[options.command].run(options)
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt):
        print("Cancelled. Files that were saved before are complete.", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainers", description="Train LoRAs: in this process, or in a ComfyUI that is started for it."
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.SUMMARY, description=command.__doc__))
    return parser


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    # As an exception, so that a server that was started is stopped too, and a file that is half
    # written is removed.
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end)
    sys.exit(main())
