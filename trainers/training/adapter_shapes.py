"""What the adapter of a layer consists of: its matrices and their shapes, for every kind."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from .config import TrainingConfig
from .layer_values import find_layer_values, read_layer_values

Shapes = dict[str, tuple[int, ...]]  # by the names of the matrices in lora/modules.py


@dataclass(frozen=True)
class AdapterSettings:
    """`alpha` acts as alpha / rank, also with rsLoRA. With `conv_rank`, convolutions with a kernel
    above one pixel have a rank and alpha of their own; so have the layers named in `of_layers`.
    """

    rank: int
    alpha: float
    dropout: float
    seed: int
    kind: str = "lora"
    lokr_factor: int = -1
    lokr_decompose_both: bool = False
    lokr_full_matrix: bool = False
    conv_rank: int = 0
    conv_alpha: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    tlora_min_rank: int = 0
    init_lora_weights: str = "kaiming"
    of_layers: dict[str, tuple[int, float]] = field(default_factory=dict)  # rank and alpha

    @classmethod
    def of(cls, config: TrainingConfig, names: Sequence[str] = ()) -> "AdapterSettings":
        """Return the settings of a run that trains these layers of the model. Without names: those
        of all layers that network_reg_dims does not choose.

        Raises:
            ValueError: network_reg_dims does not suit the names.
        """
        conv_rank = getattr(config, "conv_rank", 0)  # only SDXL has it
        conv_alpha = getattr(config, "conv_alpha", 0.0) or config.alpha / config.rank * conv_rank
        return cls(
            rank=config.rank,
            alpha=_find_alpha(config.alpha, config.rank, use_rslora=config.use_rslora),
            dropout=config.lora_dropout,
            seed=config.seed,
            kind=config.adapter,
            lokr_factor=config.lokr_factor,
            lokr_decompose_both=config.lokr_decompose_both,
            lokr_full_matrix=config.lokr_full_matrix,
            conv_rank=conv_rank,
            conv_alpha=_find_alpha(conv_alpha, conv_rank, use_rslora=config.use_rslora),
            rank_dropout=config.rank_dropout,
            module_dropout=config.module_dropout,
            tlora_min_rank=config.tlora_min_rank,
            init_lora_weights=config.init_lora_weights,
            of_layers=_find_of_layers(config, names) if names else {},
        )

    def for_name(self, name: str) -> "AdapterSettings":
        """Return the settings of the layer of that name."""
        if name not in self.of_layers:
            return self
        rank, alpha = self.of_layers[name]
        return replace(self, rank=rank, alpha=alpha, conv_rank=0, of_layers={})

    def for_size(self, size: "LayerSize") -> "AdapterSettings":
        """Return the settings of a layer of that size."""
        if not self.conv_rank or math.prod(size.kernel) == 1:
            return self
        return replace(self, rank=self.conv_rank, alpha=self.conv_alpha)


def find_highest_rank(config: TrainingConfig) -> int:
    """Return the highest rank that a layer may have."""
    ranks = read_layer_values(config.network_reg_dims, setting="network_reg_dims").values()
    return max(config.rank, getattr(config, "conv_rank", 0), *map(int, ranks))


def _find_of_layers(config: TrainingConfig, names: Sequence[str]) -> dict[str, tuple[int, float]]:
    found = find_layer_values(config.network_reg_dims, names, setting="network_reg_dims")
    ranks = {name: int(rank) for name, rank in found.items()}
    return {
        name: (rank, _find_alpha(config.alpha / config.rank * rank, rank, use_rslora=config.use_rslora))
        for name, rank in ranks.items()
    }


def _find_alpha(alpha: float, rank: int, *, use_rslora: bool) -> float:
    """rsLoRA acts as alpha / sqrt(rank) (Kalajdzievski 2023). Files know alpha / rank only."""
    return alpha * math.sqrt(rank) if use_rslora else alpha


@dataclass(frozen=True)
class LayerSize:
    """A linear layer, or a convolution with the sides of its kernel."""

    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()


def count_parameters(sizes: Iterable[LayerSize], settings: AdapterSettings) -> int:
    """Count what is trained of layers that have these settings."""
    return sum(math.prod(shape) for size in sizes for shape in list_shapes(size, settings).values())


def list_shapes(size: LayerSize, settings: AdapterSettings) -> Shapes:
    """List the matrices of a layer's adapter, in the order in which they are trained and saved."""
    settings = settings.for_size(size)
    outputs, inputs, kernel, rank = size.outputs, size.inputs, size.kernel, settings.rank
    fan_in = inputs * math.prod(kernel)
    if settings.kind == "loha":
        return {"w1_a": (outputs, rank), "w1_b": (rank, fan_in), "w2_a": (outputs, rank), "w2_b": (rank, fan_in)}
    if settings.kind == "lokr":
        return _list_lokr_shapes(size, settings)
    lora: Shapes = {"down": (rank, inputs, *kernel), "up": (outputs, rank, *(1 for _ in kernel))}
    return {**lora, "offset": (inputs,)} if settings.kind == "dora" else lora


def _list_lokr_shapes(size: LayerSize, settings: AdapterSettings) -> Shapes:
    """By LyCORIS' rule, a factor is whole where a low rank would save nothing."""
    small_out, large_out = factorize(size.outputs, settings.lokr_factor)
    small_in, large_in = factorize(size.inputs, settings.lokr_factor)
    rank, is_full = settings.rank, settings.lokr_full_matrix
    shapes: Shapes = {}
    if settings.lokr_decompose_both and not is_full and rank < max(small_out, small_in) / 2:
        shapes |= {"w1_a": (small_out, rank), "w1_b": (rank, small_in)}
    else:
        shapes["w1"] = (small_out, small_in)
    if not is_full and rank < max(large_out, large_in) / 2:
        shapes |= {"w2_a": (large_out, rank), "w2_b": (rank, large_in * math.prod(size.kernel))}
    else:
        shapes["w2"] = (large_out, large_in, *size.kernel)
    return shapes


def factorize(dimension: int, factor: int) -> tuple[int, int]:
    """Split a dimension into two factors, the smaller one first, by LyCORIS' rule: `factor` if it
    divides the dimension, else the largest divisor below it, and with -1 the two that are closest
    to each other.
    """
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    limit = math.isqrt(dimension) if factor < 0 else min(factor, math.isqrt(dimension))
    small = next(divisor for divisor in range(limit, 0, -1) if dimension % divisor == 0)
    return small, dimension // small
