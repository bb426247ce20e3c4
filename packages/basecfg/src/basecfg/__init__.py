"""Typed configuration for ML projects: YAML, checkpoints, environment and command line in one base class."""

from importlib.metadata import version

__version__ = version("basecfg")
