"""The one time limit of all tests. It ends what hangs, and nothing else is so slow that it gets
there, however busy the machine is.
"""

import time
from collections.abc import Callable

TIME_LIMIT = 900.0  # seconds


def wait_until(condition: Callable[[], object], *, what: str) -> None:
    """Raises AssertionError with `what` when the condition has not come true within the limit."""
    deadline = time.monotonic() + TIME_LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIME_LIMIT:.0f} s for {what}"
        time.sleep(0.02)
