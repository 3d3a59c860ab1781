"""The LoRA file: its names, writing it, reading every common spelling of it, and verifying it.
Metadata: lora_metadata.py.

Written are kohya's names in LDM form with `.alpha`, the one form that ComfyUI, Forge, A1111,
sd-scripts and diffusers all load whole and at the right strength.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..files.atomic_write import atomic_write
from ..sdxl.model.layout import bare_text_name, unet_to_ldm
from .header import serialize, tensor_hashes

Component = Literal["unet", "text_encoder", "text_encoder_2"]
ModuleKey = tuple[Component, str]


@dataclass(frozen=True)
class LoraModule:
    """One layer's update: alpha / rank * up @ down.

    Linear: down [rank, in], up [out, rank]. Convolution: down [rank, in, kernel, kernel], up [out,
    rank, 1, 1].
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class Verification:
    """What loading a saved file back showed; `up_norm` is the Euclidean norm of all its up
    weights.
    """

    num_modules: int
    num_expected: int
    up_norm: float

    def text(self) -> str:
        return f"{self.num_modules}/{self.num_expected} modules load"


def weighted_modules(model: nn.Module) -> list[str]:
    """The paths of all modules with a weight, the same with and without PEFT's adapters
    attached.
    """
    weights = [name for name in model.state_dict() if name.endswith(".weight") and ".lora_" not in name]
    return [name.removesuffix(".weight").removesuffix(".base_layer") for name in weights]


def module_key(component: Component, path: str) -> ModuleKey:
    """The key of a module, the same for every transformers version: 5.x dropped the level
    `text_model` from CLIPTextModel only.
    """
    return (component, path if component == "unet" else bare_text_name(path))


def kohya_names(
    unet_modules: Iterable[str], te1_modules: Iterable[str], te2_modules: Iterable[str]
) -> dict[ModuleKey, str]:
    """The kohya name of every module, `lora_unet_input_blocks_4_1_proj_in` for
    `down_blocks.1.attentions.0.proj_in`.

    Give all modules that `weighted_modules` finds, not only those that are trained: the LDM block
    numbers count blocks without an adapter too, and a file that is read may hold more modules than
    are trained.
    """
    unet_names = {
        module_key("unet", path): _flat(f"lora_unet_{name}") for path, name in unet_to_ldm(unet_modules).items()
    }
    te1_names = {module_key("text_encoder", path): _text_encoder_name("lora_te1_", path) for path in te1_modules}
    te2_names = {module_key("text_encoder_2", path): _text_encoder_name("lora_te2_", path) for path in te2_modules}
    return {**unet_names, **te1_names, **te2_names}


def _text_encoder_name(prefix: str, path: str) -> str:
    path = bare_text_name(path)
    level = "" if path == "text_projection" else "text_model_"
    return _flat(prefix + level + path)


def _flat(name: str) -> str:
    return name.replace(".", "_")


