"""Modules, optimisers and other state by name, and every way in which a checkpoint may not fit."""

from __future__ import annotations

import copy
import gc
import itertools
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bloomery import checkpoint
from bloomery.checkpoint import FlatShard, PerRank, Rows, Shard
from bloomery.checkpoint.faulty import Disk, MemoryStorage
from bloomery.checkpoint.layout import bits
from bloomery.core.errors import CheckpointError


@pytest.fixture
def disk() -> Disk:
    return Disk()


class Net(nn.Module):
    def __init__(self, width: int = 4, tied: bool = False, empty: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5, bias=False)
        self.gain = nn.Parameter(torch.tensor(1.5))  # a scalar
        self.empty = nn.Parameter(torch.zeros(empty, 3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(ids))) * self.gain + self.empty.sum()


def trained(model: nn.Module, kind: Any = torch.optim.AdamW, steps: int = 2, **options: Any) -> Any:
    optimizer = kind(model.parameters(), lr=0.01, **options)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.arange(5) * (step + 1) % 5).square().mean().backward()
        optimizer.step()
    return optimizer


def everything(model: nn.Module, optimizer: Any = None) -> dict[str, torch.Tensor]:
    found = {name: value.clone() for name, value in model.state_dict().items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for p, state in (optimizer.state if optimizer else {}).items():
        found |= {f"{names[id(p)]}/{k}": torch.as_tensor(v).clone() for k, v in state.items() if v is not None}
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def same_tree(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_tree, a, b))
    return type(a) is type(b) and a == b


def put(disk: Disk, path: str = "c", **state: Any) -> MemoryStorage:
    checkpoint.save(MemoryStorage(path, disk), state)
    return MemoryStorage(path, disk)


# ------------------------------------------------------------------------------------------------------ what comes back


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
        (torch.optim.Adagrad, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.LBFGS, {}),
        (torch.optim.Adafactor, {}),
    ],
)
def test_model_and_optimizer_come_back_into_new_ones(disk: Disk, kind: Any, options: Any, tied: bool) -> None:
    empty = int(kind is torch.optim.Adafactor)  # which divides by the number of elements
    model = Net(tied=tied, empty=empty)
    if kind is torch.optim.LBFGS:
        optimizer = kind(model.parameters(), lr=0.1)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.arange(5)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    else:
        optimizer = trained(model, kind, **options)
    optimizer.param_groups[0]["lr"] = 0.003
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    place = put(disk, model=model, optimizer=optimizer)
    model2 = Net(tied=tied, empty=empty)
    optimizer2 = kind(model2.parameters(), lr=0.5, **options)
    checkpoint.load(place, {"model": model2, "optimizer": optimizer2})
    after = (model2.state_dict(), optimizer2.state_dict())
    assert same_tree(before, after)
    assert (model2.head.weight is model2.embed.weight) == tied


def test_tied_weights_are_stored_once(disk: Disk) -> None:
    manifest = checkpoint.read_manifest(put(disk, model=Net(tied=True)))
    assert manifest.aliases == {"model/head.weight": "model/embed.weight"}
    assert "model/head.weight" not in manifest.index
    assert manifest.find("model/head.weight") == manifest.find("model/embed.weight")


def test_a_tied_checkpoint_and_an_untied_model(disk: Disk) -> None:
    tied, model = put(disk, "tied", model=Net(tied=True)), Net()
    with pytest.raises(
        CheckpointError, match=r"model/head\.weight is tied to model/embed\.weight in the checkpoint only"
    ):
        checkpoint.load(tied, {"model": model})
    with pytest.raises(CheckpointError, match=r"model/head\.weight is tied to model/embed\.weight in the model only"):
        checkpoint.load(put(disk, model=model), {"model": Net(tied=True)})


