"""One list of rules that sorts a model's parameters into optimizer groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from wrapkit._originals import Embedding, EmbeddingBag
from wrapkit._policy import Policy, matches, owner

Condition = Callable[[str, nn.Parameter, nn.Module], bool]

HEADS = ("lm_head", "head", "heads", "classifier", "classifiers", "output_projection", "unembed")


@dataclass(frozen=True)
class Rule:
    """Settings for the parameters it applies to; a later rule of a list overrides an earlier one.

    Args:
        where: a dotted glob, a `Policy`, or a function of (name, parameter, owning module).
        low_rank: whether these are hidden matrices, to be handled by APOLLO or Muon where one of them is used.
        options: options of the optimizer's group, such as `lr` or `weight_decay`.
    """

    where: str | Policy | Condition
    low_rank: bool | None = None
    options: Mapping[str, Any] | None = None

    def applies(self, name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
        if isinstance(self.where, str):
            return matches(self.where, name)
        if isinstance(self.where, Policy):
            return self.where.covers(name) or self.where.chooses(name, module)
        return self.where(name, parameter, module)


def is_vector(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Biases, norm gains, scalars: at most one dimension longer than 1."""
    return sum(size > 1 for size in parameter.shape) <= 1


def is_embedding(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Tables that are looked up, and whatever is tied to them."""
    return isinstance(module, (Embedding, EmbeddingBag))


def is_head(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Output projections, told by the customary names (`HEADS`) on the path."""
    return any(segment in HEADS for segment in name.split("."))


def is_adapter(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """LoRA's factors: projecting what is of low rank already leaves nothing to learn from."""
    from wrapkit.lora._layer import Factors
    from wrapkit.lora._parametrize import Delta

    return isinstance(module, (Factors, Delta))


DEFAULT_RULES: tuple[Rule, ...] = (
    Rule(lambda name, parameter, module: True, low_rank=True),
    Rule(is_vector, low_rank=False, options={"weight_decay": 0.0}),
    Rule(is_embedding, low_rank=False, options={"weight_decay": 0.0}),
    Rule(is_head, low_rank=False),
    Rule(is_adapter, low_rank=False),
)


def sort_parameters(
    model: nn.Module, policy: Policy | None = None, rules: Sequence[Rule] = DEFAULT_RULES
) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters, each parameter once.

    Returns:
        Groups of parameters with equal settings, in order of first appearance: `params`, `names` (dotted),
        `low_rank`, and the options the rules gave.

    Raises:
        ValueError: nothing trainable is chosen.
        PatternError: a pattern of the policy covers nothing.
    """
    holders: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(parameter, []).append(name)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in (policy or Policy()).parameters(model):
        if not parameter.requires_grad:
            continue
        settings: dict[str, Any] = {"low_rank": False}
        for rule in rules:
            if any(rule.applies(holder, parameter, owner(model, holder)) for holder in holders[parameter]):
                settings |= rule.options or {}
                if rule.low_rank is not None:
                    settings["low_rank"] = rule.low_rank
        key = tuple(sorted((option, repr(value)) for option, value in settings.items()))
        group = groups.setdefault(key, {"params": [], "names": [], **settings})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ValueError("nothing to optimise: the policy and requires_grad leave no parameter")
    return list(groups.values())


def as_groups(params: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups given by hand, as they are; matrices in them count as low-rank ones unless the group says."""
    items = list(params)
    if items and not isinstance(items[0], Mapping):
        items = [{"params": items}]
    groups: list[dict[str, Any]] = []
    for item in items:
        own = dict(item)
        own["params"] = [own["params"]] if isinstance(own["params"], nn.Parameter) else list(own["params"])
        if "low_rank" in own:
            groups.append(own)
            continue
        for low_rank in (True, False):
            part = [p for p in own["params"] if is_vector("", p, nn.Identity()) is not low_rank]
            if part:
                groups.append({**own, "params": part, "low_rank": low_rank})
    if not groups:
        raise ValueError("nothing to optimise: no parameters given")
    return groups
