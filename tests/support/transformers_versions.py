"""Tests of the export with several versions of transformers, each installed into a folder of its own.

    python -m tests.support.transformers_versions 4.46.3 4.57.3

A folder holds transformers and the packages it needs, except PyTorch: the installed one is used. It takes 300 MB, lies
in the system's folder for temporary files, and is used again by the next run.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import ROOT


def main(versions: list[str]) -> int:
    """Run the tests with each version. Returns 1 if with any of them a test fails or is skipped."""
    failed = []
    for version in versions:
        folder = Path(tempfile.gettempdir()) / f"transformers-{version}"
        wanted = f"transformers=={version}"
        if not (folder / "transformers").is_dir():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", folder, wanted]
            subprocess.run(pip, check=True)
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        tests = [sys.executable, "-m", "pytest", "-q", "-m", "peers", "tests/commands/test_export.py"]
        print(f"+ {wanted}", flush=True)
        found = [sys.executable, "-c", "import transformers; print(transformers.__version__, end='')"]
        imported = subprocess.run(found, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert imported == version, f"{imported} was imported in place of {version}"
        result = subprocess.run(tests, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        print(result.stdout if result.returncode else result.stdout.splitlines()[-1], flush=True)
        if result.returncode or "skipped" in result.stdout:
            failed.append(version)
    print(f"failed with {', '.join(failed)}" if failed else "all pass")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["4.46.3", "4.57.3"]))
