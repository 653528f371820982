"""The file format of fastText classifiers: `.bin` and `.ftz` are read without trusting them, `.bin` is written.

Every size is checked against the bytes that are left before anything is allocated, and the parts are checked against
each other, so that a damaged file ends in a `DataError` and never in a wrong row. The matrices stay memory-mapped.

Layout, all little-endian (facebookresearch/fastText, versions 11 and 12): magic and version; twelve int32 and a double
of training arguments; dictionary (words, then labels, then the pruned hash buckets); a flag and the input matrix;
a flag and the output matrix. A matrix is float32 or product-quantised (Joulin et al., arXiv 1612.03651).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bloomery.core.errors import DataError
from bloomery.core.files import atomic_file

MAGIC = 793712314
SUPERVISED = 3  # model code
HIERARCHICAL, NEGATIVE, SOFTMAX, ONE_VS_ALL = 1, 2, 3, 4  # loss codes
CENTROIDS = 256  # per sub-quantizer: codes are bytes


@dataclass(frozen=True)
class Arguments:
    """The training arguments stored in the file (only those that prediction needs have a meaning here)."""

    dim: int
    ws: int
    epoch: int
    min_count: int
    neg: int
    word_ngrams: int
    loss: int
    model: int
    bucket: int
    minn: int
    maxn: int
    lr_update_rate: int
    t: float


class DenseMatrix:
    """A float32 matrix in the file."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values  # (rows, width)
        self.n_rows, self.width = values.shape

    def directions(self, ids: np.ndarray) -> np.ndarray:
        """The rows up to their norms, (ids, width)."""
        return self.rows(ids)

    def norms(self, ids: np.ndarray) -> np.ndarray:
        """What each of the directions is to be multiplied by, (ids,)."""
        return np.ones(len(ids), np.float32)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """(ids, width)."""
        rows: np.ndarray = self.values[ids]
        return rows


class QuantizedMatrix:
    """A product-quantised matrix: each row is a code byte per sub-vector, and optionally one for its norm."""

    def __init__(
        self, codes: np.ndarray, centroids: list[np.ndarray], norm_codes: np.ndarray | None, norms: np.ndarray | None
    ) -> None:
        self.codes, self.centroids = codes, centroids  # (rows, parts); per part (256, part width)
        self.norm_codes, self.norm_values = norm_codes, norms  # (rows,), (256,)
        self.n_rows, self.width = len(codes), sum(c.shape[1] for c in centroids)

    def directions(self, ids: np.ndarray) -> np.ndarray:
        """The rows up to their norms, (ids, width)."""
        codes = self.codes[ids]
        return np.concatenate([c[codes[:, part]] for part, c in enumerate(self.centroids)], axis=1)

    def norms(self, ids: np.ndarray) -> np.ndarray:
        """What each of the directions is to be multiplied by, (ids,)."""
        if self.norm_codes is None or self.norm_values is None:
            return np.ones(len(ids), np.float32)
        norms: np.ndarray = self.norm_values[self.norm_codes[ids]]
        return norms

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """(ids, width)."""
        rows: np.ndarray = self.directions(ids) * self.norms(ids)[:, None]
        return rows


Matrix = DenseMatrix | QuantizedMatrix


@dataclass(frozen=True)
class FastTextFile:
    """The parts of a classifier file, checked against each other."""

    path: Path
    args: Arguments
    words: dict[bytes, int]  # to row ids, in their order
    word_counts: np.ndarray
    labels: list[bytes]  # most frequent first
    label_counts: np.ndarray
    n_tokens: int  # of the training text
    pruned: tuple[np.ndarray, np.ndarray] | None  # sorted hash buckets that are left, and their rows behind the words
    input: Matrix  # words, then hash buckets
    output: Matrix  # one row a label

    def __post_init__(self) -> None:
        for name, matrix in (("input", self.input), ("output", self.output)):
            if matrix.width != self.args.dim:
                raise self._unfit(f"the {name} matrix is {matrix.width} wide, the model {self.args.dim}")
        if self.output.n_rows != len(self.labels):
            raise self._unfit(f"the output matrix has {self.output.n_rows} rows for {len(self.labels)} labels")
        if self.pruned is not None and isinstance(self.input, DenseMatrix):
            raise self._unfit("the dictionary is pruned, but the input matrix is not quantised")
        hashed = self.args.word_ngrams > 1 or self.args.maxn > 0
        if hashed and self.args.bucket <= 0:
            raise self._unfit("it uses n-grams, but has no hash buckets")
        buckets = self.args.bucket if self.pruned is None else int(self.pruned[1].max(initial=-1)) + 1
        needed = len(self.words) + (buckets if hashed else 0)
        if self.input.n_rows < needed:
            raise self._unfit(f"the input matrix has {self.input.n_rows} rows, {needed} are needed")

    def _unfit(self, what: str) -> DataError:
        return DataError(f"the parts of the model do not fit: {what}", where=self.path, fix="the file is damaged")


