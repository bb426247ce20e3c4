"""The tasks beside plain speech, as a user asks for them: prompts in training's form, and transcription."""

import dataclasses

import numpy as np
import pytest
import torch
from vall_e.config import Config
from vall_e.data.tasks import PromptRules, Prompts, Tasks
from vall_e.model.generate import transcribe
from vall_e.model.model import VallE
from vall_e.model.sequence import Sample
from vall_e.model.spec import ModelSpec
from vall_e.prompting import SPOKEN, prompt_of
from vall_e.synthesis import Request, Speaker
from vall_e.training import Training
from vall_e.weights import load_weights

SPEC = ModelSpec(dim=32, heads=2, layers=2, ffn=2, audio_tokens=16, phoneme_tokens=16, text_tokens=1, levels=3)


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> Training:
    """A model that has seen some of the tasks, for a few steps."""
    overrides = ["dataset.tasks_list=[tts,stt,tse,cse,tts-c]", "trainer.iterations=3", "evaluation.loss_size=2"]
    overrides += ["evaluation.size=0", "models.0.name=tasks", "hyperparameters.batch_size=3"]
    training = Training(Config.from_yaml(prepared / "config.yaml", overrides=overrides), commands=False)
    training.run()
    return training


@pytest.fixture(scope="module")
def speaker(trained) -> Speaker:
    return Speaker(load_weights(trained.weights_path))


@pytest.fixture(scope="module")
def recordings(prepared):
    return sorted(prepared.glob("corpus/en/*/*.wav"))[:2]


@pytest.mark.parametrize("task", SPOKEN)
def test_prompts_are_as_in_training(trained, task):
    entries = trained.splits["subtrain"]
    prompts = Prompts(trained.data.file, entries, PromptRules((0.7, 0.7), 0.0), trained.codec.frame_rate)
    tasks = Tasks(trained.data.file, prompts, entries[:3], trained.codec)
    sample = tasks.request(task, entries[0], 0, np.random.default_rng(0)).sample
    codes = trained.data.file.read(entries[0].key).codes
    spoken = Sample([], prompt_of(task, codes, codes, (2, 4)))
    markers = [[p if isinstance(p, str) else "codes" for p in s.prompt_parts()] for s in (sample, spoken)]
    assert markers[0] == markers[1]


def test_what_lies_outside_or_is_missing_is_said():
    codes = np.zeros((5, 2), int)
    np.testing.assert_array_equal(np.concatenate(prompt_of("cse", codes, None, (1, 3))[::2]), codes)
    for arguments, message in (
        (("ns", None), "works on a recording, and none was given"),
        (("tse", codes), "needs a recording of the voice"),
        (("cse", codes), "needs the stretch"),
        (("cse", codes, None, (2, 6)), "frames 2 to 6 of 5"),
        (("nse", codes, None, (3, 3)), "outside the recording"),
    ):
        with pytest.raises(ValueError, match=message):
            prompt_of(*arguments)


def test_each_task_speaks(speaker, recordings):
    voice, mixture = recordings
    options = {"temperature": 1.0}
    base = Request("Seven birds sang.", voice, options=options)
    for request in (
        dataclasses.replace(base, task="tts-c"),
        dataclasses.replace(base, task="tse", mixture=mixture),
        dataclasses.replace(base, task="cse", edit=(0.2, 0.6)),
    ):
        assert len(speaker.speak(request)) > 1000
    with pytest.raises(ValueError, match="task ns: these weights were trained for cse, stt, tse, tts, tts-c"):
        speaker.speak(dataclasses.replace(base, task="ns"))
    with pytest.raises(ValueError, match="outside the recording"):
        speaker.speak(dataclasses.replace(base, task="cse", edit=(0.2, 600)))


@pytest.mark.parametrize("unified", [False, True])
def test_what_was_memorised_is_transcribed(unified):
    torch.manual_seed(0)
    model = VallE(dataclasses.replace(SPEC, unified_position_ids=unified))
    rng = np.random.default_rng(0)
    samples = [
        Sample([1, *rng.integers(3, 16, n), 2], None, rng.integers(0, 16, (frames, 3)))
        for n, frames in ((3, 7), (8, 4))
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batch = model.batch_of(samples, "stt")
    for _ in range(120):
        optimizer.zero_grad()
        model(batch).nll.mean().backward()
        optimizer.step()
    model.eval()
    for found, sample in zip(transcribe(model, samples), samples, strict=True):
        np.testing.assert_array_equal(found, sample.phones[1:-1])


def test_a_recording_is_transcribed_from_the_command_line(trained, recordings, tmp_path, run):
    arguments = [str(recordings[0]), "--task", "stt", "--model", str(trained.weights_path)]
    code, out, err = run("synthesize", *arguments, cwd=tmp_path)
    assert code == 0, err
    assert set(out.strip()) <= {c for symbol in trained.data.tokenizer.vocabulary for c in symbol}


def test_phonemes_come_back_from_their_ids(trained):
    for entry in trained.splits["subtrain"][:5]:
        utterance = trained.data.file.read(entry.key)
        tokenizer = trained.data.tokenizer
        assert tokenizer.decode(tokenizer.encode(utterance.phonemes)) == utterance.phonemes
