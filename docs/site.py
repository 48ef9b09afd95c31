"""Hooks of MkDocs: the site's pages are those of the repository, and examples in docstrings are shown as code.

MkDocs would take docs/ alone. README.md, CONTRIBUTING.md, CHANGELOG.md and kernels/README.md belong to the site too,
and a link from one page to another has to work both there and in a checkout.
"""

from pathlib import Path

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PATTERNS = ("*.md", "kernels/*.md", "docs/**/*.md", "docs/*.svg", "docs/*.css", "docs/*.ipynb")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, and every page, picture and style sheet of the repository under its path there."""
    pages = sorted(path.relative_to(ROOT) for pattern in PATTERNS for path in ROOT.glob(pattern))
    own = [File(page.as_posix(), str(ROOT), config.site_dir, config.use_directory_urls) for page in pages]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *own])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(Doctests())
    return config


class Doctests(Extension):
    """Examples that begin with >>> are code, as they are for doctest. Markdown would see quotations and links."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.preprocessors.register(Fences(md), "doctests", priority=27)  # before fences are looked for, at 25


class Fences(Preprocessor):
    """Puts a fence around each example: the lines from >>> to the next empty one."""

    def run(self, lines: list[str]) -> list[str]:
        made: list[str] = []
        in_fence = in_example = False
        for line in [*lines, ""]:
            if line.lstrip().startswith("```"):
                in_fence = not in_fence
            if line.startswith(">>>") and not in_fence and not in_example:
                made.append("```pycon")
                in_example = True
            if in_example and not line.strip():
                made.append("```")
                in_example = False
            made.append(line)
        return made
