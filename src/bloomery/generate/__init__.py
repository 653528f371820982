"""Samplers, KV-cached decoding, streaming, choice scoring and chat over the decoders of `bloomery.models`."""

from __future__ import annotations

from bloomery.generate.chat import Conversation, chat_prompt
from bloomery.generate.choices import choice_logprobs
from bloomery.generate.decode import Completion, generate, stream
from bloomery.generate.engine import Engine, QueueFull, Request
from bloomery.generate.evaluate import TaskResult, evaluate
from bloomery.generate.sampling import SamplingParams, sample
from bloomery.generate.tasks import Task, load_task

__all__ = [
    "Completion",
    "Conversation",
    "Engine",
    "QueueFull",
    "Request",
    "SamplingParams",
    "Task",
    "TaskResult",
    "chat_prompt",
    "choice_logprobs",
    "evaluate",
    "generate",
    "load_task",
    "sample",
    "stream",
]