def read(path: Path | str) -> FastTextFile:
    """Open and check a classifier file; the matrices stay on disk."""
    path = Path(path)
    reader = _Reader(path)
    args = _read_arguments(reader)
    words, word_counts, labels, label_counts, n_tokens, pruned = _read_dictionary(reader)
    quantized = reader.flag("the flag of the input matrix")
    input_matrix: Matrix = _read_quantized(reader, "input") if quantized else _read_dense(reader, "input")
    quantized = reader.flag("the flag of the output matrix") and quantized
    output_matrix: Matrix = _read_quantized(reader, "output") if quantized else _read_dense(reader, "output")
    return FastTextFile(
        path, args, words, word_counts, labels, label_counts, n_tokens, pruned, input_matrix, output_matrix
    )


def write(file: FastTextFile, path: Path | str) -> None:
    """Write a `.bin` (version 12) that the fastText library reads.

    Raises:
        DataError: the model is quantised.
    """
    matrices = (file.input, file.output)
    dense = [matrix.values for matrix in matrices if isinstance(matrix, DenseMatrix)]
    if len(dense) < len(matrices):
        raise DataError("a quantised model cannot be written", where=file.path, fix="copy its file")
    counts = [*file.word_counts.tolist(), *file.label_counts.tolist()]
    kinds = [0] * len(file.words) + [1] * len(file.labels)
    with atomic_file(path) as out:
        out.write(struct.pack("<ii12id", MAGIC, 12, *astuple(file.args)))
        out.write(struct.pack("<iiiqq", len(counts), len(file.words), len(file.labels), file.n_tokens, -1))
        for entry, count, kind in zip((*file.words, *file.labels), counts, kinds, strict=True):
            out.write(entry + b"\0" + struct.pack("<qb", count, kind))
        for values in dense:
            out.write(struct.pack("<?qq", False, *values.shape))
            out.write(np.ascontiguousarray(values, "<f4").data)


