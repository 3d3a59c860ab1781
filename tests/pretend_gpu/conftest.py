"""Tests under on_card run only in a process that has the card: test_on_card.py starts it."""

from tests.pretend_gpu.card import is_inserted

collect_ignore_glob = [] if is_inserted() else ["on_card/*"]
