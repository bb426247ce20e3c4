"""Low-rank adapters enabled, scaled, switched and merged over the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from trainloop.engine import Engine
from trainloop.hooks.curve import Curve, as_curve
from trainloop.hooks.events import BeforeLoad
from trainloop.hooks.schedule import Entries, Schedule, Steps, pairs, soonest, starts_until


class Adapters(Protocol):
    """The adapters on a model, whichever library put them there.

    Attributes:
        merges_weights: whether merging changes the model's own weights, so that a checkpoint of a merged model holds
            them merged; False where it computes something beside them (those under a merge then take no gradient:
            freeze them for as long with `LayerSchedule`, which DDP insists on).
    """

    merges_weights: bool

    def names(self) -> Sequence[str]: ...

    def parameters(self, name: str) -> Iterable[nn.Parameter]:
        """What of the model belongs to this adapter."""
        ...

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        """Multiply what each adapter adds by a factor, 1 being what it was made with; 0 switches it off."""
        ...

    def merge(self) -> None:
        """Compute with the adapters that are on added to the weights."""
        ...

    def unmerge(self) -> None: ...


@dataclass(frozen=True, slots=True)
class On:
    """Adapters that are on, the others being off.

    Attributes:
        strengths: name to a factor: a number, or a curve or function of the run's step.
        merged: merged into the weights; they are not trained then, and the strengths are numbers.
        train: whether those that are on are trained.
    """

    strengths: Mapping[str, float | Curve | Callable[[int], float]]
    merged: bool = False
    train: bool = True


class LoRASchedule(Schedule):
    """Says which adapters are on from which step, how strongly, and whether they are merged.

    An adapter is trained while it is on, not merged, and no `LayerSchedule` freezes it.

    ```python
    LoRASchedule(engine, PeftAdapters(model), {0: "a", 500: On({"a": 1.0, "b": ramp(0.0, 1.0, 900)}), 900: ()})
    ```

    Args:
        engine: that trains the model.
        adapters: `PeftAdapters`, or any other `Adapters`.
        steps: step to what is on from there: `On(...)`, or names alone, at strength 1.

    Raises:
        ValueError: steps that do not go up, an adapter that is not there, a strength that moves while merged.
    """

    order = 130

    def __init__(self, engine: Engine, adapters: Adapters, steps: Entries[On | str | Sequence[str]]) -> None:
        self.name = f"{engine.name}.lora"
        self._engine, self._adapters = engine, adapters
        self._steps = Steps(self.name, [(start, _on(value)) for start, value in pairs(steps)])
        self._curves = [{n: as_curve(s) for n, s in on.strengths.items()} for on in self._steps.values]
        self._merged: dict[str, float] | None = None  # the strengths that are merged
        known = list(adapters.names())
        for start, on, curves in zip(self._steps.starts, self._steps.values, self._curves, strict=True):
            for name, curve in curves.items():
                if name not in known:
                    raise ValueError(
                        f"{self.name} at step {start}: there is no adapter {name!r}; there are {', '.join(known)}"
                    )
                if on.merged and curve.next_change(start) is not None:
                    raise ValueError(
                        f"{self.name} at step {start}: {name} is merged, so its strength cannot move; give a number"
                    )
        of = {id(p): name for name in known for p in adapters.parameters(name)}
        self._owners = {n: of[id(p)] for n, p in engine.bare_module.named_parameters() if id(p) in of}
        self._allowed = [self._trained(on) for on in self._steps.values]
        requires = {n: p.requires_grad for n, p in engine.bare_module.named_parameters() if n in self._owners}
        self._fixed = all(allowed == requires for allowed in self._allowed)
        if not self._fixed:
            engine.set_trainable(self.name, {})  # a backend that cannot refuses here rather than at the step

    def apply(self, step: int) -> None:
        index = self._steps.index(step)
        strengths = dict.fromkeys(self._adapters.names(), 0.0)
        strengths |= {name: curve(step) for name, curve in self._curves[index].items()}
        merged = strengths if self._steps.values[index].merged else None
        if self._merged is not None and merged != self._merged:
            self._adapters.unmerge()
            self._merged = None
        if self._merged is None:
            self._adapters.set_strengths(strengths)
            if merged is not None:
                self._adapters.merge()
                self._merged = merged
        if not self._fixed:
            self._engine.set_trainable(self.name, self._allowed[index])

    def next_change(self, step: int) -> int | None:
        return soonest(step, [self._steps, *self._curves[self._steps.index(step)].values()])

    def knots(self, until: int) -> Iterable[int]:
        moving = [k for curves in self._curves for curve in curves.values() for k in curve.knots]
        return [*starts_until(self._steps, until), *moving, until]

    def row(self, step: int) -> dict[str, float | str]:
        index = self._steps.index(step)
        on = ", ".join(
            name if curve(step) == 1.0 else f"{name} x{curve(step):.4g}" for name, curve in self._curves[index].items()
        )
        return {f"{self._engine.name} adapters": (on or "none") + (" merged" * self._steps.values[index].merged)}

    def _enter(self, event: Any) -> None:
        if self._merged is not None and not isinstance(event, BeforeLoad) and not self._adapters.merges_weights:
            self._adapters.unmerge()  # merged before the weights were loaded: again, of those
            self._merged = None
        super()._enter(event)

    def _trained(self, on: On) -> dict[str, bool]:
        trains = on.train and not on.merged
        return {name: trains and owner in on.strengths for name, owner in self._owners.items()}


class PeftAdapters:
    """The LoRA adapters of a `peft.PeftModel`.

    peft adds to and subtracts from the weights when it merges and unmerges, which rounds: merged and unmerged is near
    to, and not, what was before. A run that is resumed does the same and ends alike.
    """

    merges_weights = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self._layers = [m for m in model.modules() if hasattr(m, "set_scale") and hasattr(m, "lora_A")]

    def names(self) -> list[str]:
        return list(self.model.peft_config)

    def parameters(self, name: str) -> list[nn.Parameter]:
        return [p for n, p in self.model.named_parameters() if "lora_" in n and name in n.split(".")]

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        on = [name for name, strength in strengths.items() if strength]
        if on:
            if on != self.model.base_model.active_adapters:
                self.model.base_model.set_adapter(on)
            self.model.base_model.enable_adapter_layers()
        else:
            self.model.base_model.disable_adapter_layers()
        for layer in self._layers:
            for name in on:
                layer.set_scale(name, strengths[name])

    def merge(self) -> None:
        self.model.merge_adapter()

    def unmerge(self) -> None:
        self.model.unmerge_adapter()


def _on(value: On | str | Sequence[str]) -> On:
    if isinstance(value, On):
        return value
    names = [value] if isinstance(value, str) else value
    return On(dict.fromkeys(names, 1.0))
