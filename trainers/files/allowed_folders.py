"""Which folders of this machine a prompt may name. Who decides that is not known here."""

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from .text_input import require_characters

VARIABLE = "LORA_TRAINER_FOLDERS"


@dataclass(frozen=True)
class AllowedFolders:
    """roots: the folders that may be read, with all below them; None allows every folder."""

    roots: tuple[Path, ...] | None

    def require(self, name: str) -> Path:
        """The path, with ~ expanded. Outside of the roots nothing is looked at, not even whether it
        is there.

        Raises:
            ValueError: it is a network path, or in none of the roots.
        """
        if "\0" in name:
            raise ValueError(f"{name!r} has a character with code 0, which no path has. Write the path again")
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            require_characters(name, "path")
        if name.replace("/", "\\").startswith("\\\\"):
            raise ValueError(
                f"{name}: network paths are not read, because Windows would log in to that machine. Map it to a drive "
                "letter, or mount it, and give that path"
            )
        path = Path(os.path.expanduser(name))  # which leaves "~someone" as it is where there is no such user
        if self.roots is None or any(path.resolve().is_relative_to(root.resolve()) for root in self.roots):
            return path
        roots = ", ".join(map(str, self.roots))
        raise ValueError(
            f"{name} is in no folder that this server may read: {roots}. Put the files into one of them, or the "
            f"server's owner adds their folder to the environment variable {VARIABLE}"
        )


def read_folders(value: str) -> tuple[Path, ...]:
    """Folders separated as in PATH: with ; on Windows, else with a colon.

    Raises:
        ValueError: one is not absolute.
    """
    folders = tuple(Path(os.path.expanduser(name.strip())) for name in value.split(os.pathsep) if name.strip())
    relative = [str(folder) for folder in folders if not folder.is_absolute()]
    if relative:
        raise ValueError(f"{VARIABLE} must have absolute paths separated by {os.pathsep}, got {relative[0]}")
    return folders


def is_loopback(addresses: str) -> bool:
    """Whether only this machine reaches a server that listens on these addresses: ComfyUI's
    --listen, separated by commas.
    """
    return all(_is_loopback(address.strip()) for address in addresses.split(","))


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"
