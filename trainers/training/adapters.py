"""Adapters on frozen modules: attach them, read them, load them, disable them. A LoRA is attached
with PEFT; adapter_layers.py has the layers of all other kinds.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..lora.modules import AdapterModule, DoraModule, LoraModule, ModuleKey, ModuleNames
from ..lora.read import find_kind
from .adapter_layers import (
    ADAPTER_NAME,
    AdapterLayer,
    LoraLinear,
    LowRankLayer,
    WrappedLayer,
    choose_layer,
    find_size,
    load_lora,
    read_weight,
)
from .adapter_shapes import AdapterSettings, LayerSize, Shapes, list_shapes
from .config import ADAPTERS
from .flat_weights import FlatWeights, TrainedGroup
from .generators import generator_for
from .optimizers import ParameterGroup
from .singular_vectors import find_right_singular_vectors

AnyAdapterLayer = LoraLayer | LoraLinear | AdapterLayer


@dataclass(frozen=True)
class AdaptedComponent:
    """A part of the base model with adapters, and the parameters of those adapters, in a group for
    each learning rate.
    """

    module: nn.Module
    groups: Sequence[ParameterGroup]


@dataclass(frozen=True)
class TrainedEmbeddings:
    """Vectors of tokens that are trained next to the adapters, by their names in an embedding file.
    They stand for `word` in captions.
    """

    word: str
    group: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float


class AdaptedModel:
    """The adapters of all components, and their names in a LoRA file; with `embeddings`, vectors of
    tokens too. Nothing else is trained.

    Whoever reads or sets the weights here has those in float32, whatever `dtype` the layers compute
    in. `module_key` makes the key of a module from its component and its path in the component.
    """

    def __init__(
        self,
        components: Mapping[str, AdaptedComponent],
        names: ModuleNames,
        module_key: Callable[[str, str], ModuleKey] = lambda component, path: (component, path),
        *,
        dtype: torch.dtype = torch.float32,
        embeddings: TrainedEmbeddings | None = None,
    ) -> None:
        self._layers = {
            module_key(name, path): layer
            for name, component in components.items()
            for path, layer in find_adapter_layers(component.module).items()
        }
        self.embeddings = embeddings
        groups = [group for component in components.values() for group in component.groups]
        if embeddings:
            parameters = list(embeddings.parameters.values())
            groups.append(ParameterGroup(embeddings.group, parameters, embeddings.learning_rate))
        self.groups = [
            TrainedGroup(group.name, FlatWeights(group.parameters, dtype), group.learning_rate) for group in groups
        ]
        self.flat_weights = [group.weights.flat for group in self.groups]
        self.num_parameters = sum(flat.numel() for flat in self.flat_weights)
        self.names = names

    def name_layers(self) -> dict[str, nn.Module]:
        """Return the layers with adapters by their paths in their component."""
        return {path: layer for (_, path), layer in self._layers.items() if isinstance(layer, nn.Module)}

    def name_parameters(self) -> dict[str, Tensor]:
        """Return the trained weights themselves, by names that are the same in every run."""
        return self.name_matrices(self.flat_weights)

    def name_matrices(self, flat: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return views of tensors that are laid out as flat_weights, by the names of
        name_parameters.
        """
        matrices = {
            f"{self.names[key]}.{name}": matrix
            for key, matrices in self._split(flat).items()
            for name, matrix in matrices.items()
        }
        views = self._list_views(flat)
        vectors = self.embeddings.parameters if self.embeddings else {}
        return {**matrices, **{f"embeddings.{name}": views[id(each)] for name, each in vectors.items()}}

    def read_embeddings(self) -> dict[str, Tensor]:
        """Return the trained vectors of tokens, float32 [N, E], as views of the live ones."""
        views = self._list_views(self.flat_weights)
        vectors = self.embeddings.parameters if self.embeddings else {}
        return {name: views[id(parameter)] for name, parameter in vectors.items()}

    def _list_views(self, flat: Sequence[Tensor]) -> dict[int, Tensor]:
        """By the ids of the parameters."""
        return {
            id(parameter): view
            for group, each in zip(self.groups, flat, strict=True)
            for parameter, view in zip(group.weights.parameters, group.weights.split(each), strict=True)
        }

    def _split(self, flat: Sequence[Tensor]) -> dict[ModuleKey, dict[str, Tensor]]:
        """Return views of the matrices of each layer, by their names."""
        views = self._list_views(flat)
        return {
            key: {name: views[id(matrix)] for name, matrix in list_matrices(layer).items()}
            for key, layer in self._layers.items()
        }

    def publish(self) -> None:
        """Give the layers what the weights are now. Whoever changes `flat_weights` calls it."""
        for group in self.groups:
            group.weights.publish()

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Set every parameter to what name_parameters returned.

        Raises:
            ValueError: the values are those of other layers or another rank.
        """
        own = self.name_parameters()
        if {name: tensor.shape for name, tensor in own.items()} != {n: tensor.shape for n, tensor in values.items()}:
            raise ValueError("resume: that run trains other layers, or with another rank. It cannot be gone on with")
        for name, parameter in own.items():
            parameter.copy_(values[name])
        self.publish()

    def __contains__(self, key: ModuleKey) -> bool:
        return key in self._layers

    def read(self) -> dict[ModuleKey, AdapterModule]:
        """Return the trained weights as views of the live ones."""
        split = self._split(self.flat_weights)
        return {key: _make_module(layer, split[key]) for key, layer in self._layers.items()}

    @torch.no_grad()
    def load(self, weights: Mapping[ModuleKey, AdapterModule]) -> None:
        """Start from existing weights, which act as strongly as in their file, even if alpha or
        rank differs. A LoRA or DoRA of a lower rank fills the first rows of `down`; the others stay
        random, and act only when they have learned something.

        Raises:
            ValueError: a module is of another kind than this run, of a higher rank, or of another
                size.
        """
        surplus = sorted(self.names[key] for key in weights if key not in self._layers)
        assert not surplus, f"no adapters for {surplus}"
        own = self._split(self.flat_weights)
        for key, module in weights.items():
            _load_layer(self._layers[key], own[key], module, self.names[key])
        self.publish()

    @torch.no_grad()
    def limit_norms(self, max_norm: float) -> None:
        """Scale the update of each layer down to this Euclidean norm, in equal parts of its
        matrices, as sd-scripts and LyCORIS do (max-norm). The lengths of a DoRA stay.
        """
        split = self._split(self.flat_weights)
        for key, module in self.read().items():
            matrices = [matrix for name, matrix in split[key].items() if name != "offset"]
            norm = module.scale * module.measure()
            factor = (max_norm / norm.clamp(min=max_norm)) ** (1 / len(matrices))
            for matrix in matrices:
                matrix.mul_(factor)
        self.publish()

    def set_timesteps(self, component: str, timesteps: Tensor) -> None:
        """Tell the layers of a component the timesteps [B] of what they see from now on, in the
        backward pass too. [1] is for inputs in whatever order.
        """
        for (part, _), layer in self._layers.items():
            if part == component and isinstance(layer, LowRankLayer):
                layer.timesteps = timesteps

    @contextmanager
    def disable_adapters(self) -> Iterator[None]:
        """Inside the block the model predicts as the frozen base model, without gradients."""
        try:
            for layer in self._layers.values():
                layer.enable_adapters(False)
            with torch.no_grad():
                yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Inside the block the adapters act so many times as strongly, in the backward pass too.
        DoRA layers do not: their lengths are no sum.
        """
        try:
            self._set_strength(strength)
            yield
        finally:
            self._set_strength(1.0)

    def _set_strength(self, strength: float) -> None:
        for layer in self._layers.values():
            if isinstance(layer, LoraLayer):
                layer.set_scale(ADAPTER_NAME, strength)
            else:
                layer.strength = strength

    def count_modules(self) -> dict[str, int]:
        """Count the adapted modules of each component."""
        counts: dict[str, int] = {}
        for component, _ in self._layers:
            counts[component] = counts.get(component, 0) + 1
        return counts


