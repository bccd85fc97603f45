"""The names of number formats. Settings are read before torch is imported, so this file does without it."""

from typing import Literal

DTypeName = Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
