"""JSON and path helpers, commands, imports, and the README."""

import math
from pathlib import Path

import pytest
import stateio
import torch
from stateio.__main__ import main


def test_json_keeps_what_json_loses(tmp_path):
    data = {1: "one", "nan": math.nan, "inf": -math.inf, "path": Path("a/b"), "big": 2**80, "float": 1.0}
    for pretty in (False, True):
        found = stateio.json_read(stateio.json_write(data, tmp_path / "x.json", pretty=pretty))
        assert math.isnan(found.pop("nan"))
        assert found == {key: value for key, value in data.items() if key != "nan"}
        assert type(found["float"]) is float


def test_json_helpers_raise_rather_than_lose(tmp_path):
    with pytest.raises(stateio.UnsupportedObjectError, match=r"at a\.0: JSON holds no Tensor"):
        stateio.json_stringify({"a": [torch.ones(1)]})
    assert stateio.json_read(tmp_path / "none.json", default=3) == 3
    with pytest.raises(FileNotFoundError):
        stateio.json_read(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(stateio.CorruptFileError, match=r"x\.json: expected JSON: .*line 1"):
        stateio.json_read(tmp_path / "x.json")
    with pytest.raises(ValueError, match="no torch dtype is named 'load'"):
        stateio.json_parse('{"$dtype": "load"}')


def test_json_for_logs():
    assert stateio.json_stringify({"loss": 0.123456, "n": 123456}, truncate=3) == '{"loss":0.123,"n":123456}'
    assert stateio.json_stringify((1, [2])) == "[1,[2]]"


def test_pick_path(tmp_path):
    (tmp_path / "run-1.5.pth").touch()
    assert stateio.pick_path(tmp_path / "run-1.5", ".sft", ".pth") == tmp_path / "run-1.5.pth"
    assert stateio.pick_path(tmp_path / "run-1.5.sft", ".sft", ".pth") == tmp_path / "run-1.5.pth"
    assert stateio.pick_path(tmp_path / "other.sft", ".pt") == tmp_path / "other.sft"


def test_commands(tmp_path, capsys):
    path = str(stateio.save({"module": {"w": torch.ones(2)}, "stats": {"a": 1}}, tmp_path / "x.sft"))
    assert main(["inspect", path]) == 0
    assert "w  float32 [2]  8 B\n  stats = {'a': 1}" in capsys.readouterr().out
    other = str(tmp_path / "y.pt")
    assert main(["convert", path, other]) == 0
    assert main(["verify", path, other]) == 0
    assert main(["diff", path, other]) == 0
    capsys.readouterr()
    stateio.save({"module": {"w": torch.tensor([1.0, 3.0]), "v": torch.ones(1)}, "stats": {"a": 2}}, other)
    assert main(["diff", path, other]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "+ module.v",
        "! module.w: float32 [2]: largest difference 2",
        "! stats.a: 1 and 2",
    ]
    assert main(["inspect", str(tmp_path / "none.sft")]) == 1
    assert "none.sft" in capsys.readouterr().err


def test_a_header_is_read_without_torch(data, python):
    code = "import sys, stateio; stateio.inspect(sys.argv[1]); stateio.read_header(sys.argv[1])\n"
    code += "print('torch' in sys.modules, 'numpy' in sys.modules); stateio.load; print('torch' in sys.modules)"
    assert python("-c", code, str(data / "established.sft")).stdout == "False False\nTrue\n"


def test_every_public_name_exists():
    assert all(getattr(stateio, name) is not None for name in stateio.__all__)
    assert stateio.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stateio.nothing


def test_the_readme_runs_and_prints_what_it_says(tmp_path, monkeypatch, python):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    assert (
        python("-c", text.split("```python\n")[1].split("```")[0]).stdout == text.split("```text\n")[1].split("```")[0]
    )


def test_the_quickstart_runs(python):
    script = Path(__file__).parents[1] / "examples" / "quickstart.py"
    assert python(str(script)).stdout == "model.sft True {'step': 7}\nmodel.pt True {'step': 7}\n"