def test_adam_before_its_first_step(disk: Disk) -> None:
    model = Net()
    place = put(disk, model=model, optimizer=trained(model, steps=0))
    other = Net()
    optimizer = trained(other)
    checkpoint.load(place, {"model": other, "optimizer": optimizer})
    assert not optimizer.state
    assert same(everything(model), everything(other))
    late = put(disk, "late", model=model, optimizer=trained(model, steps=1))
    fresh = torch.optim.AdamW(other.parameters())
    checkpoint.load(late, {"model": other, "optimizer": fresh})
    assert all(float(state["step"]) == 1 for state in fresh.state.values())


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedulers_scalers_and_others_that_speak_of_their_state(disk: Disk) -> None:
    model = Net()
    optimizer = trained(model)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9),
        ],
        milestones=[3],
    )
    for _ in range(5):
        schedule.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones((), requires_grad=True))
    place = put(disk, model=model, optimizer=optimizer, schedule=schedule, scaler=scaler)
    model2 = Net()
    optimizer2 = torch.optim.AdamW(model2.parameters(), lr=0.01)
    schedule2 = torch.optim.lr_scheduler.SequentialLR(
        optimizer2,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer2, total_iters=3),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer2, 9),
        ],
        milestones=[3],
    )
    scaler2 = torch.amp.GradScaler("cpu")
    checkpoint.load(place, {"model": model2, "optimizer": optimizer2, "schedule": schedule2, "scaler": scaler2})
    assert scaler2.state_dict() == scaler.state_dict()
    for _ in range(4):
        schedule.step()
        schedule2.step()
        assert optimizer.param_groups[0]["lr"] == optimizer2.param_groups[0]["lr"]


def test_buffers_of_norms_are_kept_and_transient_ones_not(disk: Disk) -> None:
    model = Net()
    trained(model, steps=3)
    place = put(disk, model=model)
    assert "model/scratch" not in checkpoint.read_manifest(place).index
    other = Net()
    checkpoint.load(place, {"model": other})
    assert int(other.norm.num_batches_tracked) == 3
    assert torch.equal(other.norm.running_var, model.norm.running_var)


def test_wrapped_and_compiled_models_have_the_names_of_the_bare_one(disk: Disk) -> None:
    model = Net()
    optimizer = trained(model)
    inner = copy.deepcopy(model)
    inner.head = torch.compile(inner.head, backend="eager")  # a part of it
    optimizer_inner = torch.optim.AdamW(inner.parameters())
    place = put(disk, model=model, optimizer=optimizer)
    checkpoint.load(place, {"model": inner, "optimizer": optimizer_inner})
    for wrap in (lambda m: torch.compile(m, backend="eager"), nn.DataParallel):
        other = Net()
        optimizer2 = torch.optim.AdamW(other.parameters())
        checkpoint.load(place, {"model": wrap(other), "optimizer": optimizer2})
        assert same(everything(model, optimizer), everything(other, optimizer2))
    back = put(disk, "inner", model=inner, optimizer=optimizer_inner)
    other = Net()
    checkpoint.load(back, {"model": other, "optimizer": torch.optim.AdamW(other.parameters())})
    assert checkpoint.read_manifest(back).index.keys() == checkpoint.read_manifest(place).index.keys()


def test_an_optimizer_over_two_models_keeps_both_apart(disk: Disk) -> None:
    a, b = nn.Linear(2, 3), nn.Linear(2, 3)
    optimizer = torch.optim.AdamW([*a.parameters(), *b.parameters()])
    for n, p in enumerate(itertools.chain(a.parameters(), b.parameters())):
        p.grad = torch.full_like(p, n + 1.0)
    optimizer.step()
    place = put(disk, actor=a, critic=b, optimizer=optimizer)
    a2, b2 = nn.Linear(2, 3), nn.Linear(2, 3)
    again = torch.optim.AdamW([*a2.parameters(), *b2.parameters()])
    checkpoint.load(place, {"actor": a2, "critic": b2, "optimizer": again})
    found = [float(again.state[p]["exp_avg"].flatten()[0]) for p in itertools.chain(a2.parameters(), b2.parameters())]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_names_may_hold_slashes_and_hashes(disk: Disk) -> None:
    def make() -> tuple[nn.Module, Any]:
        model = nn.ModuleDict({"a/b": nn.Linear(2, 2), "c#d": nn.Linear(2, 2)})
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = make()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    place = put(disk, model=model, optimizer=optimizer)
    model2, optimizer2 = make()
    checkpoint.load(place, {"model": model2, "optimizer": optimizer2})
    assert same(everything(model, optimizer), everything(model2, optimizer2))


