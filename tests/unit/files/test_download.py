"""Downloads from a real server on this machine: complete, continued, limited in size, and refused
if an address is not public.
"""

import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.limits import TIME_LIMIT
from trainers.files import download as module
from trainers.files.download import download
from trainers.training.events import Interrupted

CONTENT = bytes(i * i % 251 for i in range(300_000))
PUBLIC = "93.184.216.34"


@dataclass
class Site:
    """What the server offers, how it behaves, and the requests it got."""

    content: bytes = CONTENT
    etag: str = '"v1"'
    last_modified: str = ""
    cut_after: int = -1  # bytes of one answer, then the server closes the connection
    has_ranges: bool = True
    heeds_if_range: bool = True
    has_length: bool = True
    status: int = 200
    extra: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.requests.append({"path": self.path, **self.headers})
        self.close_connection = site.cut_after >= 0 or not site.has_length
        if location := site.redirects.get(self.path):
            return self._answer(302, b"", {"Location": location})
        validators = {
            name: value for name, value in (("ETag", site.etag), ("Last-Modified", site.last_modified)) if value
        }
        if any(self.headers[name] in validators.values() for name in ("If-None-Match", "If-Modified-Since")):
            return self._answer(304, None, validators)
        if (
            site.has_ranges
            and (wanted := self.headers["Range"])
            and (not site.heeds_if_range or self.headers["If-Range"] in validators.values())
        ):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(site.content):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(site.content)}"})
            content_range = f"bytes {start}-{len(site.content) - 1}/{len(site.content)}"
            return self._answer(206, site.content[start:], {**validators, "Content-Range": content_range})
        return self._answer(site.status, site.content, validators)

    def _answer(self, status: int, content: bytes | None, headers: dict[str, str]) -> None:
        self.site.statuses.append(status)
        self.send_response(status)
        for name, value in {**headers, **self.site.extra}.items():
            self.send_header(name, value)
        if content is not None and self.site.has_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write((content or b"")[: self.site.cut_after] if self.site.cut_after >= 0 else content or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(context: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # the tests need clients that hang up
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    site.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}/pictures.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


def fetch(url: str, folder: Path, **settings) -> Path:
    return download(url, folder, **{"max_bytes": 10**6, "allow_private": True, **settings})


def list_suffixes(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


@dataclass
class Internet:
    """Resolves names to the test's addresses, and records connections, which all go to the local
    server.
    """

    addresses: dict[str, list[str]]
    lookups: list[str] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)


@pytest.fixture
def internet(site: Site, monkeypatch: pytest.MonkeyPatch) -> Internet:
    return fake_internet(site, monkeypatch)


def fake_internet(site: Site, monkeypatch: pytest.MonkeyPatch) -> Internet:
    internet = Internet({"pictures.example": [PUBLIC]})
    local = int(site.url.split(":")[2].split("/")[0])
    connect: Callable[..., socket.socket] = socket.create_connection
    resolve = socket.getaddrinfo

    def fake_resolve(host, port, *_, **settings):
        if host not in internet.addresses:
            return resolve(host, port, *_, **settings)
        internet.lookups.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in internet.addresses[host]]

    def fake_connect(address, **settings):
        internet.connections.append(address[0])
        return connect(("127.0.0.1", local), **settings)

    monkeypatch.setattr(socket, "getaddrinfo", fake_resolve)
    monkeypatch.setattr(socket, "create_connection", fake_connect)
    return internet


def test_a_file_arrives_complete_and_reports_progress(site, tmp_path):
    progress = []
    path = fetch(site.url, tmp_path / "new" / "folder", on_progress=lambda *numbers: progress.append(numbers))
    assert path.read_bytes() == CONTENT
    assert progress[-1] == (len(CONTENT), len(CONTENT)) and progress == sorted(progress)
    assert list_suffixes(path.parent) == [".bin", ".json"]


def test_two_addresses_give_two_files(site, tmp_path):
    assert fetch(site.url, tmp_path) != fetch(f"{site.url}?other", tmp_path)


def test_a_file_of_unknown_length_arrives_complete(site, tmp_path):
    site.has_length = False
    progress = []
    assert fetch(site.url, tmp_path, on_progress=lambda *numbers: progress.append(numbers)).read_bytes() == CONTENT
    assert progress[-1] == (len(CONTENT), 0)


