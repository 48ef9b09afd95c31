"""Several files, folders and patterns become one text, and a run notices what has changed in them."""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpt import provenance
from gpt.corpus.sources import find
from gpt.errors import UserError
from gpt.run import Run
from gpt.tokenizer import Tokenizer
from tests.support.project import sha256

MARK = "<|endoftext|>"
FILES = {
    "b.txt": "the cat sat",
    "a/z.md": "a dog sat",
    "a.txt": "the mat",
    "a/é.py": "a log  sat\n",
}  # a.txt, a/z.md, …


@pytest.fixture
def books(project):
    """A folder with some texts, and with things that are none."""
    folder = project.text.with_name("books")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text * 20, encoding="utf-8")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "latin.txt").write_bytes("ein Bär".encode("latin-1"))
    (folder / "empty.txt").touch()
    (folder / ".hidden").write_text("not this")
    return Path("data/books")


def text_of(*names, **how):
    return "".join(find(names, **how).sources.blocks())


def joined(folder, *names):
    return "".join((folder / name).read_text(encoding="utf-8") + MARK for name in names)


def ids_of(project, text):
    return Tokenizer.load(project.run.tokenizer_path).encode(text)


IN_ORDER = ("a.txt", "a/z.md", "a/é.py", "b.txt")


def test_a_folder_is_all_its_texts_in_the_order_of_their_paths_each_with_a_mark_behind_it(books):
    assert text_of("data/books") == joined(books, *IN_ORDER)


def test_runs_in_a_folder_or_among_the_matches_of_a_pattern_are_no_texts(project):
    project.prepare(data_path=("data",))
    folder = project.run.path.parent
    (project.run.path / "metrics.jsonl").write_text('{"text": "a log"}\n')
    (folder / "notes.jsonl").write_text('{"text": "the cat sat"}\n')
    assert text_of(str(folder)) == text_of(f"{folder}/**/*.jsonl") == f"the cat sat{MARK}"
    with pytest.raises(UserError, match="holds no text"):
        find([str(project.run.path)])


def test_a_folder_within_that_cannot_be_read_is_named(books, monkeypatch):
    def scandir(folder, real=os.scandir):
        if str(folder).endswith("a"):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="^cannot read data/books/a: Permission denied$"):
        text_of("data/books")


def test_a_file_below_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    def stat(path, *arguments, real=os.stat, **options):
        if str(path).endswith("closed/x"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(UserError, match="^cannot read .*closed/x: Permission denied$"):
        text_of(str(tmp_path / "closed" / "x"))


def with_another_end(project, end):
    """A byte tokenizer whose only mark is `end` (None: it has none), in the project's folder. Returns its path."""
    learned = Tokenizer(300, "byte")
    learned.train_bpe("the cat sat on the mat")
    path = project.text.with_name("tokenizer.json")
    learned.save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    vocab, marks = document["model"]["vocab"], document["added_tokens"]
    marks[0]["content"] = end or "<|user|>"
    document["model"]["vocab"] = {marks[0]["content"] if not id else piece: id for piece, id in vocab.items()}
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def test_documents_end_with_the_mark_of_a_tokenizer_from_elsewhere(project, books):
    path = with_another_end(project, "<|end_of_text|>")
    corpus = project.prepare(data_path=("data/books",), kind=path)
    text = joined(books, *IN_ORDER).replace(MARK, "<|end_of_text|>")
    assert corpus.tokens[:].tolist() == corpus.tokenizer.encode(text)
    assert np.count_nonzero(corpus.tokens[:] == corpus.tokenizer.end_of_text) == len(IN_ORDER)


def test_documents_need_a_tokenizer_that_has_an_end(project, books):
    path = with_another_end(project, None)
    with pytest.raises(UserError, match="made of documents, but the tokenizer has no token that ends one"):
        project.prepare(data_path=("data/books",), kind=path)
    assert not project.run.tokens_path.exists()


def test_files_patterns_and_folders_come_in_the_order_of_the_command_line(books):
    assert text_of("data/books/b.txt", "data/books/a", "data/books/a.*") == joined(
        books, "b.txt", "a/z.md", "a/é.py", "a.txt"
    )
    assert text_of("data/books/**/*.md") == joined(books, "a/z.md")


def test_a_file_named_by_itself_is_the_text_as_it_stands_but_a_folder_with_one_file_is_a_document(books):
    assert text_of("data/books/b.txt") == FILES["b.txt"] * 20
    assert text_of("data/books/b.*") == joined(books, "b.txt")


def test_a_file_whose_name_is_a_pattern_is_found_by_its_name(books):
    (books / "[b].txt").write_text("in brackets")
    assert text_of("data/books/[b].txt") == "in brackets"


def test_links_are_followed_and_loops_of_them_are_read_once(books, tmp_path):
    os.symlink("..", books / "a" / "up")
    os.symlink("nowhere", books / "broken")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "o.txt").write_text("outside")
    os.symlink(tmp_path / "outside", books / "z")
    assert text_of("data/books") == joined(books, *IN_ORDER, "z/o.txt")


