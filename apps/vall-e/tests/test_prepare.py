"""From a folder of recordings to a dataset, by the command: what is kept, what is left out and why, what goes wrong."""

import resource
import subprocess
import sys

import numpy as np
import pytest
from vall_e import audio, espeak
from vall_e.cli import data as cli
from vall_e.codecs import load
from vall_e.config import Config
from vall_e.data import prepare
from vall_e.data.open import DatasetOf
from vall_e.data.store import DatasetFile
from vall_e.data.tasks import PromptRules, Prompts, Tasks

CONFIG = """
codec: {levels: 2, entries: 16, stack: 8, iterations: 1, minutes: 1}
dataset: {noise: ["*/*"], duration_range: [0.4, 12.0]}
"""
TEXTS = [
    "The old man walked home.",
    "Seven birds sang about rain.",
    "Nobody knew why it was so cold today.",
    "Yes, of course.",
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two speakers' sentences, each with its text beside it."""
    folder = tmp_path_factory.mktemp("recordings")
    for speaker, voice in (("ann", "en-us+f3"), ("bob", "en-us+m3")):
        for i, text in enumerate(TEXTS):
            put(folder / speaker / f"{i}.wav", audio.resample(espeak.speak(text, voice), 22050, 24000), text)
    return folder


def put(path, samples, text=None):
    audio.write_wav(path, samples, 24000)
    if text is not None:
        path.with_suffix(".txt").write_text(text)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


def vall_e_data(command, config, *arguments):
    return cli.main([command, *map(str, arguments), "--yaml", str(config)])


def test_noise_is_prepared_for_the_tasks_that_mix(recordings, config, tmp_path, capsys):
    rng = np.random.default_rng(0)
    put(tmp_path / "noise/street/1.wav", rng.standard_normal(24000 * 14).astype(np.float32) / 10)
    put(tmp_path / "noise/street/quiet.wav", np.zeros(24000, np.float32))
    asked = ("--noise", tmp_path / "noise", "--validation", "0.4")
    assert vall_e_data("prepare", config, recordings, *asked) == 0
    out = capsys.readouterr().out
    assert "noise: 1 utterances, 0.2 minutes" in out
    assert "quiet.wav: silent: never louder than 60 dB below full scale" in out
    assert vall_e_data("list", config) == 0
    assert "noise     noise/street" in capsys.readouterr().out
    assert vall_e_data("validate", config) == 0
    assert "9 utterances can be used, 0 cannot" in capsys.readouterr().out
    data = DatasetOf(Config.from_yaml(config))
    entries = data.splits["subtrain"]
    tasks = Tasks(data.file, Prompts(data.file, entries, PromptRules((0.5, 0.5), 0.0), 10.0), data.noise, data.codec)
    for task in ("ns", "sr", "nse"):
        sample = tasks.request(task, entries[0], 0, rng).sample
        assert len(sample.response) >= entries[0].frames


def test_recordings_that_cannot_be_of_their_texts_are_left_out(recordings, config, tmp_path, capsys):
    added = tmp_path / "more"
    for place in recordings.rglob("*.*"):
        (added / place.relative_to(recordings).parent).mkdir(parents=True, exist_ok=True)
        (added / place.relative_to(recordings)).symlink_to(place)
    whole = audio.read_audio(recordings / "ann/2.wav", 24000)
    put(added / "ann/silent.wav", np.zeros(48000, np.float32), "Two seconds of nothing.")
    put(added / "ann/cut.wav", whole[: len(whole) // 3], TEXTS[2])
    put(added / "ann/many.wav", whole, "word " * 400)
    put(added / "ann/a.wav", np.resize(whole, 5 * 24000), "a")
    put(added / "ann/bad.wav", whole, "It is damaged.")
    (added / "ann/bad.wav").write_bytes(b"nothing like audio" * 99)
    put(added / "ann/latin.wav", whole)
    (added / "ann/latin.txt").write_bytes("schön".encode("latin-1"))
    assert vall_e_data("prepare", config, added, "--validation", "0") == 0
    out, err = capsys.readouterr()
    assert "no text was held out, and training needs some: give a larger --validation" in err
    assert "training: 8 utterances" in out
    left = {line.rpartition("/")[2].partition(": ")[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert set(left) == {"silent.wav", "cut.wav", "many.wav", "a.wav", "bad.wav", "latin.wav"}
    for name in ("cut.wav", "many.wav", "a.wav"):
        assert "which is not the text" in left[name]
    assert "not readable as audio: Invalid data found when processing input" in left["bad.wav"]
    assert "latin.txt is not UTF-8 (byte 0xf6 at 3)" in left["latin.wav"]


def test_a_language_without_a_voice_is_said_before_audio_is_read(recordings, config, capsys, monkeypatch):
    monkeypatch.setattr(audio, "read_audio", lambda *_: pytest.fail("audio was read"))
    assert vall_e_data("prepare", config, recordings, "--language", "xx") == 1
    assert "espeak-ng has no voice 'xx'" in capsys.readouterr().err


def test_a_codec_of_other_sizes_is_not_used(recordings, config, capsys):
    assert vall_e_data("fit", config, recordings) == 0
    config.write_text(CONFIG.replace("levels: 2, entries: 16", "levels: 3, entries: 32"))
    for command in ("fit", "prepare"):
        assert vall_e_data(command, config, recordings) == 1
        assert "was fitted with codec.levels 2, not 3; codec.entries 16, not 32: restore" in capsys.readouterr().err


def test_an_interruption_is_one_line(recordings, config, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_encode", interrupted)
    assert vall_e_data("prepare", config, recordings) == 130
    assert "vall-e-data: interrupted; the same command" in capsys.readouterr().err


@pytest.mark.parametrize("kilobytes", [4, 8, 16])
def test_a_full_disk_is_one_line(recordings, config, kilobytes):
    command = [sys.executable, "-m", "vall_e.cli.data", "prepare", str(recordings), "--yaml", str(config)]
    command += ["--validation", "0.4"]
    limit = (kilobytes * 1024,) * 2
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    lines = [line for line in done.stderr.splitlines() if not line.endswith("…")]
    assert done.returncode == 1, done
    assert len(lines) == 1, done.stderr
    assert lines[0].endswith(": File too large")
    assert not list(config.parent.rglob("*.tmp"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--count", "-1"],
        ["metadata", "--similar", "-3"],
        ["prepare", ".", "--validation", "-1"],
        ["prepare", ".", "--validation", "nan"],
        ["fit", ".", "--validation", "1.5"],
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*arguments, "--yaml", "x.yaml"])
    assert "expected a" in capsys.readouterr().err


def test_a_published_codec_is_looked_for_on_use_alone(golden, config, capsys, monkeypatch):
    asked = []

    def unavailable(name, path):
        asked.append(name)
        raise load.CodecUnavailable("it is not here")

    monkeypatch.setattr(load, "load_published", unavailable)
    config.write_text("audio_backend: vocos\ndataset: {training: ['G1/*'], validation: ['G1/*']}\n")
    (config.parent / "data.h5").symlink_to(golden / "dataset/data.h5")
    assert DatasetFile(config.parent / "data.h5").codec is None
    for command in ("list", "validate"):
        vall_e_data(command, config)
    assert not asked
    assert vall_e_data("sample", config) == 1
    assert asked == ["vocos"]
    assert "it is not here" in capsys.readouterr().err
