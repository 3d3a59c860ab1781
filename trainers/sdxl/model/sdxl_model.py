"""An SDXL base model: its four parts as diffusers and transformers modules, from a checkpoint, a
diffusers folder or weights in memory.

Nothing is downloaded, and every weight is in memory once. The configs come from the shapes of the
weights, the modules are built on torch's meta device, and the tensors, read from the file in their
own dtype, become their parameters.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ...files.hashes import file_sha256, legacy_file_hash
from ...files.tensor_hash import hash_named_tensors
from ...files.text_input import parse_json
from ...files.weight_file import FileVersion, WeightFile, is_unchanged, open_weights
from ...wording import name_examples
from .inspect_weights import (
    PART_NAMES,
    check_config,
    check_text_widths,
    is_weight,
    refuse_missing_parts,
    refuse_other_checkpoints,
    refuse_other_unets,
    refuse_quantized,
    text_encoder_config,
    unet_config,
    vae_config,
)
from .layout import (
    LDM_PREFIX,
    PARTS,
    Part,
    bare_text_name,
    is_vae_attention_matrix,
    ldm_to_text_encoder_2,
    ldm_to_unet,
    ldm_to_vae,
    modern_vae_names,
)
from .noise_schedule import NOISE_SCHEDULE

logger = logging.getLogger(__name__)

PredictionType = Literal["epsilon", "v_prediction"]
StateDict = Mapping[str, Tensor]

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_FILE_STEMS: dict[Part, str] = {
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "vae": "diffusion_pytorch_model",
}


@dataclass(eq=False)
class SDXLModel:
    """The parts, frozen and in evaluation mode. Set a part to None to free its memory."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | None
    text_encoder_2: CLIPTextModelWithProjection | None
    vae: AutoencoderKL | None
    prediction_type: PredictionType
    zero_terminal_snr: bool
    name: str
    path: Path | None = None
    version: FileVersion | None = None  # of the checkpoint file, where it was read

    @cached_property
    def sha256(self) -> str | None:
        """The hash of the checkpoint file; None for a folder, weights in memory, or a file that is
        not the one that was read.
        """
        return file_sha256(self.path) if self.path and self._is_whole_file() else None

    @cached_property
    def legacy_hash(self) -> str | None:
        """The 8-digit hash of the checkpoint file that old A1111 versions and kohya's metadata
        use.
        """
        return legacy_file_hash(self.path) if self.path and self._is_whole_file() else None

    def _is_whole_file(self) -> bool:
        if self.path is None or not self.path.is_file():
            return False
        if self.version is None or is_unchanged(self.path, self.version):
            return True
        logger.warning("%s has changed since it was loaded, so the LoRA's header does not name its hash", self.path)
        return False

    def part_hash(self, part: Part) -> str:
        """Return the sha256 over names, shapes, dtypes and bytes of a part's weights. Call it
        before adapters are attached: they rename layers.
        """
        module: nn.Module | None = getattr(self, part)
        if module is None:
            raise RuntimeError(f"the {PART_NAMES[part]} is no longer in memory, or was never loaded")
        weights = {bare_text_name(name): weight for name, weight in module.state_dict().items()}
        return hash_named_tensors(weights, hashlib.sha256())


