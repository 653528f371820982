"""Arrays out of a pickle without running it.

A pickle is a program for a small stack machine, and Python's `pickle` carries out whatever that program says. Here is
a machine of our own that knows only the instructions with which NumPy arrays are written, alone or as the fields of a
named class, and, for `notes`, those for lists. It imports nothing and calls nothing: "call f with these arguments"
becomes a note on the stack, and at the end the note is read like any other record. A global that is not on the list is
refused by name.

The file is mapped into memory, not read. The arrays are views of it, a declared size is compared with what the file
holds before anything is allocated, and looking at the shape of a tensor of many gigabytes costs a few pages.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import pickletools
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bloomery.core.errors import CheckpointError

Array = npt.NDArray[Any]

MOST_INSTRUCTIONS = 10_000  # an array takes some fifty, whatever its size
MOST_DIMS = 32
NDARRAY, DTYPE, BFLOAT16, ENCODE = "numpy.ndarray", "numpy.dtype", "ml_dtypes.bfloat16", "_codecs.encode"
RECONSTRUCT = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}  # NumPy 1 and 2
FROM_BUFFER = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}  # protocol 5
NEW_OBJECT = {"copyreg._reconstructor", "copy_reg._reconstructor"}  # protocols 0 and 1
OBJECT = {"builtins.object", "__builtin__.object"}
BYTES = {"builtins.bytes", "__builtin__.bytes"}  # protocols 0 to 2 write empty bytes as a call
ALLOWED = {NDARRAY, DTYPE, BFLOAT16, ENCODE} | RECONSTRUCT | FROM_BUFFER | NEW_OBJECT | OBJECT | BYTES
_NUMBER = re.compile(r"b1|[iu][1248]|f[248]")


def load(path: Path | str, records: Mapping[str, type] | None = None) -> Any:
    """The array in a pickle file, or the record of arrays.

    `records` maps the full names of classes as they were pickled (`"__main__.Quantized"`) to dataclasses of ours that
    take their place; all of their fields must be arrays. Arrays are read-only views of the file, whatever NumPy and
    protocol (0 to 5) wrote them; bfloat16, which NumPy does not have, is widened to float32 (a copy).

    Raises a CheckpointError that names the file: a global outside the list, Python objects in an array, an instruction
    that arrays do not need, a file that is damaged, cut off or goes on after its end.
    """
    path = Path(path)
    records = records or {}
    machine = _Machine(_mapped(path), path, ALLOWED | records.keys(), MOST_INSTRUCTIONS)
    try:
        value = machine.run()
        if not isinstance(value, Made):
            raise _damaged(f"holds a {type(value).__name__}, not an array", path)
        return _record(value, records, machine) if value.callee in records else _array(value, machine)
    except _FAULTS as error:
        raise _damaged(f"not a pickled array: {error!r:.120} near byte {machine.at}", path) from error


def notes(path: Path | str, allowed: Collection[str]) -> Any:
    """The value in a pickle file: plain values and containers, with a `Made` for each object that it describes.

    `allowed` are the full names of the classes and functions that it may speak of. None of them is looked up: what they
    would have made is for the caller to read from the notes.

    Raises a CheckpointError that names the file, as `load` does.
    """
    path = Path(path)
    machine = _Machine(_mapped(path), path, set(allowed), path.stat().st_size, lists=True)
    try:
        return machine.run()
    except _FAULTS as error:
        raise _damaged(f"not a pickle that can be read: {error!r:.120} near byte {machine.at}", path) from error


_FAULTS = (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError)


def _mapped(path: Path) -> mmap.mmap:
    if not path.is_file() or path.stat().st_size == 0:
        raise CheckpointError("is empty" if path.exists() else "no such file", where=path, fix="fetch it again")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the pickle wants imported. It never is."""

    name: str


@dataclasses.dataclass
class _Span:
    """Bytes of the file."""

    start: int
    size: int


@dataclasses.dataclass(eq=False)
class Made:
    """A call that was not carried out, and the state to be given to its result."""

    callee: str
    args: tuple[Any, ...]
    state: Any = None


class _Mark:
    """The instruction MARK: where a tuple or dictionary begins on the stack."""


