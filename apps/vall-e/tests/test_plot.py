import json

import pytest
from vall_e.cli import plot


@pytest.fixture
def run(tmp_path):
    """A run's folder, with a few losses in it."""
    logs = tmp_path / "logs" / "start"
    logs.mkdir(parents=True)
    rows = [{"kind": "step", "step": i, "loss.level0": 5.0 - i} for i in range(3)]
    rows.append({"kind": "eval", "step": 2, "val.level0": 3.5})
    (logs / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.html", b"<!doctype html>")]
)
def test_each_kind_of_picture(run, name, start):
    assert plot.main([str(run), "--out", str(run / "new" / name)]) == 0
    data = (run / "new" / name).read_bytes()
    assert data.startswith(start)
    assert (b"</svg>" in data) == (name != "a.png")
    assert [p.name for p in (run / "new").iterdir()] == [name]


def test_tasks_are_drawn_beside_levels(run):
    rows = [{"kind": "step", "step": 1, "loss.stt": 3.0}, {"kind": "eval", "step": 1, "val.nar-len": 2.0}]
    (run / "logs/start/metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert plot.main([str(run), "--out", str(run / "a.svg")]) == 0
    drawn = (run / "a.svg").read_text()
    assert "train, stt" in drawn
    assert "validation, nar-len" in drawn


def test_what_cannot_be_written_is_one_line(run, capsys):
    (run / "file").touch()
    for out, message in (("a.xyz", "a picture is written as .png, .svg or .html"), ("file/a.png", "file")):
        assert plot.main([str(run), "--out", str(run / out)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("vall-e-plot: ")
        assert message in line


def test_nothing_to_draw(tmp_path, capsys):
    assert plot.main([str(tmp_path)]) == 1
    assert "no metrics.jsonl with losses below this folder" in capsys.readouterr().err
