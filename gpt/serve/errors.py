"""Errors of a request, in OpenAI's form."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt.errors import UserError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that is answered with an error of this HTTP status.

    `code` is a word for programs, and `param` names the field of the request that is at fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def __reduce__(self) -> tuple[type["RequestError"], tuple[object, ...]]:
        """How it travels from one process to the other: with all it was made of, not with its message alone."""
        return RequestError, (self.status, self.message, self.code, self.param, self.headers)

    def to_json(self) -> dict[str, Any]:
        """For example {"error": {"message": "…", "type": "invalid_request_error", "param": "n", "code": None}}."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unreadable(
    error: UserError, root: Path, status: int, code: str | None = None, param: str | None = None
) -> RequestError:
    """The error that a file of a run in `root` causes. Clients need not know where on this machine the runs lie."""
    return RequestError(status, str(error).replace(f"{root}{os.sep}", ""), code, param)


ENDING = RequestError(503, "the server is ending: ask again when it is back", "server_ending")
