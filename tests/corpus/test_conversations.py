"""Conversations in JSON Lines and parquet become a text with markers, and a model learns what the assistant says."""

import doctest
import gzip
import json
import re

import numpy as np
import pytest

from gpt import pretrained
from gpt.batches import Batches
from gpt.chat_template import MARKERS, is_used_by
from gpt.corpus import conversations, kinds
from gpt.corpus.sources import find
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer

PAIR = {"prompt": "2 + 2?", "completion": "four", "id": 7}
TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "three"},
    ]
}
PAIR_TEXT = "<|user|>2 + 2?<|assistant|>four<|endoftext|>"
TALK_TEXT = "<|system|>Be brief.<|user|>1 + 1?<|assistant|>two<|user|>1 + 2?<|assistant|>three<|endoftext|>"

TALK_AS_PROMPT = {"prompt": TALK["messages"][:-1], "completion": TALK["messages"][-1:]}
TALK_WITH_WEIGHTS = {
    "messages": [{**each, "weight": int(each["content"] == "three")} for each in TALK["messages"]]
}  # fmt: skip
SIGNED_TEXT = TALK_TEXT.replace("two", "<|system|>two")  # the sign of a message that is not learned


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def chat(project):
    """The project, with 40 conversations in data/chat.jsonl."""
    project.text.with_name("chat.jsonl").write_text(lines(*[PAIR, TALK] * 20))
    return project


def test_a_run_is_tried_in_the_way_that_it_has_learned(chat):
    assert chat.run.trial(best=True) == 'hipgpt generate --run-name r --best --prompt "…"'
    chat.prepare(data_path="data/chat.jsonl", kind="byte", vocab_limit=300)
    assert chat.run.trial(best=False) == "hipgpt chat --run-name r"


def test_records_that_are_neither_text_nor_conversation_are_told_what_one_needs(chat):
    chat.text.with_name("chat.jsonl").write_text(lines({"dialog": []}))
    said = chat.refused(data_path="data/chat.jsonl")
    assert said.endswith(
        "name the field of the text with --text-field; conversations need messages, conversations, prompt and "
        "completion, or instruction and output"
    )


def learned_of(corpus):
    """The texts of the stretches of tokens that count."""
    cuts = np.flatnonzero(np.diff(corpus.counted)) + 1
    parts = zip(np.split(corpus.tokens[:], cuts), np.split(corpus.counted, cuts), strict=True)
    return [corpus.tokenizer.decode(ids.tolist()) for ids, counted in parts if counted[0]]


def test_the_example_of_the_module_gives_the_result_that_stands_there():
    failed, tried = doctest.testmod(conversations)
    assert not failed
    assert tried


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_lines_of_both_forms_are_recognized_and_become_texts(tmp_path, pack, size):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(pack(b"\xef\xbb\xbf\n" + lines(PAIR, TALK, PAIR).encode()))
    sources = find([str(path)]).sources
    assert sources.with_conversations == [path]
    texts = ("".join(sources.blocks(*piece)) for piece in sources.pieces(size, 1))
    assert "".join(texts) == PAIR_TEXT + TALK_TEXT + PAIR_TEXT


def test_a_field_that_is_null_is_not_there(tmp_path):
    """As in lines that were made of a table in which each row has each column."""
    path = tmp_path / "chat.jsonl"
    none = dict.fromkeys(["text", "messages", "prompt", "completion"])
    path.write_text(lines(none | PAIR, none | TALK))
    sources = find([str(path)]).sources
    assert sources.with_conversations == [path]
    assert "".join(sources.blocks()) == PAIR_TEXT + TALK_TEXT


WEIGHTS = {"system": None, "human": 0.0, "gpt": 1.0}
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = {"conversations": [{"from": NAMES[each["role"]], "value": each["content"]} for each in TALK["messages"]]}
FORMS = [
    (SHAREGPT, TALK_TEXT),
    ({"conversations": [each | {"weight": WEIGHTS[each["from"]]} for each in SHAREGPT["conversations"]]}, TALK_TEXT),
    ({"conversations": TALK["messages"]}, TALK_TEXT),
    (TALK_AS_PROMPT, SIGNED_TEXT),
    (TALK_WITH_WEIGHTS, SIGNED_TEXT),
    ({"prompt": TALK["messages"][:2], "completion": TALK["messages"][2:]}, TALK_TEXT),
    ({"prompt": "2 + 2?", "completion": [{"role": "assistant", "content": "four"}]}, PAIR_TEXT),
    ({"instruction": "2 + 2?", "input": "", "output": "four"}, PAIR_TEXT),
    ({"instruction": "2 + 2?", "output": "four", "system": "", "history": []}, PAIR_TEXT),
    ({"system": "Be brief.", "messages": TALK["messages"][1:]}, TALK_TEXT),
    ({"system": "Be brief.", "prompt": "2 + 2?", "completion": "four"}, "<|system|>Be brief." + PAIR_TEXT),
    ({"instruction": "2 +", "input": "2?", "output": "four"}, PAIR_TEXT.replace("2 + 2?", "2 +\n\n2?")),
]  # fmt: skip


