"""The file for ComfyUI: its names, and the proof that it is a complete, trained LoRA."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainers.musubi.architectures import ARCHITECTURES
from trainers.musubi.conversion import is_whole_file, read_converted, require_num_modules

Z_IMAGE, HIDREAM = ARCHITECTURES["z-image"], ARCHITECTURES["hidream-o1"]


def halves(module: str, *, down: str = "lora_A", up: str = "lora_B") -> dict[str, Tensor]:
    return {f"{module}.{down}.weight": torch.ones(2, 4), f"{module}.{up}.weight": torch.ones(4, 2)}


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "lora.safetensors", {"ss_steps": "8"})
    return folder / "lora.safetensors"


def test_a_complete_file_is_read_with_its_metadata(tmp_path: Path):
    tensors = halves("diffusion_model.layers.0.attention.to_q")
    found, metadata = read_converted(write(tmp_path, tensors), Z_IMAGE)
    assert found.keys() == tensors.keys() and metadata == {"ss_steps": "8"}


def test_hidreams_modules_lose_the_prefix_that_comfyui_does_not_have(tmp_path: Path):
    tensors = halves("lora_unet_model_language_model_layers_0_self_attn_q_proj", down="lora_down", up="lora_up")
    found, _ = read_converted(write(tmp_path, tensors), HIDREAM)
    assert set(found) == {name.replace("lora_unet_model_", "lora_unet_") for name in tensors}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"lora_unet_layers_0_attention_to_q.lora_down.weight": torch.ones(2, 4)},
            "ComfyUI does not know 1 of the names for Z-Image, such as lora_unet_",
        ),
        (
            {"diffusion_model.layers.0.attention.to_q.lora_magnitude_vector": torch.ones(4)},
            "ComfyUI does not know 1 of the names for Z-Image, such as .*lora_magnitude_vector",
        ),
        ({"diffusion_model.layers.1.attention.to_q.lora_A.weight": torch.ones(2, 4)}, "lack one of their halves"),
        ({"diffusion_model.layers.0.attention.to_q.lora_A.weight": torch.full((2, 4), torch.inf)}, "not finite"),
        ({"diffusion_model.layers.0.attention.to_q.lora_B.weight": torch.zeros(4, 2)}, "all up weights are zero"),
    ],
)
def test_anything_but_a_trained_lora_of_the_architecture_is_an_error(
    tmp_path: Path, change: dict[str, Tensor], message: str
):
    path = write(tmp_path, halves("diffusion_model.layers.0.attention.to_q") | change)
    with pytest.raises(RuntimeError, match=message):
        read_converted(path, Z_IMAGE)


def test_musubis_file_must_have_as_many_modules_as_musubi_reported(tmp_path: Path):
    path = write(
        tmp_path, halves("lora_unet_a", down="lora_down", up="lora_up") | {"lora_unet_a.alpha": torch.tensor(4.0)}
    )
    require_num_modules(path, 1)
    with pytest.raises(RuntimeError, match="the LoRA has 1 modules, but Musubi Tuner said that it trains 2"):
        require_num_modules(path, 2)
    with pytest.raises(RuntimeError, match="ended without an error, but wrote no LoRA"):
        require_num_modules(tmp_path / "none.safetensors", 2)


def test_a_missing_or_incomplete_file_is_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError, match="ended without an error, but wrote no LoRA"):
        read_converted(tmp_path / "none.safetensors", Z_IMAGE)
    path = write(tmp_path, halves("diffusion_model.layers.0.attention.to_q"))
    assert is_whole_file(path)
    path.write_bytes(path.read_bytes()[:-4])
    assert not is_whole_file(path)
    with pytest.raises(RuntimeError, match="cannot be read"):
        read_converted(path, Z_IMAGE)
