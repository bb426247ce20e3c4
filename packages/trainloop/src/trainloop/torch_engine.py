"""Training a module with a torch optimizer: shared by the local, DDP and FSDP2 engines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from trainloop.clock import Clock
from trainloop.engine import Role
from trainloop.hooks.events import BeforeClip, BeforeOptimizerStep
from trainloop.hooks.registry import Hooks
from trainloop.rates import Factor, Rates, Scheduler
from trainloop.scaler import LossScaler
from trainloop.step import StepOutput, StepReport, Window

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """The parts of an engine that do not depend on how gradients travel.

    See `LocalEngine` for the arguments.
    """

    exact_resume = True
    synchronised = False
    collective_forward = False
    collective_backward = False
    sharded = False

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        scheduler: Scheduler | None = None,
        clip: float | None = 1.0,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
        every: int = 1,
        role: Role = "train",
    ) -> None:
        if role not in ("train", "frozen", "teacher"):
            raise ValueError(f"engine {name!r}: role must be train, frozen or teacher, found {role!r}")
        if precision not in _DTYPES:
            raise ValueError(f"engine {name!r}: precision must be fp32, bf16 or fp16, found {precision!r}")
        if role == "train" and optimizer is None:
            raise ValueError(f"engine {name!r} is to be trained and has no optimizer; give one, or a role")
        if every < 1:
            raise ValueError(f"engine {name!r}: every must be 1 or more, found {every}")
        if clip is not None and not clip > 0:
            raise ValueError(f"engine {name!r}: clip must be positive or None, found {clip}")
        self.name, self.role, self.every, self.clip, self.precision = name, role, every, clip, precision
        self.device = torch.device(device)
        self.module = module
        self.optimizer = optimizer
        self.scaler = LossScaler() if precision == "fp16" else None
        self.clock = Clock()
        self.hooks = Hooks()
        self._window: Window | None = None
        self._rates = None if optimizer is None else Rates(optimizer, scheduler)
        self._allowed: dict[str, Mapping[str, bool]] = {}
        self._trainable_settled = True
        if role == "teacher":
            module.eval().requires_grad_(False)

    @property
    def scheduler(self) -> Scheduler | None:
        return None if self._rates is None else self._rates.scheduler

    @property
    def bare_module(self) -> nn.Module:
        """The module itself, without the wrapper of a backend."""
        return self.module

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group; 0.0 without an optimizer."""
        return 0.0 if self._rates is None else self._rates.lr

    @property
    def loss_scale(self) -> float:
        return 1.0 if self.scaler is None else self.scaler.scale

    def begin(self) -> None:
        if not self._trainable_settled:
            self._settle_trainable()
        self._window = None
        for p in self._parameters():
            p.grad = None

    def forward_context(self, *, last: bool = True) -> AbstractContextManager[Any]:
        dtype = _DTYPES[self.precision]
        if dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    def backward(self, out: StepOutput, window: Window) -> None:
        """Add the gradient of one micro-batch.

        Raises:
            ValueError: the loss is not a scalar with a graph, or the weight is not usable.
        """
        loss = out.loss
        if loss.numel() != 1 or loss.grad_fn is None:
            raise ValueError(
                f"engine {self.name!r}: the feeder must return a scalar loss that depends on the parameters, "
                f"found shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
            )
        weight = window.add(out)
        if not window.solo and weight != 1.0:
            loss = loss * weight
        if self.scaler is not None:
            loss = loss * self.scaler.scale
        self._backward(loss)
        self._window = window
        clock = self.clock
        clock.micro += 1
        clock.samples += out.samples
        clock.tokens += out.tokens

    def optim_step(self) -> StepReport:
        """Check, unscale, clip, and step or skip."""
        assert self.optimizer is not None
        assert self._rates is not None
        divisor = 1.0 if self._window is None else self._window.divisor()
        if divisor == 0.0:
            return self.skip("the window has no weight")
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        factor = 1.0 / (divisor * self.loss_scale)
        norm = self._norm(grads) * factor
        if not math.isfinite(norm):
            report = self.skip(f"gradient not finite, first in {self._first_bad()}", norm)
            if self.scaler is not None:
                self.scaler.update(overflow=True)
            return report
        if BeforeClip in self.hooks.active:
            _multiply(grads, factor)
            factor = 1.0
            self.hooks.emit(BeforeClip(self))
            norm = self._norm(grads)
        if self.clip is not None and norm + 1e-6 > self.clip:
            factor *= self.clip / (norm + 1e-6)
        _multiply(grads, factor)
        if BeforeOptimizerStep in self.hooks.active:
            self.hooks.emit(BeforeOptimizerStep(self))
        report = StepReport(norm, None, self._rates.lr, self.loss_scale)
        self.optimizer.step()
        self._rates.step()
        if self.scaler is not None:
            self.scaler.update(overflow=False)
        self.clock.step += 1
        self.begin()
        self._after_window()
        return report

    def skip(self, reason: str, norm: float = math.nan) -> StepReport:
        self.clock.skipped += 1
        report = StepReport(norm, reason, self.lr, self.loss_scale)
        self.begin()
        self._after_window()
        return report

    def set_lr(self, lr: float | None) -> None:
        """Pin the learning rate of the first group (other groups keep their ratio), or let go with None.

        A pinned rate survives the scheduler, see `Rates`, and is saved.

        Raises:
            ValueError: it is negative or not finite, or the engine has no optimizer.
        """
        self._own_rates().pin(lr)

    def scale_lr(self, by: str, factor: Factor | None) -> None:
        """Multiply the learning rates, all or by the groups' names, see `Rates.scale`; not saved.

        Raises:
            ValueError: the engine has no optimizer.
        """
        self._own_rates().scale(by, factor)

    def set_scheduler(self, scheduler: Scheduler) -> None:
        """Give the engine a scheduler over its optimizer; stepped and saved like one given at construction.

        Raises:
            ValueError: it has one, or no optimizer.
        """
        if self._own_rates().scheduler is not None:
            raise ValueError(f"engine {self.name!r} has a scheduler already; two would both set the rate")
        self._own_rates().scheduler = scheduler

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Train with another optimizer from the next window on. Rates that are pinned or scaled stay so.

        Raises:
            ValueError: a torch scheduler sets the rate of the present one, or there is none.
        """
        if self._own_rates().scheduler is not None:
            raise ValueError(
                f"engine {self.name!r}: its scheduler is tied to the optimizer it was made for, so that cannot be "
                "replaced; use lr_sched.LRSchedule, which follows"
            )
        self._own_rates().follow(optimizer)
        self.optimizer = optimizer

    def set_trainable(self, by: str, allowed: Mapping[str, bool]) -> None:
        """Say of parameters, by name, whether they may be trained; it holds from the next window on.

        A parameter is trained when all who said something of it allow it; one of which nobody did is left as it is.

        Args:
            by: who says so; a second call replaces what the first one said.
            allowed: name in `bare_module` to whether.

        Raises:
            ValueError: this backend fixes at construction what is trained. When the window begins: nothing is left.
        """
        self._allowed[by] = allowed
        self._trainable_settled = False

    def set_loss_scale(self, scale: float) -> None:
        """Set the scale of the fp16 loss; it adapts from there.

        Raises:
            ValueError: not positive and finite, or the engine's precision is not fp16.
        """
        if self.scaler is None:
            raise ValueError(f"engine {self.name!r} trains in {self.precision} and has no loss scale")
        self.scaler.set(scale)

    def state_dict(self) -> dict[str, Any]:
        """`module`, `optimizer`, `rates`, `scaler` and `clock`; the tensors are the live ones."""
        return {
            "module": self._module_state(),
            "optimizer": None if self.optimizer is None else self._optimizer_state(),
            "rates": None if self._rates is None else self._rates.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "clock": self.clock.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_module_state(state["module"])
        if self.optimizer is not None and state["optimizer"] is not None:
            self._load_optimizer_state(state["optimizer"])
        if self._rates is not None and state["rates"] is not None:
            self._rates.load_state_dict(state["rates"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.clock.load_state_dict(state["clock"])

    def load_module_state(self, state: dict[str, Any]) -> None:
        self.bare_module.load_state_dict(state)

    def write_shards(self, folder: Path) -> None:
        """Nothing: this engine's whole state is in `state_dict`."""

    def read_shards(self, folder: Path) -> None:
        """Nothing: see `write_shards`."""

    def _own_rates(self) -> Rates:
        if self._rates is None:
            raise ValueError(f"engine {self.name!r} has no optimizer")
        return self._rates

    def _settle_trainable(self) -> None:
        decided: dict[str, bool] = {}
        for allowed in self._allowed.values():
            for name, yes in allowed.items():
                decided[name] = yes and decided.get(name, True)
        parameters = dict(self.bare_module.named_parameters())
        trained = {n for n, p in parameters.items() if decided.get(n, p.requires_grad)}
        if not trained:
            raise ValueError(
                f"engine {self.name!r}: {' and '.join(self._allowed)} together freeze every parameter; let one train"
            )
        for name, p in parameters.items():
            p.requires_grad_(name in trained)
            if name not in trained:
                p.grad = None
        self._trainable_settled = True
        self._prepare_for(trained)

    def _prepare_for(self, trained: set[str]) -> None:
        """What a backend does when other parameters are trained than before."""

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _after_window(self) -> None:
        """What a backend does after each window, stepped or skipped."""

    def _parameters(self) -> Iterator[nn.Parameter]:
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _norm(self, grads: list[torch.Tensor]) -> float:
        return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0

    def _first_bad(self) -> str:
        for name, p in self.bare_module.named_parameters():
            if p.grad is not None and not math.isfinite(self._norm([p.grad])):
                return name
        return "the sum over all parameters"

    def _module_state(self) -> dict[str, Any]:
        return self.bare_module.state_dict()

    def _optimizer_state(self) -> dict[str, Any]:
        assert self.optimizer is not None
        return self.optimizer.state_dict()

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        assert self.optimizer is not None
        options = [set(group) - {"initial_lr"} for group in self.optimizer.param_groups]  # which torch's schedulers add
        self.optimizer.load_state_dict(state)
        # torch takes the options of the groups as they were saved, so another optimizer would fail at its first step.
        for own, loaded in zip(options, self.optimizer.param_groups, strict=True):
            if missing := sorted(own - loaded.keys()):
                raise ValueError(
                    f"it holds the state of another optimizer than {type(self.optimizer).__name__}: "
                    f"without {', '.join(missing)}"
                )


def _multiply(grads: list[torch.Tensor], factor: float) -> None:
    if factor == 1.0 or not grads:
        return
    for g in grads:
        g.mul_(factor)