class _Machine:
    """The stack machine. Values are None, bool, int, str, bytes, tuple, dict and the four classes above.

    With `lists`, also lists, floats and dictionaries with keys of any kind.
    """

    def __init__(self, data: mmap.mmap, path: Path, allowed: set[str], most: int, lists: bool = False) -> None:
        self.data, self.path, self.allowed, self.most, self.lists = data, path, allowed, most, lists
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(self.most):
            code = self.take(1)
            if code == b".":
                if self.at != len(self.data):
                    raise _damaged(f"{len(self.data) - self.at:,} bytes follow the end of the pickle", self.path)
                (value,) = self.stack
                return value
            self.step(code)
        raise _damaged(f"more than {self.most:,} instructions: this is not one array", self.path)

    def step(self, code: bytes) -> None:
        """Carry out one instruction, in the order of `pickletools`: numbers, bytes, text, containers, memo, calls."""
        push, pop = self.stack.append, self.stack.pop
        match code:
            case b"\x80":  # PROTO
                self.take(1)
            case b"\x95":  # FRAME: a hint for readers of streams
                self.take(8)
            case b"I":  # INT, also the truth values of protocols 0 and 1
                text = self.line()
                push(text == "01" if text in ("00", "01") else int(text))
            case b"L":  # LONG
                push(int(self.line().removesuffix("L")))
            case b"J":  # BININT
                push(int.from_bytes(self.take(4), "little", signed=True))
            case b"K" | b"M":  # BININT1, BININT2
                push(self.number(1 if code == b"K" else 2))
            case b"\x8a":  # LONG1
                push(int.from_bytes(self.take(self.number(1)), "little", signed=True))
            case b"C" | b"B" | b"\x8e" | b"\x96":  # SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
                push(self.span(self.number({b"C": 1, b"B": 4}.get(code, 8))))
            case b"V":  # UNICODE
                push(self.line("raw-unicode-escape"))
            case b"\x8c" | b"X" | b"\x8d":  # SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
                size = self.number({b"\x8c": 1, b"X": 4}.get(code, 8))
                push(self.take(size).decode("utf-8", "surrogatepass"))
            case b"N" | b"\x88" | b"\x89":  # NONE, NEWTRUE, NEWFALSE
                push({b"N": None, b"\x88": True}.get(code, False))
            case b"(":  # MARK
                push(_Mark())
            case b")" | b"\x85" | b"\x86" | b"\x87":  # EMPTY_TUPLE, TUPLE1 to TUPLE3
                count = b")\x85\x86\x87".index(code)
                push(tuple(reversed([pop() for _ in range(count)])))
            case b"t":  # TUPLE
                push(tuple(self.down_to_mark()))
            case b"}":  # EMPTY_DICT
                push({})
            case b"d" | b"u":  # DICT, SETITEMS
                pairs = self.down_to_mark()
                self.set_items(pairs, {} if code == b"d" else pop())
            case b"s":  # SETITEM
                value, key = pop(), pop()
                self.set_items([key, value], pop())
            case b"]" if self.lists:  # EMPTY_LIST
                push([])
            case b"l" if self.lists:  # LIST
                push(self.down_to_mark())
            case b"a" | b"e" if self.lists:  # APPEND, APPENDS
                items = [pop()] if code == b"a" else self.down_to_mark()
                if not isinstance(self.stack[-1], list):
                    raise ValueError("items for something that is no list")
                self.stack[-1].extend(items)
            case b"G" if self.lists:  # BINFLOAT
                push(struct.unpack(">d", self.take(8))[0])
            case b"p" | b"q" | b"r" | b"\x94":  # PUT, BINPUT, LONG_BINPUT, MEMOIZE
                self.memo[len(self.memo) if code == b"\x94" else self.index(code, b"pqr")] = self.stack[-1]
            case b"g" | b"h" | b"j":  # GET, BINGET, LONG_BINGET
                push(self.memo[self.index(code, b"ghj")])
            case b"c" | b"i":  # GLOBAL; INST calls it as well, which no array needs, but its name is worth saying
                push(self.named(self.line(), self.line()))
                if code == b"i":
                    raise self.foreign(code)
            case b"\x93":  # STACK_GLOBAL
                name, module = pop(), pop()
                push(self.named(module, name))
            case b"R" | b"\x81":  # REDUCE, NEWOBJ
                args, callee = pop(), pop()
                push(self.call(callee, args))
            case b"b":  # BUILD
                state, made = pop(), self.stack[-1]
                if not isinstance(made, Made) or made.state is not None:
                    raise ValueError("state for something that takes none")
                made.state = state
            case _:
                raise self.foreign(code)

    def call(self, callee: Any, args: Any) -> Made:
        """The note of a call."""
        if not isinstance(callee, _Global) or not isinstance(args, tuple):
            raise ValueError("a call of something that is not a name")
        if callee.name in NEW_OBJECT:  # (class, object, None)
            cls, base, nothing = args
            if not isinstance(base, _Global) or base.name not in OBJECT or nothing is not None:
                raise ValueError("an object with a base class")
            return Made(cls.name, ())
        return Made(callee.name, args)

    def named(self, module: Any, name: Any) -> _Global:
        """A global, if it is one of the allowed."""
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?"
        if full not in self.allowed:
            raise CheckpointError(
                f"the pickle asks for {full[:200]!r}, which has no place in an array; nothing of it was run",
                where=self.path,
                fix="use files from a source you trust",
            )
        return _Global(full)

    def foreign(self, code: bytes) -> CheckpointError:
        name = next((op.name for op in pickletools.opcodes if op.code == code.decode("latin1")), repr(code))
        return _damaged(f"instruction {name} at byte {self.at - 1} is not one that arrays need", self.path)

    def down_to_mark(self) -> list[Any]:
        last = max(i for i, value in enumerate(self.stack) if isinstance(value, _Mark))
        values = self.stack[last + 1 :]
        del self.stack[last:]
        return values

    def set_items(self, pairs: list[Any], into: Any) -> None:
        if not isinstance(into, dict) or not (self.lists or all(isinstance(key, str) for key in pairs[::2])):
            raise ValueError("a dictionary whose keys are not names")
        into.update(zip(pairs[::2], pairs[1::2], strict=True))
        self.stack.append(into)

    # ---- reading the file ----

    def span(self, size: int) -> _Span:
        """The next `size` bytes, skipped over."""
        if size > len(self.data) - self.at:
            raise CheckpointError(
                f"ends at byte {len(self.data):,}, but {size:,} bytes should follow byte {self.at:,}",
                where=self.path,
                fix="the file is cut off: fetch it again",
            )
        self.at += size
        return _Span(self.at - size, size)

    def take(self, size: int) -> bytes:
        here = self.span(size)
        return self.data[here.start : here.start + size]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self, coding: str = "utf-8") -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            self.span(len(self.data) - self.at + 1)  # one byte too many: cut off
        text = self.take(end - self.at).decode(coding)
        self.take(1)
        return text

    def index(self, code: bytes, kinds: bytes) -> int:
        """The memo index of an instruction: as text, in one byte or in four."""
        return int(self.line()) if code == kinds[:1] else self.number(1 if code == kinds[1:2] else 4)

    def content(self, value: Any) -> memoryview:
        """The bytes that `value` stands for; those of protocol 3 and later are not copied."""
        if isinstance(value, _Span):
            return memoryview(self.data)[value.start : value.start + value.size]
        if isinstance(value, Made) and value.callee == ENCODE and value.args[1] == "latin1":
            return memoryview(value.args[0].encode("latin1"))
        if isinstance(value, Made) and value.callee in BYTES and not value.args:
            return memoryview(b"")
        raise ValueError("the content of an array is not bytes")


