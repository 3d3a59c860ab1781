"""Which folders of this machine a prompt may name: decided by the server's owner."""

import os
from pathlib import Path

import folder_paths
from comfy.cli_args import args

from ...trainers.files.allowed_folders import VARIABLE, AllowedFolders, is_loopback, read_folders


def allowed_folders() -> AllowedFolders:
    """All folders, unless the owner has set the variable, others reach the server, or it has
    several users.

    ComfyUI's input and output folders are always among them: every client can read those.

    Raises:
        ValueError: the variable has a path that is not absolute.
    """
    value = os.environ.get(VARIABLE, "")
    if not value.strip() and not args.multi_user and is_loopback(args.listen):
        return AllowedFolders(None)
    own = (folder_paths.get_input_directory(), folder_paths.get_output_directory())
    return AllowedFolders((*map(Path, own), *read_folders(value)))
