import pytest
from vall_e.data.transcripts import find_recordings


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