@pytest.mark.parametrize(
    "validator",
    [{"etag": '"v1"'}, {"etag": "", "last_modified": "Wed, 21 Oct 2015 07:28:00 GMT"}],
    ids=["ETag", "Last-Modified"],
)
def test_a_broken_download_continues_where_it_stopped(site, tmp_path, validator):
    vars(site).update(validator, cut_after=100_000)
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1:\d+/pictures\.zip: .*Run it again to continue from there"):
        fetch(site.url, tmp_path)
    assert list_suffixes(tmp_path) == [".json", ".part"]
    site.cut_after = -1
    progress = []
    path = fetch(site.url, tmp_path, on_progress=lambda *numbers: progress.append(numbers))
    assert path.read_bytes() == CONTENT
    assert site.statuses == [200, 206] and site.requests[1]["Range"] == "bytes=100000-"
    assert progress[0][0] > 100_000 and progress[-1] == (len(CONTENT), len(CONTENT))


def test_spaces_around_a_pasted_address_are_dropped(site, tmp_path):
    assert fetch(f" {site.url}\n", tmp_path) == fetch(site.url, tmp_path)


def test_after_an_interrupt_the_next_call_continues(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 50_000)

    def interrupt() -> None:
        if any(part.stat().st_size for part in tmp_path.glob("*.part")):
            raise Interrupted("cancelled")

    with pytest.raises(Interrupted):
        fetch(site.url, tmp_path, check_interrupted=interrupt)
    num_bytes = next(tmp_path.glob("*.part")).stat().st_size
    assert 0 < num_bytes <= 150_000
    assert fetch(site.url, tmp_path).read_bytes() == CONTENT
    assert site.requests[1]["Range"] == f"bytes={num_bytes}-"


@pytest.mark.parametrize(
    ("change", "statuses"),
    [
        ({"etag": '"v2"', "content": CONTENT[::-1]}, [200, 200]),
        ({"etag": '"v2"', "content": CONTENT[::-1], "heeds_if_range": False}, [200, 206, 200]),
        ({"etag": '"v2"', "content": CONTENT[:50_000], "heeds_if_range": False}, [200, 416, 200]),
        ({"has_ranges": False}, [200, 200]),
    ],
    ids=["another file", "another file, If-Range ignored", "a shorter file, If-Range ignored", "no ranges"],
)
def test_a_download_that_cannot_continue_starts_again(site, tmp_path, change, statuses):
    site.cut_after = 100_000
    with pytest.raises(RuntimeError):
        fetch(site.url, tmp_path)
    vars(site).update(change, cut_after=-1)
    assert fetch(site.url, tmp_path).read_bytes() == site.content
    assert site.statuses == statuses
    assert list_suffixes(tmp_path) == [".bin", ".json"]


@pytest.mark.parametrize("etag", ["", 'W/"v1"'], ids=["none", "weak"])
def test_a_download_without_a_strong_validator_starts_again(site, tmp_path, etag):
    vars(site).update(etag=etag, cut_after=100_000)
    with pytest.raises(RuntimeError):
        fetch(site.url, tmp_path)
    site.cut_after = -1
    assert fetch(site.url, tmp_path).read_bytes() == CONTENT
    assert "Range" not in site.requests[1]


def test_a_complete_file_is_reused_only_if_the_server_says_that_it_is_the_same(site, tmp_path):
    path = fetch(site.url, tmp_path)
    assert fetch(site.url, tmp_path) == path and site.statuses == [200, 304]
    vars(site).update(etag='"v2"', content=b"new")
    assert fetch(site.url, tmp_path).read_bytes() == b"new"
    assert site.statuses == [200, 304, 200]


def test_a_complete_file_without_validators_is_downloaded_again(site, tmp_path):
    site.etag = ""
    fetch(site.url, tmp_path)
    site.content = b"new"
    assert fetch(site.url, tmp_path).read_bytes() == b"new"


