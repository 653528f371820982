"""Samplers, KV-cached decoding, streaming, choice scoring and chat over the decoders of `bloomery.models`."""

from __future__ import annotations

from bloomery.generate.chat import Conversation, chat_prompt
from bloomery.generate.choices import choice_logprobs
from bloomery.generate.decode import Completion, generate, stream
from bloomery.generate.sampling import SamplingParams, sample

__all__ = [
    "Completion",
    "Conversation",
    "SamplingParams",
    "chat_prompt",
    "choice_logprobs",
    "generate",
    "sample",
    "stream",
]
