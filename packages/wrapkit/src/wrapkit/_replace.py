"""`replace`: other classes in the place of some modules, everything else about them kept."""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from wrapkit._handle import Handle
from wrapkit._originals import MultiheadAttention
from wrapkit._policy import Policy
from wrapkit._swap import share_hooks, swap

Factory = Callable[[nn.Module], nn.Module]
Replacement = type[nn.Module] | Factory


def replace(
    model: nn.Module,
    what: Mapping[type[nn.Module], Replacement] | str,
    policy: Policy | None = None,
    *,
    subclasses: bool = False,
    keep_weights: bool = True,
) -> Handle:
    """Swap modules inside `model`.

    Kept: parameters and buffers (the very objects, where name and shape agree), ties between them, modules
    used in several places, device, dtype, requires_grad, training flag and hooks of each module.

    Args:
        model: changed in place; it may itself be one of the modules swapped.
        what: old type -> new type or function of the old module; or the name of a backend: "bitlinear";
            "bnb.int8", "bnb.int8-training", "bnb.stable-embedding"; "torchao.float8", "torchao.int8",
            "torchao.int8-dynamic", "torchao.int4"; "te.fp8". A new type is built with `from_module(old)` if it
            has that, else with the old module's constructor arguments.
        policy: which modules; without it all of the given types.
        subclasses: also swap modules of types derived from the given ones.
        keep_weights: give new modules the old ones' parameters. False leaves that to the function.

    Returns:
        A handle; `handle.undo()` puts the old objects back. Its `skipped` names the layers that the backend cannot
        take, with the reason.

    Raises:
        PatternError: a pattern of the policy covers nothing.
        ValueError: nothing to swap, or a swap that would untie a parameter. The model is not changed then.
        BackendUnavailable: the package behind a backend cannot be used here.
    """
    skipped: dict[str, str] = {}
    policy = policy or Policy()
    if isinstance(what, str):
        from wrapkit.backends import backend

        chosen = backend(what)
        targets = select(model, chosen.replaces, policy, subclasses)
        skipped = {name: reason for old, (name, _) in targets.items() if (reason := chosen.refuses(old))}
        targets = {old: target for old, target in targets.items() if target[0] not in skipped}
        kinds: Iterable[type] = chosen.replaces
    else:
        targets, kinds = select(model, what, policy, subclasses), what
    if skipped and not targets:
        listed = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ValueError(f"nothing to replace: {what} takes none of these layers ({listed})")
    if not targets:
        wanted = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"nothing to replace: the policy chooses no {wanted} in this {type(model).__name__}")
    built = {old: _build(old, factory, keep_weights) for old, (_, factory) in targets.items()}
    _restore_ties(model, built)
    handle = Handle(model, [name for name, _ in targets.values()])
    handle.skipped = skipped
    swap(handle, model, built)
    return handle


def select(
    model: nn.Module, what: Mapping[type[nn.Module], Replacement], policy: Policy, subclasses: bool = False
) -> dict[nn.Module, tuple[str, Replacement]]:
    """The modules to swap, each with its first name and its replacement.

    A module with several names is chosen by any of them, unless one is excluded. Inside a chosen module
    nothing else is chosen. The output projection of `nn.MultiheadAttention` never is: that class reads its
    weight itself.
    """
    policy.modules(model)  # checks the patterns
    names: dict[nn.Module, list[str]] = defaultdict(list)
    guarded: set[nn.Module] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
        if isinstance(module, MultiheadAttention):
            guarded.update(module.children())
    chosen: dict[nn.Module, tuple[str, Replacement]] = {}
    inside: set[nn.Module] = set()
    for module, aliases in names.items():
        factory = _factory_for(module, what, subclasses)
        if factory is None or module in guarded or module in inside or any(map(policy.excludes, aliases)):
            continue
        if any(policy.chooses(name, module) for name in aliases):
            chosen[module] = (aliases[0], factory)
            inside.update(set(module.modules()) - {module})
    return chosen


