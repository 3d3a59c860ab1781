"""Save LoRA: saves a LORA_MODEL as a file that every LoRA loader lists, and verifies it."""

from typing import Any

from comfy_api.latest import io

from ..trainers.lora.file_name import check_lora_file_name
from .sockets import CATEGORY, ID_PREFIX


class SaveLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "SaveLoRA",
            display_name="Save LoRA (LoRA Trainer)",
            category=CATEGORY,
            description="Saves a LoRA into ComfyUI's loras folder, where every LoRA loader lists it after a refresh "
            "(R). It never overwrites a file, and it reads the file back to verify it.",
            search_aliases=["SaveLoRA", "export lora", "save lora weights", "lora file"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", tooltip="From Train LoRA, or from any node that outputs LORA_MODEL."),
                io.String.Input(
                    "filename",
                    default="my_lora_%date:yyyy-MM-dd%",
                    optional=True,
                    tooltip="Name inside the loras folder, without .safetensors; subfolders with /. "
                    "%date:yyyy-MM-dd_hh-mm-ss%, %year%, %month%, %day%, %hour%, %minute% and %second% are "
                    "replaced. If the name is taken, -2, -3 and so on is added.",
                ),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="Image to save next to the file under the same name, as model browsers show it. The first "
                    "of a batch.",
                ),
            ],
            outputs=[
                io.String.Output("path", tooltip="Full path of the file."),
                io.String.Output("lora_name", tooltip="Its name as LoRA loaders list it."),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename: str | None = None) -> bool | str:
        """`filename` is None if it is left out or comes from a link."""
        try:
            check_lora_file_name("my_lora" if filename is None else filename)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, lora: dict[str, Any], filename: str = "my_lora_%date:yyyy-MM-dd%", preview: Any = None
    ) -> io.NodeOutput:
        from .host import folders
        from .host.lora_file import save_to_loras_folder
        from .host.progress import show_text

        saved = save_to_loras_folder(lora, filename, folder=folders.get_loras_folder(), preview=preview)
        show_text(saved.text())
        return io.NodeOutput(str(saved.path), saved.name, ui={"text": [saved.text()]})