def load_model(path: Path) -> SDXLModel:
    """Load a single .safetensors checkpoint or a diffusers folder.

    Raises:
        ValueError: the file is missing, damaged, a pickle, quantized, incomplete or not SDXL; the
            message says which and what to do.
        RuntimeError: it was changed while it was read.
    """
    path = Path(path)
    try:
        return _load_folder(path) if path.is_dir() else _load_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_header(path: Path) -> None:
    """Check a single .safetensors checkpoint as load_model does, as far as its header tells.

    Raises:
        ValueError: as load_model.
    """
    try:
        _refuse_other_files(path)
        with _open(path) as file:
            _choose_weights(file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def build_model(
    state_dicts: Mapping[Part, StateDict],
    *,
    prediction_type: PredictionType = "epsilon",
    zero_terminal_snr: bool = False,
    name: str,
    path: Path | None = None,
    version: FileVersion | None = None,
) -> SDXLModel:
    """Build a model on the given tensors without copying them.

    Names are those of diffusers and transformers; in text encoders the level "text_model." is
    optional. Parts other than the UNet may be left out. Inference tensors do not work.

    Raises:
        ValueError: the weights are not those of an SDXL model.
    """
    weights = {part: _select_weights(part, tensors) for part, tensors in state_dicts.items()}
    shapes = {
        part: {name: tuple(tensor.shape) for name, tensor in tensors.items()} for part, tensors in weights.items()
    }
    unet_settings = unet_config(shapes["unet"])
    encoder_settings = {
        part: text_encoder_config(shapes[part], part) for part in ("text_encoder", "text_encoder_2") if part in shapes
    }
    if len(encoder_settings) == 2:
        check_text_widths(unet_settings, **encoder_settings)
    modules = _build_empty_modules(
        unet_settings, encoder_settings, vae_config(shapes["vae"]) if "vae" in shapes else None
    )
    parts: dict[str, Any] = {
        part: _adopt(modules[part], weights[part], part) if part in modules else None for part in PARTS
    }
    return SDXLModel(
        **parts,
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        name=name,
        path=path,
        version=version,
    )


def _build_empty_modules(
    unet_settings: dict[str, Any],
    encoder_settings: Mapping[str, dict[str, Any]],
    vae_settings: dict[str, Any] | None,
) -> dict[Part, nn.Module]:
    """Build the parts that have settings on the meta device."""
    with torch.device("meta"):
        modules: dict[Part, nn.Module] = {"unet": UNet2DConditionModel(**unet_settings)}
        if "text_encoder" in encoder_settings:
            modules["text_encoder"] = CLIPTextModel(CLIPTextConfig(**encoder_settings["text_encoder"]))
        if "text_encoder_2" in encoder_settings:
            config = CLIPTextConfig(**encoder_settings["text_encoder_2"])
            modules["text_encoder_2"] = CLIPTextModelWithProjection(config)
        if vae_settings is not None:
            modules["vae"] = AutoencoderKL(**vae_settings)
    return modules


def _select_weights(part: Part, tensors: StateDict) -> dict[str, Tensor]:
    return {bare_text_name(name): tensor for name, tensor in tensors.items() if is_weight(part, name)}


def _adopt(module: nn.Module, weights: StateDict, part: Part) -> nn.Module:
    """Make `weights` the module's own parameters, frozen."""
    own_names = {bare_text_name(name): name for name in module.state_dict()}
    weights = {own_names.get(name, name): weight for name, weight in weights.items()}
    _check_fit(module.state_dict(), weights, part)
    # before load_state_dict: it gives each new parameter the requires_grad of the old one
    module.requires_grad_(False)
    module.load_state_dict(weights, strict=True, assign=True)
    for owner in module.modules():
        position_ids = owner._buffers.get("position_ids")
        if position_ids is not None:  # not in the state dict, so still on the meta device
            owner.position_ids = torch.arange(position_ids.shape[-1]).expand(1, -1)
    tensors = chain(module.named_parameters(), module.named_buffers())
    left = [name for name, tensor in tensors if tensor.is_meta and name not in weights]
    assert not left, f"without values: {left}"
    return module.eval()


def _check_fit(expected: StateDict, given: StateDict, part: Part) -> None:
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    if missing or unknown:
        raise ValueError(
            f"not an SDXL model: its {PART_NAMES[part]} is missing {_describe_weights(missing)}, unexpected are "
            f"{_describe_weights(unknown)}"
        )
    for name, weight in given.items():
        if weight.shape != expected[name].shape:
            shapes = f"{list(weight.shape)}, not {list(expected[name].shape)}"
            raise ValueError(f"not an SDXL model: {name} of its {PART_NAMES[part]} has shape {shapes}")


def _describe_weights(names: list[str]) -> str:
    return f"{len(names)} weights ({name_examples(names)})" if names else "nothing"


def _load_checkpoint(path: Path) -> SDXLModel:
    _refuse_other_files(path)
    with _open(path) as file:
        names, parts = file.names, _choose_weights(file)
        tensors = {
            part: {name.removeprefix(LDM_PREFIX[part]): tensor for name, tensor in file.read(of_part).items()}
            for part, of_part in parts.items()
        }
    # As in ComfyUI: a checkpoint that predicts v has these keys, with empty tensors.
    predicts_v = "v_pred" in names
    if not predicts_v and states_v_prediction(file.metadata):
        predicts_v = True
        logger.warning(
            "%s: its header says that it predicts v (modelspec.prediction_type), so it is trained so. Set "
            "prediction_type if the header is wrong. ComfyUI does not read the header: put ModelSamplingDiscrete with "
            "v_prediction behind its loader",
            path,
        )
    return build_model(
        {part: from_ldm(part, tensors[part]) for part in PARTS},
        prediction_type="v_prediction" if predicts_v else "epsilon",
        zero_terminal_snr=predicts_v and "ztsnr" in names,
        name=path.stem,
        path=path,
        version=file.version,
    )


def _choose_weights(file: WeightFile) -> dict[Part, list[str]]:
    """List the names of each part's weights. Raises ValueError if the file is not an SDXL model."""
    refuse_other_checkpoints(file.get_shapes(file.names))
    parts: dict[Part, list[str]] = {
        part: [name for name in file.names if name.startswith(LDM_PREFIX[part]) and is_weight(part, name)]
        for part in PARTS
    }
    refuse_quantized(file.get_dtypes(chain.from_iterable(parts.values())))
    return parts


def states_v_prediction(metadata: Mapping[str, str]) -> bool:
    """Tell whether a file's header says that the model predicts v."""
    return metadata.get("modelspec.prediction_type", "").lower().replace("-", "_") in ("v", "v_pred", "v_prediction")


def header_states_v_prediction(path: Path) -> bool:
    with _open(path) as file:
        return states_v_prediction(file.metadata)


def from_ldm(part: Part, tensors: StateDict) -> StateDict:
    """Return the same tensors, or views of them, by diffusers' and transformers' names. `tensors`
    has LDM names without the prefix of the part.
    """
    match part:
        case "unet":
            return {name: tensors[ldm] for ldm, name in ldm_to_unet(tensors).items()}
        case "text_encoder":
            return tensors
        case "text_encoder_2":
            return _from_open_clip(tensors)
        case "vae":
            names = ldm_to_vae(tensors)
            return {
                name: tensors[ldm].flatten(1) if is_vae_attention_matrix(name) else tensors[ldm]
                for ldm, name in names.items()
            }


def _from_open_clip(tensors: StateDict) -> StateDict:
    # Some programs save the projection as a linear layer, already transposed. It is square, so only
    # the name shows that.
    converted = (
        {"text_projection.weight": tensors["text_projection.weight"]} if "text_projection.weight" in tensors else {}
    )
    for open_clip, names in ldm_to_text_encoder_2(name for name in tensors if name not in converted).items():
        weight = tensors[open_clip].T if open_clip == "text_projection" else tensors[open_clip]
        converted |= dict(zip(names, weight.chunk(len(names)), strict=True))
    return converted


def _refuse_other_files(path: Path) -> None:
    if not path.exists():
        raise ValueError("no such file or folder")
    if path.suffix.lower() in _PICKLES:
        raise ValueError(
            f"a {path.suffix} file is a pickle, which can run any code when it is opened. "
            "Choose the .safetensors file of this model; ComfyUI makes one with Load Checkpoint and Save Checkpoint"
        )
    if path.suffix.lower() != ".safetensors":
        raise ValueError("neither a .safetensors file nor a diffusers folder. Choose one of the two")


@contextmanager
def _open(path: Path) -> Iterator[WeightFile]:
    try:
        with open_weights(path) as file:
            yield file
    except SafetensorError as error:
        remedy = "Download or copy it again"
        raise ValueError(
            f"{path.name} is truncated or damaged ({path.stat().st_size:,} bytes; {error}). {remedy}"
        ) from error


def _load_folder(folder: Path) -> SDXLModel:
    if not (folder / "unet").is_dir():
        pipeline = _read_json(folder / "model_index.json").get("_class_name", "no diffusers pipeline")
        raise ValueError(
            f"it has no unet/ folder ({pipeline}). Choose the diffusers folder of an SDXL model, or a .safetensors "
            "checkpoint"
        )
    unet = _read_part(folder, "unet")
    refuse_other_unets({name: tuple(tensor.shape) for name, tensor in unet.items()})
    refuse_missing_parts([part for part in PARTS if not (folder / part).is_dir()])
    prediction_type, zero_terminal_snr = _read_prediction(folder)
    model = build_model(
        {"unet": unet, **{part: _read_part(folder, part) for part in PARTS if part != "unet"}},
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        name=folder.resolve().name,
        path=folder,
    )
    for part in PARTS:
        check_config(_read_json(folder / part / "config.json"), getattr(model, part).config, part)
    return model


def _read_part(folder: Path, part: Part) -> StateDict:
    tensors: dict[str, Tensor] = {}
    for path in _find_part_files(folder / part, _FILE_STEMS[part]):
        with _open(path) as file:
            names = [name for name in file.names if is_weight(part, name)]
            refuse_quantized(file.get_dtypes(names))
            tensors |= file.read(names)
    if part == "vae":
        return {name: tensors[old] for old, name in modern_vae_names(tensors).items()}
    return tensors


def _find_part_files(folder: Path, stem: str) -> list[Path]:
    """List the one file of a part, or the shards of its index. Full precision comes before fp16."""
    for variant in ("", ".fp16"):
        if (folder / f"{stem}{variant}.safetensors").is_file():
            return [folder / f"{stem}{variant}.safetensors"]
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return _list_shards(index)
    found = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    reason = f"only {found[0]}, a pickle, which can run any code when it is opened" if found else "no weights"
    raise ValueError(f"{folder.name}/ has {reason}. It needs {stem}.safetensors; diffusers' save_pretrained writes it")


def _list_shards(index: Path) -> list[Path]:
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing or not names:
        raise ValueError(
            f"{index.parent.name}/ lacks {', '.join(missing) or 'all files'} that {index.name} names. Download or "
            "copy it again"
        )
    return [index.parent / name for name in names]


def _read_prediction(folder: Path) -> tuple[PredictionType, bool]:
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    if not scheduler:
        logger.warning("%s has no scheduler/scheduler_config.json. Assuming an epsilon model, like SDXL base", folder)
    name = scheduler.get("_class_name", "")
    if name.startswith("EDM"):
        raise ValueError(
            f"its scheduler is {name}: it was trained with EDM's noise levels (Playground v2.5), not SDXL's"
        )
    # A model with another noise schedule would be trained wrongly.
    for setting, value in NOISE_SCHEDULE.items():
        if scheduler.get(setting, value) != value:
            raise ValueError(f"its scheduler has {setting} {scheduler[setting]}, SDXL's has {value}")
    prediction_type, zero_terminal_snr = (
        scheduler.get("prediction_type", "epsilon"),
        bool(scheduler.get("rescale_betas_zero_snr", False)),
    )
    match prediction_type:
        case "v_prediction":
            return "v_prediction", zero_terminal_snr
        case "epsilon":
            if zero_terminal_snr:
                logger.warning(
                    "%s: rescale_betas_zero_snr is ignored: an epsilon model learns nothing from pure noise", folder
                )
            return "epsilon", False
    raise ValueError(f"its scheduler has prediction_type {prediction_type!r}; allowed: 'epsilon', 'v_prediction'")


def _read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. A missing file is an empty object."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is not a JSON object")
    return content
