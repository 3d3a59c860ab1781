"""Unpacks the images and captions of a zip archive into a folder. Downloading the archive and
checking its images are done elsewhere.
"""

import errno
import os
import re
import shutil
import stat
import struct
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import takewhile
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from ..files.hashes import file_sha256
from ..files.names import FORBIDDEN_CHARACTERS, RESERVED_NAMES
from ..wording import format_megabytes, pluralize
from .caption_files import CAPTION_EXTENSIONS, METADATA_NAMES
from .image_files import EXTENSIONS, OTHER_IMAGE_EXTENSIONS
from .image_folder import REGULARIZATION_FOLDERS, parse_repeat_folder

MAX_NAME_BYTES = 240  # of one folder or file; file systems allow 255
MAX_PATH_BYTES = 800

_BLOCK_BYTES = 1 << 20
_MAX_DIRECTORY_BYTES = 16 << 20  # the archive's list of entries, about 100,000 of them
# Python unpacks other methods without a bound on the memory of one block.
_METHODS = (ZIP_STORED, ZIP_DEFLATED)
_ENCRYPTED = 0x1
# everything that zipfile raises
_DAMAGE = (
    BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    UnicodeDecodeError,
    NotImplementedError,
)
_OTHER_KINDS = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"\x1f\x8b": "a gzip file",
    b"<": "a web page",
}


@dataclass(frozen=True)
class ArchiveLimits:
    """The most that an archive may contain, unpacked. Bytes are counted while unpacking, so that a
    zip bomb is stopped.
    """

    max_files: int = 10_000
    max_total_bytes: int = 20 * 2**30
    max_file_bytes: int = 2**30


DEFAULT_LIMITS = ArchiveLimits()


