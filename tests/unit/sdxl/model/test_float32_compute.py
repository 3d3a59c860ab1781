"""Computing in float32 with half-precision weights: the numbers are those of float32 weights, and
the weights stay the same, in the same memory.
"""

import copy

import pytest
import torch

from trainers.embedded_base import write_embedded_checkpoint
from trainers.sdxl.model.float32_compute import float32_compute
from trainers.sdxl.model.sdxl_model import SDXLModel, load_model
from trainers.sdxl.model.text import encode_captions


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SDXLModel:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_embedded_checkpoint(path)
    return load_model(path)


def _list_pointers(*modules: torch.nn.Module) -> list[tuple[int, torch.dtype]]:
    return [(parameter.data_ptr(), parameter.dtype) for module in modules for parameter in module.parameters()]


@torch.no_grad()
def test_text_encoders_in_half_precision_give_what_float32_copies_give(model: SDXLModel):
    encoders = [copy.deepcopy(encoder).half() for encoder in (model.text_encoder, model.text_encoder_2)]
    before = _list_pointers(*encoders)
    with float32_compute(encoders[0]), float32_compute(encoders[1]):
        ours = encode_captions(*encoders, ["a red circle", "a blue square"])
    assert _list_pointers(*encoders) == before
    expected = encode_captions(*(encoder.float() for encoder in encoders), ["a red circle", "a blue square"])
    assert torch.equal(ours.prompt_embeds, expected.prompt_embeds)
    assert torch.equal(ours.pooled_prompt_embeds, expected.pooled_prompt_embeds)


@torch.no_grad()
def test_a_vae_in_half_precision_gives_what_a_float32_copy_gives(model: SDXLModel):
    vae = copy.deepcopy(model.vae).half()
    pixel_values = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with float32_compute(vae):
        ours = vae.encode(pixel_values).latent_dist.mean
    assert torch.equal(ours, vae.float().encode(pixel_values).latent_dist.mean)


def test_weights_are_restored_when_a_layer_fails():
    layer = torch.nn.Linear(4, 4).half()
    before = _list_pointers(layer)
    with pytest.raises(RuntimeError), float32_compute(layer):
        layer(torch.zeros(1, 5))
    assert _list_pointers(layer) == before
