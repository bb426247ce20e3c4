"""An engine whose gradients, optimizer and parameters DeepSpeed divides among the ranks (ZeRO 0 to 3)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainloop.hooks.events import BeforeOptimizerStep
from trainloop.step import StepReport
from trainloop.torch_engine import TorchEngine

# What of a ZeRO optimizer's state is plain tensors and numbers; the rest describes the run, not its progress.
_PLAIN = (
    "base_optimizer_state",
    "single_partition_of_fp32_groups",
    "group_paddings",
    "optimizer_state_dict",
    "fp32_flat_groups",
)
_NOT_THEIRS = {
    "gradient_accumulation_steps": "give accumulate= to the trainer",
    "train_batch_size": "the loader decides it",
    "optimizer": "give optimizer= to the engine",
    "scheduler": "give scheduler= to the engine",
}


class DeepSpeedEngine(TorchEngine):
    """Trains a module through `deepspeed.initialize`.

    The optimizer is torch's or any other written in Python, so that an interrupted run continues to the bit.
    Schedule, loss scale and accumulation are this package's and mean the same as on every other backend.
    At stages 1 to 3 every rank writes its part of the optimizer into the checkpoint, which only as many ranks
    can read; the module is saved whole in fp32 at every stage and loads anywhere.

    Args:
        name, module, optimizer, scheduler, clip, precision, every: as for `LocalEngine`. `bf16` is autocast
            over fp32 parameters, `fp16` DeepSpeed's own (stages 1 to 3). The role is `train`.
        zero_stage: 0 divides nothing, 1 the optimizer, 2 the gradients too, 3 the parameters too.
        config: DeepSpeed's configuration, merged over all of the above last.

    Raises:
        ImportError: deepspeed is not installed (`pip install trainloop[deepspeed]`).
        ValueError: an argument is out of range, or `config` holds what the trainer decides.
    """

    synchronised = True

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        zero_stage: int = 0,
        config: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"engine {name!r}: zero_stage must be 0, 1, 2 or 3, found {zero_stage!r}")
        if kwargs.get("role", "train") != "train":
            raise ValueError(f"engine {name!r}: DeepSpeed trains; use LocalEngine for the role {kwargs['role']!r}")
        super().__init__(name, module, optimizer, **kwargs)
        deepspeed = _import_deepspeed()
        merged = _merged(_config(zero_stage, self.clip, self.precision), config or {})
        for key, instead in _NOT_THEIRS.items():
            if merged.get(key, 1) != 1:
                raise ValueError(f"engine {name!r}: DeepSpeed's {key} is not for config; {instead}")
        self.stage = int(merged["zero_optimization"]["stage"])
        if self.stage == 0 and any(merged.get(p, {}).get("enabled") for p in ("fp16", "bf16")):
            raise ValueError(f"engine {name!r}: parameters in half precision need zero_stage 1 to 3; use precision=")
        _join_group(self.device)
        self.module, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=merged, dist_init_required=False
        )
        self._deepspeed = deepspeed
        self._zero = self.module.optimizer if self.stage else None
        if self._zero is not None and not hasattr(self._zero, "averaged_gradients"):
            raise ValueError(
                f"engine {name!r}: DeepSpeed chose {type(self._zero).__name__}, whose gradients cannot be divided "
                "by a window's weight; leave out data_types.grad_accum_dtype or use another zero_stage"
            )
        if self.stage == 3:
            self._clear_padding()
        self._complete = False  # whether the backward pass that ends the window is done
        self._unscale(1.0)

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        """Whether every rank writes its part of the optimizer."""
        return self.stage > 0

    @property
    def collective_forward(self) -> bool:  # type: ignore[override]
        """Whether the ranks gather parameters in the forward pass."""
        return self.stage == 3

    @property
    def collective_backward(self) -> bool:  # type: ignore[override]
        """Whether the ranks reduce gradients in every backward pass, not in the last of a window alone."""
        return self.stage >= 2

    @property
    def bare_module(self) -> nn.Module:
        return self.module.module

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        raise ValueError(
            f"engine {self.name!r}: DeepSpeed keeps the optimizer it was made with. Use DDPEngine or FSDPEngine, or "
            "end the run there and start another with Resume(init_from=…, module_only=True)"
        )

    def set_trainable(self, by: str, allowed: Mapping[str, bool]) -> None:
        raise ValueError(
            f"engine {self.name!r}: DeepSpeed divides what is trained once, when it is made, and {by} would change "
            "that. Freeze before making the engine, use DDPEngine or FSDPEngine, or end the run there and start "
            "another with Resume(init_from=…, module_only=True)"
        )

    def begin(self) -> None:
        self._window, self._complete = None, False
        for p in self.bare_module.parameters():
            p.grad = None
        zero = self._zero
        if zero is None:
            return
        zero.zero_grad(set_to_none=True)
        if self.stage == 3:
            zero.averaged_gradients = {}
            return
        zero.micro_step_id = -1
        for group in zero.averaged_gradients:
            zero.averaged_gradients[group] = None
            zero.all_grad_tensors[group] = None

    def forward_context(self, *, last: bool = True) -> AbstractContextManager[Any]:
        """Announces the last micro-batch to DeepSpeed, which has its own autocast."""
        self.module.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def optim_step(self) -> StepReport:
        if not self._complete:
            return self.skip("the feeder passed over the last batch of the window")
        if self._zero is None:
            return super().optim_step()
        assert self._window is not None
        assert self._rates is not None
        divisor = self._window.divisor()
        if divisor == 0.0:
            return self.skip("the window has no weight")
        if BeforeOptimizerStep in self.hooks.active:
            self.hooks.emit(BeforeOptimizerStep(self))
        report = StepReport(math.nan, None, self._rates.lr, self.loss_scale)
        self._unscale(divisor * self.loss_scale)
        self.module.step()
        self._unscale(1.0)
        norm = self.module.get_global_grad_norm()
        if not self.module.was_step_applied():
            report = self.skip("gradient not finite")
            if self.scaler is not None:
                self.scaler.update(overflow=True)
            return report
        report.grad_norm = math.nan if norm is None else float(norm)
        self._rates.step()
        if self.scaler is not None:
            self.scaler.update(overflow=False)
        self.clock.step += 1
        self.begin()
        return report

    def load_module_state(self, state: dict[str, Any]) -> None:
        bare, zero = self.bare_module, self.module.optimizer
        if self.stage == 0:
            bare.load_state_dict(state)
            return
        own = _tensors(bare)
        wrong = sorted(own.keys() ^ state.keys())
        if wrong:
            raise RuntimeError(f"the keys of the module's state differ, first {wrong[0]}")
        with torch.no_grad():
            for key, value in state.items():
                target = own[key]
                with self._whole(target):
                    if target.shape != value.shape:
                        raise RuntimeError(f"{key} is {tuple(target.shape)}, in the checkpoint {tuple(value.shape)}")
                    target.copy_(value)
        zero.refresh_fp32_params()
        for key, target in own.items():
            if target.requires_grad:
                self._set_master(target, state[key].to(target.device, torch.float32))

    def _set_master(self, parameter: torch.Tensor, value: torch.Tensor) -> None:
        """Write the fp32 copy that the optimizer steps, which may hold more than the parameter itself."""
        utils = self._deepspeed.utils
        if self.stage < 3:
            utils.safe_set_full_fp32_param(parameter, value)
            return
        part = parameter.ds_tensor.numel()  # alike on all ranks; the last ones are padded
        padded = value.new_zeros(part * dist.get_world_size())
        padded[: value.numel()] = value.flatten()
        utils.safe_set_local_fp32_param(parameter, padded[part * dist.get_rank() :][:part])

    def write_shards(self, folder: Path) -> None:
        """Write this rank's part of the optimizer."""
        state = self.module.optimizer.state_dict()
        torch.save({k: state[k] for k in _PLAIN if k in state}, folder / self._shard_name())

    def read_shards(self, folder: Path) -> None:
        """Read this rank's part.

        Raises:
            RuntimeError: it was written by another number of ranks or at another stage.
        """
        path = folder / self._shard_name()
        if not path.exists():
            raise RuntimeError(
                f"engine {self.name!r}: {folder} holds no {path.name}; ZeRO's parts can be read by as many ranks and "
                "at the stage they were written. Resume(module_only=True) takes the weights alone"
            )
        zero = self.module.optimizer
        state = zero.state_dict() | torch.load(path, map_location="cpu", weights_only=True)
        zero.load_state_dict([state] * dist.get_world_size(), load_optimizer_states=True, load_from_fp32_weights=True)
        if self.stage < 3:
            self._publish_partitions()

    def _publish_partitions(self) -> None:
        """Gather the fp32 parts just loaded into every rank's module."""
        zero = self.module.optimizer
        rank = dist.get_rank()
        for own, parts in zip(
            zero.single_partition_of_fp32_groups, zero.parallel_partitioned_bit16_groups, strict=True
        ):
            parts[rank].data.copy_(own.data)
            dist.all_gather(list(parts), parts[rank].clone())

    def _clear_padding(self) -> None:
        """Zero what DeepSpeed adds to make parts alike: unset memory there would make equal runs differ."""
        for parameter in self.bare_module.parameters():
            if parameter.requires_grad:
                part = self._deepspeed.utils.safe_get_local_fp32_param(parameter).detach()
                part[max(0, parameter.ds_numel - dist.get_rank() * part.numel()) :].zero_()

    def _shard_name(self) -> str:
        return f"{self.name}.zero{self.stage}-{dist.get_rank()}-of-{dist.get_world_size()}.pth"

    def _unscale(self, scale: float) -> None:
        """What ZeRO divides the gradients by; 1 outside of the step, as it multiplies losses by it too."""
        if self._zero is not None:
            self._zero.custom_loss_scaler, self._zero.external_loss_scale = True, scale

    def _backward(self, loss: torch.Tensor) -> None:
        self.module.backward(loss, scale_wrt_gas=False)
        self._complete = self.module.is_gradient_accumulation_boundary()

    def _module_state(self) -> dict[str, Any]:
        """The whole module in fp32, as one plain state dict. Collective at stage 3, and whole on rank 0 alone."""
        bare = self.bare_module
        if self.stage == 0:
            return bare.state_dict()
        keep = dist.get_rank() == 0
        state = {}
        for key, tensor in _tensors(bare).items():
            full = self._deepspeed.utils.safe_get_full_fp32_param(tensor) if tensor.requires_grad else None
            if full is None:
                with self._whole(tensor):
                    full = tensor.detach().clone()
            state[key] = full.detach().cpu() if keep else full.new_empty(0)
        return state

    def _optimizer_state(self) -> dict[str, Any]:
        return super()._optimizer_state() if self.stage == 0 else {}

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        if self.stage == 0:
            super()._load_optimizer_state(state)

    @contextmanager
    def _whole(self, tensor: torch.Tensor) -> Iterator[None]:
        """Have all of a parameter here at stage 3, and put it back in parts, changed or not."""
        if self.stage < 3 or not hasattr(tensor, "ds_id"):
            yield
            return
        with self._deepspeed.zero.GatheredParameters([tensor], modifier_rank=0):
            yield


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under the names of the state dict, tied ones under each of theirs."""
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return {key: own[key] for key in module.state_dict()}


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as e:
        raise ImportError("DeepSpeedEngine needs deepspeed: pip install trainloop[deepspeed]") from e
    if deepspeed.get_accelerator().device_name() == "cpu":
        # Its own CPU collectives are compiled at first use, for minutes; a run killed meanwhile leaves a lock that
        # the next one waits for. Gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _join_group(device: torch.device) -> None:
    """A single process gets a group of one, which needs no port.

    DeepSpeed reads LOCAL_RANK at any time; left alone it would look like a rank's incomplete environment to whatever
    reads that later, so the other variables are set as well.
    """
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RuntimeError("several ranks, but no process group: call init_process_group first")
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        for name, value in alone.items():
            os.environ.setdefault(name, value)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _config(stage: int, clip: float | None, precision: str) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": clip if clip is not None and stage > 0 else 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Without safe modules gradients travel in fp32, as on other backends.
        "torch_autocast": {
            "enabled": precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "fp16": {"enabled": precision == "fp16"},
        "bf16": {"check_grad_overflow": True},
    }


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` merged into `base`, section by section."""
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if nested else value
    return result
