"""What a run has left in checkpoints/, for tests that train through the command."""

import json
import re
from pathlib import Path

LOG_LINE = re.compile(
    r"\[Step (\d+)\] Loss: (\d+\.\d{4}) \| Perplexity: \d+\.\d\d \| Accuracy: \d+\.\d\d% \| LR: \d\.\d\de-\d\d"
    r" \| Grad: \d+\.\d\d \| Time: \d+\.\d ms \| \d+ tok/s"
)


def weights(run: str, step: int) -> bytes:
    return Path(f"checkpoints/{run}/{run}_step{step}.safetensors").read_bytes()


def moments(run: str, step: int) -> bytes:
    return Path(f"checkpoints/{run}/{run}_step{step}_optimizer.safetensors").read_bytes()


def files(run: str, step: int) -> list[bytes]:
    """Weights and the optimizer's file of a step."""
    return [weights(run, step), moments(run, step)]


def logged(run: str) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in Path(f"checkpoints/{run}/metrics.jsonl").read_text().splitlines()]


def rates(run: str) -> dict[int, float]:
    """Step → learning rate, of each step that was logged."""
    return {line["step"]: line["lr"] for line in logged(run) if "lr" in line}
