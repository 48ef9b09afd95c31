"""`hipgpt serve`: a page with the runs and an API for their models."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpt.commands.command_line import Option, command
from gpt.commands.options import BLAS, DEVICE, PRECISION, RUNS, complete_run
from gpt.config import TrainConfig
from gpt.errors import UserError


@command(
    "serve",
    short_help="Serve a page with the runs, and an API for their models.",
    sections={
        "Models": (
            Option("--run-name", "run_names", metavar="NAME", multiple=True, default_text="all",
                   shell_complete=complete_run,
                   help="Run whose model to serve; may be given more than once. Without it, the models of all runs are "
                        "served, and each is loaded when somebody asks for it."),
            Option("--best", is_flag=True, help="Use the checkpoints with the lowest validation loss."),
            Option("--reload", is_flag=True,
                   help="Follow runs that train: use each new checkpoint as soon as there is one."),
            DEVICE, PRECISION, BLAS,
            Option("--places", default=16, metavar="N",
                   help="Texts of a model that are written at once, from 1 to 64; more wait for a place."),
            RUNS,
        ),
        "Network": (
            Option("--host", default="127.0.0.1", metavar="ADDRESS",
                   help="Address to listen on. Other machines can reach 0.0.0.0, so a token is then asked for."),
            Option("--port", default=8000, metavar="N", help="Port to listen on; 0 = any that is free."),
            Option("--token", metavar="TEXT", default_text="none, or with another --host a random one",
                   help="Secret that requests must have; better given in the environment variable HIPGPT_TOKEN."),
        ),
    },
    epilog="""
    hipgpt serve
    hipgpt serve --run-name mine --reload --host 0.0.0.0
    """,
)  # fmt: skip
def serve_models(
    run_names: tuple[str, ...], runs_dir: Path, best: bool, reload: bool, device: str, blas: str, places: int,
    host: str, port: int, token: str | None, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Serve a page with the runs, and an API for their models, until Ctrl-C.

    The page shows the curves of runs while they train, and lets their models write. The API is that of OpenAI:
    /v1/models, /v1/completions and /v1/chat/completions, for any client that takes a base URL.
    """
    from gpt.generate import MOST_PLACES
    from gpt.ops import select
    from gpt.run import Run
    from gpt.system.console import Console

    for library in ("starlette", "uvicorn"):  # which the other process imports
        if find_spec(library) is None:
            raise UserError("serving needs starlette and uvicorn: pip install 'hipgpt[serve]'")
    from gpt.serve import server
    from gpt.serve.engine import Engine

    if not 1 <= places <= MOST_PLACES:
        raise UserError(f"--places is {places}, but must be from 1 to {MOST_PLACES}")
    console = Console()
    named = [Run(name, runs_dir) for name in dict.fromkeys(run_names)]
    address = server.listening(host, port, token)
    with server.front(address, runs_dir, run_names) as channel:
        ops = select(device, settings.get("precision", TrainConfig.precision), blas=blas)
        engine = Engine(ops, channel, places, best=best, reload=reload, report=console.line)
        console.line(f"Device: {ops.description}")
        for run in named:
            engine.load(run)
        for note in ops.notes:
            console.line(note)
        console.line(f"Page: {address.url}/{f'#token={address.token}' if address.token else ''}")
        console.line(f"API: {address.url}/v1{f' with the token {address.token}' if address.token else ''}")
        server.run(engine, console.line)
