"""A saved state as Musubi Tuner writes it: the name of its folder and its files."""

import re
from pathlib import Path

_STATE_FILES = ("model.safetensors", "optimizer.bin", "random_states_0.pkl")
_STATE_NAME = re.compile(r".+?(-after(?P<before>\d{8}))?-step(?P<step>\d{8})-state")


def is_complete_state(folder: Path) -> bool:
    return not list_missing(folder)


def list_missing(state_folder: Path) -> list[str]:
    return [name for name in _STATE_FILES if not (state_folder / name).is_file()]


def read_steps_done(state_folder: Path) -> int | None:
    """Return how many steps a saved state has done, earlier runs included; None if its name does
    not say.
    """
    match = _STATE_NAME.fullmatch(state_folder.name)
    return int(match["step"]) + int(match["before"] or 0) if match else None
