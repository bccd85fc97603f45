"""The server's addresses, with Starlette on uvicorn, and the page (page.html) at /.

Both are small, widely used, well maintained and pure Python, with few dependencies. The standard library's server
takes a thread for each connection, which 64 clients that stream would make compete with the model for the interpreter;
aiohttp would do as well, but brings compiled parts and more packages.
"""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.curves import Curves
from serving.engine import Engine, Full
from serving.guard import SAFE, check_access, read_body, unless_gone
from serving.llamacpp import Infilling, LlamaCompletion, props
from serving.openai import ChatCompletion, Completion, check_model, models
from serving.reply import Reply, Served
from serving.request import Fields, RequestError

PAGE = Path(__file__).with_name("page.html")


def encoded(value) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Json(Response):
    media_type = "application/json"

    def render(self, content) -> bytes:
        return encoded(content)


def error_response(error: RequestError) -> Json:
    headers = {"Retry-After": "1"} if error.status == 429 else {}
    headers |= {"Connection": "close"} if error.status in (408, 413) else {}  # the rest of the body is not read
    return Json(error.to_json(), error.status, headers)


class Events(StreamingResponse):
    """Server-sent events; on_end() is called after the last one, or when the client is gone, before the first too."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]):
        super().__init__(events, headers={"X-Accel-Buffering": "no"})  # nginx would hold them back
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.on_end()


class Guard:
    """An application that answers only the requests that check_access lets through, with headers that keep browsers
    from misusing the replies."""

    def __init__(self, app: ASGIApp, api_key: str | None):
        self.app, self.api_key = app, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def safe(message) -> None:
            if message["type"] == "http.response.start":
                more = {name.lower().encode(): value.encode() for name, value in SAFE.items()}
                message["headers"] = [*message["headers"], *more.items()]
            await send(message)

        try:
            check_access(scope["method"], scope["path"], Headers(scope=scope), self.api_key)
        except RequestError as error:
            return await error_response(error)(scope, receive, safe)
        await self.app(scope, receive, safe)


class Server:
    """The addresses. One request is made ready (its prompt encoded) at a time, in a thread of its own."""

    def __init__(self, served: Served, engine: Engine, out_dir: Path | None):
        self.served, self.engine, self.curves = served, engine, Curves(out_dir)
        self.preparing = ThreadPoolExecutor(1, "prepare")
        self.page = PAGE.read_bytes().replace(b"\r\n", b"\n")  # as browsers hash it

    def routes(self) -> list[Route]:
        kinds = {
            "/v1/completions": Completion, "/v1/chat/completions": ChatCompletion, "/completion": LlamaCompletion,
            "/completions": LlamaCompletion, "/infill": Infilling,
        }  # fmt: skip
        posts = [Route(path, self.writer(kind), methods=["POST"]) for path, kind in kinds.items()]
        gets = {
            "/": self.show_page,
            "/health": self.health,
            "/v1/models": fixed(models(self.served)),
            "/models": fixed(models(self.served)),
            "/v1/models/{name:path}": self.model,
            "/props": fixed(props(self.served, self.engine.max_batch)),
            "/run": self.run,
        }
        return posts + [Route(path, answer) for path, answer in gets.items()]

    async def show_page(self, _: Request) -> Response:
        return Response(self.page, headers={"Content-Security-Policy": policy(self.page)}, media_type="text/html")

    async def health(self, _: Request) -> Json:
        if self.engine.thread.is_alive():
            return Json({"status": "ok"})
        return error_response(RequestError("the model's thread has ended: see the server's log", status=503))

    async def model(self, request: Request) -> Json:
        try:
            check_model(self.served, request.path_params["name"])
        except RequestError as error:
            return error_response(error)
        return Json(models(self.served)["data"][0])

    async def run(self, _: Request) -> Json:
        return Json(await asyncio.to_thread(self.curves.of))  # a long file delays no prompt

    def writer(self, kind: type[Reply]):
        async def answer(request: Request) -> Response:
            try:
                body = await read_body(request)
                prepare = asyncio.get_running_loop().run_in_executor
                reply = await prepare(self.preparing, lambda: kind(self.served, Fields(body)))
                self.engine.submit(reply.rows)
                cancel = partial(self.engine.cancel, reply.rows)  # no effect once they are done
                if reply.streams:
                    return Events(self.events(reply), cancel)
                if not await unless_gone(request, self.finished(reply), cancel):
                    return Response(status_code=499)  # nobody reads it
                reply.check()
                return Json(reply.whole())
            except ClientDisconnect:
                return Response(status_code=499)
            except Full:
                message = "too many requests are waiting: try again in a moment"
                return error_response(RequestError(message, status=429, code="queue_full"))
            except RequestError as error:
                return error_response(error)
            except ValueError as error:  # what a tokenizer cannot encode
                return error_response(RequestError(str(error)))

        return answer

    async def finished(self, reply: Reply) -> None:
        while not reply.done:
            await reply.wake.wait()
            reply.wake.clear()

    async def events(self, reply: Reply) -> AsyncIterator[bytes]:
        """What a streaming client gets."""
        try:
            for event in reply.first():
                yield sse(event)
            is_done = False
            while not is_done:
                await reply.wake.wait()
                reply.wake.clear()
                is_done = reply.done  # before the news is read: none comes after it
                reply.check()
                if news := b"".join(sse(event) for i in range(len(reply.rows)) for event in reply.grown(i)):
                    yield news
            for event in reply.last():
                yield sse(event)
            if not isinstance(reply, LlamaCompletion):
                yield b"data: [DONE]\n\n"
        except RequestError as error:
            yield sse(error.to_json())


def fixed(value: dict):
    async def answer(_: Request) -> Json:
        return Json(value)

    return answer


def sse(event: dict) -> bytes:
    return b"data: " + encoded(event) + b"\n\n"


def policy(page: bytes) -> str:
    """A Content-Security-Policy for a page of one file: its own scripts and styles, by their hashes, and no others."""
    allowed = {"script": [], "style": []}
    for tag, text in re.findall(rb"<(script|style)>(.*?)</\1>", page, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        allowed[tag.decode()].append(f"'sha256-{digest}'")
    rules = [f"{tag}-src {' '.join(hashes)}" for tag, hashes in allowed.items()]
    rest = ["connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    return "; ".join(["default-src 'none'", *rules, *rest])


def wake(replies: Iterable[Reply]) -> None:
    for reply in replies:
        reply.wake.set()


def http_error(_: Request, error: Exception) -> Json:
    """Unknown addresses and methods, in the shape that clients expect."""
    assert isinstance(error, HTTPException)
    return Json(RequestError(error.detail, status=error.status_code).to_json(), error.status_code, error.headers)


def internal_error(_: Request, __: Exception) -> Json:
    """An error of this program, which is also in its log."""
    return Json(RequestError("internal error: the server's log says more", status=500).to_json(), 500)


def make_app(served: Served, engine: Engine, api_key: str | None, out_dir: Path | None) -> ASGIApp:
    routes = Server(served, engine, out_dir).routes()
    handlers = {HTTPException: http_error, Exception: internal_error}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), api_key)
