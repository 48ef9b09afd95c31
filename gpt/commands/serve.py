"""`hipgpt serve`: a page with the runs and an API for their models."""

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
            RUNS,
            Option("--best", is_flag=True, help="Use the checkpoints with the lowest validation loss."),
            Option("--reload", is_flag=True,
                   help="Follow runs that train: use each new checkpoint as soon as there is one."),
            DEVICE, PRECISION, BLAS,
            Option("--places", default=16, metavar="N",
                   help="Texts of a model that are written at once, from 1 to 64; more wait for a place."),
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

    try:
        from gpt.serve import app, server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UserError("serving needs starlette and uvicorn: pip install 'hipgpt[serve]'") from None
    from gpt.serve.engine import Engine
    from gpt.serve.runs import Runs

    if not 1 <= places <= MOST_PLACES:
        raise UserError(f"--places is {places}, but must be from 1 to {MOST_PLACES}")
    console = Console()
    named = [Run(name, runs_dir) for name in run_names]
    ops = select(device, settings.get("precision", TrainConfig.precision), blas=blas)
    engine = Engine(ops, places, best=best, reload=reload, report=console.line)
    address = server.listening(host, port, token)
    console.line(f"Device: {ops.description}")
    for run in named:
        engine.load(run)
    for note in ops.notes:
        console.line(note)
    console.line(f"Page: {address.url}/{f'#token={address.token}' if address.token else ''}")
    console.line(f"API: {address.url}/v1{f' with the token {address.token}' if address.token else ''}")
    server.run(engine, app.make(engine, Runs(runs_dir, run_names), host, address.token), address, console.line)
