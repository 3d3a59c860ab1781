"""Checks file names with ComfyUI's date tokens, which must stay inside the loras folder."""

import re
import time
from pathlib import PurePosixPath

from ..files.names import check_output_name

_FIELDS = {"y": "tm_year", "M": "tm_mon", "d": "tm_mday", "h": "tm_hour", "m": "tm_min", "s": "tm_sec"}
_TOKENS = {
    "date": "yyyy-MM-dd",
    "year": "yyyy",
    "month": "MM",
    "day": "dd",
    "hour": "hh",
    "minute": "mm",
    "second": "ss",
}


def check_lora_file_name(text: str, now: time.struct_time | None = None) -> PurePosixPath:
    """Return the relative path, without .safetensors, that `text` means at the time `now` (default:
    the current time).

    Raises:
        ValueError: the path leads out of the folder, or some system does not allow the name.
    """
    name = expand_date_tokens(text.strip(), now or time.localtime()).replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name):
        raise ValueError(
            f"filename {text!r} leads out of the loras folder. Give a name below it, such as my_lora or people/my_lora"
        )
    return PurePosixPath(*(check_output_name(part) for part in name.split("/")))


def expand_date_tokens(text: str, now: time.struct_time) -> str:
    """Replace %date%, %date:yyyy-MM-dd_hh-mm-ss%, %year%, %month%, %day%, %hour%, %minute% and
    %second%.

    Raises:
        ValueError: the text has any other %token%.
    """

    def expand(match: re.Match[str]) -> str:
        name, _, pattern = match[1].partition(":")
        if name not in _TOKENS or (pattern and name != "date"):
            allowed = ", ".join(f"%{token}%" for token in _TOKENS)
            raise ValueError(f"filename has %{match[1]}% in it. Allowed are %date:yyyy-MM-dd_hh-mm-ss%, {allowed}")
        return re.sub(r"yyyy|yy|([Mdhms])\1?", lambda field: _format_field(field[0], now), pattern or _TOKENS[name])

    return re.sub(r"%([^%]*)%", expand, text)


def _format_field(token: str, now: time.struct_time) -> str:
    """Format a field like ComfyUI's front end: M gives 8 or 12, MM gives 08 or 12, yy gives 26."""
    number = str(getattr(now, _FIELDS[token[0]]))
    return number[-2:] if token == "yy" else number.zfill(len(token))
