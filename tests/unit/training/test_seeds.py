"""Random decisions depend on the seed and their purpose, and never change between versions."""

from trainers.training.seeds import derive_seed, happens


def test_derived_seeds_never_change_between_versions():
    assert derive_seed(0, "noise", 1, 2) == 4294442165427462769


def test_decisions_happen_as_often_as_their_probability_says():
    assert not any(happens(0.0, 1, step) for step in range(100)) and all(happens(1.0, 1, step) for step in range(100))
    assert abs(sum(happens(0.25, 1, "flip", step) for step in range(2000)) / 2000 - 0.25) < 0.03
