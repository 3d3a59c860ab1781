"""File names with ComfyUI's date tokens, below a folder that they cannot leave."""

import re
import time
from pathlib import PurePosixPath

from .run_folder import check_output_name

_FIELDS = {"yyyy": "%Y", "yy": "%y", "MM": "%m", "dd": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}
_TOKENS = {"date": "%Y-%m-%d", "year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}


def expand_date_tokens(text: str, now: time.struct_time) -> str:
    """%date%, %date:yyyy-MM-dd_hh-mm-ss%, %year%, %month%, %day%, %hour%, %minute% and %second% replaced.

    Raises:
        ValueError: another %token%.
    """

    def value(match: re.Match[str]) -> str:
        name, _, pattern = match[1].partition(":")
        if name == "date" and pattern:
            return re.sub("|".join(_FIELDS), lambda field: time.strftime(_FIELDS[field[0]], now), pattern)
        if name not in _TOKENS or pattern:
            allowed = ", ".join(f"%{token}%" for token in _TOKENS)
            raise ValueError(f"filename has %{match[1]}% in it. Allowed are %date:yyyy-MM-dd_hh-mm-ss%, {allowed}")
        return time.strftime(_TOKENS[name], now)

    return re.sub(r"%([^%]*)%", value, text)


def check_lora_file_name(text: str, now: time.struct_time | None = None) -> PurePosixPath:
    """The relative path, without .safetensors, that `text` stands for at `now` (by default the present).

    Raises:
        ValueError: it leads out of the folder, or some system has no such file names.
    """
    parts = expand_date_tokens(text.strip(), now or time.localtime()).replace("\\", "/").split("/")
    return PurePosixPath(*(check_output_name(part) for part in parts))
