"""The memory of a tensor, of any dtype, as a memoryview in one call.

The usual way, ``tensor.detach().view(torch.uint8).numpy()``, makes four objects on the way, which is what a file of
many small tensors spends most of its time on.
"""

from __future__ import annotations

import ctypes

import torch

_WRITABLE = 0x200  # PyBUF_WRITE
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_view.restype = ctypes.py_object


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor is plain memory, not a wrapper around other tensors, as distributed and quantized ones are."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) or not hasattr(tensor, "__tensor_flatten__")


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, writable. They are the tensor's: keep it as long as they are in use."""
    nbytes = tensor.nbytes
    return _view(tensor.data_ptr(), nbytes, _WRITABLE) if nbytes else memoryview(bytearray())
