import pytest
from vall_e.data.transcripts import find_noise, find_recordings


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def texts(found):
    return {r.id: r.text for r in found.recordings}


def test_sidecars_ljspeech_tables_and_lists(tmp_path):
    put(tmp_path, "a/one.wav", "lj/wavs/LJ1.wav", "lists/en/two.g722", "lists/en/digits/3.g722", "a/none.wav")
    (tmp_path / "a/one.txt").write_text("From a sidecar.\n")
    (tmp_path / "lj/metadata.csv").write_text("LJ1|raw 1|From a table.\n")
    (tmp_path / "lists/en.txt").write_text("; names\ntwo: From a list.\ndigits/3: Three.\n")
    found = find_recordings(tmp_path)
    assert texts(found) == {
        "one": "From a sidecar.",
        "LJ1": "From a table.",
        "two": "From a list.",
        "3": "Three.",
    }
    assert [(p.name, reason.split(":")[0]) for p, reason in found.skipped] == [("none.wav", "no transcript")]


def test_sounds_are_not_speech(tmp_path):
    put(tmp_path, "s/beep.wav", "s/dots.wav", "s/word.wav")
    (tmp_path / "list.txt").write_text("beep: [a short tone]\ndots: ...\nword: [loudly] Yes.\n")
    found = find_recordings(tmp_path)
    assert texts(found) == {"word": "[loudly] Yes."}
    assert [reason.split(":")[0] for _, reason in found.skipped] == [
        "the transcript describes a sound, not words",
        "the transcript has no words",
    ]


def test_a_folder_without_audio_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no audio below"):
        find_recordings(tmp_path)


def test_equal_texts_go_to_the_same_split(tmp_path):
    for i in range(40):
        put(tmp_path, f"s/{i}.wav")
        (tmp_path / f"s/{i}.txt").write_text(f"Sentence {i % 20}")
    splits = {}
    for r in find_recordings(tmp_path, validation=0.5).recordings:
        splits.setdefault(r.text, set()).add(r.split)
    assert all(len(s) == 1 for s in splits.values())
    assert {"training", "validation"} == {s for each in splits.values() for s in each}


def test_files_that_are_not_utf8_are_named_and_the_others_used(tmp_path):
    put(tmp_path, "s/one.wav", "s/two.wav", "s/three.wav")
    (tmp_path / "s/one.txt").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "s/two.txt").write_bytes("\ufeffTwo\0 words.".encode())
    (tmp_path / "metadata.csv").write_bytes("three|schön".encode("latin-1"))
    (tmp_path / "list.txt").write_bytes("\ufeffthree: Three.".encode())
    found = find_recordings(tmp_path)
    assert texts(found) == {"two": "Two  words.", "three": "Three."}
    assert {p.name: reason for p, reason in found.skipped} == {
        "one.wav": "one.txt is not UTF-8 (byte 0xfc at 2): save it as UTF-8",
        "metadata.csv": "metadata.csv is not UTF-8 (byte 0xf6 at 9): save it as UTF-8",
    }


def test_links_that_lead_nowhere_and_empty_texts_say_so(tmp_path):
    put(tmp_path, "s/empty.wav", "s/lost.wav", "s/said.wav")
    (tmp_path / "s/empty.txt").write_text(" \n")
    (tmp_path / "s/gone.wav").symlink_to("/nowhere/gone.wav")
    (tmp_path / "s/lost.txt").symlink_to("/nowhere/lost.txt")
    (tmp_path / "s/said.txt").write_text("Anna: a sidecar is no list.")
    found = find_recordings(tmp_path)
    assert texts(found) == {"said": "Anna: a sidecar is no list."}
    assert {p.name: reason for p, reason in found.skipped} == {
        "empty.wav": "its transcript empty.txt is empty",
        "gone.wav": "a link to /nowhere/gone.wav, which does not exist",
        "lost.wav": "its transcript lost.txt is a link to /nowhere/lost.txt, which does not exist",
    }


def test_noise_needs_no_transcripts(tmp_path):
    put(tmp_path, "street/cars/1.wav", "rain.flac")
    (tmp_path / "gone.wav").symlink_to("nowhere.wav")
    found = find_noise(tmp_path)
    assert [r.key for r in found.recordings] == [f"noise/{tmp_path.name}/{tmp_path.name}/rain", "noise/street/cars/1"]
    assert [p.name for p, _ in found.skipped] == ["gone.wav"]
