"""Helpers for the tests of stateio."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("stateio", deadline=None, print_blob=True)
hypothesis.settings.load_profile("stateio")


def _same(a, b) -> bool:
    """Equal in type, value, dtype and shape, bit for bit; NaN equals NaN, 1 differs from 1.0 and True."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        flat = [t.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return torch.equal(*flat)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        keys = list(a), list(b)
        return _same(*keys) and all(_same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, complex):
        return _same(a.real, b.real) and _same(a.imag, b.imag)
    if isinstance(a, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes() or (a != a and b != b)
    return a == b


@pytest.fixture(scope="session")
def same():
    """Compare two objects by type, value, dtype and shape, bit for bit."""
    return _same


@pytest.fixture(params=["sft", "pt"])
def suffix(request) -> str:
    """Each of the two forms in turn."""
    return f".{request.param}"


@pytest.fixture(scope="session")
def data() -> Path:
    """Files written by other tools; see data/README.md."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def python():
    """Run Python code or a script in a process of its own and return its output."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=600
        )
        if check and result.returncode:
            raise AssertionError(f"exit {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    return run


@pytest.fixture
def file_size_limit():
    """Let writes of this process fail beyond a number of bytes per file, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(nbytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
