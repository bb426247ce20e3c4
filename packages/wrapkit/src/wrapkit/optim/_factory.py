"""`optimizer(name, model, …)`: any of the optimizers, over one list of rules for all of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wrapkit._policy import Policy
from wrapkit.optim import _external
from wrapkit.optim._guard import NonFinite, guard
from wrapkit.optim._multi import MultiOptimizer
from wrapkit.optim._muon import Muon
from wrapkit.optim._rules import DEFAULT_RULES, Rule, as_groups, sort_parameters

Groups = list[dict[str, Any]]
Builder = Callable[..., Optimizer]


def optimizer(
    name: str,
    module_or_groups: nn.Module | Iterable[nn.Parameter] | Iterable[Mapping[str, Any]],
    *,
    policy: Policy | None = None,
    rules: Sequence[Rule] = DEFAULT_RULES,
    nonfinite: NonFinite = "raise",
    **options: Any,
) -> Optimizer:
    """Build an optimizer by name.

    For a module, `DEFAULT_RULES` sort its trainable parameters: everything with at most one dimension
    (biases, norms) and embeddings go without weight decay; matrices and convolutions other than embeddings
    and output heads (`lm_head`, `head`, `classifier`, …) are hidden matrices, the ones that Muon and APOLLO
    handle, and AdamW takes the rest. A longer list says otherwise: `rules=(*DEFAULT_RULES, Rule("*.gate",
    low_rank=False, options={"lr": 1e-4}))`. Groups given by hand are taken as they are.

    Args:
        name: one of `OPTIMIZERS`: "adamw", "sgd", "adagrad", "adafactor", "muon", "apollo", "apollo-mini";
            "prodigy", "dadapt-adam", "dadapt-sgd", "schedulefree-adamw", "schedulefree-sgd"; 8-bit states
            from bitsandbytes "adam8bit", "adamw8bit", "sgd8bit", "adagrad8bit", "lion8bit"; from torchao
            "torchao-adamw8bit", "torchao-adamw4bit". "_" may stand for "-".
        module_or_groups: a module, parameters, or group dicts.
        policy: which of a module's parameters are optimised; without it, all that require a gradient.
        rules: sort a module's parameters into groups.
        nonfinite: what to do about inf or NaN in the gradients before a step touches any state: "raise"
            `NonFiniteGradient`, "skip" the step (counted in `optimizer.skipped_steps`), or "ignore".
        options: of the optimizer itself: lr, betas, weight_decay, rank, …

    Raises:
        ValueError: an unknown name, options the optimizer cannot work with, or no parameters.
        BackendUnavailable: the package behind the name cannot be used here.
    """
    key = canonical(name)
    if isinstance(module_or_groups, nn.Module):
        groups = sort_parameters(module_or_groups, policy, rules)
    elif policy is not None or rules is not DEFAULT_RULES:
        raise ValueError("policy and rules sort the parameters of a module; groups given by hand are already sorted")
    else:
        groups = as_groups(module_or_groups)
    names: dict[Tensor, str] = {}
    for group in groups:
        names |= dict(zip(group["params"], group.pop("names", ()), strict=False))
    built = OPTIMIZERS[key](groups, **options)
    guard(built, nonfinite, names)
    if isinstance(module_or_groups, nn.Module) and key.startswith("schedulefree"):
        _external.follow_mode(built, module_or_groups)
    return built


def canonical(name: str) -> str:
    """The name in `OPTIMIZERS` that a caller's spelling means; ValueError if there is none."""
    key = name.lower().replace("_", "-")
    key = ALIASES.get(key, key)
    if key not in OPTIMIZERS:
        close = difflib.get_close_matches(key, OPTIMIZERS, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"there is no optimizer {name!r}{meant}; known: {', '.join(OPTIMIZERS)}")
    return key


