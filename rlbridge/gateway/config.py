"""What can be set about a gateway's core. Where it listens and who may ask is the server's.

Every duration is in seconds. There is no -1 that means "off": what is off is null or left out.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rlbridge.config import StrictModel
from rlbridge.parsing.style import ReasoningStyle, ToolStyle


class SamplingPolicy(StrictModel):
    """Who decides how tokens are sampled."""

    mode: Literal["client", "trainer"] = "client"
    """client: the client's parameters count, those below fill what it leaves out. trainer: those
    below count, and what they don't name of temperature, top_p, top_k, min_p, penalties and
    logit_bias stays at the engine's neutral value."""
    conflict: Literal["override", "refuse"] = "override"
    """trainer mode, when a client asks for something else: override and say so in the reply's
    headers, or refuse with a 400 that names the field."""
    temperature: float | None = Field(default=None, ge=0)
    """Trainers compare logprobs at 1.0 unless the engine reports processed ones."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus; null for the engine's default."""
    top_k: int | None = Field(default=None, ge=1)
    """Only the k likeliest tokens; null for all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability relative to the likeliest token."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """OpenAI's."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """OpenAI's."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """vLLM's."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens an answer may have, whatever the mode; always within the context."""


class ParsingConfig(StrictModel):
    """How answers are read where the engine doesn't read them."""

    tools: ToolStyle | Literal["auto"] = "auto"
    """How the model writes tool calls; auto: found in its chat template."""
    reasoning: ReasoningStyle | Literal["auto"] = "auto"
    """How it writes reasoning; none leaves reasoning in the content."""


class CaptureConfig(StrictModel):
    """Where calls are kept beyond the gateway's life."""

    folder: Path | None = None
    """Append-only JSONL files; null keeps calls in memory alone."""
    fsync: Literal["never", "interval", "always"] = "interval"
    """When files are forced to disk. Even never survives a killed gateway; always survives a
    power cut, at the price of waiting before each reply."""
    fsync_interval_s: float = Field(default=1.0, gt=0)
    """For fsync: interval."""
    segment_mb: float = Field(default=256, gt=0)
    """A file longer than this is followed by another."""
    keep_days: float | None = Field(default=None, gt=0)
    """Delete files last written to longer ago, once no session in them goes on in a younger one;
    null keeps them. Looked at when the gateway starts and when a file is full. The folder is then
    this gateway's alone."""
    keep_gb: float | None = Field(default=None, gt=0)
    """Likewise, the oldest of what is beyond so much (1e9 bytes). Sessions in memory stay, so more
    may be there."""

    @property
    def deletes(self) -> bool:
        """Whether captures are deleted in time."""
        return self.keep_days is not None or self.keep_gb is not None


class SessionsConfig(StrictModel):
    """How many sessions are remembered, and for how long."""

    idle_expiry_s: float = Field(default=3600.0, gt=0)
    """A session nobody used for this long is forgotten, or left on disk where captures are."""
    max_sessions: int = Field(default=20_000, ge=1)
    """Sessions in memory. Idle ones give way where captures keep them; else new ones get a 503."""
    max_tokens: int = Field(default=200_000_000, ge=1)
    """Tokens in memory, all sessions together; likewise."""
    implicit: bool = True
    """A call that names a session nobody opened opens it; false answers 404."""
    cookie: bool = False
    """Give calls without a session a cookie. Right for clients with one cookie jar a rollout
    (Gym's agents), wrong for the openai client, which has one jar for everything."""


class GatewayConfig(StrictModel):
    """The gateway's core."""

    sampling: SamplingPolicy = SamplingPolicy()
    """Who decides how tokens are sampled."""
    parsing: ParsingConfig = ParsingConfig()
    """How answers are read."""
    sessions: SessionsConfig = SessionsConfig()
    """How long calls are remembered."""
    capture: CaptureConfig = CaptureConfig()
    """Where calls are kept."""
    model: str | None = None
    """The name clients call the model by; null for the engine's own. Any other name is a 404."""
    token_fields: bool = True
    """Token IDs and logprobs on replies, where Gym and NeMo-RL look for them."""
    template_options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Passed to the chat template at every rendering (`enable_thinking`, ...)."""
    stop_token_ids: tuple[int, ...] = ()
    """IDs that end an answer besides the tokenizer's EOS (`eos_token_id` of the generation
    config)."""
    abort_attempts: int = Field(default=3, ge=1)
    """How often a call is sent when the engine aborts it, the first time included."""
    abort_wait_s: float = Field(default=0.2, ge=0)
    """Wait before an aborted call is sent again; doubles each time."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        capture = self.capture
        if capture.deletes and capture.folder is None:
            raise ValueError("capture.keep_days and keep_gb are about files; give capture.folder")
        sampling = self.sampling
        if sampling.mode == "trainer" and sampling.temperature is None:
            raise ValueError("sampling.mode: trainer needs sampling.temperature")
        return self
