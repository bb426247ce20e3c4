"""The commands as a user runs them: real processes, real files, a very small model."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = """
demo: {enabled: true, utterances: 240, validation: 24}
codec: {levels: 2, entries: 32, stack: 8, iterations: 2, minutes: 1}
models:
- size: {dim: 32, heads: 2, layers: 1, ffn: 2, text_tokens: 1}
dataset: {duration_range: [0.3, 8.0], prompt_duration_range: [0.7, 0.7]}
hyperparameters: {batch_size: 8, learning_rate: 2.0e-3}
evaluation: {frequency: 0, size: 1, loss_size: 16}
trainer: {iterations: 12, save_frequency: 2}
"""


def command(name, *arguments, cwd, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", f"vall_e.cli.{name}", *arguments],
        cwd=cwd,
        env=env,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def run(name, *arguments, cwd):
    process = command(name, *arguments, cwd=cwd)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A finished small run."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(SMALL)
    code, out, err = run("train", "--yaml", "config.yaml", cwd=folder)
    assert code == 0, err
    (folder / "summary.txt").write_text(out)
    return folder


@pytest.fixture
def fresh(prepared, tmp_path) -> Path:
    """The same dataset without any training."""
    for name in ("config.yaml", "codec.sft", "data.h5"):
        shutil.copy(prepared / name, tmp_path / name)
    return tmp_path


def test_a_run_leaves_all_that_it_promises(prepared):
    summary = (prepared / "summary.txt").read_text()
    assert "held-out sentences are nearest" in summary
    assert "12 steps" in summary
    assert (prepared / "ckpt/ar+nar/fp32.sft").is_file()
    assert (prepared / "loss.png").stat().st_size > 5000
    assert len(list(prepared.glob("corpus/*/*/*.wav"))) == 240
    assert len(list(prepared.glob("corpus/*/*/*.ipa"))) == 240
    assert list(prepared.glob("logs/*/final/val/*.out.wav"))
    assert list(prepared.glob("metadata/*/*.json"))


def test_weights_alone_speak(prepared, tmp_path):
    weights, reference = tmp_path / "w.sft", next(prepared.glob("corpus/en/*/*.wav"))
    shutil.copy(prepared / "ckpt/ar+nar/fp32.sft", weights)
    code, out, err = run(
        "synthesize",
        "Hello.",
        str(reference),
        "--model",
        str(weights),
        "--out-path",
        "o.wav",
        "--temperature",
        "1",
        cwd=tmp_path,
    )
    assert code == 0, err
    assert "s of speech in" in out
    assert (tmp_path / "o.wav").stat().st_size > 44


def test_a_finished_run_is_found_finished(prepared):
    code, out, err = run("train", "--yaml", "config.yaml", cwd=prepared)
    assert code == 0, err
    assert "12 steps" in out


def test_killed_it_goes_on_from_its_last_save_and_completes(fresh):
    wanted = ["--yaml", "config.yaml", "trainer.iterations=60"]
    for _ in range(2):
        process = command("train", *wanted, cwd=fresh)
        _wait_for(lambda: len(list(fresh.glob("ckpt/ar+nar/*/manifest.json"))) >= 2, process)
        process.kill()
        process.communicate()
    code, out, err = run("train", *wanted, cwd=fresh)
    assert code == 0, err
    assert "resumed from" in out + err
    assert "60 steps" in out


def test_sigterm_saves_and_says_how_to_go_on(fresh):
    process = command("train", "--yaml", "config.yaml", "trainer.iterations=100000", cwd=fresh)
    _wait_for(lambda: list(fresh.glob("ckpt/ar+nar/*/manifest.json")), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "goes on from there" in err


def _wait_for(condition, process):
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing was saved in time"
        time.sleep(0.05)


def test_a_typo_names_the_nearest_key(tmp_path):
    code, _, err = run("train", "dataset.worker=3", cwd=tmp_path)
    assert code == 2
    assert "dataset.workers" in err


def test_a_damaged_dataset_is_one_clear_line(fresh):
    (fresh / "data.h5").write_bytes(b"not hdf5")
    code, _, err = run("train", "--yaml", "config.yaml", cwd=fresh)
    assert code == 1
    assert "not a readable HDF5 file" in err
    assert "Traceback" not in err


def test_a_codec_of_another_fit_is_refused(fresh, speech):
    from vall_e.codecs import melvq

    (fresh / "codec.sft").unlink()
    melvq.fit(speech, levels=2, entries=32, stack=8, iterations=1).save(fresh / "codec.sft")
    code, _, err = run("train", "--yaml", "config.yaml", cwd=fresh)
    assert code == 1
    assert "codes of one fit" in err


def test_preparing_a_folder_lists_what_it_skips(fresh, prepared, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(prepared / "corpus/en", folder)
    (folder / "anna" / "empty.wav").write_bytes(b"")
    (folder / "anna" / "empty.txt").write_text("Empty.")
    (fresh / "data.h5").unlink()
    code, out, err = run("data", "prepare", str(folder), "--yaml", "config.yaml", cwd=fresh)
    assert code == 0, err
    assert "empty.wav: the file is empty" in out
    assert (fresh / "data.h5").is_file()


def test_an_empty_folder_is_one_clear_line(fresh, tmp_path):
    (tmp_path / "nothing").mkdir()
    code, _, err = run("data", "prepare", str(tmp_path / "nothing"), "--yaml", "config.yaml", cwd=fresh)
    assert code == 1
    assert "no audio below" in err


def test_importing_and_help_do_not_load_torch():
    program = (
        "import sys, vall_e, vall_e.config\nfrom vall_e.cli import train, synthesize, data\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
