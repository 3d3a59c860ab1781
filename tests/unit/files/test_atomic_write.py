"""Files are written completely or not at all, and never over another file."""

import errno
import os
from pathlib import Path

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


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES])
def test_a_file_system_without_hard_links_takes_files_and_keeps_those_that_are_there(tmp_path, monkeypatch, number):
    """exFAT, FAT32 and FUSE mounts; Windows answers EINVAL."""

    def no_links(*_):
        raise OSError(number, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("first")
    with pytest.raises(FileExistsError, match="exists already"), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "first"


def test_a_name_that_cannot_be_given_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="broken"), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("first")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_virus_scanner_that_holds_the_file_for_a_moment_stops_nothing(tmp_path, monkeypatch, overwrite):
    """As on Windows: replacing and removing fail while another program has the file open."""
    monkeypatch.setattr("trainers.files.atomic_write.WINDOWS_WAITS", (0.0, 0.0))
    refusals = {"replace": 2, "unlink": 9}
    real_replace, real_unlink = os.replace, Path.unlink

    def refuse(name, real):
        def call(*arguments, **rest):
            if refusals[name]:
                refusals[name] -= 1
                raise PermissionError(errno.EACCES, "in use")
            return real(*arguments, **rest)

        return call

    monkeypatch.setattr(os, "replace", refuse("replace", real_replace))
    monkeypatch.setattr(Path, "unlink", refuse("unlink", real_unlink))
    with atomic_write(tmp_path / "a.txt", overwrite=overwrite) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_an_error_without_a_file_gets_the_one_that_was_written(tmp_path, monkeypatch):
    """Those of write and fsync name none."""

    def fail(_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Read-only") as found, atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert found.value.filename == str(tmp_path / "a.txt")
