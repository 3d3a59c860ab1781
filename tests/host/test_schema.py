"""The nodes as ComfyUI sees them: their ids, the modules that their import loads, and the schema
that saved workflows and prompts rely on.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.host.choices import MODEL_FILES, OF_COMFYUI, list_stable_choices
from trainers.comfyui.find import PACK
from trainers.comfyui.server import ComfyServer

SNAPSHOT = Path(__file__).with_name("schema_snapshot.json")
NODES = tuple(json.loads(SNAPSHOT.read_text(encoding="utf-8")))
UPDATE = "UPDATE_SCHEMA_SNAPSHOT"
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.fixture(scope="module")
def schemas(comfyui_server: ComfyServer) -> dict[str, dict[str, Any]]:
    return {
        name: schema
        for name, schema in comfyui_server.client.get("/object_info").items()
        if name.startswith("LoRATrainer_")
    }


def get_inputs(schema: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return type and options by input id, in the node's order."""
    groups = [
        (schema["input"][group], names)
        for group, names in schema["input_order"].items()
        if group in ("required", "optional")
    ]
    return {name: (entries[name][0], entries[name][1]) for entries, names in groups for name in names}


def test_every_id_is_ours_and_nothing_failed_to_import(comfyui_server: ComfyServer, schemas):
    assert set(NODES) <= set(schemas), "a node that workflows and prompts rely on is gone"
    assert {schema["python_module"] for schema in schemas.values()} == {"custom_nodes.ComfyUI-LoRA-Trainer"}
    assert "IMPORT FAILED" not in comfyui_server.read_log()


def test_no_schema_has_changed(schemas):
    """Saved workflows store widget values by position, and prompts name inputs and count outputs:
    append, never rename, reorder or remove.
    """
    found = {node: describe(schemas[node]) for node in sorted(schemas, key=[*NODES, *schemas].index)}
    if os.environ.get(UPDATE):
        SNAPSHOT.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    expected = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert found == expected, (
        "A new input must be appended to the end of its node's SETTINGS_ORDER: saved workflows store widget values by "
        f"position. If nothing was inserted, moved or renamed, update {SNAPSHOT.name}: {UPDATE}=1 pytest "
        "tests/host/test_schema.py"
    )


def describe(schema: dict[str, Any]) -> dict[str, Any]:
    outputs = zip(schema["output"], schema["output_name"], schema["output_is_list"], strict=True)
    return {
        "display_name": schema["display_name"],
        "category": schema["category"],
        "output_node": schema["output_node"],
        "has_intermediate_output": schema["has_intermediate_output"],
        "inputs": [
            line
            for name, (kind, options) in get_inputs(schema).items()
            for line in _input_lines(name, kind, options, schema)
        ],
        "outputs": [f"{name}: {kind}{' list' if is_list else ''}" for kind, name, is_list in outputs],
    }


