"""Errors as OpenAI clients expect them: a status and `{"error": {message, type, param, code}}`."""

from typing import Any

from rlbridge.errors import EngineError, RLBridgeError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    410: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(RLBridgeError):
    """A request that gets an error for an answer.

    Attributes:
        status: the HTTP status.
        param: the field it is about; None for none.
        code: a word for programs.
        retry_after_s: when the client may try again; None where that wouldn't help.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def document(self) -> dict[str, Any]:
        """The body."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def from_engine(error: EngineError) -> ApiError:
    """What a client is told of an engine's error: its own words, status and field.

    A refusal stays a refusal. Nobody answering is a 503 where the call may be sent again; what
    the engine got wrong is a 502.
    """
    if 400 <= error.status < 500 and error.status not in {401, 403}:
        status = error.status
    elif error.retryable:
        status = 503
    else:
        status = 502
    return ApiError(
        str(error),
        status=status,
        param=error.param,
        code=error.code or ("engine_unavailable" if status == 503 else None),
        retry_after_s=1.0 if status == 503 else None,
    )


def draining() -> ApiError:
    """The answer of a gateway that takes no more calls."""
    return ApiError(
        "this gateway is shutting down and takes no new calls",
        status=503,
        code="draining",
        retry_after_s=1.0,
    )
