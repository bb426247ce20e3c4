"""Types for fields that many projects have."""

from typing import Literal

DtypeName = Literal[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]
"""The name of a torch dtype: ``getattr(torch, cfg.weight_dtype)``."""
