"""hipgpt's package: `gpt`, into which a wheel puts kernels/ and data/ as folders of its own.

Neither may become a top-level name of site-packages: other distributions ship a `kernels`.
gpt/system/shipped.py finds both.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "gpt/__init__.py").read_text()).group(1)

setup(
    name="hipgpt",
    version=VERSION,
    description="Train GPT-2 style language models from a text file on AMD GPUs, NVIDIA GPUs and CPUs, without PyTorch",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["gpt", "gpt.*"]), "gpt.kernels", "gpt.texts"],
    package_dir={"gpt.kernels": "kernels", "gpt.texts": "data"},
    package_data={"gpt": ["py.typed"], "gpt.serve": ["page/*"], "gpt.kernels": ["*"], "gpt.texts": ["data.txt"]},
    install_requires=[
        "numpy>=1.26",
        "click>=8.1",
        "rich>=13",  # progress bars
        "regex>=2022.1.18",  # searches a text from its end
        "threadpoolctl>=3.1",  # one BLAS thread per worker thread of ours
        "psutil>=5.9",  # free memory, before it runs out
        "uniplot>=0.21",  # curves in a terminal
        'tomli>=2; python_version < "3.11"',  # --config
    ],
    extras_require={
        "rocm": ["cupy-rocm-7-0"],
        # NCCL is for several GPUs. CuPy 14 asks for these versions, and finds the package by itself; ROCm brings RCCL.
        "cuda12": ["cupy-cuda12x[ctk]", 'nvidia-nccl-cu12>=2.18.1,<3; sys_platform == "linux"'],
        "cuda13": ["cupy-cuda13x[ctk]", 'nvidia-nccl-cu13>=2.27.7,<3; sys_platform == "linux"'],
        # There is no MPICH for Windows or older systems than manylinux_2_28; PyPI has an empty 0.0.0 for them.
        "mpi": ["mpi4py>=4", 'mpich>=4.3; sys_platform != "win32"'],
        # Python can read zstd itself from 3.14 on.
        "zstd": ['backports.zstd>=1; python_version < "3.14"'],
        "parquet": ["pyarrow>=14"],
        "numba": ["numba>=0.61", "scipy"],  # numba's matrix products are SciPy's
        "gguf": ["gguf>=0.17"],  # llama.cpp's file format
        "serve": ["starlette>=0.45", "uvicorn>=0.30", "httptools>=0.6"],  # a page and an API
        "plot": ["matplotlib>=3.7"],  # curves as pictures
        # --track
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.19"],
        "trackio": ["trackio>=0.20"],
        # parquet and plot would take a third of the installation, for 17 tests: .ci/run installs them
        "test": [
            "gguf>=0.17",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "safetensors>=0.4.3",
            "tokenizers>=0.20",
            "starlette>=0.45",
            "uvicorn>=0.30",
            "httptools>=0.6",
            "httpx>=0.27",
            'backports.zstd>=1; python_version < "3.14"',
        ],
        "peers": ["openai", "peft", "tensorboard", "tensorboardX", "torch", "trackio", "transformers", "wandb"],
        # ruff formats the signatures. MkDocs 2 will have another configuration and no plugins.
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1.0", "ruff"],
    },
    entry_points={"console_scripts": ["hipgpt = gpt.cli:main"]},
)