def _record(made: Made, records: Mapping[str, type], machine: _Machine) -> Any:
    """Our dataclass in place of the pickled one."""
    cls = records[made.callee]
    names = {field.name for field in dataclasses.fields(cls)}
    if made.args or not isinstance(made.state, dict) or made.state.keys() != names:
        found = sorted(made.state) if isinstance(made.state, dict) else []
        raise _damaged(f"{made.callee} has the fields {found} instead of {sorted(names)}", machine.path)
    return cls(**{name: _array(value, machine) for name, value in made.state.items()})


def _array(made: Any, machine: _Machine) -> Array:
    """The array that the two ways of pickling one describe."""
    if not isinstance(made, Made) or made.callee not in RECONSTRUCT | FROM_BUFFER:
        raise _damaged("holds something other than arrays", machine.path)
    if made.callee in FROM_BUFFER:
        content, kind, shape, order = made.args
        fortran = order == "F"
    else:
        cls, _, _ = made.args
        if not isinstance(cls, _Global) or cls.name != NDARRAY:
            raise ValueError("a subclass of ndarray")
        shape, kind, fortran, content = made.state[-4:]  # a version number comes first
    if not isinstance(shape, tuple) or len(shape) > MOST_DIMS or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a shape that is not a tuple of sizes")
    dtype, widen = _dtype(kind, machine)
    buffer = machine.content(content)
    if math.prod(shape) * dtype.itemsize != buffer.nbytes:
        claimed = f"an array of shape {list(shape)} with {dtype.itemsize} bytes a value"
        raise _damaged(f"{claimed} has {buffer.nbytes:,} bytes", machine.path)
    flat = np.frombuffer(buffer, dtype) if buffer.nbytes else np.empty(0, dtype)
    if widen:
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    array = flat.reshape(shape, order="F" if fortran else "C")
    array.flags.writeable = False
    return array


def _dtype(kind: Any, machine: _Machine) -> tuple[np.dtype[Any], bool]:
    """The number format, and whether it stands for bfloat16 (its 16 bits are the upper half of a float32)."""
    if not isinstance(kind, Made) or kind.callee != DTYPE:
        raise ValueError("no dtype")
    code, state = kind.args[0], kind.state
    widen = isinstance(code, _Global) and code.name == BFLOAT16
    if widen:
        code = "u2"
    structured = state is not None and any(part is not None for part in state[2:5])
    if not isinstance(code, str) or not _NUMBER.fullmatch(code) or structured:
        what = repr(code[:20]) if isinstance(code, str) else "something else"
        raise _damaged(f"an array of {what}: only plain numbers are read, never Python objects", machine.path)
    order = "=" if state is None else state[1]
    if order not in ("<", ">", "|", "="):
        raise ValueError("an unknown byte order")
    return np.dtype(order + code), widen


def _damaged(what: str, path: Path) -> CheckpointError:
    return CheckpointError(what, where=path, fix="is this the right file, and is it whole?")
