"""What a client is told of a failure, in OpenAI's form."""

from typing import Any

LOST_TOO_OFTEN = "lost_too_often"


class ApiError(Exception):
    """A request is answered with an error; `retry_after_s` says when the same one may be sent again.

    One that `is_final` is not to be sent again as it is: OpenAI's client does so by itself with
    what else has a status of 500 or more.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str,
        retry_after_s: int | None = None,
        is_final: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.is_final = is_final

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        headers |= {"x-should-retry": "false"} if self.is_final else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})  # noqa: PLR2004 # HTTP's

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"message": str(self), "type": _TYPES[self.status], "param": self.param, "code": self.code}}


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}


def wrong(param: str, message: str) -> ApiError:
    """Return the error for a field, of which the message says value, rule and way out."""
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")


def full(retry_after_s: int) -> ApiError:
    """Return the error for a line that is full."""
    return ApiError(
        429,
        f"as many requests are in work and in line as may be; send it again in {retry_after_s} s, or to fewer at once",
        code="line_full",
        retry_after_s=retry_after_s,
    )


def not_ready(reason: str) -> ApiError:
    """Return the error while stages are missing, or when an answer was lost with them."""
    return ApiError(503, f"{reason}; send the request again", code="not_ready", retry_after_s=5)


def lost_too_often(reason: str) -> ApiError:
    """Return the error for an answer that may itself be what ends the stages."""
    return ApiError(
        500,
        f"{reason}; it may be this request that ends stages: their logs say why",
        code=LOST_TOO_OFTEN,
        is_final=True,
    )


def no_numbers() -> ApiError:
    """Return the error for logits of which no token can be chosen."""
    return ApiError(
        500,
        "the model's logits are not numbers after this text (overflow, or weights that are damaged), so that no token"
        " can be chosen; look at the weights, or send another text",
        code="not_a_number",
        is_final=True,
    )


def slow_body(limit_s: float) -> ApiError:
    """Return the error for a body that took too long to arrive."""
    return ApiError(
        408, f"the body did not arrive within {limit_s:g} s; send it faster, or send less", code="slow_body"
    )


def too_slow(limit_s: float) -> ApiError:
    """Return the error for an answer that took too long."""
    return ApiError(
        504,
        f"the answer took longer than the {limit_s:g} s that a request may take; ask for fewer tokens",
        code="timeout",
        is_final=True,
    )