@pytest.mark.parametrize(("record", "text"), FORMS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_form_of_a_conversation_becomes_the_same_text(tmp_path, kind, record, text):
    path = tmp_path / f"chat.{kind}"
    write = parquet_of if kind == "parquet" else lambda path, rows: path.write_text(lines(*rows))
    write(path, [{"id": 1, **record}] * 3)
    sources = find([str(path)]).sources
    assert sources.with_conversations == [path]
    assert "".join(sources.blocks()) == text * 3


def parquet_of(path, rows, **how):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path, **how)


@pytest.mark.parametrize(
    "write", [lines, lambda *records: json.dumps(records), lambda *records: json.dumps(records, indent=1)]
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_json_file_may_have_conversations_as_a_list_or_as_lines(tmp_path, write, pack):
    path = tmp_path / "chat.json"
    path.write_bytes(pack(write(*[PAIR, SHAREGPT] * 3).encode()))
    sources = find([str(path)]).sources
    assert sources.with_conversations == [path]
    assert "".join(sources.blocks()) == (PAIR_TEXT + TALK_TEXT) * 3


@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl", "lines.json", "chat.json.gz"])
@pytest.mark.parametrize("long", [False, True])
def test_a_first_object_is_found_at_any_length_and_a_short_one_without_opening_the_file_again(
    tmp_path, monkeypatch, name, long
):
    record = {"id": "ä" * 3000 * long, **PAIR}
    is_list = name in ("chat.json", "chat.json.gz")
    text = json.dumps([record] * 2, ensure_ascii=False) if is_list else lines(record, record)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    if not long:
        monkeypatch.setattr(kinds, "_content", None)
    assert find([str(tmp_path / name)]).sources.with_conversations == [tmp_path / name]


@pytest.mark.parametrize(
    "content", ['{"messages": {"hello": "Guten Tag"}}', '{\n "prompt": "a"\n}', '[{"text": "a"}]', "[1]"]
)
def test_other_json_files_are_plain_text(tmp_path, content):
    path = tmp_path / "chat.json"
    path.write_text(content)
    sources = find([str(path)]).sources
    assert sources.with_conversations == []
    assert "".join(sources.blocks()) == content


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_rows_of_a_parquet_file_are_the_same_conversations_as_json_lines(chat, rows):
    records = [PAIR, {**TALK, "id": None}, {"messages": [{**each, "weight": 1} for each in TALK["messages"]]}, PAIR] * 9
    chat.text.with_name("chat.jsonl").write_text(lines(*records))
    first = chat.prepare(data_path="data/chat.jsonl", kind="byte", vocab_limit=300)
    columns = {key: None for record in records for key in record}
    parquet_of(chat.text.with_name("chat"), [{**columns, **record} for record in records], row_group_size=rows)
    second = chat.prepare(data_path="data/chat", kind="byte", vocab_limit=300, reset=True)
    assert second.tokens[:].tolist() == first.tokens[:].tolist()
    assert second.counted.tolist() == first.counted.tolist()
    assert "there are conversations in data/chat" in chat.notes[-1]


def test_a_parquet_file_with_a_text_or_a_column_that_the_user_names_has_no_conversations(tmp_path):
    parquet_of(tmp_path / "texts", [{**PAIR, "text": "a"}])
    parquet_of(tmp_path / "pairs", [PAIR])
    assert "".join(find([str(tmp_path / "texts")]).sources.blocks()) == "a<|endoftext|>"
    assert "".join(find([str(tmp_path / "pairs")], field="prompt").sources.blocks()) == "2 + 2?<|endoftext|>"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"content": "a"}]}, "row 3: the conversation has the role None in message 1"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "row 3: the conversation has the role 'boss' in message 1"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path, row, message):
    rows = [PAIR, {"messages": TALK["messages"][:3]}, {**PAIR, **row}]
    parquet_of(tmp_path / "chat", [{**dict.fromkeys([*PAIR, "messages"]), **each} for each in rows], row_group_size=2)
    with pytest.raises(UserError) as error:
        list(find([str(tmp_path / "chat")]).sources.blocks())
    assert f"{tmp_path / 'chat'}, {message}" in str(error.value)


