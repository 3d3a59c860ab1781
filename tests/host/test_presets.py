"""What a server answers to the widgets that show the presets' numbers."""

import urllib.error
from typing import Any

import pytest

from tests.host.test_training_in_graph import get_facts, tiny_prompt
from trainers.comfyui.server import ComfyServer
from trainers.training.presets import GOALS, MEMORY_PRESETS


def ask(server: ComfyServer, query: str) -> dict[str, Any]:
    return server.client.get(f"/lora_trainer/presets?{query}")


def test_the_presets_are_resolved_without_a_dataset(comfyui_server: ComfyServer):
    style, memory = GOALS["style"], MEMORY_PRESETS["8 GB"]
    assert ask(comfyui_server, "goal=style&memory=8+GB&rank=0&train_batch_size=0") == {
        "rank": style.rank,
        "alpha": style.rank * style.alpha_per_rank,
        "learning_rate": style.learning_rate,
        "resolution": memory.resolution,
        "train_batch_size": memory.train_batch_size,
        "gradient_accumulation_steps": memory.gradient_accumulation_steps,
        "gradient_checkpointing": memory.gradient_checkpointing,
    }


def test_given_numbers_change_what_is_chosen_for_others(comfyui_server: ComfyServer):
    answer = ask(comfyui_server, "goal=style&rank=8&train_batch_size=4")
    assert answer["alpha"] == 8 * GOALS["style"].alpha_per_rank and answer["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    "query", ["", "goal=cat", "goal=style&memory=9+GB", "goal=style&rank=x", f"goal=style&rank={'9' * 400}"]
)
def test_a_request_with_other_values_is_refused(comfyui_server: ComfyServer, query: str):
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(comfyui_server, query)


def test_the_trainer_tells_what_its_presets_came_to(comfyui_server: ComfyServer):
    prompt = tiny_prompt(goal="person", memory="12 GB", learning_rate=0.0, train_batch_size=2, seed=40)
    facts = get_facts(comfyui_server.client.run(prompt))
    assert (facts["presets"]["goal"], facts["presets"]["memory"]) == ("person", "12 GB")
    assert facts["presets"]["chosen"] == {"learning_rate": GOALS["person"].learning_rate}
    assert facts["presets"]["given"].items() >= {"rank": 2, "max_train_steps": 3, "optimizer": "AdamW"}.items()
