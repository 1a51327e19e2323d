# SPDX-License-Identifier: Apache-2.0
"""Read `pytorch_model.bin` without running what is in it.

Since PyTorch 1.6 `torch.save` writes an uncompressed zip: `data.pkl`, a pickle of names and shapes,
and `data/0`, `data/1` … with the values. A pickle is a program. Here an interpreter that knows only
what a state dict needs executes its instructions one at a time and refuses all others. Therefore
nothing that the file names is ever looked up or called.
"""

from __future__ import annotations

import math
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from albert_jax.checkpoint.convert.tensors import Tensor, map_file
from albert_jax.utils.errors import UserError

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_KNOWN = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"torch.{name}" for name in _STORAGES),
}
_MOST_PICKLE = (
    1 << 21
)  # bytes of names and shapes; ALBERT has 3 kB, and in memory they may grow 75 times
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the old format's first pickle


class _Refused(Exception):
    """Report an instruction that a state dict does not need."""


class _Damaged(Exception):
    """Report bytes that torch.save does not write."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    length: int


@dataclass(frozen=True, eq=False)
class _View:
    """Locate a tensor in its storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


def read_torch(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, by name, mapped.

    Raises UserError for a file that is damaged, in the old format or has code in it.
    """
    try:
        data = map_file(path)
        if data[: len(_LEGACY)].tobytes() == _LEGACY:
            raise UserError(
                f"{path} is in PyTorch's format from before 1.6, which is not read; write it again "
                "in Python: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
            )
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in entries:
            raise _Damaged("it has no data.pkl")
        if "byteorder" in entries and _stored(data, entries["byteorder"]).tobytes() == b"big":
            raise _Damaged("it was written on a big-endian machine")
        if entries["data.pkl"].file_size > _MOST_PICKLE:
            raise _Damaged(f"data.pkl has {entries['data.pkl'].file_size} bytes")
        program = _stored(data, entries["data.pkl"]).tobytes()
        if zlib.crc32(program) != entries["data.pkl"].CRC:
            raise _Damaged("the CRC-32 of data.pkl differs")
        found = _state_dict(_run(program))
        return {name: _tensor(path, data, entries, name, view) for name, view in found.items()}
    except _Refused as error:
        raise UserError(f"{path} contains code ({error}), refused, never run") from None
    except (_Damaged, zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a PyTorch file ({error}); copy it again"
        ) from None


def _stored(data: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """Return an entry's bytes in the mapped file."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise _Damaged(f"{info.filename} is compressed, as torch.save never writes it")
    header = data[info.header_offset : info.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise _Damaged(f"{info.filename} is not where the zip says")
    names = sum(struct.unpack("<HH", header[26:30]))
    start = info.header_offset + 30 + names
    values = data[start : start + info.file_size]
    if len(values) != info.file_size:
        raise _Damaged(f"{info.filename} is cut short")
    return values


def _tensor(
    path: Path, data: np.ndarray, entries: dict[str, zipfile.ZipInfo], name: str, view: _View
) -> Tensor:
    info = entries.get(f"data/{view.storage.key}")
    if info is None:
        raise _Damaged(f"the values of {name} are missing")
    dtype, raw = view.storage.dtype, _stored(data, info)
    if len(raw) != view.storage.length * dtype.itemsize:
        raise _Damaged(f"{name} has {len(raw)} bytes for {view.storage.length} {dtype}")

    def read() -> np.ndarray:
        if zlib.crc32(raw.data) != info.CRC:
            raise UserError(f"{path} is damaged in {name} (CRC-32 differs); copy it again")
        whole = np.frombuffer(raw.tobytes() if raw.ctypes.data % dtype.itemsize else raw, dtype)
        strides = [step * dtype.itemsize for step in view.strides]
        part = whole[view.offset :]
        return np.lib.stride_tricks.as_strided(part, view.shape, strides, writeable=False)

    return Tensor(view.shape, dtype, read)


def _state_dict(found: Any) -> dict[str, _View]:
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]  # a training checkpoint, with more beside it
    if not isinstance(found, dict):
        raise _Damaged("it holds no state dict")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _View):
            raise _Damaged(f"its state dict has {str(name)[:99]!r}, which is no tensor")
    return found


# ------------------------------------------------------------------------------------ the machine


