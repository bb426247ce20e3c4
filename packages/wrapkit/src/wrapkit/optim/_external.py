"""Optimizers that other packages bring, loaded when they are asked for."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.optim import Optimizer

from wrapkit.backends._probe import load

Groups = list[dict[str, Any]]


def prodigy(groups: Groups, **options: Any) -> Optimizer:
    """Prodigy (Mishchenko and Defazio, arXiv 2306.06101): finds the step size; leave lr at 1."""
    return load("prodigyopt", "prodigy", "prodigy").Prodigy(_one_lr(groups, "prodigy"), **options)


def dadapt(kind: str, groups: Groups, **options: Any) -> Optimizer:
    """D-Adaptation (Defazio and Mishchenko, arXiv 2301.07733): finds the step size; leave lr at 1."""
    return getattr(load("dadaptation", "dadaptation", "dadaptation"), kind)(_one_lr(groups, "dadaptation"), **options)


def _one_lr(groups: Groups, name: str) -> Groups:
    """These estimate one distance for all groups, so a learning rate per group is not theirs to honour."""
    if len({group.get("lr") for group in groups}) > 1:
        raise ValueError(f"{name} estimates one step size for all parameters: give no rule or group its own lr")
    return groups


def schedulefree(kind: str, groups: Groups, **options: Any) -> Optimizer:
    """Schedule-free (Defazio et al., arXiv 2405.15682), in training mode."""
    built = getattr(load("schedulefree", "schedulefree", "schedulefree"), kind)(groups, **options)
    built.train()
    return built


def follow_mode(built: Optimizer, model: nn.Module) -> None:
    """Keep a schedule-free optimizer in the model's mode, train or eval.

    Such an optimizer trains at one point and is evaluated at another; both live in the same weights, which
    `optimizer.train()` and `optimizer.eval()` exchange. A forward in the wrong mode would be silently
    wrong, so each forward of the model brings the optimizer along.
    """
    optimizer_ref, model_ref = weakref.ref(built), weakref.ref(model)

    def before_forward(module: nn.Module, inputs: Any) -> None:
        optimizer = optimizer_ref()
        if optimizer is None or module is not model_ref():  # a deep copy carries the hook along
            return
        if module.training != optimizer.param_groups[0]["train_mode"]:
            optimizer.train() if module.training else optimizer.eval()

    model.register_forward_pre_hook(before_forward)


def bitsandbytes(kind: str, groups: Groups, **options: Any) -> Optimizer:
    """Optimizers with 8-bit block-wise states (Dettmers et al., arXiv 2110.02861)."""
    bnb = load("bitsandbytes", "bitsandbytes", "bitsandbytes")
    if kind == "SGD8bit":
        options = {"lr": 1e-3, "momentum": 0.9, **options}
        if not options["momentum"] > 0:
            raise ValueError(
                "sgd8bit needs momentum > 0: without momentum there is no state to hold in 8 bits; use sgd"
            )
    return getattr(bnb.optim, kind)(groups, **options)


def torchao(kind: str, groups: Groups, **options: Any) -> Optimizer:
    """Optimizers with 8- or 4-bit states as tensor subclasses (torchao)."""
    module = load("torchao.optim", "torchao", "torchao")
    return getattr(module, kind)(groups, **options)
