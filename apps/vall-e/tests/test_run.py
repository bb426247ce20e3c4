"""The commands as a user runs them: real processes, real files, a very small model."""

import shutil
import signal
import subprocess
import sys
import time

import pytest


def test_a_run_leaves_all_that_it_promises(prepared):
    summary = (prepared / "summary.txt").read_text()
    assert "held-out sentences are nearest" in summary
    assert "12 steps" in summary
    assert "Best        step 12, of the checkpoints that were evaluated" in summary
    assert (prepared / "ckpt/ar+nar/fp32.sft").is_file()
    assert (prepared / "loss.png").stat().st_size > 5000
    assert len(list(prepared.glob("corpus/*/*/*.wav"))) == 240
    assert len(list(prepared.glob("corpus/*/*/*.ipa"))) == 240
    assert list(prepared.glob("logs/*/final/val/*.out.wav"))
    assert list(prepared.glob("metadata/*/*.json"))


def test_weights_alone_speak(prepared, tmp_path, run):
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


def test_a_finished_run_is_found_finished(prepared, run):
    code, out, err = run("train", "--yaml", "config.yaml", cwd=prepared)
    assert code == 0, err
    assert "12 steps" in out


def test_killed_it_goes_on_from_its_last_save_and_completes(fresh, run, start):
    wanted = ["--yaml", "config.yaml", "trainer.iterations=60"]
    for _ in range(2):
        process = start("train", *wanted, cwd=fresh)
        _wait_for(lambda: len(list(fresh.glob("ckpt/ar+nar/*/manifest.json"))) >= 2, process)
        process.kill()
        process.communicate()
    code, out, err = run("train", *wanted, cwd=fresh)
    assert code == 0, err
    assert "resumed from" in out + err
    assert "60 steps" in out


def test_killed_five_times_in_the_middle_of_a_save_it_completes(fresh, run):
    wanted = ["--yaml", "config.yaml", "trainer.iterations=20", "evaluation.size=0"]
    for point in ("after_tmp_write", "before_manifest:2", "before_rename", "mid_prune:3", "before_rename:2"):
        code, _, err = run("train", *wanted, cwd=fresh, TRAINLOOP_FAILPOINT=point)
        assert code == -signal.SIGKILL, (point, err)
    code, out, err = run("train", *wanted, cwd=fresh)
    assert code == 0, err
    assert "20 steps" in out


def test_commands_typed_while_it_trains_act(fresh, start):
    overrides = ["trainer.iterations=100000", "evaluation.size=0", "trainer.save_frequency=100000"]
    process = start("train", "--yaml", "config.yaml", *overrides, cwd=fresh, stdin=subprocess.PIPE)
    _wait_for(lambda: list(fresh.glob("logs/*/metrics.jsonl")), process)
    process.stdin.write("lr 1e-4\nfoo\nsave\nexport\neval@40\n")
    process.stdin.flush()
    _wait_for(lambda: list(fresh.glob("ckpt/ar+nar/*/manifest.json")), process)
    _wait_for(lambda: (fresh / "ckpt/ar+nar/fp32.sft").exists(), process)
    rows = next(iter(fresh.glob("logs/*/metrics.jsonl")))
    _wait_for(lambda: any(r["kind"] == "eval" and r["step"] == 40 for r in _rows(rows)), process)
    process.stdin.write("quit\n")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "foo" in err
    assert [r for r in _rows(rows) if r["kind"] == "step"][-1]["ar+nar.lr"] == 1e-4


def _rows(path):
    from trainloop import read_metrics

    return list(read_metrics(path))


def test_sigterm_saves_and_says_how_to_go_on(fresh, start):
    process = start("train", "--yaml", "config.yaml", "trainer.iterations=100000", cwd=fresh)
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


def test_a_typo_names_the_nearest_key(tmp_path, run):
    code, _, err = run("train", "dataset.worker=3", cwd=tmp_path)
    assert code == 2
    assert "dataset.workers" in err


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_an_interrupt_while_it_starts_is_one_line(fresh, start, tmp_path_factory):
    hook = tmp_path_factory.mktemp("hook")
    (hook / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'vall_e.training':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    process = start("train", "--yaml", "config.yaml", cwd=fresh, PYTHONPATH=str(hook))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.strip() == "vall-e-train: interrupted"


def test_a_file_without_its_option_leaves_nothing_behind(tmp_path, run):
    code, _, err = run("train", "training/mine/config.yaml", cwd=tmp_path)
    assert code == 2
    assert "training/mine/config.yaml" in err
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_a_run_is_one_line(fresh, run):
    for override, words in (
        ("device=cuda:99", "cannot be used here"),
        ("evaluation.kwargs={temprature: 1}", "temperature"),
    ):
        code, _, err = run("train", "--yaml", "config.yaml", override, cwd=fresh)
        assert code == 1
        assert err.startswith("vall-e-train: ")
        assert words in err
        assert len(err.splitlines()) == 1


def test_a_damaged_dataset_is_one_clear_line(fresh, run):
    (fresh / "data.h5").write_bytes(b"not hdf5")
    code, _, err = run("train", "--yaml", "config.yaml", cwd=fresh)
    assert code == 1
    assert "not a readable HDF5 file" in err
    assert "Traceback" not in err


def test_a_codec_of_another_fit_is_refused(fresh, speech, run):
    from vall_e.codecs import melvq

    (fresh / "codec.sft").unlink()
    melvq.fit(speech, levels=2, entries=32, stack=8, iterations=1).save(fresh / "codec.sft")
    code, _, err = run("train", "--yaml", "config.yaml", cwd=fresh)
    assert code == 1
    assert "codes of one fit" in err


def test_preparing_a_folder_lists_what_it_skips(fresh, prepared, tmp_path, run):
    folder = tmp_path / "mine"
    shutil.copytree(prepared / "corpus/en", folder)
    (folder / "anna" / "empty.wav").write_bytes(b"")
    (folder / "anna" / "empty.txt").write_text("Empty.")
    (fresh / "data.h5").unlink()
    code, out, err = run("data", "prepare", str(folder), "--yaml", "config.yaml", cwd=fresh)
    assert code == 0, err
    assert "empty.wav: the file is empty" in out
    assert (fresh / "data.h5").is_file()


def test_an_empty_folder_is_one_clear_line(fresh, tmp_path, run):
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
