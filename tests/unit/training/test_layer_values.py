"""What users write for single layers, and which layers it is for."""

import re

import pytest

from trainers import patterns
from trainers.sdxl.config import SDXLConfig
from trainers.training.adapter_shapes import AdapterSettings, LayerSize
from trainers.training.layer_values import find_layer_values, read_layer_values

NAMES = ["mid_block.attn.to_q", "mid_block.ff.net.2", "up_blocks.0.attn.to_q", "up_blocks.0.ff.net.2", "conv_in"]


def test_an_expression_matches_any_part_of_a_name_and_the_first_one_counts() -> None:
    found = find_layer_values("up_blocks.0=32, mid_block=8,\n.*ff.*=4, _in$=2,", [*NAMES, "down.ff"], setting="x")
    assert found == {
        "up_blocks.0.attn.to_q": 32,
        "up_blocks.0.ff.net.2": 32,
        "mid_block.attn.to_q": 8,
        "mid_block.ff.net.2": 8,
        "down.ff": 4,
        "conv_in": 2,
    }
    assert find_layer_values("(?=up).{3,12}ff=1e-4", NAMES, setting="x") == {"up_blocks.0.ff.net.2": 1e-4}
    assert find_layer_values(" ", NAMES, setting="x") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mid_block", "x: 'mid_block' is no pair of an expression for names and a value above 0. Write pairs such as"),
        ("=8", "'=8' is no pair"),
        ("mid=0", "'mid=0' is no pair"),
        ("mid=inf", "'mid=inf' is no pair"),
        ("mid=(8", "'mid=(8' is no pair"),
        ("(mid=8", "x: '(mid' is no regular expression"),
        ("mid=8, mid=4", "x: 'mid' has two values. Delete one"),
    ],
)
def test_what_cannot_be_read_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_layer_values(text, setting="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mid=8, atn=4", "x: 'atn' matches no layer that is trained. Trained are 5, such as mid_block.attn.to_q"),
        ("ff=8, mid_block.ff=4", "'mid_block.ff' matches only layers that have a value by an earlier expression. Put"),
    ],
)
def test_an_expression_without_effect_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        find_layer_values(text, NAMES, setting="x")


def test_an_expression_that_would_run_forever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_MATCH_SECONDS", 2)
    with pytest.raises(ValueError, match="took more than 2 seconds to match"):
        find_layer_values("([a-z0-9_.]+)+!=2", ["a" * 60], setting="x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network_reg_dims": "mid=2.5"}, "network_reg_dims: a rank must be a whole number from 1 to 1024, got 2.5"),
        ({"network_reg_dims": "mid=2000"}, "a rank must be a whole number from 1 to 1024, got 2000"),
        ({"network_reg_lrs": "mid=11"}, "network_reg_lrs: a learning rate must be at most 10, got 11"),
        ({"network_reg_lrs": "mid=1e-4", "learning_rate": 0.0}, "need a learning_rate above 0"),
    ],
)
def test_values_out_of_range_are_an_error(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SDXLConfig(**settings)


def test_alpha_follows_the_rank_and_a_name_comes_before_a_kernel() -> None:
    convolution, linear = LayerSize(8, 8, (3, 3)), LayerSize(8, 8)
    config = SDXLConfig(rank=16, alpha=8.0, conv_rank=4, network_reg_dims="mid=2", use_rslora=True)
    settings = AdapterSettings.of(config, ["mid.conv", "up.conv", "up.to_q"])

    def find(name: str, size: LayerSize) -> tuple[int, float]:
        own = settings.for_name(name).for_size(size)
        return own.rank, own.alpha

    assert find("mid.conv", convolution) == (2, pytest.approx(1 * 2**0.5))
    assert find("up.conv", convolution) == (4, 2.0 * 4**0.5)
    assert find("up.to_q", linear) == (16, 8.0 * 16**0.5)
