"""The server of the page: a small ASGI application for this machine alone.

It answers only requests whose Host and Origin are this server's own, so that no web page that is open elsewhere can use
it. Nothing is unpickled, the size of a body is bounded, and the page may load nothing from anywhere else.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from attnlab.utils.extras import need

need("explore", "the explorer")

import uvicorn  # noqa: E402  after the check that it is installed
from fastapi import FastAPI, Request, Response  # noqa: E402
from fastapi.exceptions import RequestValidationError  # noqa: E402
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse  # noqa: E402
from starlette.concurrency import run_in_threadpool  # noqa: E402
from starlette.datastructures import MutableHeaders  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.types import ASGIApp, Message, Receive, Scope, Send  # noqa: E402

import attnlab  # noqa: E402
from attnlab.explore import export, pictures  # noqa: E402
from attnlab.explore.catalog import catalog  # noqa: E402
from attnlab.explore.explorer import Explorer  # noqa: E402
from attnlab.explore.setup import (  # noqa: E402
    Ablation,
    Catalog,
    Cell,
    CellRequest,
    HeadRequest,
    MapRequest,
    PictureRequest,
    Problem,
    Setup,
    State,
    Uploaded,
    View,
)
from attnlab.utils.errors import UserError  # noqa: E402

T = TypeVar("T")

HOST = "127.0.0.1"
PORT = 8765
MAX_BODY = 2**20
"""Bytes of the body of a request; an upload may have `MAX_UPLOAD`."""
MAX_UPLOAD = 2**26
BACKLOG = 2048
"""Connections that wait to be accepted."""


HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Middleware that refuses other hosts and origins, and bodies that are too large, and adds the headers of safety.

    Args:
        app: the application.
        hosts: the values of Host that are answered.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 or 413, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", "default-src 'none'")
                headers.update(HEADERS)
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self.hosts or (origin is not None and origin != f"http://{host}"):
            refused = _refuse(403, f"this server answers only its own page, at http://{min(self.hosts)}")
            await refused(scope, receive, protected)
            return
        limit = MAX_UPLOAD if scope["path"] == "/api/upload" else MAX_BODY
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            await _refuse(413, f"the body may have at most {limit:,} bytes")(scope, receive, protected)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:  # a body without Content-Length
                raise HTTPException(413, f"the body may have at most {limit:,} bytes")
            return message

        await self.app(scope, bounded, protected)


class Queue:
    """Computes one answer at a time, in the order of the requests; those whose client has left are dropped.

    A network is built, and if need be trained, before its request queues.
    """

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def answer(self, request: Request, setup: Setup, compute: Callable[[], T]) -> T:
        """Return what ``compute`` returns for the setup, from a thread.

        Raises:
            HTTPException: if the client has left.
        """
        await run_in_threadpool(self._explorer.prepare, setup)
        async with self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            if await request.is_disconnected():
                raise HTTPException(499, "the client has left")
            return await run_in_threadpool(compute)


def make_app(explorer: Explorer, hosts: frozenset[str]) -> FastAPI:
    """Return the application; ``hosts`` are the values of Host that it answers, such as ``127.0.0.1:8765``."""
    app = FastAPI(
        title="attnlab explore",
        version=attnlab.__version__,
        description="The attention of every head of a network, on this machine.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        responses={422: {"model": Problem}},
    )
    app.add_middleware(Guard, hosts=hosts)
    queue = Queue(explorer)
    page = files("attnlab.explore") / "page"
    static = {file.name: file.read_bytes() for file in page.iterdir() if file.name.endswith((".js", ".css"))}

    @app.exception_handler(UserError)
    def user_error(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": " ".join(str(error).split())}, 422)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": f"{path or 'the request'}: {first['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """The page."""
        text, policy = export.live_page()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/static/{name}", responses={404: {"model": Problem}}, response_class=PlainTextResponse)
    async def static_file(name: str) -> Response:
        """A script or the style of the page."""
        if name not in static:
            raise HTTPException(404, f"there is no file {name!r:.60}")
        kind = "text/javascript" if name.endswith(".js") else "text/css"
        return Response(static[name], media_type=f"{kind}; charset=utf-8")

    @app.get("/api/catalog")
    def get_catalog() -> Catalog:
        """What can be explored."""
        return catalog(explorer.shelf)

    @app.post("/api/view")
    async def view(setup: Setup, request: Request) -> View:
        """A forward pass: its layers, the summaries of their heads, and the output."""
        known = explorer.known(setup)
        return known[0] if known else await queue.answer(request, setup, partial(explorer.view, setup))

    @app.post("/api/thumbnails", response_class=Response, responses=BINARY)
    async def thumbnails(setup: Setup, request: Request) -> Response:
        """The thumbnails of all heads as codes of one byte."""
        known = explorer.known(setup)
        data = known[1] if known else await queue.answer(request, setup, partial(explorer.thumbnails, setup))
        return Response(data, media_type="application/octet-stream")

    @app.post("/api/map", response_class=Response, responses=BINARY)
    async def matrix(asked: MapRequest, request: Request) -> Response:
        """A part of the attention matrix of a head: float32, little endian, row-major."""
        part = await queue.answer(request, asked.setup, partial(explorer.matrix, asked))
        size = {"X-Rows": str(part.shape[0]), "X-Columns": str(part.shape[1])}
        data = part.contiguous().numpy().astype("<f4", copy=False).tobytes()
        return Response(data, media_type="application/octet-stream", headers=size)

    @app.post("/api/cell")
    async def cell(asked: CellRequest, request: Request) -> Cell:
        """The arithmetic of one weight."""
        return await queue.answer(request, asked.setup, partial(explorer.cell, asked))

    @app.post("/api/state")
    async def state(asked: HeadRequest, request: Request) -> State:
        """The recurrent state of a head after each token."""
        return await queue.answer(request, asked.setup, partial(explorer.state, asked))

    @app.post("/api/ablation")
    async def ablation(asked: HeadRequest, request: Request) -> Ablation:
        """The effect of removing each head of the layer."""
        return await queue.answer(request, asked.setup, partial(explorer.ablation, asked))

    @app.post("/api/picture", response_class=Response, responses=BINARY)
    async def picture(asked: PictureRequest, request: Request) -> Response:
        """The attention matrix of a head as a file."""
        data, kind = await queue.answer(request, asked.setup, partial(pictures.make, explorer, asked))
        name = f"attention-layer{asked.layer}-head{asked.head}.{asked.format}"
        return Response(data, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})

    @app.post("/api/export", response_class=HTMLResponse)
    async def export_page(setup: Setup, request: Request) -> HTMLResponse:
        """A self-contained page of this setup."""
        text = await queue.answer(request, setup, partial(export.page, explorer, setup))
        return HTMLResponse(text, headers={"Content-Disposition": 'attachment; filename="attention.html"'})

    @app.post("/api/upload", openapi_extra={"requestBody": UPLOAD})
    async def upload(request: Request, name: str = "data.npz") -> Uploaded:
        """Keep an .npz or .safetensors file with an input ``x``, until the server stops."""
        return await run_in_threadpool(explorer.shelf.upload, name, await request.body())

    return app


BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    422: {"model": Problem},
}
UPLOAD = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


def _refuse(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)


class Server:
    """A server on this machine; a context in which it runs, or call `wait`, or `start` and `stop`.

    Args:
        explorer: answers the requests.
        port: 0 for a free one.

    Raises:
        UserError: for a port that is in use.
    """

    def __init__(self, explorer: Explorer, port: int = PORT) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((HOST, port))
            self._socket.listen(BACKLOG)  # requests wait from now on, until they are served
        except OSError as error:
            self._socket.close()
            raise UserError(f"cannot use port {port}: {error.strerror}; choose another one, or 0 for any") from None
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/"
        hosts = frozenset({f"{HOST}:{self.port}", f"localhost:{self.port}"})
        config = uvicorn.Config(
            make_app(explorer, hosts), log_level="warning", access_log=False, lifespan="off", backlog=BACKLOG
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.wait, daemon=True, name="attnlab explore")

    def wait(self) -> None:
        """Serve until the process is interrupted, or `stop` is called in another thread."""
        self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """Serve in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the server that `start` started."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