class _Reader:
    """Sequential reads from a mapped file that refuse to go beyond its end."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            with path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise DataError("no such model file", where=path) from error
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise DataError(f"cannot read the model: {error}", where=path) from error

    def fail(self, what: str) -> DataError:
        return DataError(what, where=f"{self.path} at byte {self.at}", fix="the file is damaged or not a fastText .bin")

    def need(self, size: int, what: str) -> None:
        left = len(self.data) - self.at
        if size < 0 or size > left:
            raise self.fail(f"{what} needs {size} bytes, {left} are left")

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + layout)
        self.need(size, what)
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += size
        return values

    def flag(self, what: str) -> bool:
        return bool(self.unpack("B", what)[0])

    def array(self, dtype: str, count: int, what: str) -> np.ndarray:
        size = count * np.dtype(dtype).itemsize
        self.need(size, what)
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += size
        return values


def _read_arguments(reader: _Reader) -> Arguments:
    magic, version = reader.unpack("ii", "the header")
    if magic != MAGIC:
        raise DataError("not a fastText model (wrong magic number)", where=reader.path)
    if version not in (11, 12):
        raise DataError(f"fastText file version {version} is not supported (11 and 12 are)", where=reader.path)
    args = Arguments(*reader.unpack("12id", "the arguments"))
    if args.model != SUPERVISED:
        raise DataError("a model of word vectors, not a classifier", where=reader.path, fix="train it with supervised")
    if args.loss not in (HIERARCHICAL, NEGATIVE, SOFTMAX, ONE_VS_ALL):
        raise DataError(f"unknown loss code {args.loss}", where=reader.path)
    if args.dim <= 0:
        raise DataError(f"dimension {args.dim}", where=reader.path)
    if version == 11:  # such classifiers were trained without character n-grams whatever the field says
        args = replace(args, maxn=0)
    return args


def _read_dictionary(
    reader: _Reader,
) -> tuple[dict[bytes, int], np.ndarray, list[bytes], np.ndarray, int, tuple[np.ndarray, np.ndarray] | None]:
    """Words to ids, their counts, labels, their counts, tokens, and pruned buckets (sorted numbers, rows) or None."""
    size, n_words, n_labels, n_tokens, n_pruned = reader.unpack("iiiqq", "the dictionary header")
    if min(size, n_words, n_labels) < 0 or n_words + n_labels != size or not n_labels:
        raise reader.fail(f"{n_words} words and {n_labels} labels in a dictionary of {size}")
    reader.need(size * 10, f"a dictionary of {size} entries")
    words: dict[bytes, int] = {}
    labels: list[bytes] = []
    counts: list[int] = []
    data, at = reader.data, reader.at
    for entry in range(size):
        end = data.find(b"\0", at)
        if end < 0 or end + 10 > len(data):
            reader.at = at
            raise reader.fail(f"the dictionary ends in entry {entry} of {size}")
        is_label = data[end + 9] == 1
        if is_label != (entry >= n_words):
            reader.at = at
            raise reader.fail(f"entry {entry} is of the wrong kind")
        if is_label:
            labels.append(data[at:end])
        else:
            words[data[at:end]] = entry
        counts.append(int.from_bytes(data[end + 1 : end + 9], "little", signed=True))
        at = end + 10
    reader.at = at
    if len(words) != n_words:
        raise reader.fail("a word occurs twice in the dictionary")
    word_counts, label_counts = np.array(counts[:n_words], np.int64), np.array(counts[n_words:], np.int64)
    if n_pruned < 0:
        return words, word_counts, labels, label_counts, n_tokens, None
    pairs = reader.array("<i4", 2 * n_pruned, "the pruned buckets").reshape(-1, 2).astype(np.int64)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    if len(pairs) and (pairs[:, 1].min() < 0):
        raise reader.fail("a pruned bucket has a negative row")
    return words, word_counts, labels, label_counts, n_tokens, (pairs[:, 0], pairs[:, 1])


def _read_dense(reader: _Reader, what: str) -> DenseMatrix:
    rows, width = reader.unpack("qq", f"the {what} matrix header")
    if rows < 0 or width <= 0:
        raise reader.fail(f"the {what} matrix is {rows} x {width}")
    return DenseMatrix(reader.array("<f4", rows * width, f"the {what} matrix").reshape(rows, width))


def _read_quantized(reader: _Reader, what: str) -> QuantizedMatrix:
    with_norms = reader.flag(f"the {what} matrix")
    rows, width, n_codes = reader.unpack("qqi", f"the {what} matrix header")
    if rows < 0 or width <= 0:
        raise reader.fail(f"the {what} matrix is {rows} x {width}")
    codes = reader.array("u1", n_codes, f"the codes of the {what} matrix")
    centroids = _read_centroids(reader, what)
    if n_codes != rows * len(centroids) or sum(c.shape[1] for c in centroids) != width:
        raise reader.fail(f"the codes of the {what} matrix do not fit its size {rows} x {width}")
    norm_codes = norms = None
    if with_norms:
        norm_codes = reader.array("u1", rows, f"the norms of the {what} matrix")
        norms = _read_centroids(reader, what)[0][:, 0]
    return QuantizedMatrix(codes.reshape(rows, len(centroids)), centroids, norm_codes, norms)


def _read_centroids(reader: _Reader, what: str) -> list[np.ndarray]:
    """The centroids of each sub-quantizer, (256, part width); the last part may be narrower."""
    dim, parts, part_width, last_width = reader.unpack("iiii", f"the quantizer of the {what} matrix")
    if min(dim, parts, part_width, last_width) <= 0 or (parts - 1) * part_width + last_width != dim:
        raise reader.fail(f"the quantizer of the {what} matrix splits {dim} dimensions into {parts} x {part_width}")
    flat = reader.array("<f4", dim * CENTROIDS, f"the centroids of the {what} matrix")
    split = (parts - 1) * part_width * CENTROIDS
    full = flat[:split].reshape(parts - 1, CENTROIDS, part_width)
    return [*full, flat[split:].reshape(CENTROIDS, last_width)]
