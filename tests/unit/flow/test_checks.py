"""Settings that are checked before a model is there."""

import pytest
import torch
from safetensors.torch import save_file

from trainers.flow.checks import check_settings
from trainers.flow.config import FlowConfig

FLUX, WAN = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_blocks_0_self_attn_q"


@pytest.mark.parametrize("module", [FLUX, WAN, "lora_unet_layers_0_attention_qkv"])
def test_a_lora_of_any_architecture_can_be_started_from(tmp_path, module):
    path = tmp_path / "start.safetensors"
    save_file({f"{module}.lora_down.weight": torch.ones(4, 8), f"{module}.lora_up.weight": torch.ones(8, 4)}, path)
    check_settings(FlowConfig(network_weights=str(path), rank=4))
    with pytest.raises(ValueError, match="the file has rank 4, this run has rank 2"):
        check_settings(FlowConfig(network_weights=str(path), rank=2))


def test_what_is_no_lora_is_refused(tmp_path):
    path = tmp_path / "start.safetensors"
    save_file({"a.weight": torch.ones(4)}, path)
    with pytest.raises(ValueError, match="this is no LoRA"):
        check_settings(FlowConfig(network_weights=str(path)))
