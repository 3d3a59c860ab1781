"""The pretended card of this process: put in once, before torch; its memory, and who listens."""

import ctypes
import sys
from collections.abc import Callable

from .build import build_card

DEFAULT_BYTES = 80 * 2**30

# kind, operation, bytes: see card.cpp
_Listener = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64)
_library: ctypes.CDLL | None = None
_kept: object = None  # ctypes does not keep the function that C calls


def insert_card(*, total_bytes: int = DEFAULT_BYTES) -> None:
    """Give this process a GPU, cuda:0. torch looks for its devices once, when it is imported.

    Raises:
        CannotBuild: the machine has no compiler.
        RuntimeError: torch was imported already.
    """
    global _library
    if "torch" in sys.modules:
        raise RuntimeError("insert_card comes before torch, which looks for its devices only once")
    _library = ctypes.CDLL(str(build_card()))
    for name in ("card_live_bytes", "card_peak_bytes", "card_total_bytes"):
        getattr(_library, name).restype = ctypes.c_int64
    set_total_bytes(total_bytes)
    from .cuda_api import replace_cuda_api

    replace_cuda_api()


def is_inserted() -> bool:
    return _library is not None


def live_bytes() -> int:
    """Return the bytes of all storages on the card."""
    return _get_library().card_live_bytes()


def peak_bytes() -> int:
    return _get_library().card_peak_bytes()


def reset_peak() -> None:
    _get_library().card_reset_peak()


def total_bytes() -> int:
    return _get_library().card_total_bytes()


def set_total_bytes(num_bytes: int) -> None:
    """From now on an allocation beyond that raises torch.OutOfMemoryError."""
    _get_library().card_set_total(ctypes.c_int64(num_bytes))


def listen(function: Callable[[str, str, int], None] | None) -> None:
    """Call `function` with the kind, the operation and the bytes of each copy between main memory
    and the card, and of each wait for it. None: nobody listens.
    """
    global _kept
    if function is None:
        _get_library().card_listen(None)
        return
    _kept = _Listener(lambda kind, operation, num_bytes: function(kind.decode(), operation.decode(), num_bytes))
    _get_library().card_listen(_kept)


def _get_library() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError("this process has no pretended GPU: call insert_card before torch is imported")
    return _library
