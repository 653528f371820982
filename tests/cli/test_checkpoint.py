"""`bloomery checkpoint …` on checkpoints of a few kilobytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from bloomery import checkpoint


def state(shift: float = 0.0) -> dict[str, object]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight[0, 0] += shift
    return {"model": model, "optimizer": optimizer, "step": 4}


@pytest.fixture(autouse=True)
def run() -> Path:
    """A run with three checkpoints."""
    for step in (100, 200, 300):
        checkpoint.Checkpoints("run").save(step, state(shift=step / 100))
    return Path("run")


def flip(step: int) -> None:
    file = next(Path(f"run/step-{step:08d}/data").iterdir())
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)


def test_inspect(ok, bloomery) -> None:
    found = ok("checkpoint", "inspect", "run")
    assert found["path"].endswith("step-00000300")  # the newest
    assert [(row["key"], row["kind"], row["tensors"]) for row in found["keys"]] == [
        ("optimizer", "AdamW", 12), ("model", "module", 4), ("step", "4", 0),
    ]  # fmt: skip
    assert found["bytes"] == sum(t["bytes"] for t in found["tensors"]) == sum(r["bytes"] for r in found["keys"])
    weight = next(t for t in found["tensors"] if t["name"] == "model/0.weight")
    assert (weight["shape"], weight["dtype"], weight["chunks"], weight["ranks"]) == ([8, 6], "float32", 1, [0])
    some = ok("checkpoint", "inspect", "run/step-00000100", "--match", "model/*bias")
    assert [t["name"] for t in some["tensors"]] == ["model/0.bias", "model/1.bias"]
    _, out, _ = bloomery("checkpoint", "inspect", "run", "--match", "model/*")
    assert "AdamW" in out
    assert "8×6" in out
    assert "optimizer/0.weight" not in out
    code, out, _ = bloomery("checkpoint", "inspect", "run", "--html", "page.html")
    assert (code, out) == (0, "written: page.html\n")
    assert "model/0.weight" in Path("page.html").read_text()


def test_verify(ok, bloomery) -> None:
    assert ok("checkpoint", "verify", "run")["whole"] is True
    flip(300)
    code, out, _ = bloomery("checkpoint", "verify", "run", "--json", "--quiet")
    assert code == 1
    assert json.loads(out)["whole"] is False
    assert "does not match its checksum" in json.loads(out)["damage"]
    code, out, err = bloomery("checkpoint", "verify", "run/step-00000300", "--quiet")
    assert (code, err) == (1, "")
    assert "model/0.weight [0:8, 0:6]" in out


def test_diff(bloomery) -> None:
    code, out, _ = bloomery("checkpoint", "diff", "run/step-00000100", "run", "--quiet")
    assert code == 1
    assert "1 of 48 differ, by at most 2" in out
    assert "15 tensors are equal" in out
    code, out, _ = bloomery("checkpoint", "diff", "run", "run/step-00000300", "--quiet", "--json")
    assert code == 0
    assert json.loads(out)["equal"] == 16


def test_reshard(ok, bloomery) -> None:
    written = ok("checkpoint", "reshard", "run", "out", "--ranks", 2, "--quiet")
    assert (written["tensors"], written["files"], written["keys"]) == (16, 2, ["model", "optimizer", "step"])
    assert bloomery("checkpoint", "diff", "run", "out", "--quiet")[0] == 0


def test_export_and_import(ok, bloomery) -> None:
    written = ok("checkpoint", "export", "run", "hf", "--dtype", "bfloat16", "--quiet")
    assert (written["tensors"], written["files"], written["bytes"]) == (4, 1, 2 * (48 + 8 + 16 + 2))
    assert ok("checkpoint", "import", "hf", "back", "--quiet")["keys"] == ["model"]
    code, out, _ = bloomery("checkpoint", "diff", "run", "back", "--quiet", "--json")
    assert (code, len(json.loads(out)["dtype"])) == (1, 4)
    assert ok("checkpoint", "export", "run", "dcp", "--format", "dcp", "--quiet")["left_out"] == []
    ok("checkpoint", "import", "dcp", "again", "--quiet")
    assert bloomery("checkpoint", "diff", "run", "again", "--quiet")[0] == 0
    some = ok("checkpoint", "import", "dcp", "some", "--skip", "optimizer.*", "step", "--quiet")
    assert some["keys"] == ["model"]


def test_prune(ok, refused) -> None:
    assert ok("checkpoint", "prune", "run", "--keep-last", 1, "--keep-every", 100, "--dry-run")["stale"] == []
    planned = ok("checkpoint", "prune", "run", "--keep-last", 1, "--keep-every", 200, "--dry-run")
    assert (planned["stale"], planned["deleted"], planned["kept"]) == ([100], [], [200, 300])
    assert Path("run/step-00000100").exists()
    done = ok("checkpoint", "prune", "run", "--keep-last", 1, "--keep-every", 200)
    assert (done["deleted"], done["kept"]) == ([100], [200, 300])
    assert sorted(path.name for path in Path("run").iterdir()) == ["step-00000200", "step-00000300"]
    flip(300)
    message = refused("checkpoint", "prune", "run", "--keep-last", 1)
    assert "step 300, the newest, is damaged: nothing is deleted" in message
    assert Path("run/step-00000200").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which command?"),
        (("inspct",), "unknown checkpoint command 'inspct' (did you mean 'inspect'"),
        (("inspect", "nowhere"), "nowhere: not a complete checkpoint: it has no manifest.json"),
        (("verify", "nowhere"), "not a complete checkpoint"),
        (("diff", "run", "nowhere"), "not a complete checkpoint"),
        (("reshard", "run", "run", "--quiet"), "exists"),
        (("reshard", "run", "x", "--ranks", 0), "cannot be cut for 0 ranks"),
        (("export", "run", "x", "--key", "net"), "holds no module 'net'"),
        (("export", "run", "run"), "run: exists already"),
        (("export", "run", "x", "--shard-gb", 0), "shard_gb is 0.0"),
        (("export", "run", "x", "--format", "dcp", "--dtype", "float16"), "are for safetensors"),
        (("export", "run", "x", "--format", "gguf"), "format"),
        (("import", "nowhere", "x"), "nowhere: no such folder"),
        (("import", "hollow", "x"), "neither model.safetensors nor model.safetensors.index.json"),
        (("import", "hollow", "x", "--skip", "a"), "are for DCP folders"),
        (("prune", "hollow/step-00000001"), "holds no checkpoints"),
        (("prune", "run", "--keep-last", 0), "keep_last is at least 1"),
        (("prune", "run", "--keep-lst", 1), "unknown option '--keep-lst'"),
    ],
)
def test_bad_input(arguments, message, refused) -> None:
    Path("hollow/step-00000001").mkdir(parents=True)
    assert message in refused("checkpoint", *arguments)
    assert not Path("x").exists()


def test_a_run_without_a_whole_checkpoint(bloomery) -> None:
    for step in (100, 200, 300):
        Path(f"run/step-{step:08d}/manifest.json").write_text("{}")
    code, out, err = bloomery("checkpoint", "inspect", "run")
    assert (code, out) == (2, "")
    assert err.count("skipped: ") == 3
    assert err.endswith("run: holds no checkpoint that is whole\n")


def test_every_command_explains_itself(bloomery) -> None:
    code, out, _ = bloomery("checkpoint", "--help")
    assert code == 0
    for name in ("inspect", "verify", "diff", "reshard", "export", "import", "prune"):
        assert f"bloomery checkpoint {name}" in out
        code, text, _ = bloomery("checkpoint", name, "--help")
        assert code == 0
        assert f"bloomery checkpoint {name} " in text.split("Example:")[1]
    shutil.rmtree("run")
