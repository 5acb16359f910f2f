"""Every error rlbridge raises, sorted by who can act on it.

::

    RLBridgeError
    ├── ConfigError            the user: a config, a flag or an input file
    ├── ContractError          the caller: data that breaks a contract (also a ValueError)
    ├── GymError               the operator of a reward server; may be retried
    │   ├── GymConnectionError   nobody answered (refused, reset, DNS)
    │   ├── GymTimeoutError      no answer before the deadline (also a TimeoutError)
    │   ├── GymStatusError       an answer with a status of 400 or more
    │   └── GymReplyError        an answer nobody can use: not JSON, or not what the route promises
    ├── UpstreamError          the operator of an engine or a trainer; may be retried
    │   ├── EngineError          an inference engine refused or failed a call
    │   └── RunError             a training run stopped before its end
    └── PluginError            the plugin's author
        └── FrameworkMissingError  the plugin is fine, its framework isn't installed (the user)

A message says what happened, where, and what to do. Every error pickles, because errors
cross Ray actors: one positional argument (the message), everything else as attributes.
A reward that could not be computed is not an error but a value, see `contracts.reward`.
"""


class RLBridgeError(Exception):
    """Root of every error rlbridge raises on purpose."""


class ConfigError(RLBridgeError):
    """A config, a flag or an input file is wrong; the user can mend it."""


class ContractError(RLBridgeError, ValueError):
    """Data handed to rlbridge breaks a contract (lengths, ranges, types)."""


class GymError(RLBridgeError):
    """A reward server failed or answered what nobody can use.

    Attributes:
        url: the request's URL, without credentials; empty if there was none.
        attempts: how many times the request was sent.
    """

    def __init__(self, message: str, *, url: str = "", attempts: int = 1) -> None:
        super().__init__(message)
        self.url = url
        self.attempts = attempts


class GymConnectionError(GymError):
    """Nobody answered: connection refused, reset or closed, or the name is unknown."""


class GymTimeoutError(GymError, TimeoutError):
    """No whole answer arrived before the deadline."""


class GymStatusError(GymError):
    """The server answered with a status of 400 or more.

    Attributes:
        status: the HTTP status.
        detail: the server's own words, shortened.
    """

    def __init__(
        self, message: str, *, status: int = 0, detail: str = "", url: str = "", attempts: int = 1
    ) -> None:
        super().__init__(message, url=url, attempts=attempts)
        self.status = status
        self.detail = detail


class GymReplyError(GymError):
    """The server answered 200 with something that is not what the route promises."""


class UpstreamError(RLBridgeError):
    """An inference engine or a trainer failed."""


class EngineError(UpstreamError):
    """An inference engine refused a call, failed at it, or nobody answered.

    Attributes:
        status: the HTTP status; 0 where there was no answer.
        code: the engine's own word for it (OpenAI's `error.code` or `error.type`).
        param: the request's field it complains of, where it said.
        retryable: whether the same call may be sent again, to this engine or another.
        url: the request's URL, without credentials.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        param: str | None = None,
        retryable: bool = False,
        url: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retryable = retryable
        self.url = url


class RunError(UpstreamError):
    """A training run stopped before its end; the message says which component and why."""


class PluginError(RLBridgeError):
    """A plugin can't be loaded or breaks its hook's contract."""


class FrameworkMissingError(PluginError):
    """A plugin's framework isn't installed.

    Attributes:
        install: the command that installs it.
    """

    def __init__(self, message: str, *, install: str = "") -> None:
        super().__init__(message)
        self.install = install
