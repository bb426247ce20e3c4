"""Going on: after damage, with other batches and data, and not from what is of something else."""

import shutil

import pytest
import torch
from trainloop import CheckpointError

SIZE = "models.0.size={{dim: {}, heads: 2, layers: 1, ffn: 2, text_tokens: 1}}"


@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_a_damaged_only_checkpoint_ends_the_run_and_leaves_the_export(train, fresh, damage):
    training, _ = train(fresh, 2)
    exported = training.weights_path.read_bytes()
    if damage == "truncate":
        file = fresh / "ckpt/ar+nar/2/ar+nar.sft"
        file.write_bytes(file.read_bytes()[:1000])
    else:
        (fresh / "ckpt/ar+nar/2/ar+nar.optim.pth").unlink()
    with pytest.raises(
        CheckpointError, match=r"can be used(.|\n)*set another models.0.name(.|\n)*delete .*ckpt/ar\+nar"
    ):
        train(fresh, 4)
    assert training.weights_path.read_bytes() == exported
    assert (fresh / "ckpt/ar+nar/2").is_dir()


def test_checkpoints_of_the_trainer_replaced_stay_and_the_remedy_works(train, fresh, golden):
    theirs = golden / "micro_ckpt/ckpt/ar+nar-micro-llama-8"
    shutil.copytree(theirs, fresh / "ckpt/ar+nar")
    with pytest.raises(ValueError, match=r"models.0.name=NAME models.0.path=.*ckpt/ar\+nar/7"):
        train(fresh, 2)
    for given in (theirs, theirs / "7", theirs / "fp32.sft"):
        with pytest.raises(ValueError, match=r"trainer\.load_path: .*models\.0\.path=.* instead"):
            train(fresh, 2, "models.0.name=new", f"trainer.load_path={given}")
    assert {p.name: p.read_bytes() for p in (fresh / "ckpt/ar+nar").glob("**/*") if p.is_file()} == {
        p.name: p.read_bytes() for p in theirs.glob("**/*") if p.is_file()
    }


@pytest.mark.parametrize(
    "change",
    [
        "hyperparameters.batch_size=4",
        "dataset.sample_order=shuffle",
        "dataset.sample_max_duration_batch=20",
        "dataset.max_utterances=20",
        "dataset.validation=['*/*a*']",
    ],
)
def test_with_other_batches_or_recordings_the_order_begins_anew(train, fresh, capsys, change):
    train(fresh, 2)
    resumed, _ = train(fresh, 4, change)
    assert resumed.trainer.step == 4
    assert resumed.loader.state_dict()["epoch"] == 0
    said = capsys.readouterr().err
    assert ("their order begins anew" in said) == ("validation" not in change)
    assert "on_mismatch" not in said


@pytest.mark.parametrize("change", ["dim", "rank"])
def test_another_size_is_one_clear_message(train, prepared, fresh, change):
    adapter = ["loras=[{name: mine, rank: 2}]", f"models.0.path={prepared / 'ckpt/ar+nar/fp32.sft'}"]
    train(fresh, 2, *(adapter if change == "rank" else []))
    other = [adapter[0].replace("2", "4"), adapter[1]] if change == "rank" else [SIZE.format(16)]
    with pytest.raises(
        CheckpointError, match=r"\d+ tensors are of another shape \(.* in the checkpoint and .* here\)"
    ) as e:
        train(fresh, 4, *other)
    assert "Resume(" not in str(e.value)
    assert len(str(e.value).splitlines()) == 2


def test_another_optimizer_is_refused_with_advice_that_works(train, fresh):
    first, _ = train(fresh, 2)
    prodigy = ["hyperparameters.optimizer=prodigy", "hyperparameters.learning_rate=1"]
    with pytest.raises(CheckpointError, match=r"optimizer than Prodigy(.|\n)*trainer\.load_module_only=true"):
        train(fresh, 4, *prodigy)
    start = [f"trainer.load_path={first.ckpt_dir}", "models.0.name=other"]
    second, _ = train(fresh, 1, *prodigy, *start, "trainer.load_module_only=true")
    assert second.trainer.step == 1


def test_a_run_starts_from_one_of_another_name(train, fresh):
    train(fresh, 3, "models.0.name=first", "hyperparameters.scheduler=constant")
    start = [f"trainer.load_path={fresh / 'ckpt/first'}", "models.0.name=second", "hyperparameters.scheduler=constant"]
    _, ended = train(fresh, 5, *start)
    _, whole = train(fresh, 5, "models.0.name=whole", "hyperparameters.scheduler=constant")
    for name, tensor in whole.items():
        assert torch.equal(tensor, ended[name]), name


def test_a_step_can_be_gone_back_to(train, fresh):
    constant = "hyperparameters.scheduler=constant"
    train(fresh, 9, constant)
    back, ended = train(fresh, 6, constant, "trainer.load_tag=3")
    assert sorted(int(p.name) for p in back.ckpt_dir.iterdir() if p.name.isdigit()) == [3, 6]
    assert len(list(back.ckpt_dir.glob("*.rejected-*"))) == 2
    _, whole = train(fresh, 6, constant, "models.0.name=whole")
    for name, tensor in whole.items():
        assert torch.equal(tensor, ended[name]), name
    with pytest.raises(CheckpointError, match=r"ckpt/ar.nar/5 cannot be used"):
        train(fresh, 6, constant, "trainer.load_tag=5")
    start = [f"trainer.load_path={back.ckpt_dir}", "trainer.load_tag=3", "models.0.name=new"]
    new, _ = train(fresh, 4, constant, *start, "trainer.load_states=false")
    assert new.trainer.steps_this_run == 1
    assert new.engine.clock.step == 1


def test_a_level_that_the_model_does_not_have_is_refused(train, prepared, fresh):
    path = f"models.0.path={prepared / 'ckpt/ar+nar/fp32.sft'}"
    with pytest.raises(ValueError, match=r"rvq_levels: the model has the levels 0 to 1, found \[7\]"):
        train(fresh, 2, "loras=[{name: mine, rank: 2, rvq_levels: [7]}]", path)