def _run(program: bytes) -> Any:
    """Return the pickle's object, of dicts, lists, tuples, numbers, strings and tensors."""
    machine = _Machine()
    try:
        with warnings.catch_warnings(action="ignore"):  # of what strange text decodes to
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name == "STOP":
                    return machine.stack.pop()
                operation = _OPERATIONS.get(opcode.name)
                if operation is None:
                    raise _Refused(f"the instruction {opcode.name}")
                operation(machine, argument)
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise _Damaged(f"its pickle is damaged: {error!r}") from None
    raise _Damaged("its pickle has no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise _Damaged("its pickle lacks a mark")


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _push_new(make: Callable[[], Any], machine: _Machine, _: Any) -> None:
    machine.stack.append(make())


def _global(machine: _Machine, argument: str) -> None:
    name = argument.replace(" ", ".")
    if name not in _KNOWN:
        raise _Refused(name[:99])
    machine.stack.append(_Global(name))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    _global(machine, f"{module!s:.99} {name!s:.99}")


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _tuple(count: int, machine: _Machine, _: Any) -> None:
    if count > len(machine.stack):
        raise _Damaged("its pickle takes from an empty stack")
    items = machine.stack[len(machine.stack) - count :]
    del machine.stack[len(machine.stack) - count :]
    machine.stack.append(tuple(items))


def _marked_tuple(machine: _Machine, _: Any) -> None:
    machine.stack.append(tuple(machine.since_mark()))


def _append(machine: _Machine, _: Any) -> None:
    item = machine.stack.pop()
    machine.stack[-1].append(item)


def _appends(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    machine.stack[-1].extend(items)


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
        raise _Damaged("its pickle sets items of what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int)):  # hashing nested tuples can take for ever
            raise _Damaged(f"its pickle has a {type(key).__name__} for a key")
        target[key] = value


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_items(machine, [key, value])


def _build(machine: _Machine, _: Any) -> None:
    state = machine.stack.pop()  # a state dict's _metadata: versions of modules, of no use here
    if not isinstance(state, dict) or not isinstance(machine.stack[-1], dict):
        raise _Refused(f"a state for a {type(machine.stack[-1]).__name__}")


def _persistent(machine: _Machine, _: Any) -> None:
    kind, storage, key, _place, length = machine.stack.pop()
    dtype = isinstance(storage, _Global) and _STORAGES.get(storage.name.removeprefix("torch."))
    if kind != "storage" or not dtype or not isinstance(key, str) or not isinstance(length, int):
        raise _Damaged("its pickle names a storage of a kind that is not known")
    machine.stack.append(_Storage(dtype, key, length))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise _Refused(f"a call of a {type(function).__name__}")
    match function.name.rpartition(".")[2]:
        case "OrderedDict" if not arguments:
            machine.stack.append({})
        case "_rebuild_tensor_v2":
            machine.stack.append(_rebuild(*arguments[:4]))
        case "_rebuild_parameter" if arguments and isinstance(arguments[0], _View):
            machine.stack.append(arguments[0])
        case _:
            raise _Refused(f"{function.name} with arguments it never has")


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any) -> _View:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 32:
        raise _Damaged("its pickle has a tensor without a storage or a shape")
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise _Damaged("its pickle has a tensor of an impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.length or (math.prod(shape) and last >= storage.length):
        raise _Damaged(f"its pickle has a tensor {list(shape)} in {storage.length} values")
    if not math.prod(shape):
        return _View(storage, 0, tuple(shape), (0,) * len(shape))
    return _View(storage, offset, tuple(shape), tuple(strides))


def _nothing(machine: _Machine, _: Any) -> None:
    pass


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _push),
    "NONE": partial(_push_new, lambda: None),
    "NEWTRUE": partial(_push_new, lambda: True),
    "NEWFALSE": partial(_push_new, lambda: False),
    "MARK": partial(_push_new, lambda: _MARK),
    "EMPTY_DICT": partial(_push_new, dict),
    "EMPTY_LIST": partial(_push_new, list),
    "EMPTY_TUPLE": partial(_push_new, tuple),
    **{f"TUPLE{n}": partial(_tuple, n) for n in (1, 2, 3)},
    "TUPLE": _marked_tuple,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": _memoize,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, index: m.stack.append(m.memo[index])),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: _set_items(machine, machine.since_mark()),
    "BUILD": _build,
    "BINPERSID": _persistent,
    "REDUCE": _reduce,
}
