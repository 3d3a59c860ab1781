"""A GPU that is not there, for tests: see README.md.

    python -m tests.pretend_gpu tests/pretend_gpu/on_card/test_sdxl.py     pytest with the card
    from tests.pretend_gpu.card import insert_card; insert_card()          in a script, before torch

It replaces torch's CUDA for a whole process, so nothing else is tested there.
"""
