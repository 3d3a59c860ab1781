"""Work with finished LoRAs: show, merge, resize, extract, convert and edit. No file is overwritten
without --overwrite.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import add_flags, build_config
from ..lora.tools.config import ExtractConfig, MergeConfig, ResizeConfig
from ..wording import format_bytes, pluralize

if TYPE_CHECKING:
    from torch import Tensor

    from ..lora.tools.content import LoraContent
    from ..lora.tools.made_lora import MadeLora

SUMMARY = "show, merge, resize, extract, convert and edit finished LoRAs"
FORMATS = ("kohya", "diffusers", "comfyui")
_TEXT_FLAGS = {
    "title": "its name in model managers",
    "author": "who made it",
    "description": "what it is",
    "trigger_words": "words that call it in a prompt, with commas between them",
    "tags": "its subjects, with commas between them",
    "usage_hint": "how to use it, such as the best strength",
    "license": "under which terms it may be used, such as CC-BY-4.0",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parsers = parser.add_subparsers(dest="action", required=True)
    show = _add(parsers, "show", _show, "say what a LoRA is: modules, ranks, strength, base model, training, hashes")
    show.add_argument("file", type=Path, help="the LoRA")
    show.add_argument("--metadata", action="store_true", help="print the whole header as JSON instead")

    merge = _add(parsers, "merge", _merge, "add up the effects of LoRAs in one, exactly or with fewer ranks")
    merge.add_argument("files", type=Path, nargs="+", metavar="file", help="two LoRAs or more")
    merge.add_argument(
        "--strengths", type=float, nargs="+", metavar="NUMBER", help="strength of each LoRA, in order (default: 1)"
    )
    _add_output(merge, MergeConfig)

    resize = _add(parsers, "resize", _resize, "cut a LoRA to fewer ranks; LoHa and LoKr become LoRA")
    resize.add_argument("file", type=Path, help="the LoRA")
    _add_output(resize, ResizeConfig)

    extract = _add(parsers, "extract", _extract, "make a LoRA of the difference of two checkpoints")
    extract.add_argument("tuned", type=Path, help="the fine-tuned model: a .safetensors checkpoint")
    extract.add_argument("base", type=Path, help="the model that it was made from")
    extract.add_argument("--device", help="torch device, such as cuda:1 or cpu (default: the best there is)")
    _add_output(extract, ExtractConfig)

    convert = _add(parsers, "convert", _convert, "write a LoRA with the names of another program")
    convert.add_argument("file", type=Path, help="the LoRA")
    convert.add_argument(
        "--to",
        choices=FORMATS,
        required=True,
        help="kohya: for ComfyUI, Forge, A1111, sd-scripts and diffusers. diffusers: PEFT's names, for SDXL in "
        "diffusers alone; ComfyUI does not know those of attention. comfyui: the names of ComfyUI's own weights",
    )
    convert.add_argument(
        "--base",
        type=Path,
        help="a .safetensors file of the base model, whose names are read: needed for names with dots of other models "
        "than SDXL, unless the LoRA has them",
    )
    _add_output(convert, None)

    edit = _add(
        parsers,
        "edit",
        _edit,
        "change what a LoRA's header says, and compute its hashes again. An empty text removes an entry",
    )
    edit.add_argument("file", type=Path, help="the LoRA")
    for name, text in _TEXT_FLAGS.items():
        edit.add_argument("--" + name.replace("_", "-"), metavar="TEXT", help=text)
    edit.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("KEY", "TEXT"), help="any other entry of the header"
    )
    _add_output(edit, None, is_required=False)


def _add(parsers: Any, name: str, action: Callable[..., int], help_text: str) -> argparse.ArgumentParser:
    parser = parsers.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
    parser.set_defaults(run_action=action)
    return parser


def _add_output(parser: argparse.ArgumentParser, config: type | None, *, is_required: bool = True) -> None:
    own = "" if is_required else " (default: the same file, with --overwrite)"
    parser.add_argument("--output", type=Path, required=is_required, help=f"the new .safetensors file{own}")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    if config is not None:
        add_flags(parser, config)


def run(options: argparse.Namespace) -> int:
    return options.run_action(options)


def _show(options: argparse.Namespace) -> int:
    from ..lora.tools.content import make_content, read_file
    from ..lora.tools.summary import format_facts, list_facts
    from ..sdxl.lora_spellings import standard_names

    file = read_file(options.file)
    if options.metadata:
        print(json.dumps(file.metadata, indent=2, ensure_ascii=False, sort_keys=True))
        return 0
    content = make_content(
        file.tensors, standard_names(), metadata=file.metadata, settings=file.settings, label=str(options.file)
    )
    print(f"{options.file}\n{format_facts(list_facts(content, file.tensors))}")
    return 0


def _merge(options: argparse.Namespace) -> int:
    config = build_config(MergeConfig, vars(options))
    _require_free(options)
    strengths = options.strengths or [1.0] * len(options.files)
    if len(strengths) != len(options.files):
        raise ValueError(f"--strengths has {pluralize(len(strengths), 'number')} for {len(options.files)} LoRAs")
    from ..lora.tools.made_lora import merge_loras
    from ..lora.tools.merge import MergeSource

    pairs = zip(options.files, strengths, strict=True)
    sources = [MergeSource(_read(path), strength, str(path)) for path, strength in pairs]
    _save(options, merge_loras(sources, config, title=options.output.stem))
    return 0


def _resize(options: argparse.Namespace) -> int:
    config = build_config(ResizeConfig, vars(options))
    _require_free(options)
    from ..lora.tools.made_lora import resize_lora

    _save(options, resize_lora(_read(options.file), config, label=str(options.file)))
    return 0


def _extract(options: argparse.Namespace) -> int:
    config = build_config(ExtractConfig, vars(options))
    _require_free(options)
    from tqdm import tqdm

    from ..lora.tools.made_lora import extract_lora
    from ..sdxl.checkpoint_layers import open_checkpoint
    from ..sdxl.checkpoint_pair import describe_model, list_left_out, pair_layers
    from ..training.device import choose_device

    with open_checkpoint(options.tuned) as tuned, open_checkpoint(options.base) as base:
        pairs = pair_layers(tuned, base)
        made = extract_lora(
            tqdm(pairs, desc="layers", dynamic_ncols=True),
            config,
            describe_model(base, name=options.base.name, title=options.output.stem),
            tuned=options.tuned.name,
            device=choose_device(options.device),
        )
        left_out = list_left_out(tuned, base)
    _save(options, made)
    if left_out:
        print(
            f"Not in it, as a LoRA has no place for them: {pluralize(len(left_out), 'weight')} that differ too, "
            f"such as {left_out[0]}"
        )
    return 0


def _convert(options: argparse.Namespace) -> int:
    _require_free(options)
    from ..lora.tools.content import read_content
    from ..lora.tools.metadata import describe_converted
    from ..sdxl.lora_conversion import convert, read_base_names, standard_base_names

    base = read_base_names(options.base) if options.base else standard_base_names()
    content = read_content(options.file, base.names)
    tensors = convert(content, base, to=options.to, label=str(options.file))
    step = {"tool": "convert", "to": options.to}
    metadata = describe_converted(content, step, is_plain=options.to == "diffusers")
    _write(options, tensors, metadata, f"{pluralize(len(content.modules), 'module')} with the names of {options.to}")
    return 0


def _edit(options: argparse.Namespace) -> int:
    options.output = options.output or options.file
    _require_free(options)
    from ..lora.tools.content import read_file
    from ..lora.tools.metadata import FIELDS, edit

    given = {FIELDS[name]: text for name in _TEXT_FLAGS if (text := getattr(options, name)) is not None}
    file = read_file(options.file)
    metadata = edit(file.metadata, {**given, **dict(options.set)})
    _write(options, file.tensors, metadata, f"{len(given) + len(options.set)} entries set, hashes computed")
    return 0


def _require_free(options: argparse.Namespace) -> None:
    """Before anything is computed."""
    if options.output.suffix != ".safetensors":
        raise ValueError(f"--output {options.output} must end with .safetensors")
    if options.output.exists() and not options.overwrite:
        raise FileExistsError(f"{options.output} exists already. Give another --output, or --overwrite")


def _read(path: Path) -> "LoraContent":
    from ..lora.tools.content import read_content
    from ..sdxl.lora_spellings import standard_names

    return read_content(path, standard_names())


def _save(options: argparse.Namespace, made: "MadeLora") -> None:
    _write(options, made.tensors, made.metadata, made.text)


def _write(options: argparse.Namespace, tensors: "dict[str, Tensor]", metadata: dict[str, str], text: str) -> None:
    from ..lora.file import require_sound, save_lora

    require_sound(tensors, options.output)
    save_lora(options.output, tensors, metadata, overwrite=options.overwrite)
    print(f"{options.output}: {text}, {format_bytes(options.output.stat().st_size)}, read back and verified")
