"""Sample images of an SDXL training: ComfyUI's own UNet, put together from the layers of diffusers'
UNet that is trained.
"""

from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import nn

from ...trainers.sdxl.model.layout import ldm_to_unet
from ...trainers.sdxl.model.text import TextEmbeddings
from ...trainers.training.block_streaming import share_weights
from ...trainers.training.host import Host
from ...trainers.training.sample_prompts import SamplePrompt
from .training_samples import draw_samples
from .twin import make_twin_without_weights
from .weights import GraphModel

# ComfyUI's blocks that the trainer may stream, and a layer of each
_FIRST_LAYERS = {BasicTransformerBlock: "norm1", ResBlock: "in_layers.0"}


class SDXLDrawer:
    """A SampleDrawer of the SDXL trainer."""

    def __init__(self, graph: GraphModel) -> None:
        self._graph = graph

    def draw(
        self,
        unet: UNet2DConditionModel,
        positive: TextEmbeddings,
        negative: TextEmbeddings,
        prompt: SamplePrompt,
        *,
        size_hw: tuple[int, int],
        host: Host,
    ) -> list[Image.Image]:
        model = _assemble(self._graph.model, unet, host.device)
        return draw_samples(
            self._graph,
            model,
            _to_conditioning(positive),
            _to_conditioning(negative),
            prompt,
            sampling=model.model_sampling,
            scheduler="normal",
            cfg=prompt.guidance_scale,
            size_hw=size_hw,
            host=host,
        )


def _to_conditioning(embeddings: TextEmbeddings) -> Any:
    return [[embeddings.prompt_embeds, {"pooled_output": embeddings.pooled_prompt_embeds}]]


def _assemble(graph_model: Any, unet: UNet2DConditionModel, device: torch.device) -> Any:
    """Return a BaseModel whose network is ComfyUI's, with the layers of this UNet."""
    model = make_twin_without_weights(graph_model)
    network = model.diffusion_model
    layers = _find_layers(network)
    for path, own_path in layers.items():
        parent, _, name = path.rpartition(".")
        network.get_submodule(parent)._modules[name] = unet.get_submodule(own_path)
    for path, block in network.named_modules():
        if type(block) in _FIRST_LAYERS:
            own_path, _, _ = layers[f"{path}.{_FIRST_LAYERS[type(block)]}"].rpartition(".")
            share_weights(unet.get_submodule(own_path), block)
    norm = unet.conv_norm_out
    assert norm is not None
    model.manual_cast_dtype = norm.weight.dtype  # a norm's weight is never quantized
    model.model_sampling.to(device)
    return model


def _find_layers(network: nn.Module) -> dict[str, str]:
    """Return diffusers' path of each layer with weights, by ComfyUI's."""
    names = ldm_to_unet(name for name, _ in network.named_parameters())
    return {name.rpartition(".")[0]: own.rpartition(".")[0] for name, own in names.items()}
