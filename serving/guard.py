"""Who may ask, how much, and how slowly: the checks before a request is read.

By default the server listens to this machine only, and then anyone who can connect may ask. A page in the user's
browser can connect too, so requests with another site's Origin are refused, as are those whose Host is no name of this
machine: a site may point its own name here (DNS rebinding). With a key, which browsers do not send by themselves, there
is no need for that; it is compared in constant time, and required to listen to more than this machine. No CORS headers
are sent, so no other site reads a reply. There is no TLS: put a proxy that has it in front.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.hosts import is_loopback
from serving.request import RequestError

MAX_BODY = 1 << 20  # bytes
SLOWEST_HEADERS = 10  # seconds for all headers of a request
SLOWEST_BODY = 30  # seconds for all of a body
SLOWEST_READER = 60  # seconds in which a client must take a part of a long reply
MAX_CONNECTIONS = 512
OPEN_PATHS = ("/", "/health")  # without a key: the page itself holds nothing, and asks for it
SAFE = {
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
}  # fmt: skip


def check_access(method: str, path: str, headers: Headers, api_key: str | None) -> None:
    """RequestError if the request is refused, whatever it says."""
    if api_key is None:
        check_origin(headers.get("host", ""), headers.get("origin"))
    elif path not in OPEN_PATHS:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), api_key.encode())
        if scheme.lower() != "bearer" or not is_right:
            message = "a key is required: send it as Authorization: Bearer KEY"
            raise RequestError(message, status=401, code="invalid_api_key")
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("the body must be JSON, with Content-Type: application/json", status=415)


def check_origin(host: str, origin: str | None) -> None:
    """RequestError for a request that a page of another site may have sent."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        is_own = origin is None or urlsplit(origin).netloc == host
    except ValueError:
        name, is_own = "", False
    if not is_loopback(name):
        raise RequestError(f"Host {host[:80]!r} is not this machine: use localhost, or set an API key", status=403)
    if not is_own:
        raise RequestError(f"requests of other sites ({(origin or '')[:80]!r}) are refused", status=403)


async def read_body(request: Request) -> bytes:
    """RequestError if it is too large or too slow."""
    body = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > MAX_BODY:
                raise RequestError(f"the body is larger than {MAX_BODY >> 20} MiB", status=413)

    try:
        await asyncio.wait_for(read(), SLOWEST_BODY)
    except asyncio.TimeoutError:
        raise RequestError(f"the body took longer than {SLOWEST_BODY} seconds", status=408) from None
    return bytes(body)


async def unless_gone(request: Request, work: Awaitable, on_gone: Callable[[], None]) -> bool:
    """Awaits `work`; if the client leaves first, calls on_gone(), and the result is False."""
    gone, done = asyncio.ensure_future(request.receive()), asyncio.ensure_future(work)
    try:
        await asyncio.wait((gone, done), return_when=asyncio.FIRST_COMPLETED)
        return done.done()
    finally:
        if not done.done():
            on_gone()
        for task in (gone, done):
            task.cancel()


class DeadlineProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, for clients that send all headers of a request within SLOWEST_HEADERS, and take their
    replies: one that lets them pile up for SLOWEST_READER is dropped."""

    deadline: asyncio.TimerHandle | None = None
    reading: asyncio.TimerHandle | None = None

    def is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.start_deadline()

    def data_received(self, data: bytes) -> None:
        self.start_deadline()
        super().data_received(data)
        if not self.is_waiting():
            self.end_deadline()

    def connection_lost(self, error: Exception | None) -> None:
        self.end_deadline()
        if self.reading is not None:
            self.reading.cancel()
        super().connection_lost(error)

    def pause_writing(self) -> None:
        self.reading = self.loop.call_later(SLOWEST_READER, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        self.reading.cancel()
        super().resume_writing()

    def start_deadline(self) -> None:
        if self.deadline is None and self.is_waiting():
            self.deadline = self.loop.call_later(SLOWEST_HEADERS, self.transport.abort)

    def end_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
