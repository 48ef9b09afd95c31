"""A hook of MkDocs: the site has the pages of the repository at the places where they lie.

MkDocs would take docs/ alone. README.md, CONTRIBUTING.md, CHANGELOG.md and kernels/README.md belong to the site too,
and a link from one page to another has to work both there and in a checkout.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PATTERNS = ("*.md", "kernels/*.md", "docs/*.md", "docs/*.svg", "docs/*.css")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, and every page, picture and style sheet of the repository under its path there."""
    pages = sorted(path.relative_to(ROOT) for pattern in PATTERNS for path in ROOT.glob(pattern))
    own = [File(page.as_posix(), str(ROOT), config.site_dir, config.use_directory_urls) for page in pages]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *own])
