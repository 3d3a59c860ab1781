"""Downloads one file from a web address: streamed, resumable, limited in size, never from a private
network. Does not look at the content.
"""

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ..wording import format_megabytes
from .atomic_write import atomic_write

TIMEOUT_SECONDS = 20  # to connect, and between two blocks
MAX_REDIRECTS = 5

_BLOCK_BYTES = 1 << 20
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_URL_CHARACTERS = "%/?#[]@!$&'()*+,;=:"  # unquoted in a URL, besides letters, digits and -._~
_VALIDATORS = ("ETag", "Last-Modified")
_CONTINUE = "Run it again to continue from there, if the server allows it"
_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Python counts these as global: the protocol assignments (before 3.12.4; Oracle has a metadata
# service there), and the services that Azure offers its machines.
_FURTHER_REFUSED = (ip_network("192.0.0.0/24"), ip_network("168.63.129.16/32"))


def download(
    url: str,
    folder: Path,
    *,
    max_bytes: int,
    allow_private: bool,
    check_interrupted: Callable[[], None] = lambda: None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Download `url` into `folder`, under a name made from the address, and return the file.

    After an error or interrupt, the next call continues with the partial file if the server still
    has the same file. A complete file from an earlier call is reused only if the server says that
    it has not changed. `on_progress` gets the bytes received and the total, 0 if the server does
    not state it.

    Proxies from the environment are not used: they would resolve the host name themselves, and we
    could not check its address.

    Raises:
        ValueError: the address is not an http(s) URL, contains a user name, leads to a private
            network (unless `allow_private`), or the file is larger than `max_bytes`.
        RuntimeError: the server cannot be reached or answers with an error, or the connection
            broke.
        OSError: the disk is full.
    """
    url = url.strip()
    folder.mkdir(parents=True, exist_ok=True)
    files = _Files(folder, url)
    receive = partial(
        _receive,
        url,
        files,
        max_bytes=max_bytes,
        allow_private=allow_private,
        check_interrupted=check_interrupted,
        on_progress=on_progress,
    )
    try:
        return receive()
    except _WrongPiece:
        files.part.unlink(missing_ok=True)
        return receive()


class _WrongPiece(RuntimeError):
    """The server did not send the rest of our partial file."""


class _Files:
    """The files of one download: the complete file or its beginning, and the validators with which
    the server identifies this version.
    """

    def __init__(self, folder: Path, url: str) -> None:
        key = hashlib.sha256(url.encode()).hexdigest()[:16]
        self.finished, self.part, self._validators = (folder / f"{key}.{suffix}" for suffix in ("bin", "part", "json"))

    def count_part_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def make_conditions(self) -> dict[str, str]:
        """Return the headers that ask only for what is missing here."""
        etag, last_modified = (self._read_validators().get(name, "") for name in _VALIDATORS)
        if self.finished.exists():
            return {
                name: value for name, value in (("If-None-Match", etag), ("If-Modified-Since", last_modified)) if value
            }
        # a weak ETag can also name different bytes
        validator = last_modified if etag.startswith("W/") else etag or last_modified
        num_bytes = self.count_part_bytes()
        return {"Range": f"bytes={num_bytes}-", "If-Range": validator} if num_bytes and validator else {}

    def is_continued_by(self, response: http.client.HTTPResponse) -> bool:
        """True if the response continues our part. Not every server respects If-Range."""
        is_next = re.fullmatch(rf"bytes {self.count_part_bytes()}-\d+/\d+", response.getheader("Content-Range", ""))
        return is_next is not None and all(
            response.getheader(name, value) == value for name, value in self._read_validators().items()
        )

    def restart(self, response: http.client.HTTPResponse) -> None:
        """Start from zero. Empties the part first, as validators must never be stored with bytes of
        another file.
        """
        self.finished.unlink(missing_ok=True)
        self.part.write_bytes(b"")
        with atomic_write(self._validators, overwrite=True) as temporary:
            temporary.write_text(
                json.dumps({name: value for name in _VALIDATORS if (value := response.getheader(name))}),
                encoding="utf-8",
            )

    def finish(self, num_bytes: int) -> Path:
        """Give the complete part its final name and return it."""
        if self.count_part_bytes() != num_bytes:
            self.part.unlink(missing_ok=True)
            raise RuntimeError(f"{self.part}: another download wrote to the same file. Start again when it has ended")
        with open(self.part, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(self.part, self.finished)
        return self.finished

    def _read_validators(self) -> dict[str, str]:
        return json.loads(self._validators.read_text(encoding="utf-8")) if self._validators.exists() else {}


def _receive(
    url: str,
    files: _Files,
    *,
    max_bytes: int,
    allow_private: bool,
    check_interrupted: Callable[[], None],
    on_progress: Callable[[int, int], None],
) -> Path:
    with _open_response(url, files.make_conditions(), allow_private=allow_private) as response:
        if response.status == 304 and files.finished.exists():
            return files.finished
        num_bytes = _find_start(response, files, url)
        total = _read_total_bytes(response)
        _require_size(total, max_bytes, url)
        _require_space(files.part.parent, total - num_bytes)
        if num_bytes == 0:
            files.restart(response)
        with open(files.part, "ab") as stream:
            for block in _read_blocks(response, url, num_announced=total - num_bytes if total else None):
                num_bytes += len(block)
                if num_bytes > max_bytes:
                    stream.truncate(0)
                _require_size(num_bytes, max_bytes, url)
                check_interrupted()  # before the write, so that the last block is still missing
                stream.write(block)
                on_progress(num_bytes, total)
        return files.finish(num_bytes)


def _find_start(response: http.client.HTTPResponse, files: _Files, url: str) -> int:
    """Check the response, and return the offset in the file at which its body begins."""
    if response.status not in (200, 206, 416):
        reason = http.client.responses.get(response.status, "")
        raise RuntimeError(
            f"{_redact(url)}: the server answered {response.status} {reason}. Check the address. If the file needs a "
            "login, download it by hand and give the file"
        )
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise RuntimeError(
            f"{_redact(url)}: the server compressed the file ({encoding}) without being asked. Download it by hand "
            "and give the file"
        )
    if response.status == 200:
        return 0
    if response.status == 416 or not files.is_continued_by(response):
        raise _WrongPiece(f"{_redact(url)}: the server sent a different part of the file than requested")
    return files.count_part_bytes()


def _read_total_bytes(response: http.client.HTTPResponse) -> int:
    """Return the size of the whole file; 0 if the server does not state it."""
    return (
        int(response.getheader("Content-Range", "").rpartition("/")[2])
        if response.status == 206
        else response.length or 0
    )


def _require_size(num_bytes: int, max_bytes: int, url: str) -> None:
    if num_bytes > max_bytes:
        raise ValueError(
            f"{_redact(url)}: the file has {format_megabytes(num_bytes)} or more; at most "
            f"{format_megabytes(max_bytes)} are allowed. Give a smaller one"
        )


def _require_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(
            errno.ENOSPC,
            f"{folder}: the download needs {format_megabytes(num_bytes)}, but only {format_megabytes(free)} are free. "
            "Free some space",
        )


def _read_blocks(response: http.client.HTTPResponse, url: str, *, num_announced: int | None) -> Iterator[bytes]:
    """Yield every block as it arrives. Raises RuntimeError if the connection breaks, or ends before
    all announced bytes have arrived.
    """
    num_bytes = 0
    try:
        # Stop at the end: if the server keeps the connection open, another read would wait.
        while num_bytes != num_announced and (block := response.read1(_BLOCK_BYTES)):
            num_bytes += len(block)
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(f"{_redact(url)}: the connection broke ({_describe_error(error)}). {_CONTINUE}") from error
    if num_announced is not None and num_bytes != num_announced:
        raise RuntimeError(
            f"{_redact(url)}: the server sent {num_bytes:,} bytes instead of {num_announced:,}. {_CONTINUE}"
        )


@contextmanager
def _open_response(url: str, headers: dict[str, str], *, allow_private: bool) -> Iterator[http.client.HTTPResponse]:
    """Yield the response after all redirects, with its body unread. Checks every address on the
    way.
    """
    for _ in range(MAX_REDIRECTS + 1):
        parts = _parse_url(url)
        with closing(_connect(parts, _resolve(parts, allow_private=allow_private))) as connection:
            response = _send_request(connection, parts, headers)
            location = response.getheader("Location")
            if response.status not in _REDIRECTS or not location:
                with closing(response):
                    yield response
                return
        url = _resolve_redirect(url, location)
    raise RuntimeError(f"{_redact(url)}: more than {MAX_REDIRECTS} redirects. Give the final address of the file")


def _parse_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed only now
    except ValueError as error:
        raise ValueError(
            f"this is not a web address ({error}). Give one such as https://example.com/images.zip"
        ) from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(
            f"{_redact(url)!r} must begin with http:// or https:// and a server's name, such as "
            "https://example.com/images.zip"
        )
    if "@" in parts.netloc:
        raise ValueError(
            f"{_redact(url)}: a user name or password in the address would be stored with the workflow. Give an "
            "address without them"
        )
    return parts


def _resolve(parts: SplitResult, *, allow_private: bool) -> list[str]:
    """Resolve the host name. One private address refuses the whole name: a server that mixes public
    and private addresses is not to be trusted.
    """
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, _get_port(parts), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RuntimeError(
            f"{host}: no server of this name was found ({_describe_error(error)}). Check the address and the connection"
        ) from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    refused = [address for address in addresses if not allow_private and not _is_public(ip_address(address))]
    if refused:
        raise ValueError(
            f"{_redact(parts.geturl())} leads to {refused[0]}, which is not a public address. "
            "The server's owner can allow it with the environment variable LORA_TRAINER_ALLOW_PRIVATE_URLS=1"
        )
    return addresses


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """True for public addresses. For an IPv6 address that carries an IPv4 address (mapped, 6to4,
    NAT64), the IPv4 address decides: packets go there.
    """
    if isinstance(address, IPv6Address):
        carried = (
            IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.ipv4_mapped or address.sixtofour
        )
        return _is_public(carried) if carried else address in _GLOBAL_UNICAST and address.is_global
    return (
        address.is_global and not address.is_multicast and not any(address in network for network in _FURTHER_REFUSED)
    )


def _connect(parts: SplitResult, addresses: list[str]) -> http.client.HTTPConnection:
    """Connect to exactly the addresses that were checked. The host name is only used for the
    certificate and the Host header.
    """
    host, port = parts.hostname or "", _get_port(parts)
    try:
        if parts.scheme == "http":
            connection = http.client.HTTPConnection(host, port)
            connection.sock = _connect_first(addresses, port)
        else:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, context=context)
            connection.sock = context.wrap_socket(_connect_first(addresses, port), server_hostname=host)
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"{host}: no connection to port {port} ({_describe_error(error)}). Check the address and the connection"
        ) from error
    return connection


def _connect_first(addresses: list[str], port: int) -> socket.socket:
    for address in addresses[:-1]:
        with suppress(OSError):
            return socket.create_connection((address, port), timeout=TIMEOUT_SECONDS)
    return socket.create_connection((addresses[-1], port), timeout=TIMEOUT_SECONDS)


def _send_request(
    connection: http.client.HTTPConnection, parts: SplitResult, headers: dict[str, str]
) -> http.client.HTTPResponse:
    target = quote(f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/", safe=_URL_CHARACTERS)
    fixed = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": "ComfyUI-LoRA-Trainer"}
    try:
        connection.request("GET", target, headers={**fixed, **headers})
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"{_redact(parts.geturl())}: the server did not answer ({_describe_error(error)}). Try again later"
        ) from error


def _resolve_redirect(url: str, location: str) -> str:
    try:
        following = urljoin(url, quote(location.encode("latin-1"), safe=_URL_CHARACTERS))
    except ValueError as error:
        raise RuntimeError(
            f"{_redact(url)} leads to something that is not a web address ({error}). Give the final address of the file"
        ) from error
    if url.lower().startswith("https:") and following.lower().startswith("http:"):
        raise ValueError(
            f"{_redact(url)} leads to {_redact(following)}, which is not encrypted. If you trust that address, give "
            "it directly"
        )
    return following


def _get_port(parts: SplitResult) -> int:
    return parts.port or _PORTS[parts.scheme]


def _redact(url: str) -> str:
    """Remove what may be secret: the query of a signed address, a user name, a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _describe_error(error: Exception) -> str:
    return "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
