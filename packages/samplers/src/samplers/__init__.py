"""Stateful, constant-memory index sampling and bucketing."""

from importlib.metadata import version

__version__ = version("samplers")
