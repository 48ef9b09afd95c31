"""What the page asks about runs."""

import json
import time

import pytest

from gpt.metrics.summary import summary
from gpt.serve import runs as runs_module
from gpt.serve.runs import MOST_SPLIT, Runs
from tests.support.pretrained import saved_run

LINES = [{"step": step, "loss": 5.0 - step, "time": 1.0 * step, "tokens": 10 * step} for step in range(1, 4)]


@pytest.fixture
def run(tmp_path):
    return saved_run(tmp_path).run


def written(lines) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_log_is_told_from_place_to_place_as_it_grows(run, tmp_path):
    runs = Runs(tmp_path)
    assert runs.log("r", "") == {"lines": [], "next": "", "is_new": True, "has_more": False}
    run.metrics_path.write_text(written(LINES[:2]) + '{"step": 3, "lo')
    first = runs.log("r", "")
    assert first["lines"] == LINES[:2]
    assert not first["has_more"], "a line that is still being written is not read again and again"
    run.metrics_path.write_text(written(LINES))
    second = runs.log("r", first["next"])
    assert second["lines"] == LINES[2:]
    assert not second["is_new"]
    assert runs.log("r", second["next"])["lines"] == []


def test_a_log_that_was_replaced_begins_anew(run, tmp_path):
    runs = Runs(tmp_path)
    run.metrics_path.write_text(written(LINES))
    place = runs.log("r", "")["next"]
    other = run.path / "other"
    other.write_text(written(LINES[:1]))
    other.replace(run.metrics_path)
    again = runs.log("r", place)
    assert again["is_new"]
    assert again["lines"] == LINES[:1]


def test_a_long_log_comes_in_parts(run, tmp_path):
    many = [{"step": step, "sample": "x" * 1000} for step in range(2500)]
    run.metrics_path.write_text(written(many))
    runs, got, place, more = Runs(tmp_path), [], "", True
    while more:
        part = runs.log("r", place)
        got += part["lines"]
        place, more = part["next"], part["has_more"]
    assert got == many


@pytest.mark.parametrize("place", ["x", "1", "1-", "-5", "9-x", "1-99999999999999999999", "²-²"])
def test_a_place_that_is_none_means_the_beginning(run, tmp_path, place):
    run.metrics_path.write_text(written(LINES))
    assert Runs(tmp_path).log("r", place)["lines"] == LINES


def test_a_run_is_told_without_the_paths_of_this_machine(client, root):
    answer = client.get("/api/runs").json()
    told = answer["runs"]
    assert answer["device"] == "CPU, 1 thread"
    assert [each["name"] for each in told] == ["chars", "r", "talks", "words"]
    assert all(each["is_served"] and each["step"] == 3 for each in told)
    assert str(root) not in json.dumps(told)


def test_many_tabs_do_not_make_the_server_read_all_runs_again_and_again(tmp_path, monkeypatch):
    saved_run(tmp_path)
    runs, reads = Runs(tmp_path), []

    def slow(run):
        reads.append(run.name)
        time.sleep(0.001)
        return summary(run)

    monkeypatch.setattr(runs_module, "summary", slow)
    monkeypatch.setattr(runs_module, "REST", 10**5)  # at least 100 s, however slow this machine is
    assert len({json.dumps(runs.summaries()) for _ in range(5)}) == 1
    assert reads == ["r"]


def test_a_loss_that_is_not_finite_is_null(tmp_path):
    run = saved_run(tmp_path).run
    run.metrics_path.write_text('{"step": 1, "val_loss": null, "loss": null}\n')
    (told,) = Runs(tmp_path).summaries()
    assert told["last_val_loss"] is None
    assert told["state"] == "diverged"


def test_the_pieces_of_a_text_are_those_of_the_runs_tokenizer(client):
    told = client.post("/api/runs/r/pieces", json={"text": "the cat"}).json()
    assert told["pieces"] == ["the", "Ġcat"]
    assert len(told["ids"]) == 2
    assert client.post("/api/runs/r/pieces", json={"text": "x" * (MOST_SPLIT + 1)}).status_code == 400
    assert client.post("/api/runs/r/pieces", json={}).status_code == 400
