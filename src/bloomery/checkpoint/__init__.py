"""Save/load/reshard/verify: layout-free, crash-safe checkpoints without pickle, usable in any PyTorch program.

from bloomery import checkpoint

handle = checkpoint.save("run/step-100", {"model": model, "optimizer": optimizer, "step": 100}, asynchronous=True)
state = {"model": model, "optimizer": optimizer, "step": 0}
checkpoint.load("run/step-100", state)  # in place, whatever layout it was saved from
checkpoint.verify("run/step-100")

Other formats are in modules of their own: `dcp`, `huggingface`, `megatron`, `hf_trainer`.
"""

from bloomery.checkpoint.boxes import Box
from bloomery.checkpoint.compare import Difference, diff
from bloomery.checkpoint.elastic import ElasticSampler, Rng
from bloomery.checkpoint.folder import Checkpoints
from bloomery.checkpoint.layout import FlatShard, Shard, Shards
from bloomery.checkpoint.loading import LoadReport, load, read_manifest, verify
from bloomery.checkpoint.manifest import Manifest
from bloomery.checkpoint.resharding import reshard
from bloomery.checkpoint.saving import Handle, finish, save
from bloomery.checkpoint.state import Named
from bloomery.checkpoint.storage import FsspecStorage, LocalStorage, Storage, storage
from bloomery.checkpoint.tree import PerRank, Rows

__all__ = [
    "Box", "Checkpoints", "Difference", "ElasticSampler", "FlatShard", "FsspecStorage", "Handle", "LoadReport",
    "LocalStorage", "Manifest", "Named", "PerRank", "Rng", "Rows", "Shard", "Shards", "Storage", "diff", "finish",
    "load", "read_manifest", "reshard", "save", "storage", "verify",
]  # fmt: skip