def unpack_images(
    archive: Path,
    folder: Path,
    *,
    limits: ArchiveLimits = DEFAULT_LIMITS,
    check_interrupted: Callable[[], None] = lambda: None,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Path:
    """Unpack the archive's images and captions into `<folder>/<hash of the archive>`, and return
    that folder. Captions that belong to no image are unpacked too, so that the scan of the folder
    names them. Other files in the archive are ignored.

    The folder gets its name when it is complete, and is reused for an archive with the same bytes.
    Subfolders are kept, except common parents that contain everything; a kohya folder of images
    (10_dog) is kept even then, as its name says the repeats. Hidden files are left out. Characters
    and names that some systems forbid are replaced ("a?.png" becomes "a_.png", "con.txt" becomes
    "_con.txt"), in the same way on every system.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a zip archive, or it is damaged or encrypted, has a path that
            leads out of the folder, has links, has two files with one name (ignoring case), has
            more than `limits` allow, or has no image.
        OSError: the disk is full.
    """
    if not archive.is_file():
        raise FileNotFoundError(errno.ENOENT, f"{archive}: there is no such file. Give a .zip archive of images")
    unpacked = folder / file_sha256(archive, check_interrupted=check_interrupted)[:16]
    if unpacked.is_dir():
        return unpacked
    with _open(archive) as zip_file:
        entries = _select_entries(zip_file.infolist(), limits)
        with _write_folder(unpacked) as partial_folder:
            _require_space(partial_folder, sum(entry.file_size for entry in entries.values()))
            for count, (path, entry) in enumerate(entries.items(), start=1):
                on_progress(count, len(entries), path.as_posix())
                _unpack_entry(zip_file, entry, partial_folder / path, check_interrupted=check_interrupted)
    return unpacked


class _ArchiveError(ValueError):
    """A reason to refuse the archive; the message does not name it."""


@contextmanager
def _open(archive: Path) -> Iterator[ZipFile]:
    """Open the archive; turn zipfile's errors and ours into ValueErrors that name the archive."""
    try:
        with _ArchiveFile(archive) as stream:
            _require_zip(stream)
            with ZipFile(stream) as zip_file:
                yield zip_file
    except _ArchiveError as error:
        raise ValueError(f"{archive}: {error}") from None
    except _DAMAGE as error:
        raise ValueError(
            f"{archive}: the archive is damaged or incomplete ({error}). Make it or download it again"
        ) from error


class _ArchiveFile(FileIO):
    """A file that limits what headers can ask for: zipfile reads the list of entries into memory in
    one read of any length, and seeks to any position.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise _ArchiveError(
                f"its list of entries has {size:,} bytes; at most {_MAX_DIRECTORY_BYTES:,}. Make an archive of only "
                "the images"
            )
        return super().read(size) or b""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_SET and not 0 <= offset <= os.fstat(self.fileno()).st_size:
            raise BadZipFile("a header points outside the file")
        return super().seek(offset, whence)


def _require_zip(stream: FileIO) -> None:
    start = stream.read(4) or b""
    kind = next((kind for magic, kind in _OTHER_KINDS.items() if start.startswith(magic)), None)
    if kind:
        raise _ArchiveError(
            f"it is {kind}, not a zip archive. Give a .zip archive, or the address that downloads the file itself"
        )


def _select_entries(entries: Iterable[ZipInfo], limits: ArchiveLimits) -> dict[PurePosixPath, ZipInfo]:
    """Select images and captions, by the path each will get. Refuses bad entries before anything is
    written.
    """
    wanted = _select_images_and_captions(
        [(_parse_path(entry.filename), entry) for entry in entries if _has_wanted_name(entry)]
    )
    if not wanted:
        raise _ArchiveError(f"it has no images. Images are {', '.join(EXTENSIONS)}")
    _require_limits([entry for _, entry in wanted], limits)
    for _, entry in wanted:
        _require_plain(entry)
    paths = [PurePosixPath(*map(_make_portable, path.parts)) for path, _ in wanted]
    _require_distinct(paths)
    return dict(zip(paths, (entry for _, entry in wanted), strict=True))


def _has_wanted_name(entry: ZipInfo) -> bool:
    name = entry.filename.replace("\\", "/").rpartition("/")[2].lower()
    return _is_image(name) or name.endswith(CAPTION_EXTENSIONS) or name in METADATA_NAMES


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS + OTHER_IMAGE_EXTENSIONS)


def _parse_path(name: str) -> PurePosixPath:
    """Parse an entry's path and require that it stays inside the folder. Backslashes are
    separators, as some Windows programs write them.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        raise _ArchiveError(
            f"{name!r} leads out of the folder that the archive is unpacked into. Make the archive again from "
            "inside the folder of images"
        )
    if len(name.encode()) > MAX_PATH_BYTES:
        raise _ArchiveError(
            f"{name[:60]!r}... is a path of {len(name.encode()):,} bytes; at most {MAX_PATH_BYTES}. Make the "
            "archive again with shorter names"
        )
    return path


def _select_images_and_captions(found: list[tuple[PurePosixPath, ZipInfo]]) -> list[tuple[PurePosixPath, ZipInfo]]:
    """Drop hidden files, and what is outside of the folder that has all images and their captions
    (such as a README). The paths begin below that folder.
    """
    visible = [
        (path, entry)
        for path, entry in found
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    ]
    images = {path for path, _ in visible if _is_image(path.name)}
    if not images:
        return []
    images |= {path.with_suffix("") for path in images}
    used = [path for path, _ in visible if _belongs_to(path, images) or path.name.lower() in METADATA_NAMES]
    common = PurePosixPath(*used[0].parts[: _count_common_folders([path.parts[:-1] for path in used])])
    return [(path.relative_to(common), entry) for path, entry in visible if path.is_relative_to(common)]


def _belongs_to(path: PurePosixPath, images: set[PurePosixPath]) -> bool:
    """True for an image, and for a.txt or a.png.txt next to a.png. `images` has both names."""
    return path in images or path.with_suffix("") in images


def _count_common_folders(folders: list[tuple[str, ...]]) -> int:
    """Count the top folders that contain everything and have no meaning."""
    num_common = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False)))
    common = folders[0][:num_common]
    is_kohyas = bool(common) and common in folders and parse_repeat_folder(common[-1]) is not None
    regularization = [
        index
        for index, name in enumerate(common)
        if name.lower() in REGULARIZATION_FOLDERS
        and any(parse_repeat_folder(part) for parts in folders for part in parts[index + 1 :])
    ]
    return min([num_common - is_kohyas, *regularization])


