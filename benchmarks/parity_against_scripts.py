"""Compares our training step with the recorded steps of the unmodified sd-scripts and diffusers
scripts, number by number.

Each script trains three steps on the thin model and is recorded (record_step.py). The same images
and captions then go through our dataset, encoders and tokenizer, and the recorded latents, noise,
timesteps and first LoRA weights through our loss, clipping and AdamW. The program prints a table of
differences.

Letters: B batch, C channels, H W latent height and width.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.thin_model import write_images, write_model, write_tokenizers
from trainers.captions.clip_tokenizer import tokenize
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.crop_pixels import read_crop
from trainers.dataset.crop_plan import TrainingItem, plan_crops
from trainers.dataset.scan import scan_folder
from trainers.lora.modules import list_weighted_modules
from trainers.sdxl.encode import encode_image
from trainers.sdxl.model.noise_schedule import alphas_cumprod
from trainers.sdxl.model.sdxl_model import SDXLModel, load_model
from trainers.sdxl.model.size_ids import size_ids
from trainers.sdxl.model.text import PAD_TOKENS, TextEmbeddings, encode_captions
from trainers.sdxl.names import kohya_names, module_key
from trainers.sdxl.objective import add_noise
from trainers.sdxl.step import Batch, Objective, predict, weighted_losses
from trainers.sdxl.targets import find_text_encoder_targets, find_unet_targets
from trainers.training.adapter_layers import ADAPTER_NAME
from trainers.training.adapter_shapes import AdapterSettings
from trainers.training.adapters import attach_adapters, find_adapter_layers
from trainers.training.optimizers import ParameterGroup, make_optimizer

RECORD_STEP = Path(__file__).resolve().parent / "record_step.py"
NUM_STEPS = 3
BATCH_SIZE = 2
IMAGE_HW = (256, 320)
LEARNING_RATE = 1e-4
VAE_SCALE = 0.13025
Recording = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One script with its settings, and the same settings under our names."""

    name: str
    arguments: list[str]
    buckets: BucketConfig
    target_modules: str
    rank: int
    alpha: float
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False
    min_snr_gamma: float = 0.0
    train_text_encoders: bool = False


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_model(work / "model", seed=0)
        write_tokenizers(work)
        write_images(work / "pictures" / "1_toy", size_hw=IMAGE_HW)
        columns = {}
        for index, (python, case) in enumerate(list_cases(options, work)):
            recording = record(case, python, work / f"{index}.safetensors")
            columns[case.name] = compare(case, recording, work)
    print(format_table(columns))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sd-scripts", type=Path, required=True, help="checkout of kohya-ss/sd-scripts")
    parser.add_argument("--sd-scripts-python", default=sys.executable, help="interpreter with its requirements")
    parser.add_argument("--diffusers", type=Path, required=True, help="checkout of huggingface/diffusers")
    parser.add_argument(
        "--diffusers-python", default=sys.executable, help="interpreter with its example's requirements"
    )
    return parser.parse_args()


# ---- the scripts ----


def list_cases(options: argparse.Namespace, work: Path) -> Iterator[tuple[str, Case]]:
    diffusers = options.diffusers.resolve() / "examples" / "text_to_image" / "train_text_to_image_lora_sdxl.py"
    yield (
        options.diffusers_python,
        Case(
            "diffusers example: epsilon, min-SNR 5, noise offset",
            [str(diffusers), *build_diffusers_flags(work), "--rank=8", "--snr_gamma=5", "--noise_offset=0.05"],
            BucketConfig(resolution=256, resize_mode="center_crop"),
            target_modules="attention",
            rank=8,
            alpha=8,
            min_snr_gamma=5,
        ),
    )
    sd_scripts = [str(options.sd_scripts.resolve() / "sdxl_train_network.py"), *build_sd_scripts_flags(work)]
    buckets = BucketConfig(resolution=320)
    yield (
        options.sd_scripts_python,
        Case(
            "sd-scripts: epsilon, min-SNR 5, noise offset",
            [
                *sd_scripts,
                "--network_dim=8",
                "--network_alpha=4",
                "--min_snr_gamma=5",
                "--noise_offset=0.05",
                "--network_train_unet_only",
            ],
            buckets,
            target_modules="attention_mlp",
            rank=8,
            alpha=4,
            min_snr_gamma=5,
        ),
    )
    yield (
        options.sd_scripts_python,
        Case(
            "sd-scripts: v-prediction, zero terminal SNR, both text encoders",
            [*sd_scripts, "--network_dim=4", "--network_alpha=2", "--v_parameterization", "--zero_terminal_snr"],
            buckets,
            target_modules="attention_mlp",
            rank=4,
            alpha=2,
            prediction_type="v_prediction",
            zero_terminal_snr=True,
            train_text_encoders=True,
        ),
    )


