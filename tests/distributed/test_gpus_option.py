"""--gpus on a machine without a GPU: one line each."""

from importlib.util import find_spec

import pytest

from gpt.distributed import ranks
from gpt.errors import UserError
from gpt.ops.gpu import installation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--gpus", "2", "--device", "cpu"],
            "--gpus 2 takes the first GPUs, which --device cpu contradicts: leave one",
        ),
        (["--gpus", "1", "--device", "gpu:1"], "--gpus 1 takes the first GPUs, which --device gpu:1 contradicts"),
        (["--gpus", "0"], "--gpus is '0', but must be a number from 1 to 128, or all"),
        (["--gpus", "many"], "--gpus is 'many', but must be a number from 1 to 128, or all"),
    ],
)
def test_a_contradiction_is_refused_with_one_line(hipgpt, arguments, message):
    assert message in hipgpt("train", *arguments, status=2).stderr


@pytest.mark.parametrize("gpus", ["129", "4096", "9" * 5000, "²"])
def test_a_mistyped_number_starts_no_process(gpus):
    with pytest.raises(UserError, match="but must be a number from 1 to 128, or all"):
        ranks._place(gpus)


@pytest.mark.skipif(find_spec("cupy") is not None, reason="CuPy is installed here")
def test_one_gpu_is_never_replaced_by_the_cpu(hipgpt):
    assert "--device gpu needs CuPy" in hipgpt("train", "--gpus", "1", status=2).stderr


@pytest.mark.parametrize(("there", "said"), [(1, "there is only 1 here"), (3, "there are only 3 here")])
def test_more_gpus_than_there_are_are_refused_by_their_number(monkeypatch, there, said):
    monkeypatch.setattr(installation, "count_gpus", lambda: there)
    with pytest.raises(UserError, match=f"--gpus is 4, but {said}"):
        ranks._check_gpus(4)
    ranks._check_gpus(there)
