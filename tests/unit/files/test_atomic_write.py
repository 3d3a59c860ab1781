"""Files are written completely or not at all, and never over another file."""

import errno
import os

import pytest

from trainers.files.atomic_write import atomic_write
from trainers.training.events import Interrupted


def test_a_file_gets_its_name_only_when_it_is_complete(tmp_path):
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "half"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), Interrupted()])
def test_an_error_or_interrupt_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(type(error)), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with (
        pytest.raises(FileExistsError, match=r"exists already\. Choose another name"),
        atomic_write(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_system_without_hard_links_works_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "not supported")

    monkeypatch.setattr(os, "link", no_links)
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_full_disk_is_named_with_advice(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OSError, match=r"a\.txt: the disk is full\. Free some space"),
        atomic_write(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == []
