"""Optimizations that replace or inject modules, planned and reversible."""

from importlib.metadata import version

__version__ = version("wrapkit")
