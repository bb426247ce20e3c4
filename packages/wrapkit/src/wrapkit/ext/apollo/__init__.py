"""APOLLO and APOLLO-Mini: AdamW's step sizes from a small random projection of the gradient."""

from wrapkit.ext.apollo._apollo import Apollo, Scaling

__all__ = ["Apollo", "Scaling"]