def build_diffusers_flags(work: Path) -> list[str]:
    settings = {
        "pretrained_model_name_or_path": work / "model",
        "train_data_dir": work / "pictures" / "1_toy",
        "caption_column": "text",
        "resolution": 256,
        "train_batch_size": BATCH_SIZE,
        "max_train_steps": NUM_STEPS,
        "learning_rate": LEARNING_RATE,
        "mixed_precision": "no",
        "dataloader_num_workers": 0,
        "output_dir": work / "diffusers",
        "cache_dir": work / "diffusers-cache",
        "seed": 0,
    }
    return [*(f"--{name}={value}" for name, value in settings.items()), "--center_crop"]


def build_sd_scripts_flags(work: Path) -> list[str]:
    settings = {
        "pretrained_model_name_or_path": work / "model",
        "tokenizer_cache_dir": work / "tokenizers",
        "train_data_dir": work / "pictures",
        "caption_extension": ".txt",
        "resolution": 320,
        "network_module": "networks.lora",
        "train_batch_size": BATCH_SIZE,
        "vae_batch_size": BATCH_SIZE,
        "max_train_steps": NUM_STEPS,
        "learning_rate": LEARNING_RATE,
        "optimizer_type": "AdamW",
        "mixed_precision": "no",
        "max_data_loader_n_workers": 0,
        "output_dir": work / "sd-scripts",
        "output_name": "lora",
        "seed": 0,
    }
    return [
        *(f"--{name}={value}" for name, value in settings.items()),
        "--enable_bucket",
        "--bucket_no_upscale",
        "--sdpa",
    ]


def record(case: Case, python: str, path: Path) -> Recording:
    """Run the script.

    Raises:
        RuntimeError: the script failed; the message has the end of its output.
    """
    print(f"recording {case.name}", file=sys.stderr)
    command = [python, str(RECORD_STEP), "--record", str(path), *case.arguments]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        raise RuntimeError(f"{case.name} failed:\n{done.stdout[-4000:]}")
    return load_file(path)


# ---- ours ----


