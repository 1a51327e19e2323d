# SPDX-License-Identifier: Apache-2.0
"""Read a compiled program's text: computations, how often each runs, matmul FLOPs, bytes.

XLA prints one instruction a line, `%name = shape opcode(%operand, …), attribute=…`, in the order in
which they run if the module says `is_scheduled`. Newer versions write an entry of a tuple as an
operand, `%name#1`; older ones use an instruction that gets it. Here it is always an instruction.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_PAREN = re.compile(r"[()]")
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)*)")
_COMMENT = re.compile(r"/\*.*?\*/")
_BRACKET_OR_COMMA = re.compile(r"[(\[{]|[)\]}]|,")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+(?:[a-z]\w*)?)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_EITHER = re.compile(r"\b(?:true|false)_computation=%?([\w.\-]+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


@dataclass(frozen=True)
class Instruction:
    """Hold one line of a computation.

    `shape` and `rest` (what follows the operands) are as printed.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    arguments: str
    rest: str
    is_root: bool

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate, or None."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """The origin: the path of jitted functions, modules and primitive; "" if lost."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """The function or kernel of a custom call, "" for other instructions."""
        found = _TARGET.search(self.rest)
        return found[1] if found else ""

    @property
    def bytes(self) -> float:
        """The bytes of the result's arrays, without padding."""
        return sum(size * width for _, size, width in arrays_in(self.shape))


@dataclass(frozen=True)
class Computation:
    """Hold instructions in order, by name."""

    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        return next(i for i in self.instructions.values() if i.is_root)


@dataclass(frozen=True)
class Program:
    """Hold a compiled module."""

    computations: Mapping[str, Computation]
    entry: Computation

    def body(self, instruction: Instruction) -> Computation | None:
        """Return the computation that a while, fusion, call or async instruction runs, if any."""
        key = "body" if instruction.opcode == "while" else r"(?:calls|to_apply|called_computations)"
        found = re.search(rf"\b{key}=\{{?%?([\w.\-]+)", instruction.rest)
        return self.computations.get(found[1]) if found else None

    def branches(self, instruction: Instruction) -> list[Computation]:
        """Return the computations of a conditional, of which one runs."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        text = listed[1] if listed else " ".join(_EITHER.findall(instruction.rest))
        return [self.computations[name] for name in re.findall(r"[\w.\-]+", text)]


def parse_program(text: str) -> Program:
    """Return the program that `compiled.as_text()` prints."""
    computations: dict[str, Computation] = {}
    entry = None
    for lines in _computations(text):
        if head := _HEAD.match(lines[0]):
            made = [_instruction(line) for line in lines[1:]]
            found = Computation(head[1], _with_entries(made))
            computations[head[1]] = found
            entry = found if lines[0].startswith("ENTRY") else entry
    if entry is None:
        raise ValueError("no ENTRY in what should be a compiled program's text")
    return Program(computations, entry)


def _computations(text: str) -> Iterator[list[str]]:
    """Yield the head and the instructions of each computation, an instruction a line.

    A kernel's metadata breaks lines, which are joined.
    """
    lines: list[str] = []
    for line in text.splitlines():
        if line == "}":
            yield lines
            lines = []
        elif not lines:
            lines = [line] if _HEAD.match(line) else []
        elif _NAME.match(line):
            lines.append(line)
        else:
            lines[-1] += line


def _instruction(line: str) -> Instruction:
    named = _NAME.match(line)
    assert named is not None
    start = named.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    shape = line[start:end]
    opening = line.index("(", end)
    closing = _closing(line, opening)
    arguments = line[opening + 1 : closing - 1]
    return Instruction(
        name=named[2],
        opcode=line[end:opening].strip(),
        shape=shape,
        operands=tuple(_OPERAND.findall(arguments)),
        arguments=arguments,
        rest=line[closing:],
        is_root=named[1] is not None,
    )


def _with_entries(made: list[Instruction]) -> dict[str, Instruction]:
    """Return the instructions by name, with one before each first operand like `%name#1`.

    The added instruction gets that entry of the tuple.
    """
    found: dict[str, Instruction] = {}

    def get(name: str) -> Instruction:
        whole, _, index = name.rpartition("#")
        if whole not in found:
            found[whole] = get(whole)
        shape = _entries(found[whole].shape)[int(index)]
        rest = f", index={index}"
        return Instruction(name, "get-tuple-element", shape, (whole,), f"%{whole}", rest, False)

    for each in made:
        for name in each.operands:
            if "#" in name and name not in found:
                found[name] = get(name)
        found[each.name] = each
    return found


def _entries(shape: str) -> list[str]:
    """Return the shapes in a printed tuple's shape."""
    starts, depth = [1], 0
    for found in _BRACKET_OR_COMMA.finditer(shape):
        if found[0] == ",":
            if depth == 1:
                starts.append(found.end())
        else:
            depth += 1 if found[0] in "([{" else -1
    ends = [start - 1 for start in starts[1:]] + [len(shape) - 1]
    shapes = (shape[start:end] for start, end in zip(starts, ends, strict=True))
    return [_COMMENT.sub("", each).strip() for each in shapes]


def _closing(line: str, start: int) -> int:
    """Return the index after the parenthesis that closes the one at `start`."""
    depth = 0
    for found in _PAREN.finditer(line, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"a parenthesis stays open in {line[:80]!r}")


