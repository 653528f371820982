"""One loop anybody can read: phases counted in tokens, schedules, gradients, checkpoints that resume bit for bit."""

from bloomery.train.config import Change, Phase, TrainConfig
from bloomery.train.evaluate import HeldOut, held_out
from bloomery.train.loop import Source, train
from bloomery.train.objectives import next_token
from bloomery.train.plateau import BatchGrowth, growths
from bloomery.train.rates import learning_rate, tokens_until
from bloomery.train.schedule import Plan
from bloomery.train.state import TrainResult
from bloomery.train.step import Batch, Objective, TrainError

__all__ = [
    "Batch",
    "BatchGrowth",
    "Change",
    "HeldOut",
    "Objective",
    "Phase",
    "Plan",
    "Source",
    "TrainConfig",
    "TrainError",
    "TrainResult",
    "growths",
    "held_out",
    "learning_rate",
    "next_token",
    "tokens_until",
    "train",
]
