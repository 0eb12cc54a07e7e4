"""Errors in OpenAI's form, which its clients turn into their own exceptions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from rmd.common.errors import RMDError, did_you_mean
from rmd.common.typed import UNKNOWN, and_more, dotted, sentence

GONE = 499
"""Status, in metrics only, of a request whose client has gone."""


class Problem(Exception):
    """An answer other than success.

    Attributes:
        status: the HTTP status.
        message: one sentence for whoever sent the request.
        code: a short name of the problem, for programs.
        param: name of the parameter that is wrong, if it is one.
        retry_after: seconds after which the request may succeed.
    """

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.param, self.retry_after = param, retry_after

    def response(self) -> JSONResponse:
        """Return the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        body = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": body}, self.status, headers)


def wrong(message: str, param: str | None = None, code: str = "invalid_value") -> Problem:
    """Return the problem of a request that is wrong."""
    return Problem(400, message, code, param=param)


@contextmanager
def refusing(param: str) -> Iterator[None]:
    """Turn an RMDError of the block into the problem of a request whose parameter `param` is wrong."""
    try:
        yield
    except RMDError as error:
        raise wrong(str(error), param) from error


def install(app: FastAPI, parameters: Sequence[str]) -> None:
    """Let an application answer every error in OpenAI's form; `parameters` are the names that its bodies know."""

    def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return of_validation(list(error.errors()), parameters).response()

    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def of_validation(problems: Sequence[ErrorDetails], known: Sequence[str]) -> Problem:
    """Return the problem of a body that is not what it should be.

    Args:
        problems: what pydantic says of it.
        known: names of the parameters.
    """
    first, *_ = ordered = sorted(problems, key=lambda problem: problem["type"] not in UNKNOWN)
    path = dotted([key for key in first["loc"] if key != "body"])
    more = and_more(ordered)
    if first["type"] in UNKNOWN:
        return wrong(f"there is no parameter {path}{did_you_mean(path, known)}{more}", path, "unknown_parameter")
    if first["type"] == "json_invalid":
        return wrong("the request is not valid JSON", code="invalid_json")
    if not path:
        return wrong("the request should be a JSON object, with the header Content-Type: application/json")
    return wrong(sentence(first, path) + more, path)


def _problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return error.response()


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    texts = {
        404: f"there is nothing at {request.url.path[:100]}: this server has /v1/images/generations, /v1/videos and "
        "/v1/models",
        405: f"{request.url.path[:100]} does not take {request.method}",
        400: "the request cannot be read: send JSON in UTF-8",
    }
    codes = {404: "not_found", 405: "method_not_allowed"}
    text = texts.get(error.status_code, str(error.detail))
    return Problem(error.status_code, text, codes.get(error.status_code, "bad_request")).response()


def _unexpected(_: Request, __: Exception) -> JSONResponse:
    return Problem(500, "the server failed; its log says why", "server_error").response()
