"""The one protocol everything that survives a restart follows."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """An object whose state is plain containers and tensors.

    What `state_dict` returns is stored with `torch.save` and read back with `weights_only=True`, so it
    holds only dicts, lists, tuples, strings, numbers, None and tensors.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...
