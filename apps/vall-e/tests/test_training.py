"""Training under each flag of the configuration: a few real steps, a stop, and the same end as without one."""

import warnings

import numpy as np
import pytest
import stateio
import torch
from vall_e.config import Config
from vall_e.summary import Report, Speech, describe
from vall_e.training import Training
from vall_e.weights import WeightsError, load_weights

warnings.filterwarnings("ignore", message=".*bitsandbytes.*")


def train(folder, until, *overrides) -> tuple[Training, dict]:
    """Train in this process; the parameters at the end."""
    settings = [
        f"trainer.iterations={until}",
        "evaluation.size=0",
        "evaluation.loss_size=4",
        "trainer.save_frequency=3",
    ]
    cfg = Config.from_yaml(folder / "config.yaml", overrides=[*settings, *overrides])
    training = Training(cfg, commands=False)
    training.run()
    return training, {k: v.clone() for k, v in training.model.state_dict().items()}


FLAGS = {
    "plain": [],
    "accumulation": ["hyperparameters.gradient_accumulation_steps=2"],
    "bf16": ["trainer.amp=true", "trainer.weight_dtype=bfloat16"],
    "speakers": ["dataset.sample_type=speaker"],
    "interleaved": ["dataset.sample_order=interleaved", "dataset.sample_max_duration_batch=20"],
    "shuffled": ["dataset.sample_order=shuffle"],
    "tasks": [
        "dataset.tasks_list=[tts,tts-c,stt,tse,cse,len,nar-len]",
        "dataset.prompt_max_samples=2",
        "hyperparameters.batch_size=3",  # mixing decodes and encodes each sample
    ],
    "joined": [
        "dataset.resps_append_p=0.5",
        "dataset.resps_max_samples=3",
        "dataset.prompt_continuous_utterance_p=0.5",
    ],
    "workers": ["dataset.workers=2"],
    "dropout": ["models.0.dropout=0.1"],
    "checkpointing": ["trainer.gradient_checkpointing=true"],
    "unsloth": ["optimizations.unsloth=true"],
    "bitnet": ["optimizations.bitnet=true"],
    "injected": ["optimizations.bitnet=true", "optimizations.injects=true"],
    "bitsandbytes": ["optimizations.bitsandbytes=true"],
    "embedding": ["optimizations.bitsandbytes=true", "optimizations.embedding=true"],
    "dadaptation": ["optimizations.dadaptation=true", "hyperparameters.learning_rate=1"],
    "prodigy": ["hyperparameters.optimizer=prodigy", "hyperparameters.learning_rate=1"],
    "apollo": ["hyperparameters.optimizer=apollo"],
    "apollo-mini": ["hyperparameters.optimizer=apollo-mini"],
    "muon": ["hyperparameters.optimizer=muon"],
    "lora": ["loras=[{name: NAME, rank: 2}]"],
    "lora-embeddings": ["loras=[{name: NAME, rank: 2, embeddings: true}]"],
    "frozen": ["models.0.frozen_params=['*_emb.*']"],
    "offloading": ["optimizations.model_offloading={devices: [cpu]}"],
    "compile": ["optimizations.compile=eager"],
}


@pytest.mark.parametrize("flag", FLAGS)
def test_stopped_and_resumed_it_ends_as_without_a_stop(fresh, flag):
    def named(name):  # the schedule's end must not depend on where a run is stopped
        flags = [o.replace("NAME", name) for o in FLAGS[flag]]
        return [*flags, f"models.0.name={name}", "hyperparameters.scheduler=constant"]

    _, whole = train(fresh, 6, *named("whole"))
    train(fresh, 3, *named("halved"))
    resumed, ended = train(fresh, 6, *named("halved"))
    assert resumed.trainer.step == 6
    for (name, a), b in zip(whole.items(), ended.values(), strict=True):
        assert torch.equal(a, b), name


def test_an_adapter_speaks_on_its_base_and_can_be_merged(fresh, tmp_path):
    from vall_e.cli.export import main as export

    base, _ = train(fresh, 3)
    weights = base.weights_path
    lora, _ = train(fresh, 6, "loras=[{name: mine, rank: 2}]", f"models.0.path={weights}")
    assert lora.weights_path.name == "lora.sft"
    losses = {f"{split}.level{i}": (6.0, 3.0) for split in lora.splits for i in range(lora.spec.levels)}
    said = describe(lora, Report(losses, Speech(16, 9, 1.0, 2.0, (1.0, 2.0), (0.5, 0.4), tmp_path / "voice.wav")))
    assert f"--model {weights} --lora {lora.weights_path}" in said
    adapted = load_weights(weights, lora=lora.weights_path)
    sample = lora.evaluator._samples(lora.splits["val"][:1])
    with torch.inference_mode():
        expected = lora.model.eval().logits(sample)[0]
        plain = load_weights(weights).model.logits(sample)[0]
        torch.testing.assert_close(adapted.model.logits(sample)[0], expected, atol=1e-5, rtol=0)
        assert (plain - expected).abs().max() > 1e-4
        assert export([str(weights), "--lora", str(lora.weights_path), "--out", str(tmp_path / "merged.sft")]) == 0
        merged = load_weights(tmp_path / "merged.sft").model
        torch.testing.assert_close(merged.logits(sample)[0], expected, atol=1e-5, rtol=0)


