"""Replacing a file: the old content or the new, with the right mode, durable, and no litter."""

import os
import socket
import subprocess
import sys

import pytest
import stateio
import torch
from stateio import _atomic

OLD = {"w": torch.zeros(3)}
NEW = {"w": torch.ones(3)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_follows_the_umask(tmp_path, suffix, umask):
    before = os.umask(umask)
    try:
        path = stateio.save(NEW, tmp_path / f"x{suffix}")
        text = stateio.json_write({}, tmp_path / "x.json")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == text.stat().st_mode & 0o777 == 0o666 & ~umask


def test_file_then_rename_then_folder_are_synced(tmp_path, suffix, monkeypatch):
    steps = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: steps.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
    )
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), replace(a, b)))
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs Linux's /proc")
    stateio.save(NEW, tmp_path / f"x{suffix}")
    assert steps == ["file", "rename", "folder"]


def test_an_error_while_writing_leaves_the_old_file_and_no_litter(tmp_path, suffix):
    path = stateio.save(OLD, tmp_path / f"x{suffix}")

    def fail(_):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stateio.save({"w": torch.ones(1 << 18)}, path, progress=fail)
    assert torch.equal(stateio.load(path)["w"], OLD["w"])
    assert names(tmp_path) == [f"x{suffix}"]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, suffix, file_size_limit):
    path = stateio.save(OLD, tmp_path / f"x{suffix}")
    for limit in (0, 100, 5000, 300_000):
        file_size_limit(limit)
        with pytest.raises(OSError, match=rf"x{suffix}"):
            stateio.save({"a": torch.ones(1 << 18), "b": torch.ones(10)}, path)
        assert torch.equal(stateio.load(path)["w"], OLD["w"])
        assert names(tmp_path) == [f"x{suffix}"]


def test_a_full_disk_during_a_sharded_save(tmp_path, file_size_limit, same):
    path = tmp_path / "x.sft"
    old = {"a": torch.zeros(100), "b": torch.zeros(100)}
    stateio.save(old, path, shard_bytes=400)
    before = names(tmp_path)
    file_size_limit(20_000)
    with pytest.raises(OSError, match=r"x-\w+-00002-of-00002\.sft"):
        stateio.save({"a": torch.ones(100), "b": torch.ones(100_000)}, path, shard_bytes=400)
    assert same(stateio.load(path), old)
    assert names(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("form", ["x.sft", "x.pt", "sharded.sft"])
def test_a_real_full_disk(tmp_path, form):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    shard_bytes = 400_000 if form == "sharded.sft" else None
    try:
        path = stateio.save(OLD, tmp_path / form, shard_bytes=shard_bytes)
        before = names(tmp_path)
        new = {str(i): torch.full((100_000,), float(i)) for i in range(5)}
        with pytest.raises(OSError, match="No space left"):
            stateio.save(new, tmp_path / form, shard_bytes=shard_bytes)
        assert torch.equal(stateio.load(path)["w"], OLD["w"])
        assert names(tmp_path) == before
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_symbolic_link_is_followed(tmp_path, suffix):
    (tmp_path / "real").mkdir()
    real = stateio.save(OLD, tmp_path / "real" / f"x{suffix}")
    link = tmp_path / f"latest{suffix}"
    link.symlink_to(real)
    stateio.save(NEW, link)
    assert link.is_symlink()
    assert torch.equal(stateio.load(real)["w"], NEW["w"])
    assert names(tmp_path / "real") == [real.name]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/x\.sft"):
        stateio.save(NEW, tmp_path / "nowhere" / "x.sft")


def test_temporary_files_of_dead_writers_are_removed(tmp_path, suffix):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / f"x{suffix}"
    host = socket.gethostname()

    def temporary(target, host, pid):
        name = tmp_path / f".{target}.{host}~{pid}~0123abcd.tmp"
        name.write_bytes(b"half")
        return name

    gone = temporary(path.name, host, dead.pid)
    kept = [
        temporary(path.name, host, os.getppid()),  # a writer at work
        temporary(path.name, "elsewhere", dead.pid),  # nobody here can tell
        temporary("other.sft", host, dead.pid),  # another file's
    ]
    stateio.save(NEW, path)
    assert not gone.exists()
    assert all(name.exists() for name in kept)


def test_the_names_of_temporary_files_are_recognised(tmp_path):
    name = _atomic.temporary_path(tmp_path / "a.b~c.sft").name
    match = _atomic._TEMP_NAME.fullmatch(name)
    assert match["target"] == "a.b~c.sft"
    assert int(match["pid"]) == os.getpid()