def _input_lines(name: str, kind: str, options: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return one line per input; a choice that brings its own inputs has a line for each of
    them.
    """
    if kind != DYNAMIC:
        return [_input_line(name, kind, options, schema)]
    lines = [f"{name}: {kind}"]
    for choice in options["options"]:
        groups = [choice["inputs"].get(group, {}) for group in ("required", "optional")]
        children = [(child, entry) for group in groups for child, entry in group.items()]
        lines += [
            f"{name} = {choice['key']}: {_input_line(child, entry[0], entry[1], {'input': choice['inputs']})}"
            for child, entry in children
        ]
    return lines


def _input_line(name: str, kind: str, options: dict[str, Any], schema: dict[str, Any]) -> str:
    if kind == "COMBO" and name in MODEL_FILES:
        return f"{name}: {kind} of files"
    choices = ["ComfyUI's"] if kind == "COMBO" and name in OF_COMFYUI else list_stable_choices(name, options)
    flags = ["optional"] if name in schema["input"].get("optional", {}) else []
    flags += [flag for flag in ("advanced", "forceInput", "multiline", "hidden", "socketless") if options.get(flag)]
    flags += [f"{flag} {options[flag]}" for flag in ("control_after_generate",) if flag in options]
    shown = f"{name}: {kind}"
    if choices:
        shown += f" of {', '.join(choices)}"
    if "default" in options:
        shown += f" = {options['default']!r}"
    return f"{shown} ({', '.join(flags)})" if flags else shown


def test_every_input_and_output_has_a_tooltip(schemas):
    for schema in schemas.values():
        without = [name for name, (_, options) in get_inputs(schema).items() if not options.get("tooltip")]
        without += [
            name for name, tooltip in zip(schema["output_name"], schema["output_tooltips"], strict=True) if not tooltip
        ]
        assert without == [], schema["name"]


def test_every_widget_has_a_default_in_its_range(schemas):
    for schema in schemas.values():
        for name, (kind, options) in get_inputs(schema).items():
            if kind not in WIDGETS or options.get("forceInput"):
                continue
            default = options["default"]
            assert (
                default in options["options"]
                if kind == "COMBO"
                else options.get("min", default) <= default <= options.get("max", default)
            ), name


@pytest.mark.parametrize("trainer", ["TrainLoRA", "LoRATrainSDXL"])
def test_a_trainer_shows_at_most_eight_widgets_and_its_seed_stays(schemas, trainer: str):
    inputs = get_inputs(schemas[f"LoRATrainer_{trainer}"])
    visible = [
        name
        for name, (kind, options) in inputs.items()
        if kind in WIDGETS and not options.get("advanced") and not options.get("forceInput")
    ]
    assert len(visible) <= 8, visible
    assert inputs["seed"][1]["control_after_generate"] == "fixed"


def test_only_linked_inputs_and_the_architecture_are_required(schemas):
    """Without an architecture there is nothing to train."""
    required = {
        (node, name): entry
        for node, schema in schemas.items()
        for name, entry in schema["input"].get("required", {}).items()
    }
    widgets = [
        key
        for key, (kind, options) in required.items()
        if kind in (WIDGETS | {DYNAMIC}) and not options.get("forceInput")
    ]
    assert widgets == [("LoRATrainer_MusubiTrain", "architecture")]


def test_train_lora_takes_targets_by_the_model_and_says_what_is_for_sdxl(schemas):
    inputs = get_inputs(schemas["LoRATrainer_TrainLoRA"])
    assert inputs["target_modules"][1]["default"] == "auto"
    of_sdxl = {name for name, (_, options) in inputs.items() if "Only for SDXL" in options["tooltip"]}
    assert of_sdxl == {
        "mixed_precision",
        "train_text_encoders",
        "text_encoder_learning_rate",
        "text_encoder_2_learning_rate",
        "min_snr_gamma",
        "prediction_type",
        "zero_terminal_snr",
        "torch_compile",
        "snr_weighting",
        "stop_text_encoder_training",
        "conv_rank",
        "conv_alpha",
        "num_new_tokens",
        "token_learning_rate",
        "token_initializer",
    }


@pytest.mark.parametrize("trainer", ["TrainLoRA", "LoRATrainSDXL"])
def test_the_presets_list_their_numbers(schemas, trainer: str):
    inputs = get_inputs(schemas[f"LoRATrainer_{trainer}"])
    assert "person: rank " in inputs["goal"][1]["tooltip"] and "8 GB: resolution " in inputs["memory"][1]["tooltip"]


def test_the_front_end_knows_the_replacements_of_plain_ids(comfyui_server: ComfyServer, schemas):
    replacements = comfyui_server.client.get("/node_replacements")
    for plain_id in ("LoadImages", "LoRATrainSDXL", "Florence2Caption"):
        (ours,) = replacements[plain_id]
        inputs = get_inputs(schemas[f"LoRATrainer_{plain_id}"])
        assert ours["new_node_id"] == f"LoRATrainer_{plain_id}"
        assert ours["old_widget_ids"] == [
            name for name, (kind, options) in inputs.items() if kind in WIDGETS and not options.get("forceInput")
        ]
        assert ours["input_mapping"] == [{"new_id": name, "old_id": name} for name in inputs]


# ---- the start of ComfyUI, in a process without a server ----

START = """
import asyncio
import json
import logging
import sys
from pathlib import Path

packs = json.loads(sys.argv[1])
import nodes
import server

records = []
handler = logging.Handler()
handler.emit = lambda record: records.append((record.levelname, record.getMessage()))
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel(logging.INFO)

heavy = ("diffusers", "peft", "transformers", "accelerate", "bitsandbytes", "lion_pytorch", "prodigyopt")
for name in [name for name in sys.modules if name.split(".")[0] in heavy]:
    del sys.modules[name]  # ComfyUI's own
sys.modules.update(dict.fromkeys(heavy))  # None: importing it is an ImportError


async def start():
    prompt_server = server.PromptServer(asyncio.get_running_loop())
    imported = []
    for pack in packs:
        before = set(sys.modules)
        assert await nodes.load_custom_node(pack, set()), pack
        imported.append(sorted(set(sys.modules) - before))
    prompt_server.app.freeze()
    await prompt_server.app.startup()
    names = ("LoadImages", "LoRATrainSDXL", "Florence2Caption", "SaveLoRA", "KSampler")
    prompt = {name: {"class_type": name, "inputs": {}} for name in names}
    prompt_server.trigger_on_prompt({"prompt": prompt})
    return {"imported": imported, "class_types": {name: entry["class_type"] for name, entry in prompt.items()}}


print("RESULT" + json.dumps({**asyncio.run(start()), "log": records}))
"""
RIVAL = """
class Rival:
    RETURN_TYPES = ()
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}