def test_an_old_file_does_not_pass_for_a_new_one_that_arrived_in_part(site, tmp_path):
    fetch(site.url, tmp_path)
    vars(site).update(etag='"v2"', content=CONTENT[::-1], cut_after=100_000)
    with pytest.raises(RuntimeError):
        fetch(site.url, tmp_path)
    site.cut_after = -1
    assert fetch(site.url, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_file_announced_as_too_large_is_refused_before_it_is_read(site, tmp_path):
    with pytest.raises(ValueError, match=r"pictures\.zip: the file has 0\.3 MB or more; at most 0\.1 MB are allowed"):
        fetch(site.url, tmp_path, max_bytes=100_000)
    assert list_suffixes(tmp_path) == []


def test_the_limit_applies_to_a_file_of_unknown_size(site, tmp_path):
    site.has_length = False
    with pytest.raises(ValueError, match="or more; at most"):
        fetch(site.url, tmp_path, max_bytes=100_000)
    assert next(tmp_path.glob("*.part")).stat().st_size == 0


def test_the_limit_applies_to_a_continued_file(site, tmp_path):
    site.cut_after = 100_000
    with pytest.raises(RuntimeError):
        fetch(site.url, tmp_path)
    with pytest.raises(ValueError, match="or more; at most"):
        fetch(site.url, tmp_path, max_bytes=200_000)


def test_a_file_of_exactly_the_limit_is_accepted(site, tmp_path):
    assert fetch(site.url, tmp_path, max_bytes=len(CONTENT)).read_bytes() == CONTENT


def test_a_full_disk_is_noticed_before_anything_is_written(site, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(OSError, match=r"the download needs 0\.3 MB, but only 0\.0 MB are free\. Free some space"):
        fetch(site.url, tmp_path)
    assert list_suffixes(tmp_path) == []


def test_a_second_writer_of_the_same_file_is_noticed(site, tmp_path):
    def write_too(*_) -> None:
        with open(next(tmp_path.glob("*.part")), "ab") as stream:
            stream.write(b"x")

    with pytest.raises(RuntimeError, match="another download wrote to the same file"):
        fetch(site.url, tmp_path, on_progress=write_too)
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize("status", [401, 404, 500])
def test_an_error_from_the_server_is_reported(site, tmp_path, status):
    site.status = status
    with pytest.raises(RuntimeError, match=rf"pictures\.zip: the server answered {status} [A-Z].*\. Check the address"):
        fetch(site.url, tmp_path)
    assert list_suffixes(tmp_path) == []


def test_a_compressed_answer_is_refused(site, tmp_path):
    site.extra = {"Content-Encoding": "gzip"}
    with pytest.raises(RuntimeError, match=r"the server compressed the file \(gzip\)"):
        fetch(site.url, tmp_path)


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(RuntimeError, match=r"the server did not answer \(timed out\)"),
    ):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip", tmp_path)


def test_a_missing_server_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(
        RuntimeError, match=rf"127\.0\.0\.1: no connection to port {port} \(.+\)\. Check the address and the connection"
    ):
        fetch(f"http://127.0.0.1:{port}/a.zip", tmp_path)


@contextmanager
def serve_text(text: bytes) -> Iterator[str]:
    """Yield the address of a server that sends this text to its first client, and keeps the
    connection open until the block ends.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()
        thread = threading.Thread(target=_say, args=(server, text, ended))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/a.zip"
        finally:
            ended.set()
            thread.join()


def _say(server: socket.socket, text: bytes, ended: threading.Event) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(text)
        if text.endswith(b"cut"):
            return
        ended.wait()


def test_a_server_that_does_not_speak_http_is_named(tmp_path):
    with (
        serve_text(b"220 mail.example ESMTP\r\n") as url,
        pytest.raises(RuntimeError, match="the server did not answer"),
    ):
        fetch(url, tmp_path)


def test_the_download_ends_with_the_last_byte_even_if_the_connection_stays_open(tmp_path):
    with serve_text(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole") as url:
        assert fetch(url, tmp_path).read_bytes() == b"whole"


def test_a_server_that_stops_in_the_middle_is_given_up_and_the_part_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", TIME_LIMIT)

    def expect_no_more(done: int, total: int) -> None:
        if done == 4:
            monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0)

    with (
        serve_text(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf") as url,
        pytest.raises(RuntimeError, match=r"the connection broke \(timed out\)"),
    ):
        fetch(url, tmp_path, on_progress=expect_no_more)
    assert next(tmp_path.glob("*.part")).read_bytes() == b"half"


def test_a_broken_chunked_download_is_noticed(tmp_path):
    with (
        serve_text(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n9\r\ncut") as url,
        pytest.raises(RuntimeError, match="broke"),
    ):
        fetch(url, tmp_path)
    assert not list(tmp_path.glob("*.bin"))


def test_chunks_become_one_file(tmp_path):
    with serve_text(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n4\r\nhalf\r\n0\r\n\r\n") as url:
        assert fetch(url, tmp_path).read_bytes() == b"halfhalf"


def test_an_unknown_host_is_named(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(RuntimeError, match=r"nowhere\.example: no server of this name was found .* Check the address"):
        fetch("http://nowhere.example/a.zip", tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://pictures.example/a.zip", "must begin with http:// or https://"),
        ("file:///etc/passwd", "must begin with http:// or https://"),
        ("pictures.zip", "must begin with http:// or https://"),
        ("http:///a.zip", "must begin with http:// or https:// and a server's name"),
        ("http://user:secret@pictures.example/a.zip", "a user name or password in the address"),
        ("http://pictures.example:99999/a.zip", "this is not a web address"),
        ("http://[pictures/a.zip", "this is not a web address"),
    ],
)
def test_an_invalid_address_is_refused(tmp_path, url, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        fetch(url, tmp_path)
    assert "secret" not in str(raised.value)


def test_spaces_and_letters_beyond_ascii_are_quoted(site, tmp_path):
    fetch(site.url.replace("pictures.zip", "my pictures/é%20?q=ü"), tmp_path)
    assert site.requests[0]["path"] == "/my%20pictures/%C3%A9%20?q=%C3%BC"


def test_no_message_shows_the_query_of_a_signed_address(site, tmp_path):
    site.status = 404
    with pytest.raises(RuntimeError) as raised:
        fetch(f"{site.url}?signature=secret", tmp_path)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "fe80::1",
        "fe80::1%1",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "2001::1",
        "2001:db8::1",
        "100::1",
        "4000::1",
    ],
)
def test_an_address_that_is_not_public_is_refused_without_a_connection(tmp_path, internet, address):
    internet.addresses["inside.example"] = [address]
    with pytest.raises(
        ValueError, match=f"{re.escape(address)}, which is not a public address.*LORA_TRAINER_ALLOW_PRIVATE_URLS=1"
    ):
        fetch("http://inside.example/a.zip", tmp_path, allow_private=False)
    assert internet.connections == []


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_a_public_address_is_allowed(address):
    assert module._is_public(ip_address(address)) is True


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "１２７.０.０.１",
    ],
)
def test_no_spelling_of_the_local_address_gets_through(tmp_path, internet, host):
    with pytest.raises((ValueError, RuntimeError), match=r"not a public address|no server of this name"):
        fetch(f"http://{host}:80/a.zip", tmp_path, allow_private=False)
    assert internet.connections == []


def test_one_private_address_among_public_ones_blocks_the_name(tmp_path, internet):
    internet.addresses["mixed.example"] = [PUBLIC, "10.0.0.1"]
    with pytest.raises(ValueError, match=r"10\.0\.0\.1, which is not a public address"):
        fetch("http://mixed.example/a.zip", tmp_path, allow_private=False)


def test_the_connection_goes_to_the_address_that_was_checked(site, tmp_path, internet):
    class Rebinding(list):
        def __iter__(self):
            return iter([PUBLIC] if len(internet.lookups) == 1 else ["127.0.0.1"])

    internet.addresses["pictures.example"] = Rebinding()
    assert fetch("http://pictures.example/a.zip", tmp_path, allow_private=False).read_bytes() == CONTENT
    assert internet.lookups == ["pictures.example"] and internet.connections == [PUBLIC]
    assert site.requests[0]["Host"] == "pictures.example"


def test_if_one_address_cannot_be_reached_the_next_one_is_tried(site, tmp_path, internet, monkeypatch):
    internet.addresses["pictures.example"] = ["93.184.216.1", PUBLIC]
    connect = socket.create_connection

    def fail_first(address, **settings):
        if address[0] == "93.184.216.1":
            raise OSError("unreachable")
        return connect(address, **settings)

    monkeypatch.setattr(socket, "create_connection", fail_first)
    assert fetch("http://pictures.example/a.zip", tmp_path, allow_private=False).read_bytes() == CONTENT


def test_redirects_are_followed_even_relative_ones(site, tmp_path):
    site.redirects = {"/pictures.zip": "/second", "/second": f"{site.url}/third?x=1"}
    assert fetch(site.url, tmp_path).read_bytes() == CONTENT
    assert [request["path"] for request in site.requests] == ["/pictures.zip", "/second", "/pictures.zip/third?x=1"]


def test_endless_redirects_are_given_up(site, tmp_path):
    site.redirects = {"/pictures.zip": "/pictures.zip"}
    with pytest.raises(RuntimeError, match="more than 5 redirects"):
        fetch(site.url, tmp_path)
    assert len(site.requests) == 6


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "http://127.0.0.1:8188/history",
            "http://127.0.0.1:8188/history leads to 127.0.0.1, which is not a public address",
        ),
        ("http://inside.example/", "leads to 10.0.0.7, which is not a public address"),
        ("//169.254.169.254/latest/meta-data", "leads to 169.254.169.254, which is not a public address"),
        ("file:///etc/passwd", "must begin with http:// or https://"),
        ("ftp://pictures.example/a", "must begin with http:// or https://"),
        ("http://user:secret@pictures.example/", "a user name or password"),
    ],
)
def test_a_redirect_cannot_lead_where_the_address_itself_could_not(site, tmp_path, internet, location, message):
    internet.addresses["inside.example"] = ["10.0.0.7"]
    site.redirects = {"/pictures.zip": location}
    with pytest.raises(ValueError, match=re.escape(message)):
        fetch("http://pictures.example/pictures.zip", tmp_path, allow_private=False)
    assert internet.connections == [PUBLIC] and list_suffixes(tmp_path) == []


def test_a_redirect_to_an_invalid_address_is_reported(site, tmp_path):
    site.redirects = {"/pictures.zip": "http://[bad/"}
    with pytest.raises(
        RuntimeError, match=r"pictures\.zip leads to something that is not a web address \(Invalid IPv6 URL\)"
    ):
        fetch(site.url, tmp_path)


def test_a_continued_download_checks_its_redirects_again(site, tmp_path, internet):
    site.cut_after = 100_000
    with pytest.raises(RuntimeError):
        fetch("http://pictures.example/pictures.zip", tmp_path, allow_private=False)
    site.redirects = {"/pictures.zip": "http://127.0.0.1/"}
    with pytest.raises(ValueError, match="not a public address"):
        fetch("http://pictures.example/pictures.zip", tmp_path, allow_private=False)


def test_proxies_from_the_environment_are_not_used(site, tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(site.url, tmp_path).read_bytes() == CONTENT


def test_the_stored_validators_do_not_contain_the_address(site, tmp_path):
    path = fetch(f"{site.url}?signature=secret", tmp_path)
    assert json.loads(path.with_suffix(".json").read_text()) == {"ETag": '"v1"'}
    assert "secret" not in "".join(file.name for file in tmp_path.iterdir())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """Make a key and a self-signed certificate for pictures.example."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: certificates were not checked")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        str(path),
    ]
    command += [
        "-out",
        str(path.with_suffix(".crt")),
        "-subj",
        "/CN=pictures.example",
        "-addext",
        "subjectAltName=DNS:pictures.example",
    ]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.fixture
