"""LoRA adapters on the UNet and the text encoders: which modules get one, attaching them with PEFT,
reading them out.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..lora.file import Component, LoraModule, ModuleKey, module_key
from ..training.optimizers import ParameterGroup
from .randomness import generator_for

ADAPTER_NAME = "default"
_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
UNET_PRESETS = {
    "attention": rf".*\.transformer_blocks\.\d+\.{_ATTENTION}",
    "attention_mlp": r".*attentions\.\d+\.(proj_in|proj_out|"
    rf"transformer_blocks\.\d+\.({_ATTENTION}|ff\.net\.(0\.proj|2)))",
}
_TEXT_ENCODER_MODULES = r"(.*\.)?layers\.(\d+)\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"


@dataclass(frozen=True)
class AdapterSettings:
    rank: int
    alpha: float
    dropout: float
    seed: int


class AdaptedModel:
    """The modules that have adapters, by component, their parameters, and every module's name in a
    LoRA file.
    """

    def __init__(
        self, attached: dict[Component, tuple[nn.Module, ParameterGroup]], names: dict[ModuleKey, str]
    ) -> None:
        self._modules: dict[Component, nn.Module] = {component: module for component, (module, _) in attached.items()}
        self._layers = [layer for module in self._modules.values() for layer in adapter_layers(module).values()]
        self.groups = [group for _, group in attached.values()]
        self.parameters = [parameter for group in self.groups for parameter in group.parameters]
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters)
        self.names = names

    def read(self, *, alpha: float) -> dict[ModuleKey, LoraModule]:
        """The trained weights, as views on the live parameters."""
        return {
            module_key(component, name): LoraModule(_weight(layer.lora_A), _weight(layer.lora_B), alpha)
            for component, module in self._modules.items()
            for name, layer in adapter_layers(module).items()
        }

    def load(self, weights: dict[ModuleKey, LoraModule], *, alpha: float) -> None:
        """Start from existing weights; `up` is rescaled so that alpha / rank of the file and of
        this run give the same picture.

        sd-scripts' files also hold the last layer of text encoder 1, which SDXL never uses: it is
        passed over.

        Raises:
            ValueError: a module has another rank than this run, or is not trained in it.
        """
        layers = {
            module_key(component, name): layer
            for component, module in self._modules.items()
            for name, layer in adapter_layers(module).items()
        }
        weights = {
            key: module
            for key, module in weights.items()
            if not (key[0] == "text_encoder" and key[0] in self._modules and key not in layers)
        }
        surplus = sorted(self.names[key] for key in set(weights) - set(layers))
        if surplus:
            raise ValueError(
                f"network_weights: {len(surplus)} modules of the file are not trained in this run, such as "
                f"{surplus[0]}. "
                "Choose target_modules and train_text_encoders so that they are"
            )
        for key, module in weights.items():
            _load_layer(layers[key], module, self.names[key], alpha)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The frozen base model's own predictions, without gradients."""
        try:
            for layer in self._layers:
                layer.enable_adapters(False)
            with torch.no_grad():
                yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    def count_modules(self) -> dict[str, int]:
        return {component: len(adapter_layers(module)) for component, module in self._modules.items()}


@torch.no_grad()
def _load_layer(layer: LoraLayer, module: LoraModule, name: str, alpha: float) -> None:
    down, up = _weight(layer.lora_A), _weight(layer.lora_B)
    if module.rank != down.shape[0]:
        raise ValueError(
            f"network_weights: {name} has rank {module.rank}, this run has rank {down.shape[0]}. Set rank to "
            f"{module.rank}"
        )
    if module.down.numel() != down.numel() or module.up.numel() != up.numel():
        raise ValueError(
            f"network_weights: {name} is made for a layer of another size; the file belongs to another base model"
        )
    down.copy_(module.down.reshape(down.shape))  # ComfyUI's own trainer saves a convolution's matrix flat
    up.copy_(module.up.reshape(up.shape).float() * (module.alpha / alpha))


def _weight(adapters: nn.ModuleDict) -> Tensor:
    matrix = adapters[ADAPTER_NAME]
    assert isinstance(matrix, (nn.Linear, nn.Conv2d))
    return matrix.weight.detach()


