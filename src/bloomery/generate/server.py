"""A model behind OpenAI's HTTP protocol: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health`.

```text
HTTP (asyncio, one thread) ── requests ──> Engine (continuous batching, one thread)
                           <── pieces of text ──
```

A request that cannot be served is refused before it costs anything: 429 when the queue is full, 400 with the field's
name when it asks for something else than it gets. A client that goes away frees its place in the batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from tokenizers import Tokenizer

from bloomery.core.errors import BloomeryError, ConfigError, require
from bloomery.core.log import logger
from bloomery.corpus import chat
from bloomery.generate.engine import Engine, QueueFull
from bloomery.generate.engine import Request as Running
from bloomery.generate.openai_api import (
    Answer,
    ApiError,
    Ask,
    Limits,
    decode,
    model_card,
    model_list,
    parse_chat,
    parse_completion,
)

for _package in ("fastapi", "uvicorn"):
    require(_package, "serve")
import uvicorn  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402
from fastapi.responses import JSONResponse, Response  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.requests import ClientDisconnect  # noqa: E402
from starlette.types import Message, Receive, Scope, Send  # noqa: E402

T = TypeVar("T")
RETRY_AFTER = 1  # seconds; what a client that is told 429 should wait
BODY_SECONDS = 30  # for a body to arrive; meanwhile it holds a place
GONE = 499  # status of an answer that nobody reads


class Worker:
    """The thread that drives an engine while there is something to do."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._work, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="bloomery-engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Return when the step that runs is over; what has not ended by then never will."""
        self._stopping = True
        self._work.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests will be served."""
        return self._thread.is_alive()

    def submit(self, *args: Any, **options: Any) -> Running:
        """As `Engine.submit`."""
        request = self.engine.submit(*args, **options)
        self._work.set()
        return request

    def cancel(self, request: Running) -> None:
        """As `Engine.cancel`."""
        self.engine.cancel(request)
        self._work.set()

    def _run(self) -> None:
        while not self._stopping:
            self._work.clear()  # before the step: what arrives during it is not missed
            try:
                busy = self.engine.step()
            except Exception:
                logger("serve").exception("the engine failed; its running requests have ended")
                continue
            if not busy:
                self._work.wait()


def create_app(
    engine: Engine,
    name: str,
    *,
    api_key: str = "",
    limits: Limits | None = None,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> FastAPI:
    """The application, for any ASGI server. It drives the engine from its start-up to its shutdown.

    `name` is what clients call the model. With an `api_key` every request but `/health` must carry it. `template` and
    `variables` are those of `bloomery.corpus.chat`.
    """
    service = _Service(engine, name, limits or Limits(), template, dict(variables or {}))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    created = int(time.time())

    def guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def checked(http: Request) -> Response:
            given = http.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
            if api_key and not hmac.compare_digest(given, api_key.encode()):
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
            return await handler(http)

        return checked

    async def models(_: Request) -> Response:
        return JSONResponse(model_list(name, created))

    async def model(http: Request) -> Response:
        asked = http.path_params["model"]
        if asked != name:
            raise ApiError(404, f"there is no model {asked!r:.80} (this server has {name!r})", code="model_not_found")
        return JSONResponse(model_card(name, created))

    async def health(_: Request) -> Response:
        alive = service.worker.alive
        state = {"status": "ok" if alive else "failed", "running": engine.running, "waiting": engine.waiting}
        return JSONResponse(state, 200 if alive else 503)

    app.add_route("/v1/chat/completions", guarded(functools.partial(service.complete, True)), methods=["POST"])
    app.add_route("/v1/completions", guarded(functools.partial(service.complete, False)), methods=["POST"])
    app.add_route("/v1/models", guarded(models), methods=["GET"])
    app.add_route("/v1/models/{model:path}", guarded(model), methods=["GET"])
    app.add_route("/health", health, methods=["GET"])
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _refused)
    return app


