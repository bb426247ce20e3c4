"""Putting another module in the place of one, everywhere it is used, and taking it out again."""

from __future__ import annotations

from torch import nn

from wrapkit._handle import Handle

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def share_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let `new` run the hooks of `old`. The same dicts are used, so a hook's own handle still removes it."""
    for name in HOOKS:
        hooks, own = getattr(old, name), getattr(new, name)
        if not own:
            setattr(new, name, hooks)
        elif hooks:
            setattr(new, name, type(own)([*own.items(), *hooks.items()]))
    if hooks_kind := old._is_full_backward_hook:
        new._is_full_backward_hook = hooks_kind


def swap(handle: Handle, model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Swap modules (each under all its names) inside `model`, and register how to swap them back.

    The model itself may be among them. The caller's reference must then go on working, so that one object
    takes the class and the contents of its replacement instead of being replaced.
    """
    for parent in list(model.modules()):
        if parent in replacements:
            continue  # it is going to be replaced itself, with all it holds
        for name, child in list(parent._modules.items()):
            if child in replacements:
                _swap_child(handle, parent, name, child, replacements[child])
    if model in replacements:
        _transplant(handle, model, replacements[model])


def _swap_child(handle: Handle, parent: nn.Module, name: str, old: nn.Module, new: nn.Module) -> None:
    def undo() -> None:
        parent._modules[name] = old

    def check() -> str | None:
        found = parent._modules.get(name)
        if found is new:
            return None
        return f"{name} is a {type(found).__name__} now, not the {type(new).__name__} put there"

    parent._modules[name] = new
    handle.on_undo(undo, check)


def _transplant(handle: Handle, model: nn.Module, new: nn.Module) -> None:
    contents, kind = model.__dict__, type(model)

    def undo() -> None:
        model.__class__ = kind
        model.__dict__ = contents

    def check() -> str | None:
        if model.__dict__ is new.__dict__:
            return None
        return f"the model is a {type(model).__name__} now, not the {type(new).__name__} put in its place"

    model.__class__ = type(new)
    model.__dict__ = new.__dict__
    handle.on_undo(undo, check)
