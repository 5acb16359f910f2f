"""Prompt configs: a row's raw fields become Chat messages, once and never twice."""

from rlbridge.prompts.config import PromptConfig

__all__ = ["PromptConfig"]
