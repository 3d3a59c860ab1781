"""LoRA adapters on frozen modules: attaching them with PEFT, reading them out, switching them
off.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..lora.modules import LoraModule, ModuleKey, ModuleNames
from .generators import generator_for
from .optimizers import ParameterGroup

ADAPTER_NAME = "default"


@dataclass(frozen=True)
class AdapterSettings:
    rank: int
    alpha: float
    dropout: float
    seed: int


@dataclass(frozen=True)
class AdaptedComponent:
    """A part of the base model that has adapters, and their parameters."""

    module: nn.Module
    group: ParameterGroup


class AdaptedModel:
    """Everything that is trained: the adapters of all components, and their names in a LoRA file.

    `module_key` gives the key of a module from its component and its path there.
    """

    def __init__(
        self,
        components: Mapping[str, AdaptedComponent],
        names: ModuleNames,
        module_key: Callable[[str, str], ModuleKey] = lambda component, path: (component, path),
    ) -> None:
        self._layers = {
            module_key(name, path): layer
            for name, component in components.items()
            for path, layer in adapter_layers(component.module).items()
        }
        self.groups = [component.group for component in components.values()]
        self.parameters = [parameter for group in self.groups for parameter in group.parameters]
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters)
        self.names = names

    def __contains__(self, key: ModuleKey) -> bool:
        return key in self._layers

    def read(self, *, alpha: float) -> dict[ModuleKey, LoraModule]:
        """The trained weights, as views on the live parameters."""
        return {
            key: LoraModule(_weight(layer.lora_A), _weight(layer.lora_B), alpha) for key, layer in self._layers.items()
        }

    def load(self, weights: Mapping[ModuleKey, LoraModule], *, alpha: float) -> None:
        """Start from existing weights; `up` is rescaled so that alpha / rank of the file and of
        this run give the same image.

        Raises:
            ValueError: a module has another rank than this run, or is not trained in it.
        """
        surplus = sorted(self.names[key] for key in weights if key not in self._layers)
        if surplus:
            raise ValueError(
                f"network_weights: {len(surplus)} modules of the file are not trained in this run, such as "
                f"{surplus[0]}. Choose target_modules and train_text_encoders so that they are"
            )
        for key, module in weights.items():
            _load_layer(self._layers[key], module, self.names[key], alpha)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The frozen base model's own predictions, without gradients."""
        try:
            for layer in self._layers.values():
                layer.enable_adapters(False)
            with torch.no_grad():
                yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    def count_modules(self) -> dict[str, int]:
        """By component."""
        counts: dict[str, int] = {}
        for component, _ in self._layers:
            counts[component] = counts.get(component, 0) + 1
        return counts


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


def attach_adapters(
    model: nn.Module, targets: list[str], settings: AdapterSettings, *, component: str
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