def test_parameters_are_known_by_name_in_whatever_order_and_group(disk: Disk) -> None:
    model = Net()
    place = put(disk, model=model, optimizer=trained(model))
    other = Net()
    backwards = torch.optim.AdamW(reversed(list(other.parameters())))
    checkpoint.load(place, {"model": other, "optimizer": backwards})
    assert same(everything(model, trained(copy.deepcopy(model), steps=0)), everything(other))
    assert float(backwards.state[other.gain]["step"]) == 2


@pytest.mark.parametrize("as_tensor", [False, True])
def test_extra_state_of_modules(disk: Disk, as_tensor: bool) -> None:
    class Extra(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.n = n

        def get_extra_state(self) -> Any:
            return torch.tensor([self.n]) if as_tensor else {"n": self.n}

        def set_extra_state(self, state: Any) -> None:
            self.n = int(state[0]) if as_tensor else state["n"]

    saved, model = nn.Sequential(Extra(7)), nn.Sequential(Extra(1))
    checkpoint.load(put(disk, model=saved), {"model": model})
    assert model[0].n == 7


def test_tensors_of_odd_memory_are_saved_and_filled(disk: Disk) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    z = torch.view_as_complex(torch.arange(8.0).reshape(4, 2))

    def odd(scale: float) -> dict[str, torch.Tensor]:
        b, c = base * scale, z * scale
        return {
            "t": b.t(), "strided": b[::2, 1::2], "view": b[1:3], "conj": c.clone().conj(), "neg": c.clone().conj().imag,
            "scalar": b[2, 3], "column": b[:, :1], "row": b[:1, ::2],
        }  # fmt: skip

    place = put(disk, **odd(1.0))
    there = odd(0.0)
    checkpoint.load(place, there)
    for name, value in odd(1.0).items():
        assert torch.equal(there[name], value), name
    assert checkpoint.read_manifest(place).nbytes == 4 * (24 + 6 + 12 + 4 + 1 + 4 + 3) + 8 * 4  # of a view, its part


def test_numbers_of_every_width(disk: Disk) -> None:
    kinds = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float4_e2m1fn_x2, torch.uint64, torch.bool]
    state = {str(kind)[6:]: (torch.arange(6, dtype=torch.uint8) % 2).repeat(8).view(kind) for kind in kinds}
    place = put(disk, **state)
    there = {name: torch.zeros_like(bits(value)).view(value.dtype) for name, value in state.items()}
    checkpoint.load(place, there)
    assert all(torch.equal(bits(there[name]), bits(value)) for name, value in state.items())


