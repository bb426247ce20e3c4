"""`LoRA`: which layers get an adapter, and what kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.utils import parametrize

from wrapkit._handle import Handle
from wrapkit._originals import Embedding, MultiheadAttention
from wrapkit._policy import Policy, matches
from wrapkit._replace import untouched_rng
from wrapkit._swap import swap
from wrapkit.lora._layer import Adapter, Factors, LoRALayer, is_plain, sides, unsupported
from wrapkit.lora._parametrize import Delta, register

Form = Literal["wrap", "parametrize", "dora"]


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on some layers of a model; everything else is frozen.

    Args:
        rank: of the change to each weight.
        alpha: the change is scaled by alpha / rank; None is rank, a scale of 1.
        policy: which layers; without it all linear layers and convolutions.
        dropout: of the adapters' inputs, in training.
        name: of the adapter. A model can carry several.
        embeddings: whether embeddings that the policy covers get one as well.
        form: "wrap" puts a layer around each base, of any kind. "parametrize" changes what reading the base's
            weight gives, "dora" its direction and length apart (DoRA); these take plain weights, no dropout, and
            one adapter for each layer.
        train_base: leave the model's other parameters as trainable as they are.
    """

    rank: int = 8
    alpha: float | None = None
    policy: Policy | None = None
    dropout: float = 0.0
    name: str = "default"
    embeddings: bool = False
    form: Form = "wrap"
    train_base: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not self.name or "." in self.name:
            raise ValueError(f"an adapter's name is one word without dots, got {self.name!r}")
        if self.form not in ("wrap", "parametrize", "dora"):
            raise ValueError(f"form must be wrap, parametrize or dora, got {self.form!r}")
        if self.form != "wrap" and self.dropout:
            raise ValueError(f'dropout acts on a layer\'s input; with form="{self.form}" there is none to act on')

    def apply(self, model: nn.Module) -> Handle:
        """Add the adapters. Nothing is computed differently yet: B starts at zero.

        Returns:
            A handle; `undo()` takes the adapters out again, trained or not.

        Raises:
            PatternError: a pattern of the policy covers nothing.
            ValueError: no layer to adapt, a rank above the smaller side of a weight, a name already taken, or a
                form that a layer cannot take. The model is not changed then.
        """
        targets = self.targets(model)
        handle = Handle(model, list(targets))
        if not self.train_base:
            _freeze(handle, model)
        with untouched_rng(model):
            if self.form == "wrap":
                self._wrap(handle, model, targets)
            else:
                for layer in targets.values():
                    register(handle, layer, Delta(layer, self.name, self._adapter(), self.form == "dora"))
        return handle

    def targets(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers that get an adapter, by name; errors as for `apply`."""
        policy = self.policy or Policy()
        chosen: dict[str, nn.Module] = {}
        refused: dict[str, str] = {}
        for name, layer in candidates(model, policy):
            base = layer.base if isinstance(layer, LoRALayer) else layer
            reason = unsupported(base)
            if reason is None and isinstance(base, Embedding) and not self.embeddings:
                reason = "embeddings get an adapter with embeddings=True only"
            if reason is None:
                self._check(name, layer, base)
                chosen[name] = layer
            elif next(base.children(), None) is None and next(base.parameters(), None) is not None:
                refused[name] = reason
        for pattern in policy.include or ():
            reasons = [f"{name}: {reason}" for name, reason in refused.items() if matches(pattern, name)]
            if reasons and not any(matches(pattern, name) for name in chosen):
                raise ValueError(f"no layer that pattern {pattern!r} covers can carry an adapter: {'; '.join(reasons)}")
        if not chosen:
            raise ValueError(f"no layer to adapt in this {type(model).__name__}")
        return chosen

    def _check(self, name: str, layer: nn.Module, base: nn.Module) -> None:
        out, into = sides(base)
        entries = math.prod(into)
        if self.rank > min(out, entries):
            raise ValueError(f"rank {self.rank} is above the smaller side of {name} ({entries} to {out})")
        if isinstance(layer, LoRALayer) and self.name in layer.adapters:
            raise ValueError(f"{name} has an adapter {self.name!r} already; give this one another name")
        if parametrize.is_parametrized(base):
            raise ValueError(f"{name} is parametrized already; one adapter of that form is all a layer takes")
        if self.form == "wrap":
            return
        if isinstance(layer, LoRALayer):
            raise ValueError(f'{name} is wrapped by another adapter, so its weight cannot take form="{self.form}"')
        if not is_plain(base):
            raise ValueError(
                f'form="{self.form}" needs the numbers of the weight, and {name} is a {type(base).__name__} with '
                f'{base.weight.dtype} weights: use form="wrap"'
            )

    def _adapter(self) -> Adapter:
        return Adapter(self.rank, (self.rank if self.alpha is None else self.alpha) / self.rank, self.dropout)

    def _wrap(self, handle: Handle, model: nn.Module, targets: dict[str, nn.Module]) -> None:
        fresh: dict[nn.Module, nn.Module] = {}
        for layer in targets.values():
            wrapper = layer if isinstance(layer, LoRALayer) else LoRALayer(_apart(layer) if layer is model else layer)
            wrapper.add(self.name, self._adapter())
            handle.on_undo(*_removal(wrapper, self.name))
            if wrapper is not layer:
                fresh[layer] = wrapper
        swap(handle, model, fresh)


def candidates(model: nn.Module, policy: Policy) -> Iterator[tuple[str, nn.Module]]:
    """Layers that the policy covers under one of their names, and excludes under none; each once."""
    policy.modules(model)  # checks the patterns
    names: dict[nn.Module, list[str]] = {}
    hidden: set[nn.Module] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
        if isinstance(module, (LoRALayer, MultiheadAttention)) or parametrize.is_parametrized(module):
            hidden.update(set(module.modules()) - {module})  # attention reads its projection without calling it
    for module, aliases in names.items():
        base = module.base if isinstance(module, LoRALayer) else module
        if module in hidden or any(map(policy.excludes, aliases)):
            continue
        if any(policy.chooses(name, base) for name in aliases):
            yield aliases[0], module


def _freeze(handle: Handle, model: nn.Module) -> None:
    adapters = {p for m in model.modules() if isinstance(m, (Factors, Delta)) for p in m.parameters()}
    frozen = [p for p in model.parameters() if p.requires_grad and p not in adapters]

    def thaw() -> None:
        for parameter in frozen:
            parameter.requires_grad_(True)

    for parameter in frozen:
        parameter.requires_grad_(False)
    handle.on_undo(thaw)


def _apart(model: nn.Module) -> nn.Module:
    """The model's contents as another object: the model itself is about to become the wrapper around it."""
    inner = object.__new__(type(model))
    inner.__dict__ = model.__dict__
    return inner


def _removal(wrapper: LoRALayer, name: str) -> tuple[Callable[[], None], Callable[[], str | None]]:
    """Take an adapter off; in the way stand those added to the same wrapper later, and a merge."""

    def check() -> str | None:
        later = list(wrapper.adapters)[list(wrapper.adapters).index(name) + 1 :]
        if later:
            return f"the adapter {later[-1]!r} has been added after {name!r}"
        return f"the adapter {name!r} is merged" if wrapper.merged is not None else None

    return lambda: wrapper.remove(name), check
