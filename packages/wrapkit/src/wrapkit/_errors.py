"""The errors a caller may want to tell apart."""


class BackendUnavailable(ImportError):
    """An optional backend that cannot be used here: `reason` says why, `hint` what to do about it."""

    def __init__(self, backend: str, reason: str, hint: str) -> None:
        super().__init__(f"{backend} is not usable here: {reason}. {hint}")
        self.backend, self.reason, self.hint = backend, reason, hint


class PatternError(ValueError):
    """A pattern of a policy that names nothing in the model."""


class UndoOrderError(RuntimeError):
    """An undo while a later change still stands on top of it."""


class NonFiniteGradient(FloatingPointError):
    """Gradients with inf or NaN, found before anything was updated. `names` lists the parameters."""

    def __init__(self, names: list[str]) -> None:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        super().__init__(
            f"the gradients of {shown} are not finite. Nothing was updated: skip this step (zero_grad and go "
            f'on), lower the learning rate or clip, or build the optimizer with nonfinite="skip" or "ignore"'
        )
        self.names = names


class OverBudget(ValueError):
    """Modules that fit on no device within the limits. `names` lists them."""

    def __init__(self, names: list[str], message: str) -> None:
        super().__init__(message)
        self.names = names
