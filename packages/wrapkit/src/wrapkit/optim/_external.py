"""Optimizers that other packages bring, loaded when they are asked for."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.optim import Optimizer

from wrapkit.backends._probe import load

Groups = list[dict[str, Any]]

# name -> module, extra (and package) that brings it, class
CLASSES = {
    "prodigy": ("prodigyopt", "prodigy", "Prodigy"),
    "dadapt-adam": ("dadaptation", "dadaptation", "DAdaptAdam"),
    "dadapt-sgd": ("dadaptation", "dadaptation", "DAdaptSGD"),
    "schedulefree-adamw": ("schedulefree", "schedulefree", "AdamWScheduleFree"),
    "schedulefree-sgd": ("schedulefree", "schedulefree", "SGDScheduleFree"),
    "adam8bit": ("bitsandbytes.optim", "bitsandbytes", "Adam8bit"),
    "adamw8bit": ("bitsandbytes.optim", "bitsandbytes", "AdamW8bit"),
    "sgd8bit": ("bitsandbytes.optim", "bitsandbytes", "SGD8bit"),
    "adagrad8bit": ("bitsandbytes.optim", "bitsandbytes", "Adagrad8bit"),
    "lion8bit": ("bitsandbytes.optim", "bitsandbytes", "Lion8bit"),
    "torchao-adamw8bit": ("torchao.optim", "torchao", "AdamW8bit"),
    "torchao-adamw4bit": ("torchao.optim", "torchao", "AdamW4bit"),
}


def external_class(name: str) -> type[Optimizer]:
    """The class behind a name of `CLASSES`; BackendUnavailable if its package cannot be used here."""
    module, extra, kind = CLASSES[name]
    return getattr(load(module, extra, extra), kind)


def build(name: str, groups: Groups, **options: Any) -> Optimizer:
    """An optimizer of another package.

    Prodigy (Mishchenko and Defazio, arXiv 2306.06101) and D-Adaptation (arXiv 2301.07733) find the step size: leave
    their lr at 1. Schedule-free ones (Defazio et al., arXiv 2405.15682) start in training mode. bitsandbytes keeps
    states in 8 bits by blocks (Dettmers et al., arXiv 2110.02861), torchao in 8 or 4, as tensor subclasses.
    """
    if name.startswith(("prodigy", "dadapt")):
        groups = _one_lr(groups, name)
    if name == "sgd8bit":
        options = {"lr": 1e-3, "momentum": 0.9, **options}
        if not options["momentum"] > 0:
            raise ValueError(
                "sgd8bit needs momentum > 0: without momentum there is no state to hold in 8 bits; use sgd"
            )
    built = external_class(name)(groups, **options)
    if name.startswith("schedulefree"):
        built.train()  # type: ignore[attr-defined]
    return built


def _one_lr(groups: Groups, name: str) -> Groups:
    """These estimate one distance for all groups, so a learning rate per group is not theirs to honour."""
    if len({group.get("lr") for group in groups}) > 1:
        raise ValueError(f"{name} estimates one step size for all parameters: give no rule or group its own lr")
    return groups


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