class Server:
    """The application on a socket. `run` serves until a signal or `stop`; the requests that run may still end.

    ```python
    server = Server(create_app(Engine(model, tokenizer), "mine"), port=8000)
    server.run()
    ```
    """

    def __init__(self, app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000, grace: int = 30) -> None:
        if not 0 <= port < 1 << 16:
            raise ConfigError(f"port is {port}", fix="from 0, which takes a free one, to 65535")
        try:
            self._socket = socket.create_server((host, port), family=_family(host), backlog=2048)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error  # of names: below zero
            raise ConfigError(f"cannot listen on {host} port {port}: {why}", fix="give another host or port") from error
        self.port: int = self._socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=grace
            )
        )

    def run(self) -> None:
        """Serve; returns after a graceful shutdown."""
        with self._socket:
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Ask for a shutdown, from any thread: no new connections; those there are have `grace` seconds to finish."""
        self._server.should_exit = True


class _Service:
    """Turns HTTP requests into engine requests and their progress into answers."""

    def __init__(
        self, engine: Engine, name: str, limits: Limits, template: str | None, variables: dict[str, Any]
    ) -> None:
        self.engine, self.name = engine, name
        self.limits = replace(limits, choices=min(limits.choices, engine.max_queue))
        self.template, self.variables = template, variables
        self.worker = Worker(engine)
        self.tokenizer: Tokenizer = engine.tokenizer
        self._open = 0  # requests that are being received, waiting or answered

    async def complete(self, is_chat: bool, http: Request) -> Response:
        """Answer one completion request. Too many at once are refused before their bodies are read."""
        if self.engine.waiting >= self.engine.max_queue or self._open >= self.engine.max_queue + self.engine.max_batch:
            raise _busy()
        self._open += 1
        handed_on = False
        try:
            body = decode(await self._body(http))
            if is_chat:
                ask = parse_chat(body, self.name, self.limits, self._encode)
            else:
                ask = parse_completion(body, self.name, self.limits)
            progress = _Progress(self.worker, ask)
            answer = Answer(ask, self.name, self.tokenizer)
            if ask.stream:
                handed_on = True
                return _EventStream(progress, _events(progress, answer), self._close)
            return await _whole(progress, answer, http)
        except ClientDisconnect:  # before its body was here
            return Response(status_code=GONE)
        finally:
            if not handed_on:
                self._close()

    def _close(self) -> None:
        self._open -= 1

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        ids, _ = chat.encode(self.tokenizer, messages, self.template, add_generation_prompt=True, **self.variables)
        return ids

    async def _body(self, http: Request) -> bytes:
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # also keeps foreign web pages from sending forms to a server on this machine
            raise ApiError(415, f"the content type is {kind!r:.60} (send application/json)")
        most = self.limits.body_bytes
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in http.stream():
                    body += chunk
                    if len(body) > most:
                        raise ApiError(413, f"the body is larger than {most} bytes")
        except TimeoutError as error:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS} seconds") from error
        return bytes(body)


class _Progress:
    """The engine requests of an HTTP request and a queue of what becomes of them: (choice, text; None at the end)."""

    def __init__(self, worker: Worker, ask: Ask) -> None:
        self.worker = worker
        self.events: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()
        self.requests: list[Running] = []
        loop = asyncio.get_running_loop()

        def tell(choice: int, text: str | None) -> None:  # called from the engine's thread
            loop.call_soon_threadsafe(self.events.put_nowait, (choice, text))

        try:
            for choice in range(len(ask.prompts) * ask.n):
                self.requests.append(
                    worker.submit(
                        ask.prompts[choice // ask.n],
                        ask.params,
                        max_new_tokens=ask.max_tokens,
                        stop=ask.stop,
                        index=choice,
                        on_text=functools.partial(tell, choice) if ask.stream else None,
                        on_end=functools.partial(lambda choice, _: tell(choice, None), choice),
                    )
                )
        except QueueFull as error:
            self.cancel()
            raise _busy() from error
        except ConfigError as error:  # too long, or tokens the model does not know
            self.cancel()
            field = "messages" if ask.chat else "prompt"
            code = "context_length_exceeded" if "positions" in error.what else None
            raise ApiError(400, f"{field}: {error}", param=field, code=code) from error

    def cancel(self) -> None:
        """End what has not ended, so that others get its place."""
        for request in self.requests:
            if request.reason is None:
                self.worker.cancel(request)

    async def follow(self) -> AsyncIterator[tuple[int, str | None]]:
        """All events, until every choice has ended. Raises ApiError when one has failed."""
        left = len(self.requests)
        while left:
            choice, text = await self.events.get()
            if text is None:
                left -= 1
                self._check(self.requests[choice])
            yield choice, text

    def _check(self, request: Running) -> None:
        if request.reason == "error":
            known = isinstance(request.error, BloomeryError)
            detail = str(request.error) if known else f"unexpected {type(request.error).__name__}"
            raise ApiError(500, f"the model failed: {detail}")


async def _whole(progress: _Progress, answer: Answer, http: Request) -> Response:
    """The answer in one piece, unless its client goes away first."""

    async def finish() -> Response:
        async for _ in progress.follow():
            pass
        return JSONResponse(answer.whole(progress.requests))

    try:
        finished = await _unless_gone(finish(), http.receive)
    finally:
        progress.cancel()
    return finished or Response(status_code=GONE)


async def _events(progress: _Progress, answer: Answer) -> AsyncIterator[str]:
    """The answer as server-sent events, the last one being [DONE]."""
    try:
        if answer.ask.chat:
            for choice in range(len(progress.requests)):
                yield _event(answer.first(choice))
        async for choice, text in progress.follow():
            request = progress.requests[choice]
            yield _event(answer.last(choice, request) if text is None else answer.piece(choice, request, text))
        if answer.ask.include_usage:
            yield _event(answer.tally(progress.requests))
    except ApiError as error:
        yield _event(error.body)
    yield "data: [DONE]\n\n"


class _EventStream(Response):
    """Server-sent events as they come. When the client goes, also while it waits, its requests are cancelled."""

    def __init__(self, progress: _Progress, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._progress, self._events, self._close = progress, events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> bool:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return True

        try:
            await _unless_gone(write(), receive)
        finally:
            self._progress.cancel()
            self._close()


async def _unless_gone(work: Awaitable[T], receive: Receive) -> T | None:
    """The result of `work`, or None when the client disconnects first: then the work is cancelled."""

    async def gone() -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await receive()

    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, waiting):
            task.cancel()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _busy() -> ApiError:
    return ApiError(429, "as many requests are waiting as this server accepts (try again later)", code="queue_full")


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # no such path or method
        error = ApiError(error.status_code, str(error.detail))
    elif not isinstance(error, ApiError):  # a mistake of ours, whose traceback is in the log
        error = ApiError(500, f"unexpected {type(error).__name__}")
    headers = {"retry-after": str(RETRY_AFTER)} if error.status == 429 else None
    return JSONResponse(error.body, error.status, headers)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