@pytest.mark.parametrize("name", ["data/books", "data/books/**"])
def test_a_link_to_itself_is_left_out(books, name):
    os.symlink("self", books / "self")
    found = find([name])
    assert "".join(found.sources.blocks()) == joined(books, *IN_ORDER)
    assert "self" in [path.name for path in found.left_out]


def test_a_pipe_in_a_folder_is_left_out_unread(books):
    os.mkfifo(books / "pipe")
    assert [path.name for path in find(["data/books"]).left_out] == ["empty.txt", "image.png", "latin.txt", "pipe"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["data/books/*.rst"], "--data-path data/books/*.rst matches no file"),
        (["data/books", "data/books/b.txt"], "--data-path data/books/b.txt names data/books/b.txt a second time"),
        (
            ["data/books/*.png"],
            "data/books/*.png holds no text; one file left out, which is not text: data/",
        ),
        (["data/books/b.txt", "nowhere"], "nowhere does not exist"),
        (["data/books/empty.txt", "data/books"], "data/books/empty.txt is empty"),
    ],
)
def test_names_that_cannot_be_used_are_refused(books, names, message):
    with pytest.raises(UserError) as error:
        find(names)
    assert message in str(error.value)


SAVED = [
    {"dataset_info.json": '{"features": {}}', "state.json": "{}", "data-00000-of-00001.arrow": "\xff\xff\xff\xff"},
    {"dataset_dict.json": '{"splits": ["train"]}', "train/dataset_info.json": "{}", "train/state.json": "{}"},
]


@pytest.mark.parametrize("files", SAVED)
def test_a_dataset_in_arrow_files_is_refused_and_its_descriptions_are_not_taken_for_texts(books, files):
    for name, content in files.items():
        (books / "saved" / name).parent.mkdir(parents=True, exist_ok=True)
        (books / "saved" / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError) as error:
        find(["data/books/saved"])
    assert str(error.value) == (
        "data/books/saved is a dataset in Arrow files: write it as parquet, with "
        "datasets.load_from_disk('data/books/saved').to_parquet('FILE.parquet'), or each of its splits so"
    )
    found = find(["data/books"])
    assert "".join(found.sources.blocks()) == joined(books, *IN_ORDER)
    assert Path("data/books/saved") in found.left_out


def test_a_folder_of_parquet_with_a_description_is_a_folder_like_any_other(books):
    (books / "dataset_info.json").write_text("{}")
    assert text_of("data/books") == joined(books, *IN_ORDER, "dataset_info.json")


# Runs


def test_the_tokens_of_a_folder_are_those_of_its_documents(project, books):
    corpus = project.prepare(data_path="data/books")
    assert corpus.tokens[:].tolist() == ids_of(project, joined(books, *IN_ORDER))
    assert corpus.tokens[:].tolist().count(0) == 4
    assert project.notes == [
        "Note: 3 files left out, which are not text: data/books/empty.txt, data/books/image.png, data/books/latin.txt"
    ]
    assert project.info()["characters"] == len(joined(books, *IN_ORDER))


def test_tokens_json_lists_the_files_with_size_time_and_digest(project, books):
    project.prepare(data_path="data/books")
    corpus = project.info()["corpus"]
    assert {key: corpus[key] for key in ("paths", "encoding", "text_field", "documents")} == {
        "paths": ["../../data/books"], "encoding": "utf-8", "text_field": None, "documents": True,
    }  # fmt: skip
    assert [file["path"] for file in corpus["sources"]] == [f"../../data/books/{name}" for name in IN_ORDER]
    for file in corpus["sources"]:
        path = project.run.path / file["path"]
        assert file["size"] == path.stat().st_size
        assert file["mtime_ns"] == path.stat().st_mtime_ns
        assert file["sha256"] == sha256(path)


@pytest.mark.parametrize(
    ("text", "remembered"),
    [
        ("project/checkpoints/r/copy.txt", "copy.txt"),
        ("project/checkpoints/r/more/a.txt", "more/a.txt"),
        ("project/here.txt", "../../here.txt"),
        ("project/data/../data/./a.txt", "../../data/a.txt"),
        ("projection/a.txt", "/ROOT/projection/a.txt"),
    ],
)
def test_a_text_in_the_project_is_remembered_relative_to_the_run_and_another_one_by_its_whole_path(
    tmp_path, text, remembered
):
    run, remembered = Run("r", tmp_path / "project/checkpoints"), remembered.replace("/ROOT", tmp_path.as_posix())
    assert provenance.remember(run, tmp_path / text) == remembered
    assert list(provenance.remember_all(run, [tmp_path / text] * 2)) == [remembered] * 2
    assert provenance.locate(run, remembered) == Path(os.path.normpath(tmp_path / text))