def require_rank(ranks: Iterable[int], rank: int) -> None:
    """Check that no module of a file has a higher rank than this run."""
    ranks = sorted(set(ranks))
    if ranks and ranks[-1] > rank:
        several = f"ranks {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"rank {ranks[-1]}"
        raise ValueError(
            f"network_weights: the file has {several}, this run has rank {rank}. Set rank to {ranks[-1]} or more; "
            "modules of a lower rank are filled up"
        )


def require_kind(tensors: Mapping[str, Tensor], kind: str) -> None:
    """Check that the file to start from has adapters of the kind that this run trains."""
    found = find_kind(tensors)
    if found != kind:
        raise ValueError(
            f"network_weights: the file is a {ADAPTERS[found]}, and this run trains a {ADAPTERS[kind]}. Set adapter "
            f"to {found}, or start from a {ADAPTERS[kind]}"
        )


def require_same_shapes(module: AdapterModule, size: LayerSize, settings: AdapterSettings, name: str) -> None:
    """Check that a run can start from a module of a file.

    Raises:
        ValueError: it cannot.
    """
    if module.kind != settings.kind:
        raise ValueError(
            f"network_weights: {name} is a {ADAPTERS[module.kind]}, and this run trains a {ADAPTERS[settings.kind]}"
        )
    if isinstance(module, LoraModule):
        require_rank([module.rank], settings.for_size(size).rank)
        _require_inputs_scaled(module, name)
        return
    wanted = {ending: shape for ending, shape in _name_shapes(module, list_shapes(size, settings)).items()}
    found = {ending: tuple(tensor.shape) for ending, tensor in module.tensors().items()}
    if found != wanted:
        setting = "rank" if module.kind == "loha" else "rank, lokr_factor, lokr_decompose_both and lokr_full_matrix"
        raise ValueError(
            f"network_weights: {name} has {_show_shapes(found)}, this run {_show_shapes(wanted)}. Set {setting} as the "
            "file was trained with; else the file belongs to another base model"
        )


