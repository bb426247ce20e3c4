"""A Keras 3 model on its torch backend, trained as an engine, with Keras's callbacks."""

from __future__ import annotations

import os

import pytest
import torch
import trainloop
from trainloop import Engines, LocalEngine
from trainloop.hooks import Hooks
from trainloop.hooks.keras import KerasCallbacks
from trainloop.tree import first_difference


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    module = pytest.importorskip("keras")
    if module.backend.backend() != "torch":
        pytest.skip("Keras has another backend")
    return module


def build(keras) -> LocalEngine:
    keras.utils.clear_session()  # names start over, as in a process of its own
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
    )
    return LocalEngine("net", model, torch.optim.AdamW(model.parameters(), lr=0.01))


def hooks_of(*bundles) -> Hooks:
    hooks = Hooks()
    for bundle in bundles:
        hooks.attach(bundle)
    return hooks


class Diary:
    """Every call in order; a callback by its methods alone."""

    def __init__(self):
        self.lines: list[tuple] = []

    def __getattr__(self, name):
        if name.startswith("_") or name.endswith("state_dict"):
            raise AttributeError(name)
        return lambda *args: self.lines.append((name, *args))


@pytest.fixture(params=["with a length", "without"])
def loader(counting, request):
    """Five batches."""
    return list(counting()) if request.param == "with a length" else counting()


def test_callbacks_are_told_of_the_run_in_kerass_order(keras, make_trainer, loader):
    engine, diary = build(keras), Diary()
    hooks = hooks_of(KerasCallbacks(engine, [diary]))
    make_trainer(engines=Engines([engine]), hooks=hooks, until=12, loader=loader).run()
    names = [name for name, *_ in diary.lines]
    batch = ["on_train_batch_begin", "on_train_batch_end"]
    assert names == [
        *("set_params", "set_model", "on_train_begin", "on_epoch_begin"),
        *(batch * 5),
        *("on_epoch_end", "on_epoch_begin"),
        *(batch * 5),
        *("on_epoch_end", "on_epoch_begin"),
        *(batch * 2),
        "on_train_end",
    ]
    batches = [args for name, *args in diary.lines if name == "on_train_batch_end"]
    assert [index for index, _ in batches] == [0, 1, 2, 3, 4] * 2 + [0, 1]
    epoch = [args for name, *args in diary.lines if name == "on_epoch_end"]
    assert [number for number, _ in epoch] == [0, 1]
    for key in ("loss", "error", "lr", "grad_norm"):
        assert epoch[0][1][key] == pytest.approx(sum(logs[key] for _, logs in batches[:5]) / 5)


def test_early_stopping_ends_the_run(keras, make_trainer, loader):
    engine = build(keras)
    stop = keras.callbacks.EarlyStopping(monitor="loss", patience=2, min_delta=100.0)
    hooks = hooks_of(KerasCallbacks(engine, [stop]))
    result = make_trainer(engines=Engines([engine]), hooks=hooks, until=100, checkpoints=None, loader=loader).run()
    assert result.reason == "quit"
    assert result.step == (15 if isinstance(loader, list) else 16)  # the end is seen with the next batch
    assert stop.stopped_epoch == 2


def test_callbacks_set_the_engines_rate(keras, make_trainer):
    engine = build(keras)
    callback = keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr / 2)
    make_trainer(engines=Engines([engine]), hooks=hooks_of(KerasCallbacks(engine, [callback])), until=12).run()
    assert engine.lr == pytest.approx(0.01 / 8)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("stopped", [13, 15])
def test_a_resumed_run_goes_on_with_what_callbacks_counted(keras, make_trainer, counting, tmp_path, sized, stopped):
    def start(**kwargs):
        engine = build(keras)
        stop = keras.callbacks.EarlyStopping(monitor="loss", patience=5, min_delta=100.0)
        bundle = KerasCallbacks(engine, [stop])
        loader = list(counting()) if sized else counting()
        kwargs = {"until": 100, "loader": loader, **kwargs}
        result = make_trainer(engines=Engines([engine]), hooks=hooks_of(bundle), **kwargs).run()
        return result.step, stop.wait, engine.state_dict()

    golden = start(checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))
    assert golden[:2] == (30 if sized else 31, 5)
    assert start(until=stopped)[0] == stopped
    second = start()
    assert second[:2] == golden[:2]
    assert first_difference(golden[2], second[2]) is None


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_weights_of_a_keras_model_are_its_parameters(keras, make_trainer):
    engine = build(keras)
    before = [w.copy() for w in engine.module.get_weights()]
    make_trainer(engines=Engines([engine]), until=2).run()
    after = engine.module.get_weights()
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