def optimizer_class(name: str) -> type[Optimizer]:
    """The class behind a name, for code that builds its optimizer itself.

    Raises:
        ValueError: an unknown name, or an optimizer that is for hidden matrices alone.
        BackendUnavailable: the package behind the name cannot be used here.
    """
    key = canonical(name)
    if key in _external.CLASSES:
        return _external.external_class(key)
    if key in ("muon", "apollo", "apollo-mini"):
        raise ValueError(f"{key} takes hidden matrices alone, not all that a constructor gets: use wrapkit.optimizer")
    kinds = {"adamw": "AdamW", "sgd": "SGD", "adagrad": "Adagrad", "adafactor": "Adafactor"}
    return getattr(torch.optim, kinds[key])


def merge(groups: Groups) -> Groups:
    """Groups without the low-rank flag, those that then agree joined: fewer, longer groups step faster."""
    merged: dict[str, dict[str, Any]] = {}
    for group in groups:
        own = {k: v for k, v in group.items() if k not in ("params", "low_rank")}
        merged.setdefault(repr(sorted(own.items())), {"params": [], **own})["params"].extend(group["params"])
    return list(merged.values())


def can_fuse(groups: Groups) -> bool:
    """Whether torch's fused kernels take these parameters: plain, floating point, all on CPU or CUDA."""
    parameters = [p for group in groups for p in group["params"]]
    kinds = {p.device.type for p in parameters}
    return (
        len(kinds) == 1
        and kinds <= {"cpu", "cuda"}
        and all(type(p.data) is Tensor and p.is_floating_point() for p in parameters)
    )


def _adamw(groups: Groups, **options: Any) -> Optimizer:
    if not {"fused", "foreach"} & options.keys():
        options["fused"] = can_fuse(groups) and not options.get("differentiable", False)
    return torch.optim.AdamW(merge(groups), **options)


def _sgd(groups: Groups, **options: Any) -> Optimizer:
    return torch.optim.SGD(merge(groups), **{"lr": 1e-3, **options})


def _torch(kind: str) -> Builder:
    return lambda groups, **options: getattr(torch.optim, kind)(merge(groups), **options)


def split(
    groups: Groups, label: str, build: Callable[[Groups], Optimizer], adamw_options: Mapping[str, Any]
) -> Optimizer:
    """`build` for the hidden matrices, AdamW for the rest."""
    hidden = [group for group in groups if group["low_rank"]]
    rest = [group for group in groups if not group["low_rank"]]
    if not hidden:
        raise ValueError(
            f"{label} has nothing to do: none of the parameters is a hidden matrix (biases, norms, embeddings, heads "
            "and LoRA's factors are not); use adamw"
        )
    parts = {label: build(merge(hidden))}
    if rest:
        parts["adamw"] = _adamw(rest, **adamw_options)
    return MultiOptimizer(parts)


def _muon(
    groups: Groups,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    **options: Any,
) -> Optimizer:
    shared = {"lr": lr, "weight_decay": weight_decay}
    return split(
        groups,
        "muon",
        lambda hidden: Muon(hidden, **shared, **options),
        {**shared, "betas": betas, "eps": eps},
    )


def _apollo(
    groups: Groups,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    adamw_eps: float = 1e-8,
    **options: Any,
) -> Optimizer:
    from wrapkit.ext.apollo import Apollo

    shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
    return split(
        groups,
        "apollo",
        lambda hidden: Apollo(hidden, **shared, eps=eps, **options),
        {**shared, "eps": adamw_eps},
    )


def _apollo_mini(groups: Groups, **options: Any) -> Optimizer:
    return _apollo(groups, **{"rank": 1, "scaling": "tensor", "scale": 128.0, **options})


def _external_builder(name: str) -> Builder:
    return lambda groups, **options: _external.build(name, merge(groups), **options)


OPTIMIZERS: dict[str, Builder] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adagrad": _torch("Adagrad"),
    "adafactor": _torch("Adafactor"),
    "muon": _muon,
    "apollo": _apollo,
    "apollo-mini": _apollo_mini,
    **{name: _external_builder(name) for name in _external.CLASSES},
}

ALIASES = {"schedulefree": "schedulefree-adamw", "dadaptation": "dadapt-adam", "adamw-8bit": "adamw8bit"}