def _name_shapes(module: AdapterModule, shapes: Shapes) -> Shapes:
    return {module.endings[name]: shape for name, shape in shapes.items()}


def _show_shapes(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _require_inputs_scaled(module: LoraModule, name: str) -> None:
    if isinstance(module, DoraModule) and not module.scales_inputs:
        raise ValueError(
            f"network_weights: {name} has a length for each output (dora_scale {list(module.magnitude.shape)}); here a "
            "DoRA has one for each input, as in the paper. Start from one with wd_on_output=False"
        )


def _load_layer(layer: AnyAdapterLayer, matrices: Mapping[str, Tensor], module: AdapterModule, name: str) -> None:
    size = find_size(get_base_layer(layer))
    if module.size != (size.outputs, size.inputs * math.prod(size.kernel)):
        raise ValueError(
            f"network_weights: {name} has another size than this layer; the file belongs to another base model"
        )
    if isinstance(layer, AdapterLayer):
        require_same_shapes(module, size, layer.settings, name)
        layer.load(matrices, module)
        return
    assert type(module) is LoraModule, "require_kind was not called"
    require_rank([module.rank], len(matrices["down"]))
    load_lora(matrices["down"], matrices["up"], module, _get_alpha(layer))


def _make_module(layer: AnyAdapterLayer, matrices: Mapping[str, Tensor]) -> AdapterModule:
    if isinstance(layer, AdapterLayer):
        return layer.make_module(matrices)
    return LoraModule(matrices["down"], matrices["up"], _get_alpha(layer))


def _get_alpha(layer: LoraLayer | LoraLinear) -> float:
    return layer.alpha if isinstance(layer, LoraLinear) else float(layer.lora_alpha[ADAPTER_NAME])


def get_base_layer(layer: nn.Module | LoraLayer) -> nn.Module:
    """Return the frozen layer, of a layer with or without an adapter."""
    if isinstance(layer, LoraLayer):
        return layer.get_base_layer()
    return layer.base_layer if isinstance(layer, WrappedLayer) else layer


def list_matrices(layer: AnyAdapterLayer) -> dict[str, nn.Parameter]:
    """Return what is trained of a layer, by the names of list_shapes."""
    if isinstance(layer, AdapterLayer):
        return layer.matrices()
    return {"down": _get_weight(layer.lora_A), "up": _get_weight(layer.lora_B)}


def _get_weight(adapters: nn.ModuleDict) -> nn.Parameter:
    matrix = adapters[ADAPTER_NAME]
    return matrix.get_parameter("weight")


def attach_adapters(
    model: nn.Module,
    targets: list[str],
    settings: AdapterSettings,
    *,
    component: str,
    device: torch.device | None = None,
) -> list[nn.Parameter]:
    """Freeze the model, give each target an adapter in float32, and return the adapters'
    parameters: the only trainable ones. They are made on `device`, by default that of the weights;
    those of a LoRA always are.

    A LoRA's `down` starts uniform in +-1/sqrt(fan_in) (kaiming, a = sqrt 5, as in kohya and PEFT),
    or with the weight's singular vectors, `up` at zero. The draws come from the seed.
    """
    model.requires_grad_(False)
    if choose_layer(settings):
        for name in targets:
            _wrap_layer(model, name, settings, device or model.get_submodule(name).weight.device)  # type: ignore
        return _start_adapters(model, settings, component=component)
    own = _make_patterns(model, targets, settings)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        rank_pattern={names: rank for names, (rank, _) in own.items()},
        alpha_pattern={names: alpha for names, (_, alpha) in own.items()},  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=targets,
        init_lora_weights=False,
    )
    # PEFT documents this way to register a custom layer, although the method is private
    lora._register_custom_module({nn.Linear: InPlaceLoraLinear})
    with torch.random.fork_rng(devices=[]):  # PEFT makes its layers with torch's own initialization, on the CPU
        inject_adapter_in_model(lora, model, adapter_name=ADAPTER_NAME)
    return _start_adapters(model, settings, component=component)