@pytest.mark.parametrize(
    ("record", "field"), [({"text": "a", "prompt": "b"}, None), (PAIR, "prompt"), (["messages"], None)]
)
def test_lines_with_a_text_or_a_field_that_the_user_names_are_no_conversations(tmp_path, record, field):
    path = tmp_path / "texts.jsonl"
    path.write_text(lines(record))
    assert find([str(path)], field=field).sources.with_conversations == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"question": "a"},
            "line 3: the conversation has no field of one, but must have messages, conversations, prompt and",
        ),
        ({"prompt": "a"}, "line 3: the conversation has no completion, but must have prompt and completion"),
        ({"output": "a"}, "line 3: the conversation has no instruction, but must have instruction and output"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "line 3: the conversation has ['b'] as its input, but"),
        ({"prompt": TALK["messages"], "completion": []}, "line 3: the conversation has no message of the assistant in"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "line 3: the conversation has the role 'tool' in"),
        ({"conversations": [{"from": "gpt"}]}, "line 3: the conversation has {'from': 'gpt'} as message 1, but must"),
        ({**PAIR, "history": [["a", "b"]]}, "line 3: the conversation has a history, which would be lost: put what"),
        ({**PAIR, "system": ["a"]}, "line 3: the conversation has ['a'] as its system, but must have text"),
        ({"conversations": "a"}, "line 3: the conversation is 'a', but must be a list of messages"),
        ({"completion": "a"}, "line 3: the conversation has no prompt, but must have prompt and completion"),
        ({"prompt": "a", "completion": 5}, "line 3: the conversation has 5 as its completion, but must have"),
        ({"prompt": "a", "completion": [TALK["messages"][2], "b"]}, "line 3: the conversation has 'b' as message 3"),
        ({"prompt": "a", "completion": "<|user|>"}, "line 3: the conversation has <|user|> in its completion, which"),
        ({"messages": []}, "line 3: the conversation is [], but must be a list of messages"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "line 3: the conversation has the role 'boss' in message 1"),
        ({"messages": [{"role": "user", "content": 5}]}, "line 3: the conversation has 5 as the content of message 1"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 3: the conversation has no message of the assistant,"),
        (
            {"messages": [{"role": "assistant", "content": "a", "weight": 0}]},
            "line 3: the conversation has no message of the assistant with a weight, so there is nothing to learn",
        ),
        (
            {"messages": [{"role": "assistant", "content": ""}, *TALK["messages"]]},
            "line 3: the conversation has an empty message of the assistant in front of one of the system",
        ),
        (["a"], "line 3, is not a JSON object"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path, record, message):
    path = tmp_path / "chat.jsonl"
    path.write_text(lines(PAIR, TALK, record))
    with pytest.raises(UserError) as error:
        list(find([str(path)]).sources.blocks())
    assert f"{path}, {message}" in str(error.value)


@pytest.mark.parametrize("kind", ["byte", "word", "char"])
def test_a_learned_tokenizer_gets_the_markers_and_the_assistants_words_count(chat, kind):
    corpus = chat.prepare(data_path="data/chat.jsonl", kind=kind, vocab_limit=300)
    assert is_used_by(corpus.tokenizer)
    learned = learned_of(corpus)
    assert [text.replace(" ", "") for text in learned[:3]] == ["four<|endoftext|>", "two<|user|>", "three<|endoftext|>"]
    assert len(learned) == 60
    assert chat.info()["counted"]["count"] == np.count_nonzero(corpus.counted)
    assert "there are conversations in data/chat.jsonl: the model learns what the assistant says, " in chat.notes[-1]
    again = chat.prepare(data_path="data/chat.jsonl", kind=kind, vocab_limit=300)
    assert again.counted.tolist() == corpus.counted.tolist()
    assert chat.notes == []


@pytest.mark.parametrize("record", [TALK_AS_PROMPT, TALK_WITH_WEIGHTS])
@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("seed", [None, 3])
def test_what_the_assistant_says_in_a_prompt_or_without_a_weight_is_read_and_not_learned(chat, record, held_out, seed):
    """The tokens are those of the same messages that are all learned."""
    found = []
    for each in (TALK, record):
        chat.text.with_name("chat.jsonl").write_text(lines(*[PAIR, each] * 20))
        chat.text.with_name("val.jsonl").write_text(lines(each, PAIR))
        val_path = "data/val.jsonl" if held_out else None
        corpus = chat.prepare(
            data_path="data/chat.jsonl", val_path=val_path, shuffle_documents=seed, kind="byte", vocab_limit=300,
            reset=bool(found),
        )  # fmt: skip
        assert chat.info()["counted"]["count"] == np.count_nonzero(corpus.counted)
        assert chat.info()["count"] == len(corpus.tokens) == len(corpus.counted)
        found.append((corpus.tokens[:].tolist(), corpus.info.get("held_out", {}).get("count"), learned_of(corpus)))
    assert found[0][:2] == found[1][:2]
    assert found[1][2] == [text for text in found[0][2] if text != "two<|user|>"] != found[0][2]
    assert chat.prepare().counted.tolist() == corpus.counted.tolist()


def test_counted_bin_is_not_made_again_if_the_tokens_do_not_tell_what_is_learned(chat):
    chat.text.with_name("chat.jsonl").write_text(lines(*[PAIR, TALK_AS_PROMPT] * 20))
    wanted = chat.prepare(data_path="data/chat.jsonl", kind="byte", vocab_limit=300).counted.tolist()
    chat.run.counted_path.unlink()
    assert "counted.bin does not follow from checkpoints/r/tokens.bin alone: put it back, or delete" in chat.refused()
    assert not chat.run.counted_path.exists()
    chat.run.tokens_path.unlink()
    assert chat.prepare().counted.tolist() == wanted


def test_labels_that_do_not_count_are_minus_one(chat):
    corpus = chat.prepare(data_path="data/chat.jsonl", kind="byte", vocab_limit=300)
    batches = Batches(corpus.tokens, 2, 16, sampling="sequential", seed=0, val_fraction=0.0, counted=corpus.counted)
    ids, labels = batches.train(0)
    assert labels.ravel().tolist() == [
        id if counted else -1 for id, counted in zip(corpus.tokens[1:33].tolist(), corpus.counted[1:33], strict=True)
    ]


def test_other_documents_beside_conversations_count_whole_and_so_do_held_out_ones(chat):
    chat.text.write_text("just a text")
    chat.text.with_name("held.jsonl").write_text(lines(PAIR))
    corpus = chat.prepare(data_path=["data/data.txt", "data/chat.jsonl"], val_path="data/held.jsonl", kind="byte",
                          vocab_limit=300)  # fmt: skip
    learned = learned_of(corpus)
    assert learned[0] == "just a text<|endoftext|>"
    assert learned[-1] == "four<|endoftext|>"
    assert len(learned) == 62


def test_shuffled_conversations_keep_their_answers(chat):
    corpus = chat.prepare(data_path="data/chat.jsonl", kind="byte", vocab_limit=300, shuffle_documents=3)
    learned = learned_of(corpus)
    assert sorted(learned) == sorted(["four<|endoftext|>", "two<|user|>", "three<|endoftext|>"] * 20)
    assert learned[:6] != ["four<|endoftext|>", "two<|user|>", "three<|endoftext|>"] * 2


def test_a_given_tokenizer_gets_the_markers_behind_its_own_tokens(chat):
    given = Tokenizer(kind="byte", special_tokens=["<a>"])
    given.save("tokenizer.json")
    corpus = chat.prepare(data_path="data/chat.jsonl", kind="tokenizer.json")
    assert corpus.tokenizer.special_tokens == ("<a>", *MARKERS.values())
    assert corpus.tokenizer.encode("<|system|>hi") == [given.vocab_size, *given.encode("hi")]
    assert chat.prepare(data_path="data/chat.jsonl", kind="tokenizer.json").tokenizer == corpus.tokenizer


def test_special_tokens_of_the_users_stand_beside_the_markers(chat):
    flags = {"data_path": "data/chat.jsonl", "kind": "byte", "vocab_limit": 300, "special_tokens": ("<a>",)}
    assert chat.prepare(**flags).tokenizer.special_tokens == ("<a>", *MARKERS.values())
    chat.prepare(**flags)
    assert "--special-token is ('<b>',)" in chat.refused(**{**flags, "special_tokens": ("<b>",)})


@pytest.mark.parametrize("trained", [True, False])
def test_the_tokenizer_of_a_model_that_cannot_grow_is_refused(chat, trained):
    Tokenizer(kind="byte").save("tokenizer.json")
    chat.run.path.mkdir(parents=True)
    Tokenizer(kind="byte").save(chat.run.tokenizer_path)
    if trained:
        chat.add_checkpoint()
    error = chat.refused(data_path="data/chat.jsonl", may_grow=trained)
    assert "there are conversations in data/chat.jsonl, but the tokenizer of the model lacks <|system|>" in error
    assert "begin a new run with --from" in error


def test_counted_bin_is_made_again_if_it_is_missing_and_refused_if_it_has_changed(chat):
    corpus = chat.prepare(data_path="data/chat.jsonl", kind="byte", vocab_limit=300)
    wanted = corpus.counted.tolist()
    chat.run.counted_path.unlink()
    assert chat.prepare().counted.tolist() == wanted
    assert "counted.bin is missing: making it again" in chat.notes[0]
    chat.run.counted_path.write_bytes(bytes(len(wanted)))
    assert "counted.bin is not what was written" in chat.refused()
    chat.run.counted_path.unlink()
    chat.prepare()
    chat.prepare(data_path="data/data.txt", reset=True)
    assert not chat.run.counted_path.exists()


def test_a_model_is_tuned_on_conversations_and_its_vocabulary_grows(hipgpt, tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat . " * 40)
    (tmp_path / "chat.jsonl").write_text(lines(*[PAIR, TALK] * 20))
    model = ("--dim", 8, "--heads", 2, "--ff", 8, "--layers", 1, "--seq", 16, "--batch", 2, "--no-tie")
    text = ("--tokenizer", "byte", "--vocab-size", 300, "--data-path", "a.txt")
    hipgpt("train", *text, *model, "--device", "cpu", "--steps", 1, "--run-name", "base")
    tune = ("train", "--from", "base", "--data-path", "chat.jsonl", "--run-name", "tuned", "--device", "cpu")
    out = hipgpt(*tune, "--steps", 2, "--batch", 2, "--eval-every", 1, "--val-fraction", 0.2).stdout
    assert "there are conversations in" in out
    assert "of them learned" in out
    assert "Validation Loss" in out
    base, tuned = (pretrained.find(name, tmp_path / "checkpoints") for name in ("base", "tuned"))
    assert tuned.config.vocab_size == base.config.vocab_size + 3
    embeddings = base.weights["transformer.wte.weight"]
    begin = base.grown(["<|user|>"]).weights["transformer.wte.weight"]
    assert np.array_equal(begin[-1], embeddings[base.tokenizer.encode("<|user|>")].mean(axis=0))
    assert "has reached step 2 of 2" in hipgpt("train", "--run-name", "tuned", "--resume").stdout
    refused = hipgpt("train", "--ckpt", "checkpoints/base/latest_checkpoint.safetensors", "--data-path", "chat.jsonl",
                     "--run-name", "other", "--steps", 1, "--device", "cpu", status=2).stderr  # fmt: skip
    assert "begin a new run with --from" in refused


def test_a_step_without_a_token_to_learn_has_no_loss(hipgpt, tmp_path):
    """Each step reads 16 tokens, and a question has 200."""
    line = {"prompt": "why? " * 40, "completion": "so"}
    (tmp_path / "chat.jsonl").write_text(lines(*[line] * 20))
    out = hipgpt(
        "train", "--data-path", "chat.jsonl", "--run-name", "r", "--tokenizer", "byte", "--vocab-size", 264,
        "--steps", 20, "--dim", 8, "--heads", 2, "--ff", 8, "--layers", 1, "--seq", 8, "--batch", 2, "--device", "cpu",
        "--log-every", 1, "--sampling", "sequential", "--eval-every", 0,
    ).stdout  # fmt: skip
    without = [int(step) for step in re.findall(r"\[Step (\d+)\] No loss: its texts have nothing that the assist", out)]
    logged = [json.loads(text) for text in (tmp_path / "checkpoints/r/metrics.jsonl").read_text().splitlines()]
    assert sorted(without + [each["step"] for each in logged]) == list(range(1, 21))
    assert all(each["loss"] > 1 for each in logged)
    assert len(without) > len(logged) > 0


def test_the_embedding_of_a_new_token_is_the_mean_of_its_pieces_or_of_all_if_it_has_none():
    weights = {
        "transformer.wte.weight": np.array([[1, 2], [3, 6], [8, 1]], np.float32),
        "transformer.wpe.weight": np.ones((1, 2)),
    }
    grown = pretrained.Grown(weights, [[0, 1], []])
    assert grown["transformer.wte.weight"].tolist() == [[1, 2], [3, 6], [8, 1], [2, 4], [4, 3]]
    assert grown["transformer.wpe.weight"].tolist() == [[1, 1]]