class Scaled(torch.Tensor):
    """A quantised tensor of two parts, as torchao makes them."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> Any:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(str(func))


def test_quantised_subclasses_are_stored_as_their_parts(disk: Disk) -> None:
    def make(n: int) -> nn.Module:
        model = nn.Module()
        quantised = Scaled(torch.full((2, 3), n, dtype=torch.int8), torch.full((2,), n / 4))
        model.weight = nn.Parameter(quantised, requires_grad=False)
        return model

    place = put(disk, model=make(3))
    manifest = checkpoint.read_manifest(place)
    assert set(manifest.index) == {"model/weight#codes", "model/weight#scale"}
    assert manifest.values["model/weight"] == {"kind": "subclass", "class": "Scaled"}
    other = make(0)
    checkpoint.load(place, {"model": other})
    assert (int(other.weight.codes[1, 2]), float(other.weight.scale[0])) == (3, 0.75)
    plain = nn.Module()
    plain.weight = nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(CheckpointError, match="missing model/weight"):
        checkpoint.load(place, {"model": plain})


def test_a_part_of_a_checkpoint(disk: Disk) -> None:
    model = Net()
    place = put(disk, model=model, optimizer=trained(model), step=7)
    other = Net()
    report = checkpoint.load(place, {"model": other})
    assert same(everything(model), everything(other))
    assert report.unexpected == []
    state = {"step": 0}
    assert checkpoint.load(place, state).bytes_read == 0
    assert state == {"step": 7}


def test_rows_replace_rows_of_other_lengths(disk: Disk) -> None:
    place = put(disk, loader={"buffer": Rows([torch.arange(3), torch.arange(5)]), "epoch": 2})
    state = {"loader": {"buffer": Rows([torch.zeros(4, dtype=torch.int64)]), "epoch": 0}}
    checkpoint.load(place, state)
    assert [len(item) for item in state["loader"]["buffer"].items] == [3, 5]


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(place: Any, state: dict[str, Any], *parts: str, **options: Any) -> None:
    before = copy.deepcopy({k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in state.items()})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(place, state, **options)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    after = {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in state.items()}
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(*(torch.utils._pytree.tree_leaves(s) for s in (before, after)), strict=True)
    )  # nothing has been changed


def test_another_model_is_refused_with_the_differences(disk: Disk) -> None:
    place = put(disk, model=Net(4))
    refused(place, {"model": Net(6)}, "model/embed.weight is 5×4 in the checkpoint, 5×6 here")
    model = Net(4)
    model.haed = nn.Linear(4, 5, bias=False)
    refused(place, {"model": model}, "missing model/haed.weight (did you mean 'model/head.weight'", "strict=False")
    del model.haed, model.head
    refused(place, {"model": model}, "unexpected model/head.weight")
    report = checkpoint.load(place, {"model": model}, strict=False)
    assert report.unexpected == ["model/head.weight"]
    refused(place, {"modle": Net(4)}, "missing modle/gain (did you mean 'model/gain' or ")
    refused(place, {"step": 0}, "missing step")


def test_another_dtype_is_refused_or_converted(disk: Disk) -> None:
    place, other = put(disk, model=Net()), Net().bfloat16()
    refused(place, {"model": other}, "model/gain is float32 in the checkpoint, bfloat16 here (cast=True converts)")
    report = checkpoint.load(place, {"model": other}, cast=True)
    assert "model/gain is float32 in the checkpoint, bfloat16 here" in report.cast
    assert other.gain.dtype == torch.bfloat16
    assert other.gain.item() == 1.5


def test_another_optimizer_is_refused(disk: Disk) -> None:
    model = Net()
    place = put(disk, model=model, optimizer=trained(model))
    sgd = torch.optim.SGD(model.parameters())
    refused(place, {"model": model, "optimizer": sgd}, "optimizer is a SGD here, a AdamW in the checkpoint")
    two = torch.optim.AdamW([{"params": [model.gain]}, {"params": [model.empty]}])
    refused(place, {"model": model, "optimizer": two}, "optimizer has 2 parameter groups here, 1 in the checkpoint")
    groups = [{"params": [model.gain]}, {"params": [p for p in model.parameters() if p is not model.gain]}]
    grouped = put(disk, "groups", model=model, optimizer=torch.optim.AdamW(groups))
    swapped = torch.optim.AdamW(groups[::-1])
    refused(grouped, {"model": model, "optimizer": swapped}, "optimizer/gain is in parameter group 1 here, in 0 in the")
    schedule = torch.optim.lr_scheduler.ConstantLR(sgd)
    refused(place, {"optimizer": schedule}, "optimizer is optimizer in the checkpoint, stateful here")


def test_state_of_each_rank_returns_to_its_rank_only(disk: Disk) -> None:
    place = put(disk, rng=PerRank(torch.arange(3), 0, 1))
    state = {"rng": PerRank(torch.zeros(3, dtype=torch.int64))}
    checkpoint.load(place, state)
    assert state["rng"].value.tolist() == [0, 1, 2]
    refused(place, {"rng": PerRank(None, 0, 2)}, "rng was saved by each of 1 ranks, and this run has 2")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a/b": 1}, "'a/b' cannot be a key"),
        ({"$a": 1}, "cannot be a key"),
        ({1: 1}, "1 cannot be a key"),
        ({"x": object()}, "x is a object, which only pickle could store"),
        ({"x": [1, {"y": lambda: 0}]}, "x/1/y is a function, which only pickle could store"),
        ({"x": torch.ones(3).to_sparse()}, "x is a sparse tensor"),
        ({"x": torch.empty(3, device="meta")}, "x is on the meta device"),
        ({"x": FlatShard(torch.ones(5), 2, (2, 3))}, "flat shard 2:7 of x leaves its 6 elements"),
        ({"x": FlatShard(torch.ones(2, 3), 0, (2, 3))}, "is not flat"),
        ({"x": Shard(torch.ones(2), (0, 0), (2, 3))}, "shard of x has 1 axes, the tensor 2"),
        ({"x": Shard(torch.ones(2, 2), (0, 2), (2, 3))}, "shard [0:2, 2:4] of x leaves its shape [2, 3]"),
        ({"x": Shard(torch.ones(2, 2), (0, 0), (2, 3))}, "x of shape [2, 3]: [0:2, 2:3] is held by no rank"),
        ({"x": np.array(["text"])}, "x is a NumPy array of <U4, which has no defined bytes"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(disk: Disk, state: Any, message: str) -> None:
    put(disk, "before", x=1)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.save(MemoryStorage("c", disk), state)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(disk.checkpoints) == ["before"]
    assert not disk.drafts
    assert not disk.writers
    put(disk, "after", x=1)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_tensor_of_pytorchs_own_quantisation_is_refused(disk: Disk) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"x is a quantised tensor \(save int_repr\(\) with its scales"):
        checkpoint.save(MemoryStorage("c", disk), {"x": quantised})


def test_a_target_that_cannot_take_values_is_refused_by_name(disk: Disk) -> None:
    place = put(disk, x=torch.ones(2, 3))
    for target, message in (
        (torch.empty(2, 3, device="meta"), "x is on the meta device"),
        (Shard(torch.zeros(2, 2), (0, 2), (2, 3)), "leaves"),
        (torch.zeros(2, 1).expand(2, 3), "x"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.load(place, {"x": target})
        assert "damaged" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- async


def test_what_training_changes_after_an_asynchronous_save_is_not_saved(disk: Disk) -> None:
    model = Net()
    optimizer = trained(model)
    values = {"losses": [1.0, 2.0], "rng": torch.get_rng_state()}
    before = everything(model, optimizer)
    handle = checkpoint.save(
        MemoryStorage("c", disk), {"model": model, "optimizer": optimizer, "values": values}, asynchronous=True
    )
    assert handle.staged.done()
    with torch.no_grad():
        for tensor in (*model.state_dict().values(), *(t for s in optimizer.state.values() for t in s.values())):
            tensor.zero_()
    optimizer.param_groups[0]["lr"] = 9.0
    values["losses"].append(3.0)
    values["rng"].zero_()
    handle.wait()
    other, state = Net(), {"losses": None, "rng": None}
    optimizer2 = torch.optim.AdamW(other.parameters())
    found = {"model": other, "optimizer": optimizer2, "values": state}
    checkpoint.load(MemoryStorage("c", disk), found)
    assert same(everything(other, optimizer2), before)
    assert optimizer2.param_groups[0]["lr"] == 0.01
    assert found["values"]["losses"] == [1.0, 2.0]
    assert found["values"]["rng"].any()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc: the memory in use cannot be read")
def test_many_asynchronous_saves_do_not_grow(tmp_path: Path) -> None:
    state = {"w": torch.zeros(4 << 20, dtype=torch.uint8), "small": [torch.zeros(10) for _ in range(20)]}

    def save() -> None:
        checkpoint.save(tmp_path / "c", state, asynchronous=True, overwrite=True)

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(5):
        save()
    checkpoint.finish()
    gc.collect()
    before, objects = pages(), len(gc.get_objects())
    for _ in range(50):
        save()
    checkpoint.finish()
    gc.collect()
    assert (pages() - before) * resource.getpagesize() < 20 << 20  # a leak would be 200 MB
    assert len(gc.get_objects()) - objects < 500
