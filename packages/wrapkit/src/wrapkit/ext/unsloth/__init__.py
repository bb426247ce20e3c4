"""Gradient checkpointing that keeps the blocks' inputs in the host's memory."""

from wrapkit.ext.unsloth._offloader import Offloader, checkpoint

__all__ = ["Offloader", "checkpoint"]