@pytest.fixture
def tokenized(project, books):
    project.prepare(data_path="data/books")
    return project


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_has_not_changed_is_not_read_again(tokenized, named, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode_blocks", None)
    monkeypatch.setattr("gpt.corpus.text_file.open", None, raising=False)
    monkeypatch.setattr("gpt.corpus.text_file.first_bytes", None)
    assert len(tokenized.prepare(data_path="data/books" if named else ()).tokens)
    assert tokenized.notes == []


def test_a_changed_file_is_named(tokenized, books):
    (books / "b.txt").write_text("another text", encoding="utf-8")
    error = tokenized.refused()
    assert error.startswith(
        "data/books/b.txt has changed since it was tokenized (220 bytes then, 12 now): restore it, or"
    )
    assert "--reset" in error


def test_a_new_file_is_refused_if_the_folder_is_named_again_and_noted_if_it_is_not(tokenized, books):
    (books / "c.txt").write_text("a new text")
    (books / "new.png").write_bytes(b"\0")
    assert (
        "data/books has 1 file that run r was not made from: data/books/c.txt: leave --data-path out to go on with the "
        "other ones, or make tokenizer and tokens anew with --reset"
    ) in tokenized.refused(data_path="data/books")
    before = tokenized.snapshot()
    tokenized.prepare()
    assert tokenized.notes == [
        "Note: data/books has 1 file that run r was not made from: data/books/c.txt; to take them in, make tokenizer "
        "and tokens anew with --reset"
    ]
    assert tokenized.snapshot() == before
    corpus = tokenized.prepare(data_path="data/books", reset=True)
    assert corpus.tokens[:].tolist() == ids_of(tokenized, joined(books, "a.txt", "a/z.md", "a/é.py", "b.txt", "c.txt"))


def test_a_new_file_that_is_damaged_does_not_keep_a_run_from_going_on(tokenized, books):
    (books / "new.gz").write_bytes(gzip.compress(b"a new text " * 99)[:40])
    (books / "new.parquet").write_bytes(b"PAR1 and nothing more")
    tokenized.prepare()
    assert "data/books has 2 files that run r was not made from: data/books/new.gz, data/" in " ".join(tokenized.notes)
    assert "has 2 files that run r was not made from" in tokenized.refused(data_path="data/books")


def test_files_that_are_gone_are_counted_and_training_goes_on(tokenized, books):
    (books / "b.txt").unlink()
    (books / "a.txt").unlink()
    tokenized.prepare(data_path="data/books")
    assert tokenized.notes == [
        "Note: 2 of the 4 files are gone (data/books/a.txt, data/books/b.txt): going on with the tokens made from them"
    ]
    tokenized.run.tokens_path.unlink()
    assert "data/books/a.txt does not exist: restore it, or " in tokenized.refused()


def test_a_folder_may_move(tokenized, books, monkeypatch):
    shutil.move(books, "data/moved")
    tokenized.prepare(data_path="data/moved")
    assert tokenized.info()["corpus"]["paths"] == ["../../data/moved"]
    tokenized.prepare()
    assert tokenized.notes == []
    (Path("data/moved") / "b.txt").write_text("another one")
    shutil.move("data/moved", "data/again")
    assert "--data-path is data/again, but run r was made from data/moved, and they differ" in tokenized.refused(
        data_path="data/again"
    )


@pytest.mark.parametrize("names", ["data/data.txt", ["data/books", "data/data.txt"], "data/books/a"])
def test_other_names_are_another_text(tokenized, names):
    assert "but run r was made from data/books, and they differ" in tokenized.refused(data_path=names)


def test_lost_tokens_are_made_from_the_files_that_there_were(tokenized, books):
    before = tokenized.snapshot()
    (books / "c.txt").write_text("a new text")
    tokenized.run.tokens_path.unlink()
    tokenized.prepare()
    assert tokenized.snapshot()["tokens.bin"] == before["tokens.bin"]
    assert len(tokenized.notes) == 2


def test_a_learned_vocabulary_survives_an_interrupted_encoding_of_a_folder(project, books, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_blocks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            project.prepare(data_path="data/books")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "train_bpe", lambda *_: pytest.fail("the vocabulary is learned a second time"))
        project.prepare(data_path="data/books")
    assert any("learned from this text before" in note for note in project.notes)