def arrays_in(shape: str) -> Iterator[tuple[tuple[int, ...], int, float]]:
    """Yield (dimensions, elements, bytes an element) of each array in a printed shape."""
    for kind, dimensions in _ARRAY.findall(shape):
        sizes = tuple(int(d) for d in dimensions.split(",") if d)
        bits = re.search(r"\d+", kind)
        width = {"pred": 1.0, "token": 0.0}.get(kind) if not bits else int(bits[0]) / 8
        yield sizes, math.prod(sizes), width or 0.0


# -------------------------------------------------------------------------------------------- loops


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """Return how often the body of a while in `computation` runs, None if unknown.

    A scan's counter begins at a constant, grows by a constant, and is compared with one.
    """
    if told := _TRIPS.search(loop.rest):
        return int(told[1])
    found = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    condition = program.computations[found[1]] if found else None
    body = program.body(loop)
    if condition is None or body is None or condition.root.opcode != "compare":
        return None
    test = condition.root
    counter, limit = (_source(condition, name) for name in test.operands)
    if counter.opcode == "constant":
        counter, limit = limit, counter
    end, index = _constant(limit), _tuple_index(counter)
    if end is None or index is None:
        return None
    start = _entry_of(computation, loop.operands[0], index)
    step = _step(body, index)
    if start is None or not step:
        return None
    inclusive = 1 if re.search(r"direction=(LE|GE)", test.rest) else 0
    return max(0, math.ceil((abs(end - start) + inclusive) / abs(step)))


def _entry_of(computation: Computation, name: str, index: int) -> int | None:
    """Return the constant at `index` of a tuple."""
    made = _source(computation, name)
    if made.opcode != "tuple":
        return None
    return _constant(_source(computation, made.operands[index]))


def _step(body: Computation, index: int) -> int | None:
    """Return by how much the body increases entry `index` of what it carries."""
    if body.root.opcode != "tuple":
        return None
    added = _source(body, body.root.operands[index])
    if added.opcode not in ("add", "subtract"):
        return None
    terms = [_source(body, name) for name in added.operands]
    if index not in [_tuple_index(term) for term in terms]:
        return None
    return next((c for c in map(_constant, terms) if c is not None), None)


def _source(computation: Computation, name: str) -> Instruction:
    """Return the instruction of a name, looking through copies."""
    found = computation.instructions[name]
    while found.opcode in ("copy", "bitcast", "copy-done", "copy-start", "convert"):
        found = computation.instructions[found.operands[0]]
    return found


def _constant(instruction: Instruction) -> int | None:
    whole = re.fullmatch(r"-?\d+", instruction.arguments.strip())
    return int(whole[0]) if instruction.opcode == "constant" and whole else None


def _tuple_index(instruction: Instruction) -> int | None:
    found = re.search(r"index=(\d+)", instruction.rest)
    return int(found[1]) if instruction.opcode == "get-tuple-element" and found else None


# -------------------------------------------------------------------------------------------- FLOPs


def matmul_flops(computation: Computation, instruction: Instruction) -> float:
    """Return the FLOPs of one dot or convolution (to which a TPU's compiler converts a dot), or 0.

    They count as in XLA's own HloCostAnalysis: two for each product that does not meet padding.
    """
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (
        next(arrays_in(computation.instructions[name].shape))[0]
        for name in instruction.operands[:2]
    )
    out = next(arrays_in(instruction.shape))[0]
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        contracted = [left[int(d)] for d in (found[1] if found else "").split(",") if d]
        return 2.0 * math.prod(out) * math.prod(contracted)
    labels = _LABELS.search(instruction.rest)
    if labels is None:
        return 0.0
    of_left, of_right, of_out = labels.groups()
    windows = _windows(instruction)
    products = 2.0 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    for d in range(len(of_out) - 2):
        digit = str(d)
        sizes = left[of_left.index(digit)], out[of_out.index(digit)]
        products *= windows[d].meetings(*sizes)
    # batch_group_count: each group of the batch meets its own share of the features.
    groups = re.search(r"batch_group_count=(\d+)", instruction.rest)
    return products / (int(groups[1]) if groups else 1)


@dataclass(frozen=True)
class _Window:
    """Hold a convolution's window in one spatial dimension, with HLO's names.

    `pad` is the padding before.
    """

    size: int
    stride: int
    pad: int
    lhs_dilate: int
    rhs_dilate: int

    def meetings(self, size: int, out: int) -> int:
        """Return the number of (output, window) positions with an input instead of padding."""
        reach, dilate = (size - 1) * self.lhs_dilate + 1, self.lhs_dilate
        at = (
            o * self.stride - self.pad + w * self.rhs_dilate
            for o in range(out)
            for w in range(self.size)
        )
        return sum(0 <= p < reach and p % dilate == 0 for p in at)


def _windows(instruction: Instruction) -> list[_Window]:
    """Return each spatial dimension's window."""
    found = _WINDOW.search(instruction.rest)
    told = dict(part.split("=") for part in found[1].split()) if found else {}
    sizes = [int(n) for n in told.get("size", "").split("x") if n]
    columns = [sizes]
    for name, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1)):
        values = told[name].split("x") if name in told else [str(default)] * len(sizes)
        columns.append([int(value.split("_")[0]) for value in values])
    return [_Window(*values) for values in zip(*columns, strict=True)]
