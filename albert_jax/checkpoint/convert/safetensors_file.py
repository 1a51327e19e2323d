# SPDX-License-Identifier: Apache-2.0
"""Read and write safetensors files: a JSON header, then the tensors' bytes.

The library checks a file. Its NumPy side lacks bfloat16 and copies all tensors to write them.
Therefore values are views of the mapped file, and are written one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from albert_jax.checkpoint.convert.tensors import Tensor, map_file
from albert_jax.utils.errors import UserError

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_ALIGNMENT = 8  # of the first tensor, required by the format


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, by name.

    Raises UserError if it is damaged or another format.
    """
    try:
        with safetensors.safe_open(path, framework="np"):  # raises unless header and size agree
            pass
        data = map_file(path)
        size = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + size].tobytes())
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as a safetensors file ({error}); copy it again"
        ) from None
    values, tensors = data[8 + size :], {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise UserError(f"{path}: {name} has dtype {entry['dtype']}; known are {known}")
        start, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        array = values[start:end].view(dtype)
        if not array.flags.aligned:  # after an odd number of bytes; few libraries accept this
            array = array.copy()
        tensors[name] = Tensor.of(array.reshape(entry["shape"]))
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file as transformers does, one tensor after another; views may be transposed."""
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
