"""A second model on the same memory: the graph's MODEL as modules that autograd accepts.

Everything in the graph is made under torch.inference_mode, and belongs to the graph: the twin has
its own modules, so that adapters and checkpoints can be put into them, and aliases of all weights.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

_REMEDY = "Load a .safetensors file in fp16, bf16, fp32, fp8, int8, mxfp8 or nvfp4 with ComfyUI's own loaders"


def make_twin(patcher: Any) -> Any:
    """Return a twin of the patcher's BaseModel. Patched weights (LoRAs, merges) are computed; all
    others share the graph's memory.

    Call it outside of inference mode.

    Raises:
        ValueError: a weight is in a form that cannot be trained on; the message names it.
    """
    return _copy(patcher, lambda name, weight: _read_weight(patcher, name, weight), alias)


def make_hollow_twin(patcher: Any) -> Any:
    """Return a twin without data, on the meta device: it takes no memory, and its tensors have the
    shapes and dtypes of the graph's.

    Raises:
        ValueError: a weight is in a form that cannot be trained on; the message names it.
    """
    return _copy(patcher, lambda _, weight: hollow(weight), hollow)


def make_twin_without_weights(patcher: Any) -> Any:
    """Return a twin whose weights are on the meta device, to be replaced; its buffers are the
    graph's.

    Raises:
        ValueError: a weight is in a form that cannot be trained on; the message names it.
    """
    return _copy(patcher, lambda _, weight: hollow(weight), alias)


def _copy(patcher: Any, take_weight: Callable[[str, Tensor], Tensor], take_buffer: Callable[[Tensor], Tensor]) -> Any:
    model = patcher.model
    memo: dict[int, Any] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                weight = take_weight(f"{path}.{name}" if path else name, parameter)
                memo[id(parameter)] = nn.Parameter(weight, requires_grad=False)
        for buffer in module._buffers.values():
            if buffer is not None:
                memo[id(buffer)] = take_buffer(buffer) if buffer.numel() else buffer
    # BaseModel cannot be copied deeply: its model_config answers None to every unknown attribute
    twin = copy.copy(model)
    twin._modules = {name: copy.deepcopy(child, memo) for name, child in model._modules.items()}
    twin.current_patcher = None
    sampling = patcher.get_model_object("model_sampling")  # ModelSampling nodes replace it
    twin._modules["model_sampling"] = copy.deepcopy(sampling, {id(b): take_buffer(b) for b in sampling.buffers()})
    return twin


def _read_weight(patcher: Any, name: str, parameter: Tensor) -> Tensor:
    if name not in patcher.patches:
        return alias(parameter)
    with torch.inference_mode():
        patched = patcher.patch_weight_to_device(name, device_to=patcher.load_device, return_weight=True)
    return alias(patched.cpu() if not isinstance(patched, QuantizedTensor) else patched)


def check_weights(patcher: Any) -> None:
    """Check that the weights can be trained on, before anything is done with them.

    Raises:
        ValueError: a weight is in a form that cannot; the message names it.
    """
    matrices: dict[str, Any] = {}  # the smallest of each quantized form
    for parameter in patcher.model.parameters():
        if not isinstance(parameter, QuantizedTensor):
            _require_plain(parameter)
        elif parameter.ndim == 2:
            known = matrices.get(parameter._layout_cls, parameter)
            matrices[parameter._layout_cls] = min(parameter, known, key=lambda matrix: matrix.numel())
    for layout, matrix in matrices.items():
        _require_gradient(layout, matrix)


def _require_gradient(layout: str, matrix: Any) -> None:
    """ComfyUI's kernels for some forms have no backward pass: try one on a matrix of the model."""
    with torch.inference_mode(False), torch.enable_grad():
        values = torch.ones(1, matrix.shape[1], dtype=matrix.dtype, device=matrix.device, requires_grad=True)
        try:
            torch.nn.functional.linear(values, alias(matrix)).sum().backward()
        except RuntimeError as error:
            raise ValueError(
                f"MODEL holds its weights as {layout}, with which this ComfyUI computes no gradients. {_REMEDY}"
            ) from error


def alias(weight: Tensor) -> Tensor:
    """Return a tensor of the current mode on the same memory: autograd refuses tensors that were
    made in inference mode.
    """
    if isinstance(weight, QuantizedTensor):
        return _rebuild_quantized(weight, alias)
    _require_plain(weight)
    found = torch.empty(0, dtype=weight.dtype, device=weight.device)
    return found.set_(weight.untyped_storage(), weight.storage_offset(), weight.size(), weight.stride())


def hollow(weight: Tensor) -> Tensor:
    """Return a tensor without data, on the meta device."""
    if isinstance(weight, QuantizedTensor):
        return _rebuild_quantized(weight, hollow)
    _require_plain(weight)
    return torch.empty(weight.shape, dtype=weight.dtype, device="meta")


def _require_plain(weight: Tensor) -> None:
    if type(weight) not in (Tensor, nn.Parameter):
        raise ValueError(
            f"MODEL holds its weights as {type(weight).__name__}, a quantized form that cannot be trained on. {_REMEDY}"
        )


def _rebuild_quantized(weight: Any, take: Callable[[Tensor], Tensor]) -> Any:
    params = weight._params
    scales = {
        spec.name: take(value)
        for spec in dataclasses.fields(params)
        if isinstance(value := getattr(params, spec.name), Tensor)
    }
    return QuantizedTensor(take(weight._qdata), weight._layout_cls, dataclasses.replace(params, **scales))
