"""`vall-e-metrics` with functions of the user's."""

import re
import sys
import types

import pytest
from vall_e import audio
from vall_e.cli import metrics


@pytest.fixture
def folder(tmp_path, speech):
    for name in ("out", "prompt"):
        audio.write_wav(tmp_path / f"a.{name}.wav", speech[0], 24000)
    (tmp_path / "a.txt").write_text("The old man walked home.")
    return tmp_path


def fails(path):
    raise RuntimeError("no model")


@pytest.mark.parametrize(
    ("option", "function", "message"),
    [
        ("--transcriber", fails, r"yours:it: failed on .*a.out.wav: RuntimeError: no model"),
        ("--transcriber", lambda path: None, r"yours:it: expected a text of .*a.out.wav, found None"),
        ("--transcriber", lambda path: ["a"], r"expected a text of .*, found \['a'\]"),
        ("--embedder", fails, r"yours:it: failed on"),
        ("--embedder", lambda path: None, r"expected an embedding of .*, found None"),
    ],
)
def test_what_their_functions_do_wrong_is_one_line(folder, monkeypatch, capsys, option, function, message):
    monkeypatch.setitem(sys.modules, "yours", types.SimpleNamespace(it=function))
    assert metrics.main([str(folder), option, "yours:it"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("vall-e-metrics: ")
    assert re.search(message, line)


def test_what_is_heard_is_scored(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yours", types.SimpleNamespace(it=lambda path: "The old man walked"))
    assert metrics.main([str(folder), "--transcriber", "yours:it"]) == 0
    assert "wer          0.200" in capsys.readouterr().out
