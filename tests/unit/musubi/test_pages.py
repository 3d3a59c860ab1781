"""The help pages of Train LoRA (Musubi Tuner) against the table of architectures."""

from pathlib import Path

import pytest

from trainers.musubi.architectures import ARCHITECTURES, Architecture

PAGES = sorted((Path(__file__).parents[3] / "web" / "docs").glob("LoRATrainer_MusubiTrain*/*.md"))
PAGES += [Path(__file__).parents[3] / "web" / "docs" / "LoRATrainer_MusubiTrain.md"]
SETTINGS = ("rank", "learning_rate", "resolution", "timestep_sampling", "discrete_flow_shift")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda architecture: architecture.name)
def test_every_page_has_what_the_architecture_recommends(page: Path, architecture: Architecture):
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {architecture.name} |")]
    assert len(lines) == 1
    _, files, own, *settings, swap, _ = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert all(f"`{file.name}`" in files for file in architecture.models)
    assert all(f"`{option.name}`" in own for option in architecture.options)
    assert settings == recommended(architecture)
    assert swap.split()[-1] == str(architecture.max_blocks_to_swap)


def recommended(architecture: Architecture) -> list[str]:
    rank, rate, resolution, sampling, shift = (architecture.defaults[name] for name in SETTINGS)
    return [str(rank), f"{rate:g}", str(resolution), sampling, f"{shift:g}" if shift else "–"]
