"""ComfyUI-LoRA-Trainer. ComfyUI imports this folder as a package. Anywhere else (pytest, `python -m
trainers`), importing it does nothing.
"""

from importlib.util import find_spec

# ComfyUI gives each package that it loads a name, and its own modules can be imported.
INSIDE_COMFYUI = bool(__package__) and find_spec("comfy_api") is not None

if INSIDE_COMFYUI:
    from .nodes import comfy_entrypoint as comfy_entrypoint

    WEB_DIRECTORY = "./web"