def _factory_for(
    module: nn.Module, what: Mapping[type[nn.Module], Replacement], subclasses: bool
) -> Replacement | None:
    for kind in type(module).__mro__ if subclasses else (type(module),):
        if kind in what:
            return what[kind]
    return None


def _build(old: nn.Module, factory: Replacement, keep_weights: bool) -> nn.Module:
    with untouched_rng(old):
        if not isinstance(factory, type):
            new = factory(old)
        elif hasattr(factory, "from_module"):
            new = factory.from_module(old)
        else:
            new = factory(**constructor_arguments(old))
    if not isinstance(new, nn.Module):
        raise TypeError(f"the replacement of a {type(old).__name__} must be a module, got {type(new).__name__}")
    if new is old:
        return new
    if keep_weights:
        adopt(old, new)
    for module in new.modules():
        module.training = old.training
    share_hooks(old, new)
    return new


@contextlib.contextmanager
def untouched_rng(module: nn.Module) -> Iterator[None]:
    """New modules draw initial weights; the training's random numbers must not depend on that."""
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d.index for d in devices]):
        yield


def constructor_arguments(module: nn.Module) -> dict[str, object]:
    """The arguments that would build a module of the same shape, read back from its attributes."""
    arguments: dict[str, object] = {}
    weight = next(module.parameters(), None)
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name[0] == "_":
            continue
        if name in ("device", "dtype"):
            if weight is not None:
                arguments[name] = getattr(weight, name)
        elif name == "bias":
            arguments[name] = module.bias is not None
        elif hasattr(module, name):
            arguments[name] = getattr(module, name)
        elif parameter.default is parameter.empty:
            raise ValueError(
                f"cannot tell the argument {name!r} that built this {type(module).__name__}: "
                "give a function of the old module instead of a type"
            )
    return arguments


def adopt(old: nn.Module, new: nn.Module) -> None:
    """Let `new` hold the parameters and buffers of `old`, where it has plain ones of that name and shape."""
    for name, tensor in [
        *old.named_parameters(remove_duplicate=False),
        *old.named_buffers(remove_duplicate=False),
    ]:
        path, _, leaf = name.rpartition(".")
        try:
            place = new.get_submodule(path)
        except AttributeError:
            continue  # the new module is built otherwise there
        for table in (place._parameters, place._buffers):
            own = table.get(leaf)
            if own is not None and own.shape == tensor.shape and _is_plain(own) and _is_plain(tensor):
                table[leaf] = tensor


def _is_plain(tensor: torch.Tensor) -> bool:
    """Neither quantised nor another tensor subclass: a parameter that may stand in for another one."""
    return (
        type(tensor) in (nn.Parameter, torch.Tensor)
        and type(tensor.data) is torch.Tensor
        and tensor.is_floating_point()
    )


def _restore_ties(model: nn.Module, built: dict[nn.Module, nn.Module]) -> None:
    """Share between new modules what the old ones shared; refuse to part what cannot be shared."""
    inside = {child for old in built for child in old.modules()} - built.keys()
    holders: dict[nn.Parameter, list[tuple[str, nn.Module, str]]] = defaultdict(list)
    for prefix, module in model.named_modules():
        if module in inside:
            continue  # held by whatever its parent was replaced with
        for name, parameter in module._parameters.items():
            if parameter is not None:
                holders[parameter].append((f"{prefix}.{name}".lstrip("."), module, name))
    for parameter, places in holders.items():
        if len(places) < 2:
            continue
        kept = [label for label, module, _ in places if module not in built]
        moved = [
            (label, built[module]._parameters.get(name), built[module], name)
            for label, module, name in places
            if module in built
        ]
        parted = [label for label, now, _, _ in moved if now is not parameter]
        if not parted:
            continue
        shapes = {None if now is None else (type(now), now.shape) for _, now, _, _ in moved}
        if kept or None in shapes or len(shapes) > 1:
            others = ", ".join(label for label, _, _ in places if label != parted[0])
            raise ValueError(
                f"replacing would untie {parted[0]} from {others}: exclude one of them, or untie them first"
            )
        for _, _, module, name in moved[1:]:
            module._parameters[name] = moved[0][1]
