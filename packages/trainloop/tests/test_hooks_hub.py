"""Downloads against a hub on loopback: resumed, verified, never torn."""

from __future__ import annotations

import hashlib
import logging
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainloop.hooks import hub as hub_module
from trainloop.hooks.hub import DownloadError, Hub, blob_digest

huggingface_hub = pytest.importorskip("huggingface_hub")
HubServer = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))["HubServer"]
BIG = os.urandom(300_000)
FILES = {"config.json": b'{"a": 1}', "model.safetensors": BIG, "sub/more.txt": b"more"}


@pytest.fixture
def server():
    server = HubServer()
    server.add("org/net", FILES)
    yield server
    server.close()


@pytest.fixture
def hub(server, tmp_path):
    return Hub(server.endpoint, tmp_path / "cache")


def read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_snapshot_is_what_the_hub_has_and_is_fetched_once(server, hub):
    assert read(hub.snapshot("org/net")) == FILES
    assert sorted(server.gets) == [(name, 0) for name in sorted(FILES)]
    assert read(hub.snapshot("org/net", "main")) == FILES
    assert len(server.gets) == len(FILES)


def test_only_what_is_chosen(server, hub):
    folder = hub.snapshot("org/net", choose=lambda paths: [p for p in paths if p.endswith(".txt")])
    assert list(read(folder)) == ["sub/more.txt"]
    assert server.gets == [("sub/more.txt", 0)]


def test_a_cut_connection_goes_on_from_its_byte(server, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # else all of it is in one
    server.cut["model.safetensors"] = [100_000, 50_000]
    assert read(hub.snapshot("org/net")) == FILES
    assert [first for name, first in server.gets if name == "model.safetensors"] == [0, 100_000, 150_000]


def test_a_killed_download_goes_on_in_the_next_process(server, tmp_path):
    server.stall["model.safetensors"] = 200_000
    script = f"""
from huggingface_hub import constants
from trainloop.hooks.hub import Hub
constants.DOWNLOAD_CHUNK_SIZE = 10_000
Hub({server.endpoint!r}, {str(tmp_path)!r}).snapshot("org/net")
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    blobs = tmp_path / "models--org--net" / "blobs"
    while time.monotonic() < deadline and [p.stat().st_size for p in blobs.glob("*.incomplete")] != [200_000]:
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not list((tmp_path / "models--org--net").glob("snapshots/*/*.safetensors"))
    server.gets.clear()
    server.stall.clear()
    assert read(Hub(server.endpoint, tmp_path).snapshot("org/net")) == FILES
    assert ("model.safetensors", 200_000) in server.gets
    assert not list(blobs.glob("*.incomplete"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_an_error_and_are_not_kept(server, hub, name):
    server.corrupt.add(name)
    with pytest.raises(DownloadError, match=rf"{name}: .* expected [0-9a-f]+, found [0-9a-f]+"):
        hub.snapshot("org/net")
    server.corrupt.clear()
    assert read(hub.snapshot("org/net")) == FILES


def test_a_part_that_is_of_something_else_is_thrown_away(server, hub, tmp_path):
    blobs = tmp_path / "cache" / "models--org--net" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(BIG).hexdigest()}.incomplete").write_bytes(b"x" * 1000)
    assert read(hub.snapshot("org/net")) == FILES
    assert [first for name, first in server.gets if name == "model.safetensors"] == [1000, 0]


def test_a_part_longer_than_the_file_is_thrown_away(server, hub, tmp_path):
    blobs = tmp_path / "cache" / "models--org--net" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(BIG).hexdigest()}.incomplete").write_bytes(BIG + b"x")
    assert read(hub.snapshot("org/net")) == FILES


def test_errors_say_what_to_do(server, hub, tmp_path):
    with pytest.raises(DownloadError, match=r"no repository org/nte at http://127.*or it is private"):
        hub.snapshot("org/nte")
    with pytest.raises(DownloadError, match="has no revision 'v9'"):
        hub.snapshot("org/net", "v9")
    with pytest.raises(DownloadError, match="neither a local path that exists nor a repository's name"):
        hub.snapshot("not a name")
    server.status["model.safetensors"] = 500
    with pytest.raises(DownloadError, match=r"org/net/model.safetensors: .* answered 500; try again later"):
        hub.snapshot("org/net")
    server.status["api"] = 503
    with pytest.raises(DownloadError, match="answered 503"):
        hub.snapshot("org/net")


def test_without_a_network_the_cache_answers_or_the_remedy_is_named(server, hub, tmp_path, caplog):
    only_text = {"choose": lambda paths: [p for p in paths if p.endswith(".txt")]}
    folder = hub.snapshot("org/net", **only_text)
    server.close()
    with caplog.at_level(logging.WARNING, "trainloop"):
        assert hub.snapshot("org/net", **only_text) == folder
    assert "cannot be reached" in caplog.text
    assert "the copy in the cache" in caplog.text
    assert Hub(server.endpoint, tmp_path / "cache", offline=True).snapshot("org/net", **only_text) == folder
    if hasattr(huggingface_hub, "get_cached_repo_tree"):  # an older client does not know what is not there
        with pytest.raises(DownloadError, match=r"no whole copy of it\. Load it once with a network"):
            hub.snapshot("org/net")
    with pytest.raises(DownloadError, match=r"cannot be reached .* or give a local folder"):
        Hub(server.endpoint, tmp_path / "empty").snapshot("org/net")
    with pytest.raises(DownloadError, match="offline=True"):
        Hub(server.endpoint, tmp_path / "empty", offline=True).snapshot("org/net")


def test_a_full_disk_is_no_network_error(server, hub, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_module, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        hub.snapshot("org/net")


def test_digests_are_those_of_git_and_of_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"Hello, World!")
    assert blob_digest(tmp_path / "f", "0" * 40) == "b45ef6fec89518d314f546fd6c3025367b721684"
    assert blob_digest(tmp_path / "f", "0" * 64).startswith("dffd6021bb2bd5b0af676290809ec3a5")
    with pytest.raises(DownloadError, match="no hash it could be verified with"):
        blob_digest(tmp_path / "f", "W/123")
