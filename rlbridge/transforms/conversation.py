"""What a rollout row says: prompt, completion, tools, reward. Every form Gym's rows have.

Refuses a row without a prompt or an output, with the JSON path and the nearest field.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import orjson

from rlbridge.contracts import wire
from rlbridge.contracts.reward import is_finite_number
from rlbridge.transforms.messages import Message, Style, chat_tools, messages_of
from rlbridge.transforms.reading import Row
from rlbridge.transforms.rejects import BadRowError

_INPUT: Final = "$.responses_create_params.input"
_OUTPUT: Final = "$.response.output"


class Prompt:
    """What came before the policy's first token; rows that share it may share this object.

    Args:
        messages: in chat form, the environment's opening included. Not to be changed.

    Attributes:
        messages: the same.
        written: the messages as `orjson` writes them, the same for the same prompt.
        plain: whether they are a user's one message, of text and no more.
    """

    __slots__ = ("messages", "plain", "written")

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.written = orjson.dumps(messages)
        one = len(messages) == 1 and len(messages[0]) == 2
        self.plain = one and self.written.startswith(_PLAIN)


class Prompts:
    """Makes prompts; one message of text is made once for the rows in succession that have it.

    Args:
        style: the form of reasoning and arguments.
    """

    __slots__ = ("_given", "_prompt", "style")

    def __init__(self, style: Style) -> None:
        self.style = style
        self._given: Any = None
        self._prompt = Prompt([])

    def of(self, params: dict[str, Any]) -> Prompt:
        """The prompt of a row's request, which may be empty.

        Raises:
            BadRowError: an item has no chat form.
        """
        given = params.get("input")
        if given and given == self._given and not params.get("instructions"):
            return self._prompt
        prompt = Prompt(_prompt(params, self.style))
        messages = prompt.messages
        # Of a text nothing counts but strings, so equal is the same (which 1, 1.0 and True aren't).
        if len(messages) == 1 and type(messages[0]["content"]) is str and len(messages[0]) == 2:
            self._given, self._prompt = given, prompt
        return prompt


@dataclass(slots=True)
class Conversation:
    """A rollout in chat messages.

    Attributes:
        prompt: what came before the policy's first token.
        completion: the policy's messages, and what the environment said between them.
        tools: in chat form (`{type: function, function: {...}}`).
    """

    prompt: Prompt
    completion: list[Message]
    tools: list[dict[str, Any]]


def reward_of(row: Row) -> float | None:
    """The row's reward, or None where it has none that may be trained on (`why_invalid`)."""
    reward = row.get(wire.REWARD)
    if (
        type(reward) is float
        and reward - reward == 0.0  # finite
        and row.get(wire.FAILURE_CLASS) is None
        and not row.get(wire.MASK_SAMPLE)
    ):
        return reward
    return None if why_invalid(row) else float(row[wire.REWARD])


def why_invalid(row: Row) -> str:
    """Why a row's reward counts as absent; empty if it doesn't."""
    failure = row.get(wire.FAILURE_CLASS)
    if failure is not None:
        return f"failed: {failure}"
    if row.get(wire.MASK_SAMPLE):
        return "masked by the environment"
    reward = row.get(wire.REWARD)
    if reward is None:
        return "no reward"
    return "" if is_finite_number(reward) else "reward is no finite number"


def output_of(row: Row) -> list[Any]:
    """The row's Responses items (or chat messages): `response.output`, or the old `output`.

    Raises:
        BadRowError: there is none.
    """
    response = row.get(wire.RESPONSE)
    if type(response) is dict:
        output = response.get("output")
        if type(output) is list and output and type(output[0]) is dict:
            return output
        if output is None:
            output = _message_of(response.get("choices"))
    elif isinstance(response, str):
        output = response
    else:
        output = row.get("output")
    if isinstance(output, str):
        return [{"type": "message", "role": "assistant", "content": output}]
    if not isinstance(output, list):
        raise missing(row, wire.RESPONSE, f"{_OUTPUT} is missing, so there is no rollout here")
    if output and isinstance(output[0], list):
        return _last_transition(output)
    return output


