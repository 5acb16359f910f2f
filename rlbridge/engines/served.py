"""Which model a server serves, under which name, and how long its context is.

Refuses to guess a name among several. A server of two routes alone is NeMo-RL's.
"""

from dataclasses import dataclass
from typing import Any, Final

from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.transport import EngineHttp
from rlbridge.errors import ConfigError, EngineError

Json = dict[str, Any]
# What probes send: in every vocabulary, above the special tokens that some have in front, and no
# chat template's text.
PROMPTS: Final = ([71, 83, 67, 79, 73], [97, 61, 103, 59], [89, 53, 101])
MESSAGES: Final = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True)
class Server:
    """A server that is asked what it is.

    Attributes:
        http: to it.
        config: of the policy.
        model: the name in requests.
        max_model_len: its context in tokens; None if it doesn't say.
        two_routes: whether it is NeMo-RL's.
    """

    http: EngineHttp
    config: PolicyConfig
    model: str
    max_model_len: int | None
    two_routes: bool

    @property
    def sampling(self) -> Json:
        """The sampling of a probe: exact where the trainer insists."""
        only = {"temperature": self.config.temperature, "top_p": self.config.top_p}
        if self.two_routes:
            only = {name: 1.0 if value is None else value for name, value in only.items()}
        return {name: value for name, value in only.items() if value is not None}


async def served(http: EngineHttp, config: PolicyConfig) -> Server:
    """The server as it tells of itself.

    Raises:
        ConfigError: its model must be named, or it hasn't the one that is.
        EngineError: it doesn't answer.
    """
    two_routes, length = config.wire == "nemo_rl", None
    try:
        cards = (await http.get("/v1/models")).get("data") or []
    except EngineError as error:
        if error.status not in (404, 405):
            raise
        cards = []
        tokenizes, length = await _tokenizes(http, config)
        two_routes = two_routes or (config.wire == "auto" and tokenizes)
    names = [str(card.get("id")) for card in cards]
    card = next((card for card in cards if card.get("id") == config.model), None)
    if card is None and config.model is not None and cards:
        raise ConfigError(f"{http.root} serves {_some(names)}, not the model {config.model!r}")
    if card is None and cards:
        own = [known for known in cards if not known.get("parent")]  # the others are adapters
        if len(own) != 1:
            raise ConfigError(f"{http.root} serves {_some(names)}: set model to one of them")
        card = own[0]
    model = config.model or (card or {}).get("id")
    if not model:
        raise ConfigError(
            f"{http.root} doesn't tell its model (no /v1/models): set model to the name the "
            "trainer serves it by (NeMo-RL: policy.model_name)"
        )
    length = (card or {}).get("max_model_len", length)
    return Server(http, config, str(model), length, two_routes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


async def _tokenizes(http: EngineHttp, config: PolicyConfig) -> tuple[bool, int | None]:
    """Whether there is a /tokenize: then it is NeMo-RL's, with two routes; and its context."""
    try:
        told = await http.post("/tokenize", {"prompt": "a"}, timeout_s=config.health_timeout_s)
    except EngineError as error:
        return error.status not in (0, 404, 405), None
    return True, told.get("max_model_len")
