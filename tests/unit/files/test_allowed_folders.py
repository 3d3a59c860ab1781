"""Which paths a prompt may name: by the owner's folders, never over the network."""

import os
from pathlib import Path

import pytest

from trainers.files.allowed_folders import AllowedFolders, is_loopback, read_folders


def test_without_roots_every_local_path_is_allowed(tmp_path: Path):
    assert AllowedFolders(None).require(str(tmp_path)) == tmp_path
    assert AllowedFolders(None).require("~").is_absolute()


@pytest.mark.parametrize("name", [r"\\server\share", "//server/share", r"\\?\C:\x", r"/\server\share"])
@pytest.mark.parametrize("roots", [None, (Path("/"),)])
def test_network_paths_are_never_read(name: str, roots: tuple[Path, ...] | None):
    with pytest.raises(ValueError, match="network paths are not read"):
        AllowedFolders(roots).require(name)


def test_only_what_is_below_a_root_is_allowed(tmp_path: Path):
    (tmp_path / "sets" / "cats").mkdir(parents=True)
    (tmp_path / "sets2").mkdir()
    (tmp_path / "sets" / "out").symlink_to(tmp_path / "sets2")
    allowed = AllowedFolders((tmp_path / "sets",))
    for name in ("sets", "sets/cats", "sets/cats/../cats"):
        assert allowed.require(str(tmp_path / name))
    for name in ("sets2", "sets/../sets2", "sets/out", "sets/../nowhere"):
        with pytest.raises(ValueError, match=r"is in no folder that this server may read: .*LORA_TRAINER_FOLDERS"):
            allowed.require(str(tmp_path / name))


@pytest.mark.parametrize(("name", "message"), [("a\0b", "code 0"), ("a\ud83d", "path has U\\+D83D at position 2")])
def test_what_no_path_can_be_is_said(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        AllowedFolders(None).require(name)


def test_the_owners_folders_are_absolute(tmp_path: Path):
    assert read_folders(f"{tmp_path}{os.pathsep} {os.pathsep}{tmp_path / 'x'}") == (tmp_path, tmp_path / "x")
    assert read_folders("") == ()
    with pytest.raises(ValueError, match=r"must have absolute paths separated by .*, got sets"):
        read_folders("sets")


@pytest.mark.parametrize("addresses", ["0.0.0.0,::", "192.168.1.2", "127.0.0.1,10.0.0.1", "my-machine", ""])
def test_listening_beyond_this_machine_is_noticed(addresses: str):
    assert not is_loopback(addresses)
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.0.0.1,::1")))
