"""Training under each flag of the configuration: a few real steps, a stop, and the same end as without one."""

import warnings

import numpy as np
import pytest
import stateio
import torch
from vall_e.config import Config
from vall_e.model.model import VallE
from vall_e.summary import Report, Speech, describe
from vall_e.training import Training
from vall_e.weights import WeightsError, load_weights

warnings.filterwarnings("ignore", message=".*bitsandbytes.*")


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
    "lora": ["loras=[{name: NAME, rank: 2}]", "models.0.path=BASE"],
    "lora-embeddings": ["loras=[{name: NAME, rank: 2, embeddings: true}]", "models.0.path=BASE"],
    "frozen": ["models.0.frozen_params=['*_emb.*']"],
    "offloading": ["optimizations.model_offloading={devices: [cpu]}"],
    "compile": ["optimizations.compile=eager"],
}


@pytest.mark.parametrize("flag", FLAGS)
def test_stopped_and_resumed_it_ends_as_without_a_stop(train, prepared, fresh, flag):
    base = str(prepared / "ckpt/ar+nar/fp32.sft")

    def named(name):  # the schedule's end must not depend on where a run is stopped
        flags = [o.replace("NAME", name).replace("BASE", base) for o in FLAGS[flag]]
        return [*flags, f"models.0.name={name}", "hyperparameters.scheduler=constant"]

    _, whole = train(fresh, 6, *named("whole"))
    train(fresh, 3, *named("halved"))
    resumed, ended = train(fresh, 6, *named("halved"))
    assert resumed.trainer.step == 6
    for (name, a), b in zip(whole.items(), ended.values(), strict=True):
        assert torch.equal(a, b), name


def test_an_adapter_speaks_on_its_base_and_can_be_merged(train, fresh, tmp_path):
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


def test_a_student_comes_nearer_to_its_teacher_than_alone(train, fresh):
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


def test_an_adapter_of_another_model_is_refused(train, prepared, fresh):
    base = prepared / "ckpt/ar+nar/fp32.sft"
    small, _ = train(fresh, 3, "loras=[{name: mine, rank: 2}]", f"models.0.path={base}")
    big, _ = train(
        fresh, 3, "models.0.size={dim: 64, heads: 2, layers: 2, ffn: 2, text_tokens: 1}", "models.0.name=big"
    )
    with pytest.raises(ValueError, match="was trained on other weights"):
        load_weights(big.weights_path, lora=small.weights_path)


def test_fine_tuning_with_a_language_more(train, fresh):
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


def test_a_checkpoint_speaks_for_itself(train, fresh):
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_where_there_is_none_is_said(train, fresh):
    with pytest.raises(ValueError, match="device: 'cuda' cannot be used here"):
        train(fresh, 3, "device=cuda")


