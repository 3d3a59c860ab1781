"""The GPU check on the card: what it does on CUDA only, but for the kernels."""

import json

import pytest

from benchmarks.gpu_check.__main__ import main
from tests.pretend_gpu import card
from tests.pretend_gpu.on_card.watching import free

SECTIONS = ("models", "memory")


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("gpu_check")
    main([str(folder), "--device", "cuda", "--tiny", "--seconds", "100000", "--sections", *SECTIONS])
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in SECTIONS}


@pytest.mark.parametrize("name", SECTIONS)
def test_no_section_ends_with_an_error(reports, name: str):
    assert reports[name]["error"] == ""
    assert reports[name]["checks"]


def test_too_little_memory_leaves_a_state_that_goes_on(reports):
    reached = {check["name"]: check["ok"] for check in reports["memory"]["checks"]}
    assert reached["too little memory is an error"]
    assert reached["a state is left"] and reached["a checkpoint is left"]
    assert reached["the memory is free again"] and reached["with enough memory the run goes on"]


def test_the_peaks_of_all_stages_are_measured(reports):
    assert all(row["training GB"] > 0 and row["caching GB"] > 0 for row in reports["memory"]["rows"])


def test_the_card_has_all_its_memory_again_and_nothing_on_it(reports):
    assert card.total_bytes() == card.DEFAULT_BYTES
    assert free() == 0
