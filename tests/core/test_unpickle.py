"""Pickled arrays are read without running the pickle, of any protocol and NumPy; anything else there is refused."""

from __future__ import annotations

import base64
import os
import pickle
import pickletools
import resource
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from bloomery.core.errors import CheckpointError
from bloomery.core.unpickle import Made, load, notes


class QuantizedWeight8bit:
    """Pickled as `__main__.QuantizedWeight8bit`, as the original program did."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


QuantizedWeight8bit.__module__ = "__main__"


@dataclass
class Quantised:
    weight: np.ndarray
    scales: np.ndarray


RECORDS = {"__main__.QuantizedWeight8bit": Quantised}
# two numbers, 1.5 and -2, as `pickle.dumps(np.array([1.5, -2], ml_dtypes.bfloat16), 4)` writes them
BFLOAT16 = base64.b64decode(
    "gASViwAAAAAAAACMFm51bXB5Ll9jb3JlLm11bHRpYXJyYXmUjAxfcmVjb25zdHJ1Y3SUk5SMBW51bXB5lIwHbmRhcnJheZSTlEsAhZRDAWKUh5RS"
    "lChLAUsChZRoA4wFZHR5cGWUk5SMCW1sX2R0eXBlc5SMCGJmbG9hdDE2lJOUiYiHlFKUKEsDjAE8lE5OTksCSwJLQHSUYolDBMA/AMCUdJRiLg=="
)


@pytest.fixture(autouse=True)
def main_knows_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickling a class looks it up by name."""
    import __main__

    monkeypatch.setattr(__main__, "QuantizedWeight8bit", QuantizedWeight8bit, raising=False)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


# --- what is read ----------------------------------------------------------------------------------------------------

DTYPES = st.one_of(
    arrays.boolean_dtypes(), arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.floating_dtypes()
).filter(lambda dtype: dtype.itemsize <= 8)


@given(st.data(), st.integers(0, 5), st.sampled_from("CF"), st.booleans())
def test_arrays_of_any_protocol(tmp_path_factory, data: st.DataObject, protocol: int, order: Any, numpy1: bool) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = np.asarray(data.draw(arrays.arrays(data.draw(DTYPES), shape)), order=order)
    content = pickle.dumps(array, protocol)
    if numpy1 and protocol < 4:  # module names stand in lines there
        content = content.replace(b"numpy._core.", b"numpy.core.")
    path = tmp_path_factory.mktemp("arrays") / "array"
    path.write_bytes(content)
    assert same(load(path), array)


@pytest.mark.parametrize("protocol", range(6))
def test_a_record_of_arrays_under_the_name_of_another_program(tmp_path: Path, protocol: int) -> None:
    weight, scales = np.arange(-6, 6, dtype=np.int8).reshape(3, 4), np.array([[0.5, 1, 2, 4]], np.float32)
    path = write(tmp_path / "leaf", QuantizedWeight8bit(weight=weight, scales=scales), protocol)
    record = load(path, RECORDS)
    assert isinstance(record, Quantised)
    assert same(record.weight, weight)
    assert same(record.scales, scales)


