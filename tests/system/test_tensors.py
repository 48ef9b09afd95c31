"""safetensors files that hipgpt writes, compared with those of the safetensors package."""

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt.errors import UserError
from gpt.system.tensors import TensorFile, open_tensors, write_tensors

ARRAYS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([1.5], np.float32),
    "strided": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "empty": np.zeros((0, 3), np.float32),
    "step": np.array(2**40, np.int64),
    "ünïcode": np.zeros(3, np.float32),
}


def contiguous():
    return {name: np.require(array, requirements="C") for name, array in ARRAYS.items()}


def test_a_file_equals_the_packages_byte_for_byte(tmp_path):
    write_tensors(tmp_path / "ours", ARRAYS)
    save_file(contiguous(), tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert all(np.array_equal(load_file(tmp_path / "ours")[name], array) for name, array in ARRAYS.items())


def test_tensors_come_back_in_the_order_that_is_asked_for(tmp_path):
    save_file(contiguous(), tmp_path / "theirs")
    names = [name for name in ARRAYS if name != "step"]
    tensors = TensorFile(tmp_path / "theirs", names)
    assert list(tensors) == names
    assert all(np.array_equal(tensors[name], array) for name, array in ARRAYS.items())
    assert tensors["step"].dtype == np.int64


def test_writing_and_reading_take_no_more_than_one_tensor(tmp_path):
    arrays = {f"x{number}": np.ones(250_000, np.float32) for number in range(20)}
    tracemalloc.start()
    write_tensors(tmp_path / "file", arrays)
    for name, array in TensorFile(tmp_path / "file", arrays).items():
        assert array.sum() == 250_000, name
        del array
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # bytes: one tensor, the next one before the first is freed, and little else


def test_a_file_stays_readable_after_it_has_been_removed(tmp_path):
    write_tensors(tmp_path / "file", ARRAYS)
    tensors = TensorFile(tmp_path / "file", ARRAYS)
    (tmp_path / "file").unlink()
    assert np.array_equal(tensors["b.weight"], ARRAYS["b.weight"])


def with_header(header, data=b"\0" * 4):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cut off"),
        (with_header({"x": entry(shape=(2,))}), "shape that its 4 bytes do not have"),
        (with_header({"x": entry(shape=(2**62, 2**62))}), "do not have"),
        (with_header({"x": entry(offsets=(4, 8))}, b"\0" * 8), "gaps"),
        (with_header({"x": entry(offsets=(4, 0))}, b""), "do not have"),
        (with_header({"x": entry(), "y": entry()}), "overlap"),
        (with_header({"x": entry("F2", (8,))}), "do not have"),
        (with_header({"x": entry("F2", (2**62,) * 20)}), "do not have"),
    ],
)  # fmt: skip
def test_messages_about_damaged_files_are_short(tmp_path, content, complaint):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as error:
        TensorFile(tmp_path / "file", ["x"])
    assert len(str(error.value)) < 200


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    for name, complaint in (
        ("folder", ".*folder is a directory, but must be a regular file"),
        ("circle", "cannot read .*circle: Too many levels of symbolic links"),
    ):
        with pytest.raises(UserError, match=f"^{complaint}$"):
            TensorFile(tmp_path / name, ARRAYS)


def test_a_file_of_other_dtypes_is_whole_but_does_not_fit(tmp_path):
    save_file({"x": np.zeros(3, np.float16)}, tmp_path / "file")
    assert TensorFile(tmp_path / "file", ["x"]).layout == {"x": ("F16", (3,))}
    with pytest.raises(UserError, match=r"does not fit its config: x is F16 \[3\], not F32 \[3\]: use another$"):
        open_tensors(tmp_path / "file", {"x": ("F32", (3,))}, ["x"], "use another")


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="limits address space as Linux does")
def test_short_memory_is_a_memory_error(tmp_path):
    write_tensors(tmp_path / "file", {"x": np.zeros(50_000_000, np.float32)})
    code = f"""
import resource, psutil
from pathlib import Path
from gpt.system.tensors import TensorFile
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, resource.RLIM_INFINITY))
try:
    TensorFile(Path({str(tmp_path / "file")!r}), ["x"])["x"]
except MemoryError:
    print("short")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("short\n", "")
