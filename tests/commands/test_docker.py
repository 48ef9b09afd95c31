"""The Dockerfiles in docker/ bring what CuPy's wheels load, in versions that stay the same.

No image is built here. On a machine with Docker and a GPU, the command in README builds one and runs `hipgpt doctor`.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from gpt.ops.gpu.installation import ROCM_PACKAGES
from tests.support import ROOT

DOCKERFILES = {path.stem: path.read_text() for path in sorted((ROOT / "docker").glob("*.Dockerfile"))}
# The libraries of ROCm that cupy-rocm-7-0 14.2.0 links to (readelf -d on each .so of the wheel), and hiprtc, which it
# loads by its name
LOADED = {
    "libamdhip64.so.7", "libhipblas.so.3", "libhipfft.so.0", "libhiprand.so.1", "libhiprtc.so.7", "libhipsparse.so.4",
    "librccl.so.1", "librocblas.so.5", "librocfft.so.0", "librocsolver.so.0", "libroctracer64.so.4", "libroctx64.so.4",
}  # fmt: skip
ROCM_PYTHON = os.environ.get("HIPGPT_ROCM_PYTHON")


def packages(text):
    """The packages of ROCm that the last `apt install` or `apt-get install` of a text installs."""
    command = re.findall(r"apt(?:-get)? install ((?:[^\\\n&]|\\\n)+)", text)[-1]
    return {word for word in command.replace("\\\n", " ").split() if not word.startswith("-")}


def test_there_is_a_dockerfile_for_each_vendor():
    assert set(DOCKERFILES) == {"rocm", "cuda"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES.values(), ids=DOCKERFILES)
def test_the_base_image_has_a_version(dockerfile):
    (base,) = re.findall(r"^FROM (.+)$", dockerfile, re.MULTILINE)
    assert re.search(r":\d+\.\d+", base)


@pytest.mark.parametrize("dockerfile", DOCKERFILES.values(), ids=DOCKERFILES)
def test_an_image_does_not_run_as_root_and_tests_the_machine_by_default(dockerfile):
    assert re.search(r"^USER (?!root|0)", dockerfile, re.MULTILINE)
    assert dockerfile.endswith('ENTRYPOINT ["hipgpt"]\nCMD ["doctor"]\n')


def test_rocm_has_a_version_that_cupys_wheel_is_made_for():
    (version,) = re.findall(r"^ARG ROCM=(7\.0\.\d+)$", DOCKERFILES["rocm"], re.MULTILINE)
    assert version in (ROOT / "README.md").read_text()


def test_readme_and_the_dockerfile_install_the_same_packages():
    readme = (ROOT / "README.md").read_text()
    assert packages(DOCKERFILES["rocm"]) == packages(readme[: readme.index("sudo usermod")])


@pytest.mark.parametrize("library", sorted(LOADED))
def test_every_library_that_cupy_loads_is_in_a_package_that_is_installed(library):
    name = re.match(r"lib(\w+)\.so", library)[1]
    assert ROCM_PACKAGES.get(name, name) in packages(DOCKERFILES["rocm"])


@pytest.mark.skipif(not ROCM_PYTHON, reason="HIPGPT_ROCM_PYTHON does not name a Python that has cupy-rocm")
def test_the_list_of_libraries_is_that_of_the_wheel():
    code = "import importlib.util as u; print(u.find_spec('cupy').submodule_search_locations[0])"
    found = subprocess.run([ROCM_PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout
    libraries = map(str, Path(found.strip()).parent.glob("cupy*/**/*.so"))
    listing = subprocess.run(["readelf", "-d", *libraries], capture_output=True, text=True, check=True).stdout
    linked = set(re.findall(r"\(NEEDED\).*\[(lib(?:amdhip64|hip|roc|rccl)[^]]*)\]", listing))
    assert linked == LOADED - {"libhiprtc.so.7"}
