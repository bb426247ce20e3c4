"""Train several engines with exact resume, typed hooks and live commands."""

from importlib.metadata import version

__version__ = version("trainloop")
