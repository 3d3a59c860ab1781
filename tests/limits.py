"""The time limit of all tests. It ends what hangs; no test that works gets near it, even on a busy
machine.
"""

import time
from collections.abc import Callable

TIME_LIMIT = 900.0  # seconds


def wait_until(condition: Callable[[], object], *, what: str) -> None:
    """Wait until the condition is true. After the time limit, raise an AssertionError with
    `what`.
    """
    deadline = time.monotonic() + TIME_LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIME_LIMIT:.0f} s for {what}"
        time.sleep(0.02)
