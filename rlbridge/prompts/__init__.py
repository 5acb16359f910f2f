"""Prompt configs: a row's raw fields become Chat messages, once and never twice."""

from rlbridge.prompts.config import MARK, PromptConfig, located

__all__ = ["MARK", "PromptConfig", "located"]