def to_kohya(
    modules: Mapping[ModuleKey, LoraModule], names: Mapping[ModuleKey, str], *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The file's tensors: contiguous, on the CPU, in the order of `names` whatever the order of
    `modules`.
    """
    unknown = [key for key in modules if key not in names]
    if unknown:
        raise ValueError(
            f"{len(unknown)} LoRA modules have no place in the model: {_first(' '.join(key) for key in unknown)}"
        )
    state_dict = {}
    for key, name in names.items():
        if key not in modules:
            continue
        module = modules[key]
        state_dict[f"{name}.lora_down.weight"] = _exported(module.down, dtype)
        state_dict[f"{name}.lora_up.weight"] = _exported(module.up, dtype)
        state_dict[f"{name}.alpha"] = _alpha_tensor(module.alpha, dtype)
    return state_dict


def _exported(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to("cpu", dtype, copy=True).contiguous()


def _alpha_tensor(alpha: float, dtype: torch.dtype) -> Tensor:
    """A scalar; float32 where the file's dtype would round it, because that would change the
    strength of the whole module.
    """
    rounded = torch.tensor(alpha, dtype=dtype)
    return rounded if rounded.item() == alpha else torch.tensor(alpha, dtype=torch.float32)


def save_lora(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a `.safetensors` file, whole or not at all, with the hashes by which model managers
    find it again.

    Raises:
        FileExistsError: the name is taken; nothing is overwritten.
        OSError: the disk is full or the folder cannot be written.
    """
    tensors = dict(state_dict)
    header = {**metadata, **tensor_hashes(tensors, metadata)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(serialize(tensors, header))


def verify_lora(
    path: Path, names: Mapping[ModuleKey, str], *, expected: Collection[ModuleKey] | None = None
) -> Verification:
    """Load a file that was just written and check that it holds what was trained: the `expected`
    modules, by default all of `names`.

    Raises:
        RuntimeError: it cannot be read, a module is missing or was not trained, a value is not
            finite, or all updates are zero.
    """
    expected = dict.fromkeys(names if expected is None else expected)
    try:
        modules = read_lora(path, names)
    except ValueError as error:
        raise RuntimeError(f"the saved LoRA cannot be loaded: {error}") from error
    _check_complete(path, modules, names, expected)
    broken = [names[key] for key, module in modules.items() if not _is_finite(module)]
    if broken:
        raise RuntimeError(
            f"{path}: {len(broken)} of {len(modules)} modules hold values that are not finite: {_first(broken)}"
        )
    up_norm = math.sqrt(sum(module.up.double().square().sum().item() for module in modules.values()))
    if up_norm == 0:
        raise RuntimeError(
            f"{path}: all up weights are zero, so the LoRA changes nothing. Was the learning rate 0, or was nothing "
            "trained?"
        )
    return Verification(num_modules=len(modules), num_expected=len(expected), up_norm=up_norm)


def require_same_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Load a file that was just written, of whatever LoRA, and compare it with what it was written
    from.

    Raises:
        RuntimeError: it is not the same, a value is not finite, or all weights are zero.
    """
    found, _ = _load(path)
    different = [
        name
        for name in {**tensors, **found}
        if name not in found or name not in tensors or not torch.equal(found[name], tensors[name])
    ]
    if different:
        raise RuntimeError(
            f"{path}: {len(different)} tensors are not what was written: {_first(different)}. Is the disk damaged?"
        )
    broken = [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise RuntimeError(f"{path}: {len(broken)} tensors hold values that are not finite: {_first(broken)}")
    ups = [tensor for name, tensor in found.items() if name.endswith((".lora_up.weight", ".lora_B.weight"))]
    if ups and not any(bool(tensor.any()) for tensor in ups):
        raise RuntimeError(
            f"{path}: all up weights are zero, so the LoRA changes nothing. Was the learning rate 0, or was nothing "
            "trained?"
        )


def _check_complete(
    path: Path, modules: Mapping[ModuleKey, LoraModule], names: Mapping[ModuleKey, str], expected: Collection[ModuleKey]
) -> None:
    missing = [" ".join(key) for key in expected if key not in modules]
    if missing:
        raise RuntimeError(f"{path}: {len(missing)} of {len(expected)} modules are missing: {_first(missing)}")
    surplus = [names[key] for key in modules if key not in expected]
    if surplus:
        raise RuntimeError(f"{path}: {len(surplus)} modules were not trained: {_first(surplus)}")


def _is_finite(module: LoraModule) -> bool:
    return math.isfinite(module.alpha) and bool(module.down.isfinite().all()) and bool(module.up.isfinite().all())


def read_lora(source: Path | Mapping[str, Tensor], names: Mapping[ModuleKey, str]) -> dict[ModuleKey, LoraModule]:
    """The modules of a LoRA file, or of a dict of its tensors (ComfyUI's LORA_MODEL), in the order
    of `names`.

    Read are kohya's names (LDM or diffusers form), PEFT's, diffusers' (new and old) and ComfyUI's
    own trainer's. Alpha is the tensor `.alpha`, else what PEFT's or diffusers' metadata say, else
    the rank. Ranks may differ from module to module. Tensors keep their dtype. ComfyUI's trainer
    flattens a convolution's `down` to [rank, in * kernel * kernel]: reshape it to the layer's.

    Raises:
        ValueError: not a whole `.safetensors` file, not a LoRA, or a LoRA for another model.
    """
    label = "this LoRA" if isinstance(source, Mapping) else str(source)
    tensors, settings = (dict(source), {}) if isinstance(source, Mapping) else _load(Path(source))
    _refuse_other_kinds(tensors, label)
    parts = _parts_by_module(tensors, names, label)
    return {key: _build_module(key, parts[key], settings, f"{label}: {names[key]}") for key in names if key in parts}


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and PEFT settings (rank, alpha, patterns; empty when there are none) of a file."""
    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{path}: only .safetensors files are read. A .pt, .bin or .ckpt file is a pickle, which can run any "
            "code when it is opened"
        )
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole .safetensors file ({error}). Download or copy it again") from error
    return tensors, _peft_settings(path, metadata)


def _peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """diffusers writes them into the header, PEFT into a file of their own beside
    `adapter_model.safetensors`.
    """
    if "lora_adapter_metadata" in metadata:
        return json.loads(metadata["lora_adapter_metadata"])
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        return json.loads(beside.read_text(encoding="utf-8"))
    return {}


_OTHER_KINDS = (
    (r"\.(dora_scale|lora_magnitude_vector)(\.|$)", "a DoRA"),
    (r"\.hada_", "a LoHa"),
    (r"\.lokr_", "a LoKr"),
    (r"\.lora_mid\.", "a LoCon with Tucker decomposition (lora_mid)"),
    (r"\.b?oft_", "an OFT"),
    (r"\.[ab][12]\.weight$", "a GLoRA"),
    (r"\.on_input$", "an IA3"),
    (r"\.lora_[AB](\.\w+)?\.bias$", "a LoRA with biases"),
    (r"\.(diff|diff_b|set_weight|w_norm|b_norm|reshape_weight)$", "a LoRA mixed with whole weight differences (.diff)"),
    (r"^(string_to_param|emb_params|clip_[lg]$)", "a textual inversion embedding"),
)


def _refuse_other_kinds(tensors: Mapping[str, Tensor], label: str) -> None:
    for pattern, kind in _OTHER_KINDS:
        found = next((name for name in tensors if re.search(pattern, name)), None)
        if found:
            raise ValueError(f"{label}: this file is {kind} ({found}); only plain LoRA can be continued")


_FACTOR = re.compile(
    r"(?P<base>.+?)"
    r"(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<role>down|up|A|B)"
    r"(?:\.(?!weight$|bias$)\w+)?"  # PEFT's name of the adapter
    r"(?:\.weight)?"
)
_ALPHA = re.compile(r"(?P<base>.+?)(?:[._]lora|\.lora_linear_layer)?\.(?P<role>alpha)")
_ROLES = {"A": "down", "B": "up"}


def _parts_by_module(
    tensors: Mapping[str, Tensor], names: Mapping[ModuleKey, str], label: str
) -> dict[ModuleKey, dict[str, Tensor]]:
    """The tensors "down", "up" and "alpha" of each module."""
    aliases = _aliases(names)
    parts: dict[ModuleKey, dict[str, Tensor]] = {}
    unmatched = []
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name) or _ALPHA.fullmatch(name)
        key = aliases.get(_plain_base(match["base"])) if match else None
        if match is None or key is None:
            unmatched.append(name)
            continue
        role = _ROLES.get(match["role"], match["role"])
        if role in parts.setdefault(key, {}):
            raise ValueError(f"{label}: {names[key]} appears twice, once as {name}")
        parts[key][role] = tensor
    if unmatched or not tensors:
        raise ValueError(
            f"{label}: {len(unmatched)} of {len(tensors)} keys do not fit this model: {_first(unmatched)}. "
            f"{_looks_like(tensors)}"
        )
    return parts


def _plain_base(base: str) -> str:
    """`unet.down_blocks.1...attn1.processor.to_q` and the like, without the levels of wrappers,
    underscores for dots.
    """
    return _flat(base.replace("base_model.model.", "").replace(".processor.", "."))


_PREFIXES: dict[Component, tuple[str, ...]] = {
    "unet": ("lora_unet_", "unet_", "diffusion_model_", "lycoris_", ""),
    "text_encoder": ("lora_te1_", "lora_te_", "text_encoder_", "text_encoders_clip_l_transformer_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_", "text_encoders_clip_g_transformer_"),
}


def _aliases(names: Mapping[ModuleKey, str]) -> dict[str, ModuleKey]:
    """Every spelling of every module, underscores for dots. A text encoder without a prefix is not
    among them: it could be either.
    """
    return {
        prefix + spelling: key
        for key, name in names.items()
        for prefix in _PREFIXES[key[0]]
        for spelling in _spellings(key, name)
    }


def _spellings(key: ModuleKey, kohya_name: str) -> set[str]:
    component, path = key
    flat = _flat(path)
    if component == "unet":
        return {
            kohya_name.removeprefix("lora_unet_"),
            flat,
            flat.removesuffix("_0") if flat.endswith("_to_out_0") else flat,
        }
    old = re.sub(r"self_attn_(q|k|v|out)_proj$", r"self_attn_to_\1", flat)  # diffusers before 0.20
    return {level + spelling for level in ("", "text_model_") for spelling in (flat, old)}


def _build_module(key: ModuleKey, parts: Mapping[str, Tensor], settings: Mapping[str, Any], label: str) -> LoraModule:
    missing = [role for role in ("down", "up") if role not in parts]
    if missing:
        raise ValueError(f"{label} has no {' and no '.join(missing)} weight; the file is not whole")
    down, up = parts["down"], parts["up"]
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
        raise ValueError(f"{label}: down {list(down.shape)} and up {list(up.shape)} do not belong together")
    alpha = parts["alpha"].item() if "alpha" in parts else _alpha_from_settings(key, down.shape[0], settings)
    return LoraModule(down, up, float(alpha))


def _alpha_from_settings(key: ModuleKey, rank: int, settings: Mapping[str, Any]) -> float:
    """PEFT's rule: `alpha_pattern` by the end of the module's path, else `lora_alpha`; rsLoRA
    divides by sqrt(rank) instead of rank.
    """
    component, path = key
    prefix = f"{component}."
    prefixed = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    values = prefixed or (settings if component == "unet" else {})
    alpha = values.get("lora_alpha", rank)
    for pattern, special in (values.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", f"text_model.{path}"):
            alpha = special
            break
    return alpha * math.sqrt(rank) if values.get("use_rslora") else alpha


_ARCHITECTURES = (
    (r"(lora_prior_unet|prior_te)", "Stable Cascade"),
    (r"(double_blocks|single_blocks|single_transformer_blocks)", "Flux or HunyuanVideo"),
    (r"(joint_blocks|context_block|transformer_blocks.*add_[qkv]_proj)", "SD 3 or Qwen-Image"),
    (r"(img_mod|txt_mod|img_mlp)", "Qwen-Image"),
    (r"(adaLN_modulation|adaln_modulation|feed_forward)", "Lumina or Z-Image"),
    (r"blocks[._]\d+[._](self_attn|cross_attn|ffn)", "Wan"),
)
_CROSS_ATTENTION_WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the SDXL refiner", 2048: "SDXL of another layout"}


def _looks_like(tensors: Mapping[str, Tensor]) -> str:
    if not any(_FACTOR.fullmatch(name) for name in tensors):
        return "The file holds no LoRA weights; is it a whole model?"
    for pattern, architecture in _ARCHITECTURES:
        if any(re.search(pattern, name) for name in tensors):
            return f"It looks like a LoRA for {architecture}"
    width = next(
        (
            tensor.shape[-1]
            for name, tensor in tensors.items()
            if re.search(r"attn2.*to[._]k.*(down|lora_A)", name) and tensor.ndim == 2
        ),
        0,
    )
    return f"It looks like a LoRA for {_CROSS_ATTENTION_WIDTHS.get(width, 'another model')}"


def _first(entries: Iterable[str], count: int = 3) -> str:
    listed = list(entries)
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")
