"""Runs pytest with the pretended GPU: `python -m tests.pretend_gpu`, then pytest's arguments."""

import sys

from .card import insert_card

if __name__ == "__main__":
    insert_card()
    import pytest

    sys.exit(pytest.main(sys.argv[1:]))
