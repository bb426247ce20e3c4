"""A small, safe surface over torch.distributed."""

from importlib.metadata import version

__version__ = version("distkit")
