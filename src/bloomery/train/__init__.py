"""One loop anybody can read: phases counted in tokens, schedules, gradients, checkpoints that resume bit for bit."""

from bloomery.train.config import Phase, TrainConfig
from bloomery.train.evaluate import HeldOut, held_out
from bloomery.train.loop import Source, TrainResult, train
from bloomery.train.objectives import next_token
from bloomery.train.schedule import Plan, learning_rate
from bloomery.train.step import Batch, Objective, TrainError

__all__ = [
    "Batch",
    "HeldOut",
    "Objective",
    "Phase",
    "Plan",
    "Source",
    "TrainConfig",
    "TrainError",
    "TrainResult",
    "held_out",
    "learning_rate",
    "next_token",
    "train",
]
