"""The addresses of the server, and what each of them answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from gpt import chat_template
from gpt.errors import UserError
from gpt.run import Run
from gpt.serve import fields
from gpt.serve.answers import Answer, ChatForm, CompletionForm
from gpt.serve.engine_client import EngineClient
from gpt.serve.errors import RequestError, unreadable
from gpt.serve.guard import App, Guard, Receive, Scope, Send
from gpt.serve.messages import ModelInfo
from gpt.serve.runs import Runs
from gpt.serve.texts import Texts, ids_of

PAGE = Path(__file__).parent / "page"
API = ("GET /v1/models", "POST /v1/completions", "POST /v1/chat/completions")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {path.name: path for path in PAGE.iterdir() if path.suffix in _TYPES}


def make(engine: EngineClient, runs: Runs, host: str, token: str | None) -> App:
    """The whole server as an ASGI app, behind its guard. From its startup to its shutdown, it is connected."""
    api = _Api(engine, runs)
    handlers: dict[Any, Any] = {
        RequestError: _error,
        HTTPException: _not_here,
        UserError: api.unreadable,
        Exception: _unforeseen,
    }
    routes = [
        Route("/", _page),
        Route("/page/{name}", _page_file),
        Route("/v1/models", api.models),
        Route("/v1/models/{name}", api.model),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/api/runs", api.runs),
        Route("/api/runs/{name}/log", api.log),
        Route("/api/runs/{name}/pieces", api.pieces, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lambda app: engine.connected())
    return Guard(app, host, token, _refusal)


class _Api:
    def __init__(self, engine: EngineClient, runs: Runs) -> None:
        self._engine, self._runs = engine, runs

    # ---- as OpenAI's ------------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """The runs that have a model."""
        return JSONResponse({"object": "list", "data": await run_in_threadpool(self._runs.models)})

    async def model(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._runs.model, request.path_params["name"]))

    async def completions(self, request: Request) -> Response | App:
        wanted = fields.completion(await request.body())
        model = await self._loaded(wanted.options.model)
        scored = wanted.echo and wanted.options.likeliest is not None
        prompts = [ids_of(model, prompt, scored) for prompt in wanted.prompts]
        texts = Texts(self._engine, model, wanted.options, prompts, wanted.max_tokens, echo=wanted.echo)
        form = CompletionForm(model.tokenizer, wanted.options.likeliest is not None)
        return await _answered(request, Answer(texts, form))

    async def chat(self, request: Request) -> Response | App:
        wanted = fields.chat(await request.body())
        model = await self._loaded(wanted.options.model)
        prompt, stop_ids = _conversation(model, wanted.messages)
        max_tokens = wanted.most_tokens(room=model.config.max_seq_len - len(prompt))
        texts = Texts(self._engine, model, wanted.options, [prompt], max_tokens, stop_ids=stop_ids)
        return await _answered(request, Answer(texts, ChatForm(model.tokenizer, wanted.options.likeliest is not None)))

    async def _loaded(self, name: str) -> ModelInfo:
        if model := self._engine.in_memory(name):
            return model
        run: Run = await run_in_threadpool(self._runs.find, name)
        return await self._engine.model(run)

    # ---- for the page -----------------------------------------------------------------------------------------------

    async def runs(self, request: Request) -> Response:
        """The device of the server, and the runs with their states."""
        return JSONResponse({"device": self._engine.device, "runs": await run_in_threadpool(self._runs.summaries)})

    async def log(self, request: Request) -> Response:
        """The lines of a run's log from a place on, and the place behind them."""
        name, place = request.path_params["name"], request.query_params.get("from", "")
        return JSONResponse(await run_in_threadpool(self._runs.log, name, place))

    async def pieces(self, request: Request) -> Response:
        """The tokens of a text."""
        text = fields.text_to_split(await request.body())
        return JSONResponse(await run_in_threadpool(self._runs.pieces, request.path_params["name"], text))

    async def unreadable(self, request: Request, error: UserError) -> Response:
        """The answer if a file of a run cannot be read."""
        return await _error(request, unreadable(error, self._runs.root, 500))


def _conversation(model: ModelInfo, messages: list[Any]) -> tuple[list[int], frozenset[int]]:
    """The prompt that stands for a conversation, and the ids that end the answer."""
    if not chat_template.is_used_by(model.tokenizer):
        raise RequestError(
            400, f"run {model.run.name} has not learned to chat, as its tokenizer lacks the markers of roles: "
            "ask /v1/completions, or train it on conversations", "no_chat_template", "model",
        )  # fmt: skip
    try:
        text = chat_template.rendered(chat_template.messages_of(messages), answer=True)
    except ValueError as error:
        raise RequestError(400, f"messages {error}", "invalid_value", "messages") from None
    return model.tokenizer.encode(text), chat_template.stop_ids(model.tokenizer)


# ---- answers ---------------------------------------------------------------------------------------------------------


async def _answered(request: Request, answer: Answer) -> Response | App:
    """The answer as the request wants it. If the client goes away, its texts end."""
    if answer.texts.options.streams:
        return _streamed(answer)
    async with _while_somebody_waits(answer.texts, request.receive):
        return JSONResponse(await answer.whole())


def _streamed(answer: Answer) -> App:
    """A response with the answer's events."""

    async def send_all(scope: Scope, receive: Receive, send: Send) -> None:
        async with _while_somebody_waits(answer.texts, receive):
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for events in answer.events():
                await send({"type": "http.response.body", "body": events, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_all


@asynccontextmanager
async def _while_somebody_waits(texts: Texts, receive: Receive) -> AsyncIterator[None]:
    """However the `with` ends, even before its first event, the texts end with it. So they do when the client goes."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        texts.cancel()

    gone = asyncio.ensure_future(until_gone())
    try:
        yield
    finally:
        gone.cancel()
        texts.cancel()


def _refusal(error: RequestError) -> App:
    refusal: App = JSONResponse(error.to_json(), error.status, dict(error.headers or {}))
    return refusal


async def _error(request: Request, error: RequestError) -> Response:
    return JSONResponse(error.to_json(), error.status, dict(error.headers or {}))


async def _not_here(request: Request, error: HTTPException) -> Response:
    message = f"there is no {request.method} {request.url.path} here: the API is {', '.join(API)}"
    return await _error(request, RequestError(error.status_code, message, "unknown_url", headers=error.headers))


async def _unforeseen(request: Request, error: Exception) -> Response:
    """A mistake of ours. The server goes on, and its log has the traceback."""
    return await _error(request, RequestError(500, "the server has failed on this request"))


async def _page(request: Request) -> Response:
    return _file("index.html")


async def _page_file(request: Request) -> Response:
    return _file(request.path_params["name"])


def _file(name: str) -> Response:
    """One of the page's files, which are known by name beforehand: no name leads to another file."""
    if name not in _FILES:
        raise HTTPException(404)
    return FileResponse(_FILES[name], media_type=_TYPES[_FILES[name].suffix], headers={"Cache-Control": "no-cache"})
