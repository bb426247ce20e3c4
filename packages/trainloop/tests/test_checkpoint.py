"""At least one complete checkpoint, whatever is done to the newest."""

from __future__ import annotations

import os

import pytest
import torch
import trainloop
from trainloop import Best, CheckpointError, CheckpointStore


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "c", keep_last=3)
    for step in (1, 2):
        store.write(step, {"net": {"w": torch.full((3,), float(step))}}, {"trainer": {"a": 1}})
    return store


@pytest.mark.parametrize("file", ["net.pth", "trainer.pth", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_newest_is_rejected_with_the_reason(store, file, damage):
    path = store.dir / "2" / file
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    else:
        path.unlink()
    found = store.newest()
    assert found is not None
    assert found.step == 1
    assert store.rejected[0][0].name == "2"
    assert file in store.rejected[0][1]
    store.set_aside()
    assert store.steps() == [1]


def test_a_torn_folder_without_manifest_is_never_taken(store):
    (store.dir / "9").mkdir()
    assert store.newest().step == 2
    assert "never completed" in store.rejected[0][1]


def test_latest_is_a_hint_alone(store):
    assert (store.dir / "latest").read_text() == "2\n"
    (store.dir / "latest").write_text("77\n")
    assert store.newest().step == 2


def test_pruning_keeps_the_last_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=Best("loss"))
    for step, loss in enumerate([3.0, 1.0, 2.0, 4.0]):
        store.write(step, {}, {}, {"metrics": {"loss": loss}})
    assert store.steps() == [1, 3]


def test_a_failing_save_leaves_what_was(store):
    def full(obj, path):
        path.write_bytes(b"x")
        raise OSError(28, "No space left on device")

    store.save = full
    with pytest.raises(CheckpointError, match="No space left"):
        store.write(3, {"net": {}})
    assert [p.name for p in sorted(store.dir.iterdir())] == ["1", "2", "latest"]
    assert store.newest().step == 2


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        CheckpointStore(tmp_path / "file" / "c").prepare()


def test_half_written_saves_of_dead_runs_are_removed(store):
    (store.dir / "5.tmp-1-x").mkdir()
    (store.dir / "latest.tmp-x").write_text("")
    store.prepare()
    assert sorted(os.listdir(store.dir)) == ["1", "2", "latest"]


def test_keep_last_below_one():
    with pytest.raises(ValueError, match="1 or more"):
        CheckpointStore("x", keep_last=0)


def test_a_full_disk_does_not_stop_training_but_the_last_save_does(make_trainer, tmp_path):
    calls = []

    def save(obj, path):
        calls.append(path)
        if len(calls) == 1 or len(calls) > 2:
            raise OSError(28, "No space left on device")
        torch.save(obj, path)

    trainer = make_trainer(checkpoints=CheckpointStore(tmp_path / "x", save=save), save_every=4)
    with pytest.raises(CheckpointError, match="saving step 12"):
        trainer.run()
    assert CheckpointStore(tmp_path / "x").steps() == [8]


def test_another_model_is_a_mismatch_and_not_a_fallback(make_trainer, make_engine):
    make_trainer(until=2).run()
    other = torch.nn.Linear(3, 3)
    engine = trainloop.LocalEngine("net", other, torch.optim.SGD(other.parameters(), 0.1))
    with pytest.raises(trainloop.CheckpointMismatch, match="another model"):
        make_trainer(engines=trainloop.Engines([engine])).run()
    with pytest.raises(trainloop.CheckpointMismatch, match="this run also has new"):
        make_trainer(engines=trainloop.Engines([make_engine(), make_engine("new")])).run()


def test_tensors_of_another_shape_are_counted_and_one_is_named(make_trainer, noisy):
    make_trainer(until=2).run()
    wide = noisy(9)
    engine = trainloop.LocalEngine("net", wide, torch.optim.SGD(wide.parameters(), 0.1))
    with pytest.raises(trainloop.CheckpointMismatch) as e:
        make_trainer(engines=trainloop.Engines([engine])).run()
    assert e.value.why.endswith(
        "3 tensors are of another shape (net.0.weight is [8, 4] in the checkpoint and [9, 4] here)"
    )


def test_the_state_of_another_optimizer_is_a_mismatch(make_trainer, make_engine):
    make_trainer(until=2).run()
    engine = make_engine(scheduler=None)
    engine.optimizer = torch.optim.SGD(engine.module.parameters(), 0.1, momentum=0.9)
    with pytest.raises(trainloop.CheckpointMismatch, match="another optimizer than SGD: without dampening, momentum"):
        make_trainer(engines=trainloop.Engines([engine])).run()


def test_checkpoints_none_of_which_can_be_used_end_the_run_and_stay(make_trainer, tmp_path):
    make_trainer(until=4, save_every=2).run()
    folder = tmp_path / "ckpt"
    for step in (2, 4):
        (folder / str(step) / "net.optim.pth").unlink()
    with pytest.raises(CheckpointError, match=r"can be used(.|\n)*net\.optim\.pth is missing(.|\n)*Delete that folder"):
        make_trainer(until=4).run()
    assert CheckpointStore(folder).steps() == [2, 4]


def test_an_older_checkpoint_can_be_gone_back_to(make_trainer, tmp_path):
    make_trainer(until=6, save_every=2).run()
    store = CheckpointStore(tmp_path / "ckpt")
    result = make_trainer(until=5, resume=trainloop.Resume(step=4)).run()
    assert result == trainloop.RunResult(5, "finished", 0, 4)
    assert store.steps() == [2, 4, 5]
    start = trainloop.Resume(init_from=store.dir, step=2)
    new = make_trainer(until=3, checkpoints=None, log_dir=None, resume=start)
    new.run()
    assert new.steps_this_run == 1
    with pytest.raises(CheckpointError, match="none/4 cannot be used"):
        make_trainer(checkpoints=CheckpointStore(tmp_path / "none"), resume=trainloop.Resume(step=4)).run()
    for step in (2, 4, 5):
        (store.dir / str(step) / "rng.pth").unlink()
    start = trainloop.Resume(init_from=store.dir)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint to start from(.|\n)*rng\.pth is missing"):
        make_trainer(checkpoints=None, resume=start).run()


def test_one_engine_starts_from_one_of_another_name(make_trainer, make_engine, tmp_path):
    make_trainer(until=3).run()
    resume = trainloop.Resume(init_from=tmp_path / "ckpt")
    trainer = make_trainer(
        until=5, engines=trainloop.Engines([make_engine("new")]), checkpoints=None, log_dir=None, resume=resume
    )
    trainer.run()
    whole = make_trainer(until=5, checkpoints=None, log_dir=None)
    whole.run()
    for a, b in zip(trainer.engines.only.module.parameters(), whole.engines.only.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_best_are_those_that_were_measured_where_they_were_saved(make_trainer, tmp_path):
    losses = {0: 9.0, 4: 1.0, 8: 3.0, 10: 2.0}
    store = CheckpointStore(tmp_path / "best", keep_last=1, keep_best=Best("loss"))
    arguments = {"evaluate": lambda t: {"loss": losses[t.step]}, "eval_every": 4, "eval_first": True}
    make_trainer(until=10, checkpoints=store, save_every=2, eval_last=True, **arguments).run()
    assert store.scores() == {4: 1.0, 10: 2.0}
    assert store.steps() == [4, 10]
    del losses[10]  # found finished, it is not measured again
    make_trainer(until=10, checkpoints=store, save_every=2, eval_last=True, **arguments).run()


@pytest.mark.parametrize("module_only", [True, False])
def test_starting_from_another_run(make_trainer, tmp_path, module_only):
    first = make_trainer(until=5)
    first.run()
    resume = trainloop.Resume(init_from=tmp_path / "ckpt", module_only=module_only, restart_step_count=not module_only)
    steps = []
    hooks = trainloop.Hooks()
    hooks.on(trainloop.hooks.AfterLoad, lambda e: steps.append(e.step))
    second = make_trainer(
        until=2, checkpoints=CheckpointStore(tmp_path / "new"), resume=resume, hooks=hooks, log_dir=None
    )
    result = second.run()
    assert (result.step, result.resumed_from, steps) == (2, None, [0])
    assert len(second.engines.only.optimizer.state) == 4
    assert make_trainer(until=3, checkpoints=CheckpointStore(tmp_path / "new"), resume=resume).run() == (
        trainloop.RunResult(3, "finished", 0, 2)
    )


def test_async_saving_equals_saving_at_once(make_trainer, tmp_path):
    saved = []
    hooks = trainloop.Hooks()
    hooks.on(trainloop.hooks.AfterSave, lambda e: saved.append(e.step))
    make_trainer(save_every=4, async_save=True, hooks=hooks).run()
    make_trainer(save_every=4, checkpoints=CheckpointStore(tmp_path / "sync")).run()
    assert saved == [4, 8, 12]
    a, b = CheckpointStore(tmp_path / "ckpt"), CheckpointStore(tmp_path / "sync")
    for step in (4, 8, 12):
        x, y = a.read_module(a.open(step), "net"), b.read_module(b.open(step), "net")
        assert all(torch.equal(x[k], y[k]) for k in x)


def test_starting_from_another_run_without_its_optimizers(make_trainer, tmp_path):
    make_trainer(until=5).run()
    resume = trainloop.Resume(init_from=tmp_path / "ckpt", states=False)
    seen = []
    hooks = trainloop.Hooks()
    hooks.on(trainloop.hooks.AfterLoad, lambda e: seen.append((e.step, len(e.trainer.engines.only.optimizer.state))))
    make_trainer(until=6, checkpoints=CheckpointStore(tmp_path / "new"), resume=resume, hooks=hooks).run()
    assert seen == [(5, 0)]