def test_what_cannot_work_is_said_before_anything_is_trained(train, fresh):
    for overrides, message in (
        (["dataset.tasks_list=[ns]"], "ns need noise"),
        (["optimizations.bitnet=true", "optimizations.bitsandbytes=true"], "choose one"),
        (["models.0.frozen_params=['nothing.*']"], "matches no parameter"),
        (["models.0.size={dim: 32, heads: 2, layers: 1, audio_tokens: 64}"], "audio_tokens is 64, but the codec"),
        (["dataset.duration_range=[100, 200]"], "none of .* utterances lasts 100"),
        (["optimizations.compile=nobackend"], "nobackend"),
        (["optimizations.fp8=true"], "transformer"),
        (["hyperparameters.optimizer_params={beta: 3}"], "'beta'; adamw takes betas, eps, weight_decay"),
        (["hyperparameters.optimizer=muon", "hyperparameters.optimizer_params={beta: 3}"], "'beta'; muon takes"),
        (["device=foo"], "device: 'foo' cannot be used here"),
        (["loras=[{name: mine}]"], "needs trained weights under it.* set models.0.path"),
        (["dataset.tasks_list=[]"], "tasks_list: list should have at least 1 item"),
        (["models.0.capabilities=[]"], "nothing to train"),
        (["models.0.capabilities=[ar]", "models.0.experimental.rvq_levels_p=[0, 1]"], "nothing to train"),
        (["evaluation.kwargs={temprature: 1}"], "evaluation.kwargs: .*temperature"),
        (["evaluation.kwargs={top_p: 3}"], "evaluation.kwargs: top_p"),
        (["evaluation.kwargs={max_steps: 3}"], "evaluation.kwargs: max_steps is called steps here"),
        (["evaluation.kwargs={temperature: hot}"], "evaluation.kwargs: "),
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


@pytest.mark.parametrize(("able", "levels"), [("[ar]", [0]), ("[nar]", [1]), ("[ar, nar]", [0, 1])])
def test_levels_that_the_model_is_not_to_be_capable_of_are_not_trained(train, fresh, able, levels):
    training, after = train(fresh, 3, f"models.0.capabilities={able}", "trainer.keep_best_checkpoints=1")
    torch.manual_seed(training.cfg.trainer.seed)
    before = VallE(training.spec).state_dict()
    moved = [
        i
        for i in (0, 1)
        if not torch.equal(after[f"classifiers.proj.{i}.weight"], before[f"classifiers.proj.{i}.weight"])
    ]
    assert moved == levels
    assert training.evaluator.measures == [f"level{i}" for i in levels]


def test_a_run_of_other_tasks_alone_is_measured_by_them(train, fresh):
    training, _ = train(fresh, 3, "dataset.tasks_list=[stt]", "models.0.capabilities=[ar, nar, len]")
    assert set(training.tasks) == {"stt", "len"}
    assert "trained beside dataset.tasks_list, by models[].capabilities: len" in training.notes()
    assert training.tasks.count("len") / len(training.tasks) == 0.1
    losses = training.evaluator.losses("val", 4)
    assert losses.keys() == {"val.loss", "val.stt", "val.len"}
    assert losses["val.loss"] == pytest.approx((losses["val.stt"] + losses["val.len"]) / 2)
    assert not training.speaks
    said = describe(
        training, Report({name: (3.0, 2.0) for s in training.splits for name in training.evaluator.losses(s, 4)}, None)
    )
    assert "levels   stt   len" in said


def test_factors_of_the_losses_have_an_effect_or_are_told(train, fresh):
    def factors(given):
        cfg = Config.from_yaml(fresh / "config.yaml", overrides=[f"models.0.loss_factors={given}"])
        training = Training(cfg, commands=False)
        return training._factors(torch.arange(5)).tolist(), training.notes()

    assert factors("{}") == ([1.0] * 5, [])
    assert factors("{resp: 0.5, phn: 0.25, len: 2}")[0] == [0.5, 0.5, 0.5, 0.25, 2.0]
    assert factors("{nar-len: 0.5, text: 0.25}")[0] == [1.0, 1.0, 0.5, 0.25, 1.0]
    assert "without effect: loss_factors of prom" in factors("{prom: 0.5}")[1][0]


def test_a_seed_of_the_evaluation_is_that_of_its_speech(fresh):
    cfg = Config.from_yaml(fresh / "config.yaml", overrides=["evaluation.kwargs={seed: 7, temperature: 1}"])
    training = Training(cfg, commands=False)
    samples = training.evaluator._samples(training.splits["val"][:1])
    (own,), (seven,) = training.evaluator.codes(samples), training.evaluator.codes(samples, seed=7)
    assert np.array_equal(own, seven)


def test_weights_of_another_codec_are_refused_for_fine_tuning_and_teaching(train, prepared, fresh, speech):
    from vall_e.codecs import melvq
    from vall_e.weights import weights_file

    voice = load_weights(prepared / "ckpt/ar+nar/fp32.sft")
    other = melvq.fit(speech, levels=2, entries=32, stack=8, iterations=1)
    held = weights_file(
        dict(voice.model.state_dict()), voice.model.spec, tokenizer=voice.tokenizer, codec=other, settings={}, stats={}
    )
    stateio.save(held, fresh / "other.sft")
    both = f"trained on codes of {other.identity}, but the dataset holds codes of {voice.codec.identity}"
    with pytest.raises(ValueError, match=both):
        train(fresh, 3, f"models.0.path={fresh / 'other.sft'}", "models.0.name=tuned")
    teacher = f"{{name: t, teacher: true, path: {fresh / 'other.sft'}}}"
    with pytest.raises(ValueError, match=both):
        train(fresh, 3, f"models=[{{size: {{dim: 32, heads: 2, layers: 1}}}}, {teacher}]")


def test_flags_that_contradict_the_weights_are_named_with_the_remedy(train, prepared, fresh):
    path = f"models.0.path={prepared / 'ckpt/ar+nar/fp32.sft'}"
    for flag, value, held in (
        ("experimental.unified_position_ids", "true", "false"),
        ("experimental.noncausal_masks", "false", "true"),
        ("experimental.audio_embedding_sums", "prom", "true"),
        ("experimental.length_offset", "1", "0"),
        ("size", "{dim: 32, heads: 4, layers: 1, ffn: 2, text_tokens: 1}", "2"),
    ):
        name = "size.heads" if flag == "size" else flag
        with pytest.raises(ValueError, match=f"made with .* instead of .*Set models.0.{name}: {held}"):
            train(fresh, 3, path, "models.0.name=tuned", f"models.0.{flag}={value}")


def test_flags_that_are_left_out_are_those_of_the_weights(train, fresh):
    flags = "{length_offset: 1, unified_position_ids: true}"
    base, _ = train(fresh, 3, f"models.0.experimental={flags}", "models.0.name=base")
    tuned, _ = train(fresh, 3, f"models.0.path={base.weights_path}", "models.0.name=tuned")
    assert (tuned.spec.length_offset, tuned.spec.unified_position_ids) == (1, True)
    assert load_weights(tuned.weights_path).model.spec.length_offset == 1


def test_an_anomaly_names_the_operation(train, fresh, monkeypatch):
    from vall_e.evaluation import Evaluator

    monkeypatch.setattr(Evaluator, "losses", lambda *_: {})
    monkeypatch.setattr(Training, "_factors", lambda self, head: torch.full(head.shape, torch.nan))
    with pytest.raises(ValueError, match=r"trainer\.detect_grad_anomaly: .*Backward.* returned nan"):
        train(fresh, 3, "trainer.detect_grad_anomaly=true")


def test_without_clipping_and_with_all_checkpoints(train, fresh):
    everything = ["hyperparameters.gradient_clipping=null", "trainer.keep_last_checkpoints=null"]
    training, _ = train(fresh, 6, *everything, "trainer.save_frequency=1")
    assert training.trainer.checkpoints.steps() == [1, 2, 3, 4, 5, 6]


def test_steps_without_finite_gradients_end_in_one_line_of_advice(train, fresh, monkeypatch):
    monkeypatch.setattr(Training, "_factors", lambda self, head: torch.full(head.shape, torch.inf))
    with pytest.raises(ValueError, match=r"20 steps in a row.*step 19.*Lower hyperparameters\.learning_rate") as e:
        train(fresh, 30)
    assert "max_skipped" not in str(e.value)
