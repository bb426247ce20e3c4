"""Several optimizers behind the interface of one."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer


class States(ChainMap):
    """The parts' states as one. Looking up does not create an entry, as it would in the first part's defaultdict."""

    def __getitem__(self, key: Any) -> Any:
        for part in self.maps:
            if key in part:
                return part[key]
        raise KeyError(key)


class MultiOptimizer(Optimizer):
    """Optimizers over disjoint parameters that step as one.

    `param_groups` are the parts' own dicts, so schedulers and scalers act on them; the state dict has torch's
    usual layout, groups numbered one part after the other.

    Args:
        parts: name -> optimizer. Groups added later name theirs: `add_param_group({..., "part": name})`; without
            a name they go to the last one.

    Raises:
        ValueError: no parts, or a parameter in two of them.
    """

    def __init__(self, parts: Mapping[str, Optimizer]) -> None:
        if not parts:
            raise ValueError("a MultiOptimizer needs at least one optimizer")
        self.parts = dict(parts)
        counted: dict[torch.Tensor, str] = {}
        for name, part in self.parts.items():
            for parameter in (p for group in part.param_groups for p in group["params"]):
                if parameter in counted:
                    raise ValueError(
                        f"a parameter of shape {tuple(parameter.shape)} is in {counted[parameter]} and {name}"
                    )
                counted[parameter] = name
        super().__init__([{"params": list(counted)}], {})
        self._join()

    def _join(self) -> None:
        """Show the parts' groups and states as this optimizer's own."""
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]
        self.state = States(*(part.state for part in self.parts.values()))  # type: ignore[assignment]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every part. The closure runs once, before all of them; its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if not hasattr(self, "state") or not isinstance(self.state, States):
            super().add_param_group(param_group)  # the base class's constructor
            return
        own = dict(param_group)
        name = own.pop("part", list(self.parts)[-1])
        if name not in self.parts:
            raise ValueError(f"there is no part {name!r}; parts are {', '.join(self.parts)}")
        known = {p for group in self.param_groups for p in group["params"]}
        given = own["params"]
        given = [given] if isinstance(given, torch.Tensor) else list(given)
        if known.intersection(given):
            raise ValueError("some of these parameters are optimised already")
        self.parts[name].add_param_group({**own, "params": given})
        self._join()

    def state_dict(self) -> dict[str, Any]:
        """Torch's layout: `state` by parameter number, `param_groups`; numbers run through all parts."""
        merged: dict[str, Any] = {"state": {}, "param_groups": []}
        offset = 0
        for name, part in self.parts.items():
            packed = part.state_dict()
            merged["state"] |= {offset + index: value for index, value in packed["state"].items()}
            for group in packed["param_groups"]:
                numbers = [offset + index for index in group["params"]]
                merged["param_groups"].append({**group, "params": numbers, "part": name})
            offset += sum(len(group["params"]) for group in part.param_groups)
        return merged

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave.

        Raises:
            ValueError: parts, groups or group sizes differ from this optimizer's; nothing is loaded then.
        """
        found = [(group.get("part"), len(group["params"])) for group in state_dict["param_groups"]]
        own = [(name, len(group["params"])) for name, part in self.parts.items() for group in part.param_groups]
        if found != own:
            raise ValueError(f"the state holds groups (part, parameters) {found}, this optimizer has {own}")
        offset = 0
        for name, part in self.parts.items():
            count = sum(len(group["params"]) for group in part.param_groups)
            groups = [
                {
                    **{k: v for k, v in group.items() if k != "part"},
                    "params": [i - offset for i in group["params"]],
                }
                for group in state_dict["param_groups"]
                if group["part"] == name
            ]
            state = {i - offset: value for i, value in state_dict["state"].items() if offset <= i < offset + count}
            part.load_state_dict({"state": state, "param_groups": groups})
            offset += count
        self._join()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are made of the parts; torch's own version would leave them out."""
        return {"parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["parts"])  # type: ignore[misc]