def _require_limits(entries: list[ZipInfo], limits: ArchiveLimits) -> None:
    if len(entries) > limits.max_files:
        raise _ArchiveError(
            f"it has {len(entries):,} images and captions; at most {limits.max_files:,}. Make a smaller archive"
        )
    largest = max(entries, key=lambda entry: entry.file_size)
    if largest.file_size > limits.max_file_bytes:
        raise _ArchiveError(
            f"{largest.filename!r} has {format_megabytes(largest.file_size)}; at most "
            f"{format_megabytes(limits.max_file_bytes)}. Leave it out, or scale it down"
        )
    total = sum(entry.file_size for entry in entries)
    if total > limits.max_total_bytes:
        raise _ArchiveError(
            f"its {pluralize(len(entries), 'file')} have {format_megabytes(total)} unpacked; at most "
            f"{format_megabytes(limits.max_total_bytes)}. Make a smaller archive"
        )


def _require_plain(entry: ZipInfo) -> None:
    """Require a regular file that can be read without a password."""
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        raise _ArchiveError(
            f"{entry.filename!r} is a link or a device, not a file. Put the file itself into the archive"
        )
    if entry.flag_bits & _ENCRYPTED:
        raise _ArchiveError(f"{entry.filename!r} is encrypted. Make the archive without a password")
    if entry.compress_type not in _METHODS:
        raise _ArchiveError(
            f"{entry.filename!r} is compressed with method {entry.compress_type}. Make the archive with the usual "
            "method (deflate), or without compression"
        )


def _make_portable(part: str) -> str:
    """Return a name that every system allows. Windows drops a dot or space at the end of a name."""
    portable = "".join(
        "_" if character in FORBIDDEN_CHARACTERS or ord(character) < 32 else character for character in part
    )
    portable = re.sub(r"[. ]$", "_", portable)
    if portable.split(".")[0].strip().lower() in RESERVED_NAMES:
        portable = f"_{portable}"
    if len(portable.encode()) > MAX_NAME_BYTES:
        raise _ArchiveError(
            f"{part[:60]!r}... is a name of {len(portable.encode())} bytes; at most {MAX_NAME_BYTES}. Give it a "
            "shorter name"
        )
    return portable


def _require_distinct(paths: list[PurePosixPath]) -> None:
    """Refuse two files, or a file and a folder, whose names are equal on a system that ignores case
    (and takes é and e with ´ for the same).
    """
    path_by_key: dict[str, PurePosixPath] = {}
    for path in paths:
        other = path_by_key.setdefault(_comparison_key(path), path)
        if other is not path:
            raise _ArchiveError(f"'{other}' and '{path}' are the same name on some systems. Rename one of them")
    for path in paths:
        for parent in path.parents:
            if _comparison_key(parent) in path_by_key:
                raise _ArchiveError(f"'{parent}' is a file and a folder. Rename one of them")


def _comparison_key(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", path.as_posix()).casefold()


@contextmanager
def _write_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`. It gets that name if the block succeeds, and is
    removed if not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield partial_folder
        partial_folder.chmod(0o755)
        try:
            partial_folder.rename(path)
        except OSError:
            if not path.is_dir():  # another process has unpacked the same archive in the meantime
                raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _require_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(
            errno.ENOSPC,
            f"{folder.parent}: unpacking needs {format_megabytes(num_bytes)}, but only {format_megabytes(free)} are "
            "free. Free some space",
        )


def _unpack_entry(zip_file: ZipFile, entry: ZipInfo, path: Path, *, check_interrupted: Callable[[], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = 0
    with zip_file.open(entry) as source, open(path, "xb") as stream:
        while num_bytes <= entry.file_size and (block := source.read(_BLOCK_BYTES)):
            check_interrupted()
            num_bytes += stream.write(block)
        os.fsync(stream.fileno())
    if num_bytes != entry.file_size:
        raise BadZipFile(f"{entry.filename!r} has {num_bytes:,} bytes or more; its header says {entry.file_size:,}")
