"""Talking-heads attention."""

from .talkingheads import TalkingHeadsAttention as TalkingHeadsAttention
