"""Optimizers: the factory, the rules that sort parameters, and those written here."""

from wrapkit.optim._factory import OPTIMIZERS, optimizer, optimizer_class
from wrapkit.optim._guard import guard
from wrapkit.optim._multi import MultiOptimizer
from wrapkit.optim._muon import Muon, orthogonalise
from wrapkit.optim._rules import DEFAULT_RULES, Rule, sort_parameters
from wrapkit.optim._state import Optim, state_bytes

__all__ = [
    "DEFAULT_RULES",
    "OPTIMIZERS",
    "MultiOptimizer",
    "Muon",
    "Optim",
    "Rule",
    "guard",
    "optimizer",
    "optimizer_class",
    "orthogonalise",
    "sort_parameters",
    "state_bytes",
]