def _make_patterns(model: nn.Module, targets: list[str], settings: AdapterSettings) -> dict[str, tuple[int, float]]:
    """Return rank and alpha of the layers that have others, by PEFT's patterns: one for all names
    of the same, as PEFT tries every pattern on every name.
    """
    names: dict[tuple[int, float], list[str]] = {}
    for name in targets:
        own = settings.for_name(name).for_size(find_size(model.get_submodule(name)))
        if (own.rank, own.alpha) != (settings.rank, settings.alpha):
            names.setdefault((own.rank, own.alpha), []).append(re.escape(name))
    return {"|".join(alike): own for own, alike in names.items()}


def _start_adapters(model: nn.Module, settings: AdapterSettings, *, component: str) -> list[nn.Parameter]:
    """Set the first weights of all adapters, and return them."""
    parameters: list[nn.Parameter] = []
    for name, layer in find_adapter_layers(model).items():
        generator = generator_for(settings.seed, "lora_init", component, name)
        if isinstance(layer, AdapterLayer):
            layer.start(generator)
            if settings.init_lora_weights == "svd":
                _start_with_singular_vectors(layer.adapter["down"], layer.base_layer, generator)
            parameters += list_matrices(layer).values()
            continue
        down, up = layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
        assert isinstance(down, (nn.Linear, nn.Conv2d)) and isinstance(up, (nn.Linear, nn.Conv2d))
        nn.Sequential(down, up).float()  # whatever the base's dtype: below lr 1e-4 a bf16 adapter stops moving
        bound = 1 / math.sqrt(down.weight[0].numel())
        draw = torch.rand(down.weight.shape, generator=generator)
        with torch.no_grad():
            down.weight.copy_((2 * draw - 1) * bound)
            up.weight.zero_()
        if settings.init_lora_weights == "svd":
            _start_with_singular_vectors(down.weight, get_base_layer(layer), generator)
        nn.Sequential(down, up).requires_grad_(True)
        parameters += list_matrices(layer).values()
    return parameters


