"""One process, one device."""

from __future__ import annotations

from trainloop.torch_engine import TorchEngine


class LocalEngine(TorchEngine):
    """Trains a module in this process.

    Args:
        name: name in logs, metrics and file names.
        module: the module, on `device` already.
        optimizer: any torch optimizer over its parameters; None for a frozen one or a teacher.
        scheduler: an object with `step()`, `state_dict()` and `load_state_dict()`, or None. Stepped once
            after every optimizer step, not after a skipped one.
        clip: largest total gradient norm, or None.
        precision: `fp32`, or the autocast type of the feeder: `bf16`, or `fp16` with loss scaling.
        device: where the module is.
        every: train on global steps that are a multiple of this.
        role: `train`, `frozen` (saved, not trained) or `teacher` (neither).

    Raises:
        ValueError: one of the arguments is out of range, or `train` without an optimizer.
    """