NODE_CLASS_MAPPINGS = {"LoadImages": Rival, "LoRATrainer_ApplyLoRA": type("AnotherRival", (Rival,), {})}
"""


@pytest.fixture(scope="module")
def started(run_in_comfyui: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Load this pack and, after it, one that takes two of its ids."""
    rival = tmp_path_factory.mktemp("custom_nodes") / "rival_pack"
    rival.mkdir()
    (rival / "__init__.py").write_text(RIVAL)
    (line,) = [
        line
        for line in run_in_comfyui(START, json.dumps([str(PACK), str(rival)])).splitlines()
        if line.startswith("RESULT")
    ]
    return json.loads(line.removeprefix("RESULT"))


READS_PYPROJECT = {
    "comfy_config",
    "dotenv",
    "pydantic",
    "pydantic_settings",
}  # ComfyUI imports these when it loads a pack


def test_importing_the_pack_loads_few_modules_and_none_of_its_dependencies(started):
    """diffusers, peft and the like cannot be imported in this process, so the nodes appear even if
    they are missing.
    """
    of_pack, others = [], set()
    for name in started["imported"][0]:
        if name.startswith(str(PACK)):
            of_pack.append(name)
        else:
            others.add(name.partition(".")[0])
    assert 0 < len(of_pack) < 130, of_pack
    assert others <= {"PIL", *READS_PYPROJECT}


def test_ids_that_another_pack_has_taken_are_reported_with_the_packs_name(started):
    about_us = [(level, message) for level, message in started["log"] if message.startswith("LoRA Trainer: ")]
    assert about_us == [
        (
            "WARNING",
            "LoRA Trainer: LoRATrainer_ApplyLoRA belongs to custom_nodes.rival_pack, so ours cannot be used. Is the "
            "pack installed twice?",
        ),
        (
            "INFO",
            "LoRA Trainer: the id LoadImages belongs to custom_nodes.rival_pack; in API prompts use "
            "LoRATrainer_LoadImages for ours",
        ),
    ]


def test_plain_ids_in_prompts_are_ours_unless_another_pack_owns_them(started):
    ours = {"LoRATrainSDXL": "LoRATrainer_LoRATrainSDXL", "Florence2Caption": "LoRATrainer_Florence2Caption"}
    assert started["class_types"] == {
        name: ours.get(name, name)
        for name in ("LoadImages", "LoRATrainSDXL", "Florence2Caption", "SaveLoRA", "KSampler")
    }