@torch.no_grad()
def _start_with_singular_vectors(down: Tensor, base_layer: nn.Module, generator: torch.Generator) -> None:
    """Set `down` to the top right singular vectors of the frozen weight, over sqrt(3): its rows are
    then as long as with kaiming on average. Ranks above those of the weight stay as they are.
    """
    weight = read_weight(base_layer, torch.float32).flatten(1)
    vectors = find_right_singular_vectors(weight, len(down), generator)
    down[: len(vectors)].copy_(vectors.view(-1, *down.shape[1:]) / math.sqrt(3))


class InPlaceLoraLinear(PeftLinear):
    """PEFT's LoRA layer in fewer operations: one in-place product computes the update and adds it
    to the base layer's output.

    The numbers are the same. A training step takes a tenth less time than with PEFT's forward, and
    no layer keeps a second output.
    """

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        # two-dimensional: otherwise the output is a view, and autograd copies a view before it
        # writes into it
        rows = x.flatten(0, -2)
        output = self.base_layer(rows)
        low_rank = self.lora_A[ADAPTER_NAME](self.lora_dropout[ADAPTER_NAME](rows))
        up = self.lora_B[ADAPTER_NAME].get_parameter("weight")
        output.addmm_(low_rank, up.t(), alpha=self.scaling[ADAPTER_NAME])
        return output.unflatten(0, x.shape[:-1])


def wrap_linear_layers(
    model: nn.Module, targets: list[str], settings: AdapterSettings, *, component: str, device: torch.device
) -> list[nn.Parameter]:
    """Do what attach_adapters does, for linear layers of whatever class, with the adapters on
    `device`.
    """
    model.requires_grad_(False)
    for name in targets:
        _wrap_layer(model, name, settings, device)
    return _start_adapters(model, settings, component=component)


def _wrap_layer(model: nn.Module, name: str, settings: AdapterSettings, device: torch.device) -> None:
    make = choose_layer(settings) or LoraLinear
    _replace(model, name, make(model.get_submodule(name), settings.for_name(name), device))


def unwrap_linear_layer(model: nn.Module, name: str) -> None:
    """Take the adapter of a layer away again."""
    layer = model.get_submodule(name)
    assert isinstance(layer, WrappedLayer)
    _replace(model, name, layer.base_layer)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own_name = name.rpartition(".")
    setattr(model.get_submodule(parent), own_name, layer)


def find_adapter_layers(model: nn.Module) -> dict[str, AnyAdapterLayer]:
    """Return the model's layers with adapters by the names of the layers that they replaced."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (LoraLayer, LoraLinear, AdapterLayer))
    }


def list_adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return what is trained of the model, layer by layer."""
    return [matrix for layer in find_adapter_layers(model).values() for matrix in list_matrices(layer).values()]


def group_parameters(
    model: nn.Module,
    name: str,
    learning_rate: float,
    layer_rates: Mapping[str, float],
    *,
    loraplus_lr_ratio: float = 0.0,
) -> list[ParameterGroup]:
    """Group what is trained of a model by its peak learning rate: that of the layer in
    `layer_rates`, or `learning_rate`, whose group comes first. With `loraplus_lr_ratio`, that of
    `up` is so many times as high (LoRA+).
    """
    groups: dict[float, list[nn.Parameter]] = {learning_rate: []}
    for path, layer in find_adapter_layers(model).items():
        rate = layer_rates.get(path, learning_rate)
        for matrix_name, matrix in list_matrices(layer).items():
            factor = loraplus_lr_ratio if loraplus_lr_ratio and matrix_name == "up" else 1.0
            groups.setdefault(rate * factor, []).append(matrix)
    return [ParameterGroup(name, parameters, rate) for rate, parameters in groups.items() if parameters]


def list_frozen_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return all other parameters."""
    trained = {id(matrix) for matrix in list_adapter_parameters(model)}
    return [parameter for parameter in model.parameters() if id(parameter) not in trained]