def test_numpy_1_in_protocols_4_and_5(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for protocol, name in ((4, b"numpy._core.multiarray"), (5, b"numpy._core.numeric")):
        old = name.replace(b"_core", b"core")
        content = pickletools.optimize(pickle.dumps(array, protocol))
        at = content.index(name) - 1  # the byte before it is its length; the frame is one byte shorter, too
        content = content[:at] + bytes([len(old)]) + old + content[at + 1 + len(name) :]
        size = struct.unpack("<Q", content[3:11])[0] - 1
        (tmp_path / "old").write_bytes(content[:3] + struct.pack("<Q", size) + content[11:])
        assert same(load(tmp_path / "old"), array)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(BFLOAT16)
    assert same(load(tmp_path / "b"), np.array([1.5, -2], np.float32))


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "big", np.zeros(50_000_000, np.int8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    array = load(path)
    assert array.shape == (50_000_000,)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB
    assert not array.flags.writeable


# --- what is refused -------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


MARKER = "touched"
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "os.system": (lambda: pickle.dumps(Calls(os.system, f"touch {MARKER}"), 4), r"asks for 'posix\.system'"),
    "protocol 0": (lambda: b"cos\nsystem\n(V" + f"touch {MARKER}".encode() + b"\ntR.", r"asks for 'os\.system'"),
    "instance": (lambda: b"(V" + f"touch {MARKER}".encode() + b"\nios\nsystem\n.", r"asks for 'os\.system'"),
    "eval in a field": (
        lambda: pickle.dumps(QuantizedWeight8bit(weight=np.zeros(2), scales=Calls(eval, f"open({MARKER!r}, 'w')"))),
        r"asks for 'builtins\.eval'",
    ),
    "array of calls": (
        lambda: pickle.dumps(np.array([Calls(os.system, f"touch {MARKER}")], dtype=object)),
        "instruction EMPTY_LIST",
    ),
    "no objects": (
        lambda: pickle.dumps(np.empty(0, object)).replace(b"]\x94", b"C\x00\x94"),
        "'O8': only plain numbers",
    ),
    "other function": (lambda: pickle.dumps(Calls(shutil.rmtree, "nowhere")), r"asks for 'shutil\.rmtree'"),
    "dotted name": (lambda: b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", r"asks for 'numpy\.dtype\.__init__'"),
    "name of another kind": (lambda: b"\x80\x04K\x01\x8c\x06system\x93.", r"asks for '\?'"),
    "extension registry": (lambda: b"\x80\x02\x82\x01.", "instruction EXT1"),
    "persistent id": (lambda: b"\x80\x04\x8c\x04diskQ.", "instruction BINPERSID"),
    "structured": (lambda: pickle.dumps(np.zeros(2, [("a", "i4")])), "only plain numbers"),
    "text": (lambda: pickle.dumps(np.array(["abc"])), "'U3': only plain numbers"),
    "a list": (lambda: pickle.dumps([np.zeros(2)]), "instruction EMPTY_LIST"),
    "a number": (lambda: pickle.dumps(7), "holds a int, not an array"),
    "a name": (lambda: b"\x80\x04cnumpy\ndtype\n.", "holds a _Global, not an array"),
    "call of a number": (lambda: b"\x80\x04K\x01)R.", "a call of something that is not a name"),
    "state of a name": (lambda: b"\x80\x04cnumpy\nndarray\n}\x8c\x01aK\x01sb.", "state for something that takes none"),
    "end of an empty stack": (lambda: b"\x80\x04.", "not a pickled array"),
    "forgotten mark": (lambda: b"\x80\x04t.", "not a pickled array"),
    "unknown memo": (lambda: b"\x80\x04h\x07.", "not a pickled array"),
    "no pickle": (lambda: b"PK\x03\x04 a zip archive", "instruction PERSID"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_of_a_hostile_pickle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[case]
    Path("leaf").write_bytes(content())
    with pytest.raises(CheckpointError, match=message) as caught:
        load("leaf", RECORDS)
    assert str(caught.value).startswith("leaf: ")
    assert "\n" not in str(caught.value)
    assert not Path(MARKER).exists()


def test_a_class_that_was_not_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "leaf", QuantizedWeight8bit(weight=np.zeros(1), scales=np.zeros(1)))
    with pytest.raises(CheckpointError, match=r"asks for '__main__\.QuantizedWeight8bit'"):
        load(path)


@pytest.mark.parametrize("fields", [{"weight": 1, "scales": 2}, {"weight": np.zeros(1)}, {"weigth": np.zeros(1)}])
def test_a_record_with_other_fields(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = write(tmp_path / "leaf", QuantizedWeight8bit(**fields))
    with pytest.raises(CheckpointError, match=r"other than arrays|instead of"):
        load(path, RECORDS)


BOMBS = {
    "declared bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 45) + b"x.",
    "declared text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 45) + b"x.",
    "memo index": b"\x80\x04Nr" + struct.pack("<I", (1 << 32) - 1) + b".",
    "nested tuples": b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(200)) + b".",  # 2^200 ends
    "endless": b"\x80\x04" + b"N" * 50_000 + b".",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_memory_stays_flat(tmp_path: Path, kind: str) -> None:
    (tmp_path / "leaf").write_bytes(BOMBS[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        load(tmp_path / "leaf", RECORDS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_a_shape_that_the_bytes_do_not_fill(tmp_path: Path) -> None:
    content = pickle.dumps(np.zeros((3, 5), np.int8), 4)
    larger = content.replace(b"K\x03K\x05\x86", b"M\xff\xffK\x05\x86")
    (tmp_path / "leaf").write_bytes(larger)
    with pytest.raises(CheckpointError, match=r"an array of shape \[65535, 5\] with 1 bytes a value has 15 bytes"):
        load(tmp_path / "leaf")


def test_bytes_spelt_as_text_are_made_once(tmp_path: Path) -> None:
    """In protocols 0 to 2 bytes are a call with a text; calling it again and again on one text must cost nothing."""
    text = b"x" * 1_000_000
    again = b"h\x00h\x01h\x02\x86R"
    start = b"c_codecs\nencode\nq\x00X" + struct.pack("<I", len(text)) + text + b"q\x01X\x06\x00\x00\x00latin1q\x02"
    (tmp_path / "leaf").write_bytes(b"\x80\x02" + start + again * 900 + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        load(tmp_path / "leaf")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; 900 copies would be 900 MB


@pytest.mark.parametrize("protocol", range(6))
def test_every_way_of_cutting_a_file_short(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(QuantizedWeight8bit(weight=np.zeros((2, 3), np.int8), scales=np.ones((1, 3))), protocol)
    for size in range(len(content)):
        (tmp_path / "leaf").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"leaf: (is empty|ends at byte)"):
            load(tmp_path / "leaf", RECORDS)
    (tmp_path / "leaf").write_bytes(content + b"rest")
    with pytest.raises(CheckpointError, match="4 bytes follow the end"):
        load(tmp_path / "leaf", RECORDS)
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "nowhere")


@given(st.data())
def test_damaged_files_give_an_array_or_an_error(tmp_path_factory, data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(np.arange(6, dtype=np.int16).reshape(2, 3), data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "leaf"
    path.write_bytes(content)
    try:
        assert isinstance(load(path), np.ndarray)
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_agrees_with_pickle_on_what_it_accepts(tmp_path: Path) -> None:
    """The machine's reading of every instruction is Python's own."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        array = rng.integers(-100, 100, rng.integers(1, 300, 2)).astype(rng.choice(["i1", "<i2", ">i4", "f4", ">f8"]))
        for protocol in range(6):
            content = pickle.dumps(array, protocol)
            (tmp_path / "a").write_bytes(content)
            assert np.array_equal(load(tmp_path / "a"), pickle.loads(content))


# --- notes: other records --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    at: tuple[int, ...]
    name: str


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_notes_say_what_would_have_been_made(tmp_path: Path, protocol: int) -> None:
    value = {"points": [Point((1, 2), "a"), Point((), "b")], Point((3,), "key"): 2.5, "size": torch.Size([4, 5])}
    found = notes(write(tmp_path / "x", value, protocol), {f"{Point.__module__}.Point", "torch.Size"})
    (key,) = [key for key in found if isinstance(key, Made)]
    assert [point.state for point in found["points"]] == [{"at": (1, 2), "name": "a"}, {"at": (), "name": "b"}]
    assert (key.callee, key.state, found[key]) == (f"{Point.__module__}.Point", {"at": (3,), "name": "key"}, 2.5)
    assert (found["size"].callee, found["size"].args) == ("torch.Size", ((4, 5),))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    ),
    st.integers(2, 5),
)
def test_notes_of_plain_values_are_the_values(tmp_path_factory, value: Any, protocol: int) -> None:
    assert notes(write(tmp_path_factory.mktemp("n") / "x", [value], protocol), ()) == [value]


def test_notes_run_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    with pytest.raises(CheckpointError, match=r"posix\.mkdir.*nothing of it was run"):
        notes(write(tmp_path / "x", [1, Evil()]), {"torch.Size"})
    assert not (tmp_path / "made").exists()


def test_notes_of_a_shared_list_are_shared(tmp_path: Path) -> None:
    shared: list[int] = [1]
    found = notes(write(tmp_path / "x", [shared, shared, {"a": 1, "b": shared}]), ())
    assert found[0] is found[1] is found[2]["b"]