def secure_site(certificate: Path) -> Iterator[tuple[Site, list[str]]]:
    """Run a server with TLS; yields it and the names that clients asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[str] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    with serve(context) as site:
        yield site, asked


def test_https_checks_the_certificate_for_the_name_although_it_connects_to_the_address(
    secure_site, certificate, tmp_path, monkeypatch
):
    site, asked = secure_site
    internet = fake_internet(site, monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch("https://pictures.example/a.zip", tmp_path, allow_private=False).read_bytes() == CONTENT
    assert asked == ["pictures.example"] and internet.connections == [PUBLIC]
    assert site.requests[0]["Host"] == "pictures.example"
    internet.addresses["other.example"] = [PUBLIC]
    with pytest.raises(RuntimeError, match=r"other\.example: no connection to port 443 .*certificate"):
        fetch("https://other.example/a.zip", tmp_path, allow_private=False)


def test_an_untrusted_certificate_is_refused(secure_site, tmp_path, monkeypatch):
    site, _ = secure_site
    fake_internet(site, monkeypatch)
    with pytest.raises(RuntimeError, match="certificate verify failed"):
        fetch("https://pictures.example/a.zip", tmp_path, allow_private=False)
    assert site.requests == []


def test_a_redirect_from_https_to_http_is_refused(secure_site, certificate, tmp_path, monkeypatch):
    site, _ = secure_site
    fake_internet(site, monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    site.redirects = {"/a.zip": "http://pictures.example/a.zip"}
    with pytest.raises(ValueError, match="which is not encrypted"):
        fetch("https://pictures.example/a.zip", tmp_path, allow_private=False)


def cancel_download(folder: Path, answer: Callable[[socket.socket], None]) -> None:
    """Cancel a download while a server that has its request gives it this answer, which never ends:
    without the cancel, the download would not end either.
    """
    is_asked = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.recv(4096)
            is_asked.set()
            answer(connection)

    def check_interrupted() -> None:
        if is_asked.is_set():
            raise Interrupted

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.zip"
        with pytest.raises(Interrupted):
            fetch(url, folder, check_interrupted=check_interrupted)


def test_headers_that_come_one_byte_at_a_time_can_be_cancelled(tmp_path: Path):
    def drip(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"H")
            time.sleep(0.05)

    cancel_download(tmp_path, drip)


def test_a_silent_server_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", TIME_LIMIT)
    cancel_download(tmp_path, lambda connection: connection.recv(1))
