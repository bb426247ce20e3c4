"""State dicts as pickles or SafeTensors, with parity, verified and atomic."""

from importlib.metadata import version

__version__ = version("stateio")
