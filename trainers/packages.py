"""The packages that the core needs: what is wrong with one, and the command for this interpreter
that repairs it.
"""

import importlib
import subprocess
import sys

# What a training needs of each: some packages import their parts only when they are used. torch is
# the host's own.
_PARTS = {
    "safetensors": "safe_open",
    "transformers": "CLIPTextModelWithProjection",
    "diffusers": "UNet2DConditionModel",
    "peft": "inject_adapter_in_model",
}


def pip_install(*arguments: str) -> str:
    """The command line that runs pip of this interpreter, as the user's shell takes it."""
    command = [sys.executable, "-m", "pip", "install", *arguments]
    return subprocess.list2cmdline(command)


def require_packages() -> None:
    """Import what an SDXL training needs, one package after the other.

    Raises:
        ImportError: one is missing or broken, often because another program changed the version of
            it or of what it needs; the message has the cause and the command to run.
    """
    for name, part in _PARTS.items():
        try:
            getattr(importlib.import_module(name), part)
        except ModuleNotFoundError as error:
            if error.name == name:
                raise ImportError(f"the package {name} is not installed. Run: {pip_install(name)}") from error
            raise _broken(name, error) from error
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> ImportError:
    return ImportError(
        f"the package {name} is installed but cannot be imported ({error}). Another program may have changed it or a "
        f"package that it needs. Run: {pip_install('--upgrade', name)}"
    )
