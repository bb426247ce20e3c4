"""`compile`: torch.compile in place, by policy, undoable."""

from __future__ import annotations

from typing import Any

from torch import nn

from wrapkit._handle import Handle
from wrapkit._policy import Policy


def compile(model: nn.Module, policy: Policy | None = None, *, backend: str = "inductor", **options: Any) -> Handle:
    """Compile the model, or the outermost modules that a policy covers (blocks of one kind compile once).

    Names and state dict stay: the modules themselves learn to call compiled code.

    Args:
        backend: of torch.compile; "auto" is inductor.
        options: of torch.compile: mode, dynamic, fullgraph, …

    Returns:
        A handle; after `undo()` the modules run as they did.

    Raises:
        PatternError: a pattern covers nothing.
        ValueError: a backend that torch does not know here, with those it does; or a module compiled already.
    """
    import torch._dynamo as dynamo

    backend = "inductor" if backend == "auto" else backend
    known = dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"torch.compile has no backend {backend!r} here; it has: {', '.join(known)}")
    targets = (policy or Policy()).blocks(model)
    for name, module in targets.items():
        if module._compiled_call_impl is not None:
            raise ValueError(f"{name or 'the model'} is compiled already")
    handle = Handle(model, list(targets))
    for module in targets.values():
        module.compile(backend=backend, **options)
        handle.on_undo(lambda m=module: setattr(m, "_compiled_call_impl", None))
    return handle

