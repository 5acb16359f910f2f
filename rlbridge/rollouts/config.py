"""How rollouts are played: by an agent's `/run`, or by a policy, an environment and a judge."""

from typing import Any, Self

from pydantic import Field, SecretStr, model_validator

from rlbridge.config import StrictModel
from rlbridge.engines.config import check_url


class PlayConfig(StrictModel):
    """What a player needs; it travels to workers on other machines."""

    agent: str | None = None
    """Base URL of an agent that plays whole rollouts (`/run`)."""
    policy: str | None = None
    """Base URL of an OpenAI-style server: a vLLM, an rlbridge gateway, anything."""
    gym: str | None = None
    """Base URL of a resources server: tools, sessions and, without an evaluator, verdicts."""
    evaluator: str | None = None
    """Name of the evaluator that judges."""
    evaluator_options: dict[str, Any] = Field(default_factory=dict)
    """Its options."""

    model: str | None = None
    """Name of the policy's model in requests; asked of the server where it tells."""
    api_key: SecretStr | None = None
    """Sent to the policy as a bearer token; never logged, never written."""
    tokenizer: str | None = None
    """The policy's tokenizer with its chat template; the model's name unless given."""

    policy_wait_s: float = Field(default=60.0, gt=0)
    """How long the policy may take to come up."""

    agent_name: str = "rlbridge"
    """`agent_ref.name` of rows that have none; readers tell environments apart by it."""

    temperature: float | None = Field(default=None, ge=0)
    """Instead of the rows' own."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Likewise."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Likewise; of one answer."""
    max_turns: int = Field(default=32, ge=1)
    """Model calls a rollout at most; one that reaches it is judged as it stands."""
    max_tool_output_chars: int = Field(default=8192, ge=1)
    """A longer tool answer is cut, and says so."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.policy is not None:
            check_url(self.policy)
        if (self.agent is None) == (self.policy is None):
            raise ValueError(
                "who plays? Give --agent URL (an agent's /run), or --policy URL with --gym URL "
                "or --evaluator NAME"
            )
        if self.agent is not None and (self.gym or self.evaluator):
            raise ValueError("an agent brings its own tools and verdicts: no --gym, no --evaluator")
        if self.policy is not None and not (self.gym or self.evaluator):
            raise ValueError(
                "who judges? Give --gym URL of a resources server, or --evaluator NAME "
                "(`rlbridge plugins` lists them)"
            )
        return self

    def asked(self) -> dict[str, Any]:
        """What decides which rows come out, for the run's record."""
        return self.model_dump(mode="json", exclude={"api_key", "policy_wait_s"}, exclude_none=True)

    def overrides(self) -> dict[str, Any]:
        """Fields of `responses_create_params` that stand in place of the rows' own."""
        names = ("temperature", "top_p", "max_output_tokens")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
