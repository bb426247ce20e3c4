"""Train several engines with exact resume, typed hooks and live commands.

`import trainloop` loads nothing; each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainloop.accelerate_engine import AccelerateEngine as AccelerateEngine
    from trainloop.build import build_engine as build_engine
    from trainloop.cadence import Cadence as Cadence
    from trainloop.cadence import Every as Every
    from trainloop.checkpoint import Best as Best
    from trainloop.checkpoint import Checkpoint as Checkpoint
    from trainloop.checkpoint import CheckpointStore as CheckpointStore
    from trainloop.clock import Clock as Clock
    from trainloop.commands import Command as Command
    from trainloop.ddp import DDPEngine as DDPEngine
    from trainloop.deepspeed_engine import DeepSpeedEngine as DeepSpeedEngine
    from trainloop.distillation import Distillation as Distillation
    from trainloop.distillation import TargetCache as TargetCache
    from trainloop.engine import Engine as Engine
    from trainloop.engines import Engines as Engines
    from trainloop.fsdp import FSDPEngine as FSDPEngine
    from trainloop.garbage import GarbageCollection as GarbageCollection
    from trainloop.hooks import Hooks as Hooks
    from trainloop.local import LocalEngine as LocalEngine
    from trainloop.manifest import CheckpointError as CheckpointError
    from trainloop.metrics import JsonLines as JsonLines
    from trainloop.metrics import read_metrics as read_metrics
    from trainloop.modes import frozen as frozen
    from trainloop.nested import flatten as flatten
    from trainloop.nested import map_tensors as map_tensors
    from trainloop.nested import to_device as to_device
    from trainloop.persist import CheckpointMismatch as CheckpointMismatch
    from trainloop.persist import Resume as Resume
    from trainloop.profiling import ProfileWindow as ProfileWindow
    from trainloop.progress import ProgressHandler as ProgressHandler
    from trainloop.result import RunResult as RunResult
    from trainloop.result import TooManySkips as TooManySkips
    from trainloop.rng import seed_everything as seed_everything
    from trainloop.signals import ignore_stop_signals as ignore_stop_signals
    from trainloop.sinks import TensorBoard as TensorBoard
    from trainloop.sinks import WandB as WandB
    from trainloop.stateful import Stateful as Stateful
    from trainloop.step import Feeder as Feeder
    from trainloop.step import StepContext as StepContext
    from trainloop.step import StepOutput as StepOutput
    from trainloop.step import StepReport as StepReport
    from trainloop.step import Window as Window
    from trainloop.throughput import Throughput as Throughput
    from trainloop.throughput import memory_bytes as memory_bytes
    from trainloop.timers import Timers as Timers
    from trainloop.trainer import Trainer as Trainer
    from trainloop.verify import verify_resume as verify_resume
    from trainloop.watchdog import Watchdog as Watchdog
    from trainloop.window import OutOfMemoryInBackward as OutOfMemoryInBackward

_WHERE = {
    "AccelerateEngine": "accelerate_engine",
    "Best": "checkpoint",
    "Cadence": "cadence",
    "Checkpoint": "checkpoint",
    "CheckpointError": "manifest",
    "CheckpointMismatch": "persist",
    "CheckpointStore": "checkpoint",
    "Clock": "clock",
    "Command": "commands",
    "DDPEngine": "ddp",
    "DeepSpeedEngine": "deepspeed_engine",
    "Distillation": "distillation",
    "Engine": "engine",
    "Engines": "engines",
    "Every": "cadence",
    "FSDPEngine": "fsdp",
    "Feeder": "step",
    "GarbageCollection": "garbage",
    "Hooks": "hooks",
    "JsonLines": "metrics",
    "LocalEngine": "local",
    "OutOfMemoryInBackward": "window",
    "ProfileWindow": "profiling",
    "ProgressHandler": "progress",
    "Resume": "persist",
    "RunResult": "result",
    "Stateful": "stateful",
    "StepContext": "step",
    "StepOutput": "step",
    "StepReport": "step",
    "TargetCache": "distillation",
    "TensorBoard": "sinks",
    "Throughput": "throughput",
    "Timers": "timers",
    "TooManySkips": "result",
    "Trainer": "trainer",
    "WandB": "sinks",
    "Watchdog": "watchdog",
    "Window": "step",
    "build_engine": "build",
    "flatten": "nested",
    "frozen": "modes",
    "ignore_stop_signals": "signals",
    "map_tensors": "nested",
    "memory_bytes": "throughput",
    "read_metrics": "metrics",
    "seed_everything": "rng",
    "to_device": "nested",
    "verify_resume": "verify",
}

__version__ = version("trainloop")
__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(f"trainloop.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'trainloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
