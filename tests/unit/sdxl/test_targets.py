"""Which layers an expression chooses, and that none can hang."""

import re

import pytest
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from trainers import patterns
from trainers.sdxl.model.standard_unet import standard_unet
from trainers.sdxl.targets import UNET_PRESETS, find_unet_targets

LAYERS = (nn.Linear, nn.Conv2d)


def test_an_expression_chooses_what_the_preset_of_the_same_expression_chooses():
    unet = standard_unet()
    assert find_unet_targets(unet, UNET_PRESETS["attention"]) == find_unet_targets(unet, "attention")


def test_with_convolutions_everything_in_sd_scripts_blocks_is_chosen_too():
    """Its conv_dim trains what is in these three classes."""
    unet = standard_unet()
    blocks = (ResnetBlock2D, Downsample2D, Upsample2D)
    expected = {
        name
        for path, block in unet.named_modules()
        if isinstance(block, blocks)
        for name in (f"{path}.{inner}" for inner, layer in block.named_modules() if isinstance(layer, LAYERS))
    }
    chosen = find_unet_targets(unet, "attention_mlp", with_convolutions=True)
    assert set(chosen) == expected | set(find_unet_targets(unet, "attention_mlp")) and len(chosen) == len(set(chosen))
    assert len(expected) == 66


@pytest.mark.parametrize(("preset", "blocks"), [("b-lora", (0, 1)), ("b-lora-content", (0,)), ("b-lora-style", (1,))])
def test_b_lora_trains_the_attention_of_its_blocks(preset: str, blocks: tuple[int, ...]):
    """Ten transformer blocks each, with eight projections."""
    chosen = find_unet_targets(standard_unet(), preset)
    prefixes = tuple(f"up_blocks.0.attentions.{number}." for number in blocks)
    assert chosen == [name for name in find_unet_targets(standard_unet(), "attention") if name.startswith(prefixes)]
    assert len(chosen) == 80 * len(blocks)


def test_an_expression_that_would_run_forever_is_ended_with_a_remedy(monkeypatch):
    monkeypatch.setattr(patterns, "MAX_MATCH_SECONDS", 2)
    with pytest.raises(ValueError, match=re.escape("'([a-z0-9_.]+)+!' took more than 2 seconds to match")):
        find_unet_targets(standard_unet(), "([a-z0-9_.]+)+!")


@pytest.mark.parametrize("pattern", ["(" * 10_000, "a{99999999999}"])
def test_an_expression_that_python_cannot_compile_is_an_error(pattern):
    with pytest.raises(
        ValueError,
        match="is neither attention, attention_mlp, b-lora, b-lora-content, b-lora-style nor a regular expression",
    ):
        find_unet_targets(standard_unet(), pattern)
