"""Musubi Doctor: checks whether this machine can train with Musubi Tuner."""

from typing import Any

from comfy_api.latest import io

from .sockets import CATEGORY, ID_PREFIX


class MusubiDoctor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "MusubiDoctor",
            display_name="Musubi Doctor (LoRA Trainer)",
            category=CATEGORY,
            description="Looks for Musubi Tuner and its Python and says what is missing and how to get it: folder, "
            "version, torch and CUDA, packages. It changes nothing. It also says into which file on the "
            "server to write other paths.",
            search_aliases=["MusubiDoctor", "musubi", "install musubi", "diagnose", "check installation"],
            is_output_node=True,
            inputs=[],
            outputs=[io.String.Output("report", tooltip="What was found and what to do, as text.")],
        )

    @classmethod
    def fingerprint_inputs(cls) -> Any:
        return float("nan")  # an installation changes without the graph, so look again with every Run

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .host.musubi import write_musubi_report

        report = write_musubi_report()
        return io.NodeOutput(report, ui={"text": [report]})