def test_a_student_comes_nearer_to_its_teacher_than_alone(fresh):
    teacher, _ = train(fresh, 40, "models.0.name=teacher")
    entry = f"{{name: teacher, teacher: true, training: false, path: {teacher.weights_path}}}"
    student = "{name: NAME, size: {dim: 16, heads: 1, layers: 1, ffn: 2, text_tokens: 1}}"

    def distance(alpha, name):
        models = f"models=[{student.replace('NAME', name)}, {entry}]"
        run, _ = train(
            fresh, 30, models, f"hyperparameters.teacher_alpha={alpha}", "hyperparameters.learning_rate=0.01"
        )
        samples = run.evaluator._samples(run.splits["val"])
        with torch.no_grad():
            ours, theirs = (torch.cat(m.eval().logits(samples)) for m in (run.model, teacher.model))
        return torch.nn.functional.kl_div(
            ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean"
        )

    assert distance(1.0, "taught") < distance(0.0, "alone")


def test_an_adapter_of_another_model_is_refused(fresh):
    small, _ = train(fresh, 3, "loras=[{name: mine, rank: 2}]")
    big, _ = train(
        fresh, 3, "models.0.size={dim: 64, heads: 2, layers: 2, ffn: 2, text_tokens: 1}", "models.0.name=big"
    )
    with pytest.raises(ValueError, match="does not fit this VallE"):
        load_weights(big.weights_path, lora=small.weights_path)


def test_fine_tuning_with_a_language_more(fresh):
    base, _ = train(fresh, 3)
    more = [f"models.0.path={base.weights_path}", "models.0.langs=7", "models.0.name=more"]
    with pytest.raises(ValueError, match=r"langs_emb.weight \[6, 32\] instead of \[7, 32\]"):
        train(fresh, 6, *more)
    cfg = Config.from_yaml(fresh / "config.yaml", overrides=[*more, "trainer.resize_modules=true"])
    grown = Training(cfg, commands=False).model
    old = load_weights(base.weights_path).model.state_dict()
    for name, tensor in grown.state_dict().items():
        rows = len(old[name])
        assert torch.equal(tensor[:rows], old[name]), name
    assert len(grown.langs_emb.weight) == 7


def test_a_checkpoint_speaks_for_itself(fresh):
    training, state = train(fresh, 3)
    voice = load_weights(training.ckpt_dir)
    assert voice.codec.identity == training.codec.identity
    assert voice.stats["global_step"] == 3
    for name, tensor in voice.model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_existing_checkpoint_folders_load(golden):
    folder = golden / "micro_ckpt/ckpt/ar+nar-micro-llama-8"
    models = [load_weights(p).model for p in (folder, folder / "7/state.sft", folder / "fp32.sft")]
    for model in models:
        assert (model.spec.heads, model.spec.dim, model.spec.length_offset) == (2, 16, 1)
    assert torch.equal(models[0].sep, models[1].sep)


def test_weights_without_a_configuration_are_asked_for_one(golden, tmp_path):
    held = stateio.load(golden / "micro_ckpt/ckpt/ar+nar-micro-llama-8/7/state.sft")
    stateio.save(held, tmp_path / "state.sft")
    with pytest.raises(WeightsError, match="holds no `config`"):
        load_weights(tmp_path / "state.sft")
    model = load_weights(tmp_path / "state.sft", config={"size": {"dim": 16, "heads": 2, "layers": 2}}).model
    assert model.spec.audio_tokens == 32


def test_what_cannot_work_is_said_before_anything_is_trained(fresh):
    for overrides, message in (
        (["dataset.tasks_list=[ns]"], "ns need noise"),
        (["optimizations.bitnet=true", "optimizations.bitsandbytes=true"], "choose one"),
        (["models.0.frozen_params=['nothing.*']"], "matches no parameter"),
        (["models.0.size={dim: 32, heads: 2, layers: 1, audio_tokens: 64}"], "audio_tokens is 64, but the codec"),
        (["dataset.duration_range=[100, 200]"], "none of .* utterances lasts 100"),
        (["optimizations.compile=nobackend"], "nobackend"),
        (["optimizations.fp8=true"], "transformer"),
    ):
        with pytest.raises((ValueError, RuntimeError, ImportError), match=message):
            train(fresh, 3, *overrides)
    assert not (fresh / "ckpt").exists()


def test_a_delivered_batch_has_the_tasks_asked_for(fresh):
    cfg = Config.from_yaml(fresh / "config.yaml", overrides=["dataset.tasks_list=[stt]"])
    training = Training(cfg, commands=False)
    batch = next(iter(training.loader))
    assert [head for head, _ in batch.heads] == [training.spec.levels + 1]
    assert np.isfinite(training.model(batch).nll.detach().numpy()).all()
