"""Any state_dict as named tensors and one JSON value, and back: nested dicts, lists, tuples,
numbers, texts, None and tensors.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Packed = tuple[Any, dict[str, Tensor]]
_TENSOR, _TUPLE, _DICT = "tensor", "tuple", "dict"


def pack(value: Any) -> Packed:
    """Return a value of JSON types, and the tensors that it refers to: copies on the CPU.

    Raises:
        TypeError: there is something of another type in it.
    """
    tensors: dict[str, Tensor] = {}

    def add(tensor: Tensor) -> str:
        name = str(len(tensors))
        tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return name

    return _pack(value, add), tensors


def _pack(value: Any, add: Callable[[Tensor], str]) -> Any:
    if isinstance(value, Tensor):
        return {_TENSOR: add(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_pack(each, add) for each in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_pack(each, add) for each in value]}
    if isinstance(value, dict):
        return {_DICT: [[_pack(key, add), _pack(each, add)] for key, each in value.items()]}
    raise TypeError(f"{type(value).__name__} cannot be kept")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what was packed. The tensors are those given, not copies."""
    if isinstance(value, list):
        return [unpack(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _TUPLE:
        return tuple(unpack(each, tensors) for each in content)
    return {unpack(key, tensors): unpack(each, tensors) for key, each in content}