@dataclass
class Differences:
    """The largest difference of each quantity over all steps, and the smallest cosine."""

    relative: dict[str, float] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)

    def compare(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Record max|ours - theirs| / max|theirs|."""
        difference = float((ours.detach() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
        self.relative[name] = max(difference, self.relative.get(name, 0.0))

    def compare_all(self, name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        """Record the same for many tensors as one long vector, and the cosine."""
        our_vector, their_vector = (
            torch.cat([tensors[key].detach().flatten().double() for key in ours]) for tensors in (ours, theirs)
        )
        self.compare(name, our_vector, their_vector)
        cosine = float(torch.cosine_similarity(our_vector, their_vector, dim=0))
        self.cosine[name] = min(cosine, self.cosine.get(name, 1.0))


def compare(case: Case, recording: Recording, work: Path) -> Differences:
    """Replay the recorded steps with our code."""
    differences = Differences()
    model = load_model(work / "model")
    images = OurImages(case, model, work)
    adapters, optimizer = attach(case, model, recording)
    objective = Objective(
        alphas_cumprod(zero_terminal_snr=case.zero_terminal_snr), case.prediction_type, case.min_snr_gamma
    )
    for step in range(NUM_STEPS):
        recorded = {
            name.removeprefix(f"{step}/"): tensor for name, tensor in recording.items() if name.startswith(f"{step}/")
        }
        batch = build_our_batch(images, model, recorded, differences)
        alphas = objective.alphas_cumprod[batch.timesteps]
        differences.compare("noisy latents", add_noise(batch.latents, batch.noise, alphas), recorded["noisy_latents"])
        model_pred = predict(model.unet, batch, alphas)
        differences.compare("prediction", model_pred, recorded["model_pred"])
        loss = weighted_losses(model.unet, batch, objective).mean()
        differences.compare("loss", loss, recorded["loss"])
        loss.backward()
        nn.utils.clip_grad_norm_(list(adapters.values()), 1.0)
        gradients = {name: parameter.grad for name, parameter in adapters.items() if parameter.grad is not None}
        check_gradients_cover(gradients, recorded)
        differences.compare_all("gradients", gradients, {name: recorded[f"gradient/{name}"] for name in gradients})
        optimizer.step()
        optimizer.zero_grad()
    first = {name: recording[f"0/before/{name}"] for name in adapters}
    last = {name: recording[f"{NUM_STEPS - 1}/after/{name}"] for name in adapters}
    differences.compare_all("weights after 3 AdamW steps", adapters, last)
    updates = {name: parameter.detach() - first[name] for name, parameter in adapters.items()}
    differences.compare_all("update of 3 AdamW steps", updates, {name: last[name] - first[name] for name in adapters})
    return differences


def check_gradients_cover(ours: Mapping[str, Tensor], recorded: Recording) -> None:
    """Require that the script has gradients for the same adapters as our code."""
    theirs = {name.removeprefix("gradient/") for name in recorded if name.startswith("gradient/")}
    assert theirs == set(ours), (
        f"{len(theirs)} parameters have gradients there, {len(ours)} here; for example {sorted(theirs ^ set(ours))[:3]}"
    )


class OurImages:
    """The images after our dataset, buckets and VAE cache. They are found by the token ids of their
    captions.
    """

    def __init__(self, case: Case, model: SDXLModel, work: Path) -> None:
        assert model.vae is not None
        dataset = scan_folder(DatasetConfig(images=str(work / "pictures" / "1_toy")))
        items = plan_crops(dataset, case.buckets, seed=0).items
        self._items = {make_token_ids(item.image.caption)[0]: item for item in items}
        vae = model.vae
        self._latents = {item.index: encode_image(vae, read_crop(item), flip=False) for item in items}

    def find(self, input_ids: Tensor) -> list[TrainingItem]:
        return [self._items[tuple(row.tolist())] for row in input_ids]

    def latents(self, items: list[TrainingItem]) -> Tensor:
        return torch.stack([self._latents[item.index] for item in items])


def make_token_ids(caption: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the token ids for text encoders 1 and 2."""
    first, second = (tokenize([caption], pad_token=pad)[0][0] for pad in PAD_TOKENS)
    return tuple(first.tolist()), tuple(second.tolist())


def build_our_batch(images: OurImages, model: SDXLModel, recorded: Recording, differences: Differences) -> Batch:
    """Build our batch from the same images and captions, and compare it with the inputs of the
    script's UNet.
    """
    items = images.find(recorded["input_ids_1"])
    captions = [item.image.caption for item in items]
    our_ids = torch.tensor([make_token_ids(caption) for caption in captions])  # [B, 2, 77]
    differences.compare("token ids", our_ids, torch.stack([recorded["input_ids_1"], recorded["input_ids_2"]], dim=1))
    differences.compare("latents (mean)", images.latents(items), recorded["latents_mean"] * VAE_SCALE)
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    embeddings = encode_captions(model.text_encoder, model.text_encoder_2, captions)
    add_time_ids = torch.tensor(
        [size_ids(item.crop.original_hw, item.crop.top_left_yx, item.crop.target_hw) for item in items],
        dtype=torch.float32,
    )
    compare_conditions(model, embeddings, add_time_ids, recorded, differences)
    return Batch(
        recorded["latents"],
        recorded["noise"],
        recorded["timesteps"],
        embeddings.prompt_embeds,
        embeddings.pooled_prompt_embeds,
        add_time_ids,
    )


def compare_conditions(
    model: SDXLModel, embeddings: TextEmbeddings, add_time_ids: Tensor, recorded: Recording, differences: Differences
) -> None:
    """Compare the conditions. sd-scripts gives its UNet the pooled embeddings and the sinusoids of
    the size ids in one vector, diffusers the ids themselves.
    """
    differences.compare("prompt_embeds", embeddings.prompt_embeds, recorded["prompt_embeds"])
    if "vector" not in recorded:
        differences.compare("pooled_prompt_embeds", embeddings.pooled_prompt_embeds, recorded["pooled_prompt_embeds"])
        differences.compare("size ids", add_time_ids, recorded["add_time_ids"])
        return
    width = embeddings.pooled_prompt_embeds.shape[1]
    sinusoids = model.unet.add_time_proj(add_time_ids.flatten()).reshape(len(add_time_ids), -1)
    differences.compare("pooled_prompt_embeds", embeddings.pooled_prompt_embeds, recorded["vector"][:, :width])
    differences.compare("size ids", sinusoids, recorded["vector"][:, width:])


def attach(case: Case, model: SDXLModel, recording: Recording) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    """Attach our adapters with the recorded first weights. Return them by the script's names, and
    our optimizer for them.
    """
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    names = kohya_names(
        *(list_weighted_modules(module) for module in (model.unet, model.text_encoder, model.text_encoder_2))
    )
    parts: list[tuple[str, nn.Module, list[str]]] = [
        ("unet", model.unet, find_unet_targets(model.unet, case.target_modules))
    ]
    if case.train_text_encoders:
        parts.append(
            ("text_encoder", model.text_encoder, find_text_encoder_targets(model.text_encoder, uses_last_layer=False))
        )
        parts.append(
            (
                "text_encoder_2",
                model.text_encoder_2,
                find_text_encoder_targets(model.text_encoder_2, uses_last_layer=True),
            )
        )
    settings = AdapterSettings(case.rank, case.alpha, dropout=0.0, seed=0)
    parameters: dict[str, nn.Parameter] = {}
    for component, module, targets in parts:
        attach_adapters(module, targets, settings, component=component)
        for path, layer in find_adapter_layers(module).items():
            kohya_name = names[module_key(component, path)]
            from_sd_scripts = "0/vector" in recording
            names_there = (
                (f"{kohya_name}.lora_down", f"{kohya_name}.lora_up")
                if from_sd_scripts
                else (f"{path}.lora_A.default", f"{path}.lora_B.default")
            )
            for name, matrices in zip(names_there, (layer.lora_A, layer.lora_B), strict=True):
                parameters[f"{name}.weight"] = matrices[ADAPTER_NAME].get_parameter("weight")
    for name, parameter in parameters.items():
        parameter.data.copy_(recording[f"0/before/{name}"])
    return parameters, make_optimizer(
        "AdamW", [ParameterGroup("lora", list(parameters.values()), LEARNING_RATE)], weight_decay=0.01
    )


# ---- the table ----


def format_table(columns: dict[str, Differences]) -> str:
    """Format one column per script. Each cell is the largest relative difference over the steps."""
    rows = list(next(iter(columns.values())).relative)
    lines = ["| " + " | ".join(["max difference / max value", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        "| " + " | ".join([row, *(format_cell(differences, row) for differences in columns.values())]) + " |"
        for row in rows
    ]
    return "\n".join(lines)


def format_cell(differences: Differences, row: str) -> str:
    relative = differences.relative[row]
    text = "exactly equal" if relative == 0 else f"{relative:.1e}"
    return text + (f", cosine 1 - {1 - differences.cosine[row]:.0e}" if row in differences.cosine else "")


if __name__ == "__main__":
    main()