def unet_targets(unet: nn.Module, target_modules: str) -> list[str]:
    """Full names of the UNet's layers that a preset or a regular expression chooses.

    Raises:
        ValueError: the expression cannot be read, or it matches no linear or convolution layer.
    """
    pattern = UNET_PRESETS.get(target_modules, target_modules)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"target_modules: {target_modules!r} is neither {' nor '.join(UNET_PRESETS)} nor a regular expression "
            f"({error})"
        ) from error
    chosen = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and expression.fullmatch(name)
    ]
    if not chosen:
        raise ValueError(
            f"target_modules: {target_modules!r} matches no linear or convolution layer of the UNet. Use attention, "
            "attention_mlp, "
            r"or an expression for whole names such as .*\.attn2\.to_(k|v)"
        )
    return chosen


def text_encoder_targets(text_encoder: nn.Module, *, uses_last_layer: bool) -> list[str]:
    """Attention and MLP layers of a CLIP text encoder.

    SDXL takes the penultimate hidden states, so the first encoder's last layer never gets a
    gradient (uses_last_layer=False); the second one's does, through the pooled embedding.
    """
    found = [
        (name, re.fullmatch(_TEXT_ENCODER_MODULES, name))
        for name, module in text_encoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    matches = [(name, int(match.group(2))) for name, match in found if match]
    last = max(layer for _, layer in matches)
    return [name for name, layer in matches if uses_last_layer or layer < last]


def attach_adapters(
    model: nn.Module, targets: list[str], settings: AdapterSettings, *, component: Component
) -> list[nn.Parameter]:
    """Freeze the model, give each target a LoRA in float32, and return the LoRA's parameters, the
    only trainable ones.

    `down` starts uniform in +-1/sqrt(fan_in) (kaiming, a = sqrt 5, as kohya and PEFT do), `up` at
    zero. The draws come from the seed.
    """
    model.requires_grad_(False)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=targets,
        init_lora_weights=False,
    )
    # PEFT's documented, if private, way to bring a layer of one's own
    lora._register_custom_module({nn.Linear: InPlaceLoraLinear})
    with torch.random.fork_rng(devices=[]):  # PEFT makes its layers with torch's own initialization, on the CPU
        inject_adapter_in_model(lora, model, adapter_name=ADAPTER_NAME)
    parameters = []
    for name, layer in adapter_layers(model).items():
        down, up = layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
        assert isinstance(down, (nn.Linear, nn.Conv2d)) and isinstance(up, (nn.Linear, nn.Conv2d))
        nn.Sequential(down, up).float()  # float32 whatever the base's dtype: below lr 1e-4 a bf16 adapter stops moving
        bound = 1 / math.sqrt(down.weight[0].numel())
        draw = torch.rand(down.weight.shape, generator=generator_for(settings.seed, "lora_init", component, name))
        with torch.no_grad():
            down.weight.copy_((2 * draw - 1) * bound)
            up.weight.zero_()
        parameters += [down.weight.requires_grad_(True), up.weight.requires_grad_(True)]
    return parameters


class InPlaceLoraLinear(PeftLinear):
    """PEFT's LoRA layer in fewer steps: the update is added to the base layer's output in place, by
    the product that computes it.

    The same numbers; against PEFT's own forward a step takes a tenth less time, and no second
    output is kept for each layer.
    """

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        # two-dimensional, so that the output is no view, which autograd would copy before writing
        # into it
        rows = x.flatten(0, -2)
        output = self.base_layer(rows)
        low_rank = self.lora_A[ADAPTER_NAME](self.lora_dropout[ADAPTER_NAME](rows))
        # autocast leaves in-place products alone
        up = self.lora_B[ADAPTER_NAME].get_parameter("weight").to(output.dtype)
        output.addmm_(low_rank, up.t(), alpha=self.scaling[ADAPTER_NAME])
        return output.unflatten(0, x.shape[:-1])


def adapter_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The model's LoRA layers by the name that the layer had before."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def merge_lora(modules: dict[ModuleKey, LoraModule], parts: dict[str, nn.Module], *, strength: float = 1.0) -> None:
    """Add a LoRA to the weights themselves: W + strength * alpha / rank * up @ down. For sampling;
    not to be trained on.
    """
    layers = {
        (component, name.removeprefix("text_model.")): layer
        for component, part in parts.items()
        for name, layer in part.named_modules()
    }
    for key, module in modules.items():
        layer = layers[key]
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        delta = module.up.float().flatten(1) @ module.down.float().flatten(1)
        layer.weight += (strength * module.alpha / module.rank * delta).reshape(layer.weight.shape).to(layer.weight)
