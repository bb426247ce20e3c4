"""Keras callbacks on an engine.

A Keras 3 model on its torch backend (`KERAS_BACKEND=torch`) is a torch module, and an engine trains it as one. Keras
numbers layers without a name by how many there were in the process, and parameters are called by that: name the model
and its layers, or call `keras.utils.clear_session()` before making a model that is to load another's checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any

from trainloop.engine import Engine
from trainloop.hooks.events import BatchFetched, EpochEnd, EpochStart, MetricsReady, RunEnd, RunStart
from trainloop.hooks.registry import Hooks

if TYPE_CHECKING:
    from trainloop.trainer import Trainer

# What EarlyStopping, ReduceLROnPlateau and ModelCheckpoint count.
_COUNTED = ("best", "best_epoch", "cooldown_counter", "epochs_since_last_save", "stopped_epoch", "wait")


class KerasCallbacks:
    """A bundle that calls Keras callbacks during a run, on one process.

    They are told of `on_train_begin`, `on_epoch_begin`, `on_train_batch_begin`, `on_train_batch_end`, `on_epoch_end`
    and `on_train_end`. A batch is a step; its logs are the engine's metrics without its name (`loss`, `lr`,
    `grad_norm` and the feeder's); an epoch's are their means. An epoch ends with the last batch of a loader that has a
    length, and otherwise when the next batch is asked for; one that the run ends within is not told of.
    `model.stop_training = True` ends the run after the step. Their `model` is the module, with the engine's rate as
    `optimizer.learning_rate`: setting it pins the rate as `lr X` does.

    What Keras's own callbacks count (`wait`, `best`, …) is saved with the run, as is the `state_dict()` of one that has
    it and `load_state_dict`; weights that EarlyStopping remembers are not.

    Args:
        engine: whose module and metrics.
        callbacks: `keras.callbacks.Callback`s, or anything with the same methods.
    """

    def __init__(self, engine: Engine, callbacks: Iterable[Any]) -> None:
        self.name = f"{engine.name}.keras"
        self._engine, self._callbacks = engine, list(callbacks)
        self._model = _Model(engine)
        self._sums: dict[str, float] = {}
        self._steps = self._batches = 0  # of this epoch
        self._length: int | None = None
        self._epoch: int | None = None
        self._kept: list[dict[str, Any]] | None = None
        self._trainer: Trainer | None = None

    def attach(self, hooks: Hooks) -> None:
        hooks.on(RunStart, self._begin)
        hooks.on(EpochStart, self._epoch_begin)
        hooks.on(BatchFetched, self._count)
        hooks.on(MetricsReady, self._batch)
        hooks.on(EpochEnd, lambda _: self._epoch_end())
        hooks.on(RunEnd, lambda _: self._call("on_train_end", {}))

    def _begin(self, event: RunStart) -> None:
        trainer = event.trainer
        if trainer.world_size > 1:
            raise ValueError(
                f"{self.name}: Keras callbacks act on what one process sees, and {trainer.world_size} ranks would "
                "part; write a hook, or run on one process"
            )
        self._trainer, self._model.stop_training = trainer, False
        self._length = len(trainer.loader) if isinstance(trainer.loader, Sized) else None
        steps = None if self._length is None else -(-self._length // trainer.accumulate)
        for callback in self._callbacks:
            callback.set_params({"verbose": 0, "epochs": None, "steps": steps})
            callback.set_model(self._model)
        self._call("on_train_begin", {})
        for callback, kept in zip(self._callbacks, self._kept or (), strict=False):
            _load(callback, kept)  # after on_train_begin, which resets it
        self._kept = None

    def _epoch_begin(self, event: EpochStart) -> None:
        self._epoch, self._sums, self._steps, self._batches = event.epoch, {}, 0, 0
        self._call("on_epoch_begin", event.epoch, {})

    def _count(self, event: BatchFetched) -> None:
        self._batches += 1

    def _batch(self, event: MetricsReady) -> None:
        prefix = f"{self._engine.name}."
        logs = {k.removeprefix(prefix): float(v) for k, v in event.metrics.items() if _is_number(k, v, prefix)}
        if logs:  # else the engine was not trained in this step
            for key, value in logs.items():
                self._sums[key] = self._sums.get(key, 0.0) + value
            self._call("on_train_batch_begin", self._steps, {})
            self._call("on_train_batch_end", self._steps, logs)
            self._steps += 1
        if self._batches == self._length:
            self._epoch_end()

    def _epoch_end(self) -> None:
        if self._epoch is not None and self._steps:
            self._call("on_epoch_end", self._epoch, {k: v / self._steps for k, v in self._sums.items()})
        self._epoch = None

    def _call(self, method: str, *args: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, method)(*args)
        if self._model.stop_training and self._trainer is not None:
            self._trainer.wanted.add("quit")

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "steps": self._steps,
            "batches": self._batches,
            "sums": dict(self._sums),
            "callbacks": [_state(callback) for callback in self._callbacks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._steps, self._batches = state["epoch"], state["steps"], state["batches"]
        self._sums = dict(state["sums"])
        self._kept = list(state["callbacks"])


class _Model:
    """The engine's module as callbacks expect it; what they set beside `stop_training` is set on the module."""

    def __init__(self, engine: Engine) -> None:
        self.optimizer = _Rate(engine)
        self.stop_training = False
        self._module = engine.bare_module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Rate:
    """An engine's learning rate under Keras's name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def learning_rate(self) -> float:
        return self._engine.lr

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._engine.set_lr(float(value))


def _is_number(key: str, value: Any, prefix: str) -> bool:
    return key.startswith(prefix) and not isinstance(value, str) and hasattr(value, "__float__")


def _state(callback: Any) -> dict[str, Any]:
    if hasattr(callback, "load_state_dict"):
        return dict(callback.state_dict())
    counted = {name: getattr(callback, name) for name in _COUNTED if name in vars(callback)}
    # As Python's numbers: a checkpoint does not load numpy's.
    return {n: v if v is None or isinstance(v, int) else float(v) for n, v in counted.items()}


def _load(callback: Any, state: dict[str, Any]) -> None:
    if hasattr(callback, "load_state_dict"):
        callback.load_state_dict(state)
    else:
        vars(callback).update(state)
