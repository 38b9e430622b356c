"""Promises of inputs on the web, and of storages without a server or driver."""

from __future__ import annotations

import functools
import http.server
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec.config
import pytest

from jobs import invert_dataset
from pipeline.errors import AccessError, InputError, PipelineError, StorageError
from pipeline.storage import list_shards, read_samples
from pipeline.storage.uris import storage_errors
from tests.storage.archives import write_packed_tar, write_parquet, write_tar

JPEG = b"\xff\xd8\xff\xe0 an image by its first bytes"


class Server(http.server.SimpleHTTPRequestHandler):
    """Server of a folder's files: whole, in `ranges`, or `bare`, without sizes and etags."""

    protocol_version = "HTTP/1.1"
    bare = ranges = False
    status = 200

    def do_HEAD(self) -> None:
        """Refuse HEAD if `bare`, as servers do that generate their answers."""
        if self.bare or self.status != 200:
            self.send_error(405 if self.bare else self.status)
        else:
            super().do_HEAD()

    def do_GET(self) -> None:
        """Send one file; folders are not listed."""
        path = Path(self.translate_path(self.path))
        if self.status != 200 or not path.is_file():
            self.send_error(self.status if self.status != 200 else 404)
        elif self.bare:
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(path.read_bytes())
        elif self.ranges and "Range" in self.headers:
            content = path.read_bytes()
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1]
            self.send_response(206)
            end = int(first) + len(part) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)
        else:
            super().do_GET()

    def handle(self) -> None:
        """Handle a request; readers of the first bytes close the connection early."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def served(folder: Path, **behaviour: object) -> Iterator[str]:
    handler = type("Behaving", (Server,), behaviour)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with each kind of input; the tars are larger than the read-ahead."""
    folder = tmp_path_factory.mktemp("www")
    noise = [(f"{n}.jpg", JPEG + bytes([n]) * 3_000_000) for n in range(4)]
    for name in ("00", "01"):
        write_tar(folder / f"{name}.tar", noise)
    write_packed_tar(folder / "packed.tar.gz", noise, "gz")
    write_parquet(folder / "p.parquet", {"image": [JPEG, JPEG]})
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr("a.jpg", JPEG)
    for name in ("a.jpg", "noext", "b.jpeg.1"):
        (folder / name).write_bytes(JPEG)
    (folder / "page.html").write_text("<html></html>")
    (folder / "list.txt").write_text("a.jpg\n00.tar\nnoext\ngone.jpg\npage.html\n")
    return folder


@pytest.fixture(scope="module", params=[{}, {"ranges": True}, {"bare": True}], ids=str)
def web(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """Yield a server of `folder`: a plain one, one with ranges, and a bare one."""
    with served(folder, **request.param) as uri:
        yield uri


def rejects(uri: str) -> list[str]:
    """Return the reject reason of each sample, "" for a readable image."""
    return [sample.reject for shard in list_shards(uri) for sample in read_samples(shard)]


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        *(("00.tar", 4), ("{00..01}.tar", 8), ("packed.tar.gz", 4), ("p.parquet", 2)),
        *(("z.zip", 1), ("a.jpg", 1), ("noext", 1), ("b.jpeg.1", 1)),
        ("00.tar?download=true", 4),
    ],
)
def test_files_of_a_web_server_are_read(web: str, name: str, samples: int) -> None:
    assert rejects(f"{web}/{name}") == [""] * samples


def test_list_on_a_web_server_is_read(web: str) -> None:
    shards = list_shards(f"{web}/list.txt")
    samples = [(sample.key, sample.reject) for shard in shards for sample in read_samples(shard)]
    assert samples[:4] == [(str(number), "") for number in range(4)]
    assert samples[4:] == [("a.jpg", ""), ("noext", ""), ("gone.jpg", "unreadable")]
    assert shards.left_out == {".html": 1}


@pytest.mark.parametrize("name", ["*.tar", "", "page.html"])
def test_folder_or_pattern_of_the_web_is_refused(web: str, name: str) -> None:
    with pytest.raises(InputError, match=r"a web server lists no folders: name its files in a"):
        next(list_shards(f"{web}/{name}"))


def test_missing_web_file_is_an_input_error(web: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        next(list_shards(f"{web}/gone.tar"))
    with pytest.raises(InputError, match=r"1 of the 2 files .*02\.tar"):
        next(list_shards(f"{web}/{{01..02}}.tar"))


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (503, StorageError, "the server answers 503"),
        (403, AccessError, "the server answers 403"),
        (410, InputError, "does not exist"),
    ],
)
def test_status_of_a_web_server_is_reported(
    folder: Path, status: int, kind: type[PipelineError], message: str
) -> None:
    with served(folder, status=status) as web, pytest.raises(kind, match=message) as caught:
        next(list_shards(f"{web}/00.tar"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "hf"])
@pytest.mark.parametrize("status", [401, 403])
def test_refused_service_user_exits_with_2(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scheme: str,
    status: int,
) -> None:
    with served(folder, status=status) as web:
        uri = f"{web}/00.tar"
        if scheme == "hf":
            pytest.importorskip("huggingface_hub").HfFileSystem.clear_instance_cache()
            uri = "hf://datasets/a/b@main/00.tar"
            monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": web, "token": False})
        assert invert_dataset.main(["--input", uri, "--output", str(tmp_path / "table")]) == 2
    message = capsys.readouterr().err
    assert f"cannot read '{uri}': the server answers {status}" in message
    assert message.count("\n") == 1


def test_missing_google_credentials_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = pytest.importorskip("google.auth")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    missing = pytest.raises(AccessError, match=r"there are no credentials, .*nowhere/key\.json")
    with missing, storage_errors("read 'gs://bucket/x'"):
        auth.default()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/{0..9}.tar", "ftp://127.0.0.1:9/x.tar"])
def test_host_without_answer_is_a_storage_error(uri: str) -> None:
    with pytest.raises(StorageError, match=r"(?i)connect") as caught:
        next(list_shards(uri))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sftp://host/x", "pip install paramiko"),
        ("lakefs://repository/branch", "pip install lakefs-spec"),
        ("nosuch://host/x", "Protocol not known: nosuch"),
        ("dbfs://host/x", "cannot open 'dbfs://host/x'"),
        ("zip://a.jpg::/nowhere.zip", "does not exist"),
    ],
)
def test_missing_driver_is_named_in_one_line(uri: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        next(list_shards(uri))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changed_web_file_has_another_etag(tmp_path: Path) -> None:
    """A server without etags gives the modification time."""
    path = write_tar(tmp_path / "s.tar", [("0.jpg", b"1")])
    with served(tmp_path) as web:
        (before,) = list_shards(f"{web}/s.tar")
        os.utime(path, (1, 1))
        (after,) = list_shards(f"{web}/s.tar")
    assert after.size == before.size
    assert after.etag != before.etag
