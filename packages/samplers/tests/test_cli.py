"""`python -m samplers report`."""

import io
import subprocess
import sys

import numpy as np
import pytest
from samplers.__main__ import main, read_lengths


@pytest.fixture
def lengths(tmp_path, durations):
    path = tmp_path / "lengths.txt"
    path.write_text("# seconds\n" + "\n".join(f"{d:.3f}, name{i}" for i, d in enumerate(durations)) + "\n\n")
    return path


def test_a_row_for_each_combination(lengths, capsys):
    assert main(["report", str(lengths), "--max-cost", "100", "200", "--window", "100", "500"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "max_cost",
        "max_size",
        "window",
        "batches",
        "waste",
        "used",
        "over",
        "co-pair",
        "lag1",
    ]
    assert [row.split()[:3] for row in rows] == [
        ["100", "-", "100"],
        ["100", "-", "500"],
        ["200", "-", "100"],
        ["200", "-", "500"],
    ]
    waste = [float(row.split()[4].rstrip("%")) for row in rows]
    assert waste[0] > waste[1]
    assert waste[2] > waste[3]


def test_buckets_and_sizes(lengths, capsys):
    assert main(["report", str(lengths), "--max-size", "8", "--buckets", "5", "--cost", "linear"]) == 0
    assert "5 fixed" in capsys.readouterr().out


def test_picture(lengths, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.png"
    assert main(["report", str(lengths), "--max-cost", "100", "--plot", str(out)]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert str(out) in capsys.readouterr().out


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n2 x\n"))
    assert read_lengths("-") == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("1\nx\n", ["--max-cost", "4"], "line 2: expected a number, found 'x'"),
        ("", ["--max-cost", "4"], "costs is empty"),
        ("9\n", ["--max-cost", "4"], "1 of 1 items cost more"),
        ("9\n", [], "give max_cost, max_size or both"),
    ],
)
def test_mistakes(tmp_path, capsys, text, options, words):
    path = tmp_path / "lengths.txt"
    path.write_text(text)
    assert main(["report", str(path), *options]) == 2
    assert words in capsys.readouterr().err


def test_as_a_module(lengths):
    command = [sys.executable, "-m", "samplers", "report", str(lengths), "--max-cost", "100"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    missing = subprocess.run([*command[:4], str(lengths) + "x"], capture_output=True, text=True)
    assert missing.returncode == 2
    assert "No such file" in missing.stderr
    assert np.isfinite(float(done.stdout.split()[-1]))
