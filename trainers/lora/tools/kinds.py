"""What a module of any kind of adapter does to its layer: LoRA, LoRA with Tucker decomposition,
LoHa and LoKr, each as an equal update of low rank.

The formulas are LyCORIS' (https://arxiv.org/abs/2309.14859); scales are ComfyUI's.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..modules import LoraModule

Parts = Mapping[str, Tensor]  # by the last part of kohya's names, such as "lora_up.weight"

UP, DOWN, MID, ALPHA = "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha"
MAGNITUDE = "dora_scale"
DIFFERENCES = ("diff", "diff_b")


def name_kind(parts: Parts) -> str:
    """Return what the module is, such as "LoRA" or "DoRA"."""
    if MAGNITUDE in parts:
        return "DoRA"
    if UP in parts or DOWN in parts:
        return "LoRA"
    if any(name.startswith("hada_") for name in parts):
        return "LoHa"
    if any(name.startswith("lokr_") for name in parts):
        return "LoKr"
    return "difference" if any(name in parts for name in DIFFERENCES) else "nothing"


def to_low_rank(parts: Parts, label: str) -> LoraModule:
    """Return an update that is equal to the module's, without loss. LoHa of rank R becomes rank
    R * R, LoKr the product of its factors' ranks.

    Raises:
        ValueError: it is incomplete, a kind that depends on the base model's weights (DoRA), or
            not an update of low rank.
    """
    kind = name_kind(parts)
    try:
        match kind:
            case "LoRA":
                return _read_lora(parts)
            case "LoHa":
                return _read_loha(parts)
            case "LoKr":
                return _read_lokr(parts)
    except KeyError as error:
        raise ValueError(f"{label} has no {error.args[0]}; the file is not complete") from error
    except RuntimeError as error:  # torch's word for sizes that do not go together
        raise ValueError(f"{label}: its tensors do not belong together ({error})") from error
    if kind == "DoRA":
        raise ValueError(
            f"{label} is a DoRA: what it does depends on the base model's weights. Apply it to the model in ComfyUI "
            "and extract the difference with Extract LoRA"
        )
    raise ValueError(f"{label} is a whole weight difference, not an update of low rank")


def _read_lora(parts: Parts) -> LoraModule:
    down, up = parts[DOWN], parts[UP]
    if MID in parts:  # [R, R2, height, width] between up [O, R, 1, 1] and down [R2, I, 1, 1]
        down = torch.einsum("rshw,si->rihw", parts[MID].float(), down.float().flatten(1))
    if up.shape[1] != down.shape[0]:
        raise RuntimeError(f"down {list(down.shape)}, up {list(up.shape)}")
    return LoraModule(down, up, _read_alpha(parts, parts[DOWN].shape[0]))


def _read_loha(parts: Parts) -> LoraModule:
    rank = parts["hada_w1_b"].shape[0]
    alpha = _read_alpha(parts, rank)
    if "hada_t1" in parts:
        halves = [
            torch.einsum("rshw,ro,si->oihw", parts[f"hada_t{half}"].float(), *_get_halves(parts, half))
            for half in (1, 2)
        ]
        return _from_matrix(halves[0] * halves[1], alpha / rank)
    (up_1, down_1), (up_2, down_2) = (_get_halves(parts, half) for half in (1, 2))
    # (A1 B1) * (A2 B2) = [columns of A1 times columns of A2] [rows of B1 times rows of B2]
    up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1)
    down = (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1)
    return LoraModule(down, up, alpha / rank * up.shape[1])


def _get_halves(parts: Parts, half: int) -> tuple[Tensor, Tensor]:
    return parts[f"hada_w{half}_a"].float(), parts[f"hada_w{half}_b"].float()


def _read_lokr(parts: Parts) -> LoraModule:
    (up_1, down_1), rank_1 = _factor_kronecker(parts, 1)
    (up_2, down_2), rank_2 = _factor_kronecker(parts, 2)
    rank = rank_2 or rank_1
    scale = _read_alpha(parts, rank) / rank if rank else 1.0
    # kron(A1 B1, A2 B2) = kron(A1, A2) kron(B1, B2); a kernel belongs to the second
    kernel = down_2.shape[2:]
    up = torch.kron(up_1, up_2)
    down = torch.kron(down_1.reshape(*down_1.shape, *[1] * len(kernel)), down_2)
    return LoraModule(down, up.reshape(*up.shape, *[1] * len(kernel)), scale * up.shape[1])


def _factor_kronecker(parts: Parts, half: int) -> tuple[tuple[Tensor, Tensor], int]:
    """Return a factor of LoKr as up [O, R] and down [R, I] or [R, I, height, width], and the rank
    that its scale counts with: 0 if it is a whole matrix.
    """
    whole, first, second = (f"lokr_w{half}{end}" for end in ("", "_a", "_b"))
    if whole in parts:
        return _factor_matrix(parts[whole].float()), 0
    up, down = parts[first].float(), parts[second].float()
    if "lokr_t2" in parts and half == 2:
        whole_matrix = torch.einsum("rshw,ro,si->oihw", parts["lokr_t2"].float(), up, down).contiguous()
        return _factor_matrix(whole_matrix), down.shape[0]
    return (up, down), down.shape[0]


def _from_matrix(weight: Tensor, scale: float) -> LoraModule:
    up, down = _factor_matrix(weight)
    return LoraModule(down, up.reshape(*up.shape, *[1] * (weight.ndim - 2)), scale * up.shape[1])


def _factor_matrix(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight [O, I, ...] as up [O, R] and down [R, I, ...]; one is the identity."""
    if weight.shape[0] <= weight[0].numel():
        return torch.eye(weight.shape[0]), weight
    identity = torch.eye(weight[0].numel())
    return weight.flatten(1), identity.reshape(-1, *weight.shape[1:])


def _read_alpha(parts: Parts, rank: int) -> float:
    alpha = float(parts[ALPHA].item()) if ALPHA in parts else float(rank)
    if not math.isfinite(alpha):
        raise RuntimeError(f"alpha is {alpha}")
    return alpha
