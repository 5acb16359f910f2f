"""The wire of a resources server as pydantic models: what is required, refused and echoed.

Learnt from captured traffic of nemo-gym 0.4.0. The order of fields is the order of its echo.
One thing differs: for an output item that fits no type, the list of what was tried is ours.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["in_progress", "completed", "incomplete"]


class TokenFields(BaseModel):
    """Token data on an output item; complete or, as on the wire, dropped without a word."""

    prompt_token_ids: list[int]
    generation_token_ids: list[int]
    generation_log_probs: list[float]
    routed_experts: Any = None


class InputMessage(BaseModel):
    """A message of the prompt; `content` is text or a list of parts."""

    content: str | list[dict[str, Any]]
    role: Literal["user", "assistant", "system", "developer"]
    type: Literal["message"] = "message"


class OutputText(BaseModel):
    """A text part of an answer."""

    annotations: list[dict[str, Any]]
    text: str
    type: Literal["output_text"] = "output_text"
    logprobs: list[dict[str, Any]] | None = None


class Refusal(BaseModel):
    """A refusal part of an answer."""

    refusal: str
    type: Literal["refusal"] = "refusal"


class OutputMessage(BaseModel):
    """A message the policy wrote."""

    id: str
    content: list[OutputText | Refusal]
    role: Literal["assistant"] = "assistant"
    status: Status = "completed"
    type: Literal["message"] = "message"


class FunctionCall(BaseModel):
    """A tool call the policy wrote; `arguments` is JSON in a string."""

    arguments: str
    call_id: str
    name: str
    type: Literal["function_call"] = "function_call"
    id: str | None = None
    status: Status | None = None


class FunctionCallOutput(BaseModel):
    """What a tool answered."""

    call_id: str
    output: str
    type: Literal["function_call_output"] = "function_call_output"
    id: str | None = None
    status: Status | None = None


class SummaryText(BaseModel):
    """A part of a reasoning item."""

    text: str
    type: Literal["summary_text"] = "summary_text"


class Reasoning(BaseModel):
    """What the policy thought."""

    id: str
    summary: list[SummaryText]
    type: Literal["reasoning"] = "reasoning"
    encrypted_content: str | None = None


class TrainedMessage(OutputMessage, TokenFields):
    """An `OutputMessage` with token data."""


class TrainedCall(FunctionCall, TokenFields):
    """A `FunctionCall` with token data."""


class TrainedReasoning(Reasoning, TokenFields):
    """A `Reasoning` item with token data."""


Item = (
    InputMessage
    | OutputMessage
    | FunctionCall
    | FunctionCallOutput
    | Reasoning
    | TrainedMessage
    | TrainedCall
    | TrainedReasoning
)


class CreateParams(BaseModel):
    """`responses_create_params`; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    background: bool | None = None
    include: list[str] | None = None
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] | None = None
    model: str | None = None
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    store: bool | None = None
    temperature: float | None = None
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = Field(default_factory=list)
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    stream: Literal[False] | None = None


class ResponseObject(BaseModel):
    """A whole Responses object: seven fields are required beside `output`."""

    id: str
    created_at: float
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None
    instructions: str | list[Any] | None = None
    metadata: dict[str, str] | None = None
    model: str
    object: Literal["response"]
    output: list[Item]
    parallel_tool_calls: bool
    temperature: float | None = None
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None = None
    background: bool | None = None
    conversation: dict[str, Any] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    previous_response_id: str | None = None
    prompt: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    status: str | None = None
    text: dict[str, Any] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    usage: dict[str, Any] | None = None
    user: str | None = None


class SeedRequest(BaseModel):
    """The body of /seed_session: any object, but one there must be."""


class VerifyRequest(BaseModel):
    """What every verifier needs."""

    responses_create_params: CreateParams
    response: ResponseObject


class AggregateRequest(BaseModel):
    """The body of /aggregate_metrics."""

    verify_responses: list[dict[str, Any]]
