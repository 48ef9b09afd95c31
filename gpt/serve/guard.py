"""Who may ask, and with how much. Stands in front of everything else.

A browser runs pages of strangers, and these can send requests to this machine. Two checks keep them out. The header
Host must name this server by its address or by a name that is surely its own: a stranger's name that was made to lead
here (DNS rebinding) is refused. And a request that a page of another Origin sends is refused. A server that others can
reach wants a token as well. It travels in a header and never in a cookie, so no other page can send it.
"""

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from gpt.serve.errors import RequestError

LARGEST_BODY = 1 << 20  # bytes
BODY_SECONDS = 30.0  # time in which a body must have come
PAGE = "/page/"  # the page's files, and "/" itself: they need no token, because they know nothing yet

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    # Only the page's own files may run, be shown or be asked for; text of a model can do nothing of it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Guard:
    """The checks in front of an ASGI app, for a server that was started on `host`. Without a `token`, none is asked."""

    def __init__(self, app: App, host: str, token: str | None, refuse: Callable[[RequestError], App]) -> None:
        self._app, self._token, self._refuse = app, token, refuse
        self._names = {host.lower(), "localhost", socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the app's own beginning and end
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name.lower() for name, _ in message["headers"]}
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(each for each in extra if each[0] not in named)]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
            whole = await _whole(headers, receive)
        except RequestError as error:
            await self._refuse(error)(scope, receive, send_with_headers)
        except _GoneError:
            pass  # nobody waits for an answer
        else:
            await self._app(scope, whole, send_with_headers)

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raises RequestError if Host, Origin or the token are not as they should be."""
        host = headers.get("host", "")
        if not self._is_own(host):
            message = (
                f"Host is {host!r}, which is not a name of this server: ask by its address, or start it with --host"
            )
            raise RequestError(403, message, "wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise RequestError(403, f"a page of {origin!r} may not ask this server", "wrong_origin")
        if self._token is None or scope["path"] == "/" or scope["path"].startswith(PAGE):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            message = "the token is missing or wrong: send the header `Authorization: Bearer TOKEN`"
            raise RequestError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _is_own(self, host: str) -> bool:
        """Whether a Host is an address, which nobody else can lead here by a name, or a name of this server."""
        name = host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._names
        return True


_TOO_LARGE = RequestError(413, f"the body is larger than {LARGEST_BODY} bytes", "body_too_large")


class _GoneError(Exception):
    """The client has gone before its whole body had come."""


async def _whole(headers: Mapping[str, str], receive: Receive) -> Receive:
    """A `receive` that has the whole body of the request at once.

    Raises RequestError if the body is too large, or does not come in time, and _GoneError.
    """
    announced = headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > LARGEST_BODY:
        raise _TOO_LARGE
    try:
        body = await asyncio.wait_for(_read(receive), BODY_SECONDS)
    except asyncio.TimeoutError:  # the same as TimeoutError only from Python 3.11 on
        raise RequestError(408, f"the body has not come within {BODY_SECONDS:.0f} s", "body_too_slow") from None
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def receive_whole() -> Message:
        return messages.pop() if messages else await receive()

    return receive_whole


async def _read(receive: Receive) -> bytes:
    """The body. Raises RequestError if it is too large, and _GoneError."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            raise _TOO_LARGE
        if not message.get("more_body"):
            return bytes(body)
