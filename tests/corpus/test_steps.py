from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest

import bloomery.corpus
from bloomery.core.errors import ConfigError
from bloomery.corpus.documents import from_texts
from bloomery.corpus.steps import DROP, Plan, Step, decision_notes, decisions, drop, drop_reasons, kept, uniform


@dataclass
class Model:
    size: int

    def fingerprint(self):
        return {"size": self.size}


@dataclass(frozen=True)
class Example(Step):
    limit: int = 3
    names: tuple[str, ...] = ("a",)
    model: object = field(default_factory=lambda: Model(1))

    def __call__(self, batch):
        return batch


def test_the_first_reason_stays():
    batch = drop(from_texts(["a", "b", "c"]), np.array([True, False, False]), "one")
    batch = drop_reasons(batch, ["two", "two", None])
    assert batch.column(DROP).to_pylist() == ["one", "two", None]
    assert kept(batch).column("id").to_pylist() == from_texts(["c"]).column("id").to_pylist()
    assert DROP not in kept(batch).schema.names


def test_nothing_to_drop_adds_no_column():
    batch = from_texts(["a"])
    assert drop(batch, [False], "x") is batch
    assert drop(batch, pa.array([None], pa.bool_()), "x") is batch
    assert kept(batch) is batch


def test_fingerprint_follows_parameters_and_parts():
    assert Example().fingerprint() == Example().fingerprint()
    assert Example(limit=4).fingerprint() != Example().fingerprint()
    assert Example(model=Model(2)).fingerprint() != Example().fingerprint()
    assert Example().fingerprint()["names"] == ["a"]
    with pytest.raises(ConfigError, match=r"Example.model.*fingerprint"):
        Example(model=object()).fingerprint()


def test_defaults():
    assert (Example().name, Example().reads, Example().writes) == ("Example", ("parts",), ())
    assert Example().plan(10, 10) == Plan(0, 0)


def test_decisions_carry_notes():
    table = decisions(drop=[None, "x"], notes={"clusters": 1}, rank=np.array([0, 1]))
    assert table.column_names == ["rank", DROP]
    assert decision_notes(table) == {"clusters": 1}
    assert decision_notes(pa.table({"a": [1]})) == {}


def test_uniform_depends_on_id_seed_and_name_only():
    batch = from_texts([str(i) for i in range(4000)])
    values = uniform(batch, 0, "sample")
    np.testing.assert_array_equal(values[7:9], uniform(batch.slice(7, 2), 0, "sample"))
    assert abs(values.mean() - 0.5) < 0.02
    assert values.min() >= 0
    assert values.max() < 1
    for other in (uniform(batch, 1, "sample"), uniform(batch, 0, "split")):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.06


def test_importing_the_room_is_cheap_and_its_names_resolve():
    code = "import sys, bloomery.corpus; sys.exit('pyarrow' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for name in ("run", "Report", "read_documents", "NearDedup", "Language", "from_texts"):
        assert getattr(bloomery.corpus, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bloomery.corpus.nothing  # noqa: B018
