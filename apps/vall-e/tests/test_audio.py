"""WAV files written whole and in chunks, to files and to what is not one."""

import os
import subprocess
import sys
import threading
import wave

import numpy as np
import pytest
from vall_e import audio

TONE = np.sin(np.arange(2400) / 10).astype(np.float32) / 2


def length(path) -> int:
    with wave.open(str(path)) as f:
        assert (f.getnchannels(), f.getsampwidth(), f.getframerate()) == (1, 2, 24000)
        return f.getnframes()


def test_what_is_written_is_read_again(tmp_path):
    audio.write_wav(tmp_path / "new/folder/a.wav", TONE, 24000)
    assert length(tmp_path / "new/folder/a.wav") == 2400
    assert np.abs(audio.read_audio(tmp_path / "new/folder/a.wav", 24000) - TONE).max() < 1e-4
    assert [p.name for p in (tmp_path / "new/folder").iterdir()] == ["a.wav"]


@pytest.mark.parametrize("write", [audio.write_wav, lambda path, x, rate: audio.stream_wav(path, [x], rate)])
def test_a_pipe_and_a_link_stay_what_they_are(tmp_path, write):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.wav", tmp_path / "elsewhere" / "target.wav"
    os.mkfifo(pipe)
    heard = []
    listener = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    listener.start()
    write(pipe, TONE, 24000)
    listener.join(10)
    assert pipe.is_fifo()
    assert len(heard[0]) == 44 + 2 * 2400
    target.parent.mkdir()
    target.write_bytes(b"old")
    link.symlink_to(target)
    write(link, TONE, 24000)
    assert link.is_symlink()
    assert length(target) == 2400


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stream_cut_short_says_how_much_it_holds(tmp_path, error):
    def chunks():
        yield TONE
        raise error

    with pytest.raises(error):
        audio.stream_wav(tmp_path / "new/a.wav", chunks(), 24000)
    assert length(tmp_path / "new/a.wav") == 2400


def test_a_stream_into_a_file_by_stdout_goes_on_from_there(tmp_path):
    program = (
        "import sys, numpy as np; from vall_e import audio\n"
        "sys.stdout.write('before'); sys.stdout.flush()\n"
        "audio.stream_wav('-', [np.zeros(10)], 24000); print('after')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    data = (tmp_path / "out").read_bytes()
    assert data[:10] == b"beforeRIFF"
    assert data[46:].startswith((20).to_bytes(4, "little"))
    assert data.endswith(b"after\n")


def test_a_failed_open_is_one_error(tmp_path, capfd):
    (tmp_path / "file").write_bytes(b"")
    for write in (audio.write_wav, lambda path, x, rate: audio.stream_wav(path, [x], rate)):
        with pytest.raises(OSError, match="file"):
            write(tmp_path / "file/a.wav", TONE, 24000)
        with pytest.raises(IsADirectoryError):
            write(tmp_path, TONE, 24000)
    assert capfd.readouterr().err == ""


def test_a_damaged_file_is_described_in_words(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio at all" * 20)
    with pytest.raises(audio.AudioError, match=r"bad.wav: not readable as audio: [A-Z]"):
        audio.read_audio(tmp_path / "bad.wav", 24000)