def conversation_of(row: Row, prompts: Prompts) -> Conversation:
    """The row as chat messages.

    Raises:
        BadRowError: the row has no prompt, no output, or an item without a chat form.
    """
    params = row.get(wire.RESPONSES_CREATE_PARAMS)
    if type(params) is not dict:
        raise missing(row, wire.RESPONSES_CREATE_PARAMS, "the row has no prompt")
    output = output_of(row)
    prompt = prompts.of(params)
    opening = 0  # an environment's own first words belong to the prompt
    for item in output:
        if type(item) is not dict or item.get("role") not in _ENVIRONMENT:
            break
        opening += 1
    if opening:
        opened = messages_of(output[:opening], prompts.style, _OUTPUT)
        prompt = Prompt(prompt.messages + opened)
        output = output[opening:]
    if not prompt.messages:
        raise BadRowError(f"{_INPUT} is empty", at=_INPUT, kind="no prompt")
    completion = messages_of(output, prompts.style, _OUTPUT, opening, "assistant")
    tools = params.get("tools")
    return Conversation(prompt, completion, chat_tools(tools) if tools else [])


def prompt_of(row: Row, style: Style) -> list[Message]:
    """The messages of the row's own prompt, without an environment's opening.

    Raises:
        BadRowError: there is none.
    """
    params = row.get(wire.RESPONSES_CREATE_PARAMS)
    if not isinstance(params, dict):
        raise missing(row, wire.RESPONSES_CREATE_PARAMS, "the row has no prompt")
    prompt = _prompt(params, style)
    if not prompt:
        raise BadRowError(f"{_INPUT} is empty", at=_INPUT, kind="no prompt")
    return prompt


def missing(row: Row, name: str, why: str) -> BadRowError:
    """What to say of a field that isn't there: why it matters, and what it may be called here."""
    close = get_close_matches(name, [key for key in row if key != name], n=1, cutoff=0.6)
    has = ", ".join(list(row)[:8]) or "nothing"
    near = f"the nearest field is $.{close[0]}" if close else f"the row has {has}"
    return BadRowError(f"{why}; {near}", at=f"$.{name}", kind=f"no {name}")


_ENVIRONMENT: Final = ("user", "system", "developer")  # no set: a bad role may be a list
_PLAIN: Final = b'[{"role":"user","content":"'


def _prompt(params: dict[str, Any], style: Style) -> list[Message]:
    given = params.get("input")
    system = params.get("instructions")
    head = [{"role": "system", "content": system}] if system else []
    if type(given) is str:
        return [*head, {"role": "user", "content": given}] if given else head
    if given is None:
        return head
    if not isinstance(given, list):
        raise BadRowError(
            f"the input must be text or a list, not {type(given).__name__}", at=_INPUT
        )
    messages = messages_of(given, style, _INPUT)
    return head + messages if head else messages


def _message_of(choices: Any) -> list[Any] | None:
    """The message of a chat completion's choices; None where there are none."""
    if not choices:
        return None
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise BadRowError("must be a list of objects", at="$.response.choices")
    return [choices[0].get("message")]


def _last_transition(states: list[Any]) -> list[Any]:
    """The whole trajectory of an output that holds the agent's state at every step (aviary's)."""
    whole: list[Any] = []
    for number, state in enumerate(states):
        if not isinstance(state, list):
            raise BadRowError("a state must be a list of items", at=f"{_OUTPUT}[{number}]")
        whole = state if state[: len(whole)] == whole else whole + state
    return whole


def plain_text(written: bytes) -> bytes:
    """The JSON string of a plain prompt's text, cut out of the prompt as it is written."""
    return written[len(_PLAIN) - 1 : -2]
