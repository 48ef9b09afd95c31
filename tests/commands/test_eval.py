"""`hipgpt eval`: the score of a model on a whole text, and on HellaSwag's questions."""

import doctest
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gpt import hellaswag, scoring
from gpt.chat_template import MARKERS, Learned
from gpt.cli import main
from gpt.errors import UserError
from gpt.generate import load_model
from gpt.hellaswag import Question
from gpt.ops.cpu.operations import CpuOps
from gpt.scoring import rolling_windows, score
from gpt.tokenizer import Tokenizer
from tests.support.pretrained import TEXT, saved_run

QUESTION = {
    "activity_label": "Pets",
    "ctx_a": "the cat sat [header] on",
    "ctx_b": "the mat",
    "endings": ["and the dog [step] sat", "naïve", "on the log ends here .", "the  cat [title] Sat"],
    "label": "2",
}
ROUNDING = 2e-5  # float32 losses of up to about 20 nats, in another order of additions


@pytest.fixture
def saved(tmp_path):
    return saved_run(tmp_path / "checkpoints", max_seq_len=16)


@pytest.fixture
def model(saved):
    return load_model(saved, CpuOps(), batch=scoring.BATCH)


@pytest.fixture
def tokenizer(saved):
    return Tokenizer.load(saved.run.tokenizer_path)


@pytest.fixture
def run_eval(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        result = CliRunner().invoke(main, ["eval", "--run-name", "r", "--device", "cpu", *map(str, arguments)])
        assert result.exit_code == status, result.output
        return result.output

    return run


def loss_behind(model, before: list[int], id: int) -> float:
    """The cross-entropy of one id behind others, in float64, by the full logits."""
    logits = model.logits(np.array([before], np.int32))[0, -1].astype(np.float64)
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[id]


@pytest.mark.parametrize("module", [scoring, hellaswag])
def test_the_examples_in_the_docstrings_give_the_results_that_stand_there(module):
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


# ---- windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 23])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("first", [0, None])
def test_each_token_is_predicted_once_from_the_tokens_before_it(count, size, first):
    stream = np.arange(1, count + 1)
    blocks = [stream[start : start + size] for start in range(0, count, size)]
    predicted = []
    for ids, labels, scored in rolling_windows(blocks, 4, first):
        assert ids.dtype == labels.dtype == np.int32
        assert (labels == ids + 1).all()
        assert ids.shape[1] == min(4, count - (first is None)), "a window is as long as the model's context"
        predicted += labels[:, -scored:].ravel().tolist()
    assert predicted == list(range(1 + (first is None), count + 1))


def test_a_score_is_the_mean_of_the_losses_that_the_definition_gives(model, tokenizer):
    ids = tokenizer.encode(TEXT)
    stream, losses = [0, *ids], []
    for place, id in enumerate(ids):
        window = place // 16 * 16
        start = window if window + 16 <= len(ids) else max(0, len(ids) - 16)
        losses.append(loss_behind(model, stream[start : place + 1], id))
    found = score(model, tokenizer, [np.array(ids[:30], np.int32), np.array(ids[30:], np.int32)])
    assert len(ids) % 16, "the last window is not a whole one"
    assert found.tokens == len(ids)
    assert found.text_bytes == len(TEXT.encode())
    assert found.metrics.loss == pytest.approx(np.mean(losses), abs=ROUNDING)
    assert found.metrics.bits_per_byte == pytest.approx(np.sum(losses) / math.log(2) / len(TEXT.encode()), abs=ROUNDING)
    assert found.metrics.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=ROUNDING)


def test_the_size_of_the_blocks_does_not_matter(model, tokenizer):
    ids = np.array(tokenizer.encode(TEXT), np.int32)
    whole = score(model, tokenizer, [ids]).metrics
    parts = score(model, tokenizer, np.array_split(ids, 7)).metrics
    assert parts.loss == pytest.approx(whole.loss, abs=ROUNDING)
    assert parts.accuracy == whole.accuracy


# ---- the command on a text -----------------------------------------------------------------------------------------


def test_the_command_scores_a_text_in_words_and_in_json(run_eval, model, tokenizer):
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    expected = score(model, tokenizer, [np.array(tokenizer.encode(TEXT), np.int32)])
    said = run_eval("--data-path", "text.txt")
    assert f"Text: text.txt, {expected.tokens} tokens, {expected.text_bytes} bytes" in said
    assert str(expected.metrics) in said
    found = json.loads(run_eval("--data-path", "text.txt", "--json"))
    assert found == {"run": "r", "step": 3, "text": "text.txt", **expected.to_json()}


def test_several_files_are_scored_as_documents_one_after_the_other(run_eval, model, tokenizer):
    Path("texts").mkdir()
    for name in ("b.txt", "a.txt", "z.jsonl"):
        Path("texts", name).write_text(json.dumps({"text": TEXT}) if name.endswith("l") else TEXT, encoding="utf-8")
    Path("texts", "picture.png").write_bytes(b"\x89PNG\0")
    ids = np.array(tokenizer.encode(f"{TEXT}<|endoftext|>" * 3), np.int32)
    expected = score(model, tokenizer, [ids])
    for names in (["texts"], ["texts/a*", "texts/b.txt", "texts/z.jsonl"]):
        said = run_eval(*(each for name in names for each in ("--data-path", name)))
        assert f"Text: {', '.join(names)}, {expected.tokens} tokens, {expected.text_bytes} bytes" in said
        assert str(expected.metrics) in said


def test_a_text_is_read_with_the_encoding_and_the_field_that_the_command_names(run_eval):
    Path("text.txt").write_text("naïve\n" + TEXT, encoding="utf-8")
    expected = json.loads(run_eval("--data-path", "text.txt", "--json"))
    Path("wide.txt").write_text("naïve\n" + TEXT, encoding="utf-16-le")
    wide = json.loads(run_eval("--data-path", "wide.txt", "--encoding", "utf-16-le", "--json"))
    assert wide == {**expected, "text": "wide.txt"}
    Path("documents.jsonl").write_text(json.dumps({"text": "no", "story": TEXT}), encoding="utf-8")
    Path("plain.jsonl").write_text(json.dumps({"text": TEXT}), encoding="utf-8")
    named, plain = (
        json.loads(run_eval("--json", "--data-path", *arguments))
        for arguments in (["documents.jsonl", "--text-field", "story"], ["plain.jsonl"])
    )
    assert named == {**plain, "text": "documents.jsonl"}


def test_documents_without_text_are_left_out_of_a_score_and_counted(run_eval):
    Path("whole.jsonl").write_text(json.dumps({"text": TEXT}) + "\n", encoding="utf-8")
    Path("gaps.jsonl").write_text('{"text": null}\n' + Path("whole.jsonl").read_text() + '{"text": ""}\n')
    whole, gaps = run_eval("--data-path", "whole.jsonl"), run_eval("--data-path", "gaps.jsonl")
    note = "Note: 2 documents have no text and are left out, the first in gaps.jsonl, line 1\n"
    assert note in gaps
    assert gaps.replace(note, "").replace("gaps", "whole") == whole


def test_in_conversations_what_the_assistant_says_is_scored(model):
    tokenizer = Tokenizer(kind="byte", special_tokens=tuple(MARKERS.values()))
    ids = np.array(tokenizer.encode("<|user|>ab<|assistant|>cde<|endoftext|>xy"), np.int32)
    windows = list(rolling_windows([ids[:3], ids[3:]], 4, 0, Learned.by(tokenizer)))
    labels = np.concatenate([each.labels[:, -each.scored :].ravel() for each in windows])
    assert labels.tolist() == [-1] * 4 + ids[4:].tolist()


def test_without_a_text_the_held_out_part_of_the_runs_own_is_scored(hipgpt, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 30, encoding="utf-8")
    hipgpt(
        "train", "--data-path", "text.txt", "--run-name", "own", "--dim", 8, "--heads", 2, "--ff", 12, "--layers", 1,
        "--seq", 8, "--batch", 2, "--steps", 1, "--vocab-size", 60, "--val-fraction", 0.1,
    )  # fmt: skip
    result = CliRunner().invoke(main, ["eval", "--run-name", "own", "--json", "--device", "cpu"])
    found, info = json.loads(result.output), json.loads(Path("checkpoints/own/tokens.json").read_text())
    assert found["text"] == "held out"
    assert found["tokens"] == math.floor(info["count"] * 0.1)
    (tmp_path / "checkpoints" / "own" / "tokens.bin").write_bytes(b"other")
    result = CliRunner().invoke(main, ["eval", "--run-name", "own", "--device", "cpu"])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "is not what was written" in result.output


ASKED = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]
ANSWER = [{"role": "assistant", "content": "four"}]


def test_what_the_assistant_says_in_a_prompt_is_not_scored(hipgpt, tmp_path):
    line = json.dumps({"prompt": ASKED, "completion": ANSWER})
    (tmp_path / "chat.jsonl").write_text(f"{line}\n" * 20, encoding="utf-8")
    (tmp_path / "held.jsonl").write_text(f"{line}\n" * 3, encoding="utf-8")
    hipgpt(
        "train", "--data-path", "chat.jsonl", "--val-path", "held.jsonl", "--run-name", "own", "--dim", 8, "--heads", 2,
        "--ff", 12, "--layers", 1, "--seq", 8, "--batch", 2, "--steps", 1, "--vocab-size", 270, "--tokenizer", "byte",
    )  # fmt: skip
    tokenizer = Tokenizer.load("checkpoints/own/tokenizer.json")
    for arguments in ([], ["--data-path", "held.jsonl"]):
        evaluate = ["eval", "--run-name", "own", "--json", "--device", "cpu", *arguments]
        found = json.loads(CliRunner().invoke(main, evaluate).stdout)
        assert found["tokens"] == 3 * len(tokenizer.encode("four<|endoftext|>")), arguments


def test_a_model_without_markers_reads_a_prompt_as_the_same_messages(run_eval):
    Path("talk.jsonl").write_text(json.dumps({"messages": ASKED + ANSWER}) + "\n", encoding="utf-8")
    Path("pair.jsonl").write_text(json.dumps({"prompt": ASKED, "completion": ANSWER}) + "\n", encoding="utf-8")
    talk, pair = (json.loads(run_eval("--json", "--data-path", path)) for path in ("talk.jsonl", "pair.jsonl"))
    assert {**pair, "text": "talk.jsonl"} == talk


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "checkpoints/r has no text of its own: name one with --data-path"),
        (("--data-path", "missing.txt"), "missing.txt"),
        (("--data-path", "empty.txt"), "empty.txt"),
        (("--data-path", "latin.txt"), "latin.txt"),
        (("--data-path", "a", "--hellaswag", "b"), "--data-path a and --hellaswag b exclude each other"),
        (("--hellaswag", "missing.jsonl"), "missing.jsonl does not exist"),
        (("--hellaswag", "empty.txt"), "empty.txt is empty"),
        (("--step", "4"), "no checkpoint of step 4"),
        (("--encoding", "latin-1"), "--encoding latin-1 says how to read --data-path, which is missing"),
        (("--hellaswag", "b", "--text-field", "story"), "--text-field story says how to read --data-path, which is"),
        (("--data-path", "plain.txt", "--text-field", "story"), "--text-field is story, but plain.txt has no fields"),
        (("--data-path", "plain.txt", "--encoding", "rot13"), "encoding is rot13, but must be"),
    ],
)
def test_what_cannot_be_scored_is_one_line(run_eval, arguments, complaint):
    Path("empty.txt").write_text("")
    Path("plain.txt").write_text(TEXT, encoding="utf-8")
    Path("latin.txt").write_bytes("naïve".encode("latin-1"))
    error = run_eval(*arguments, status=2)
    assert complaint in error
    assert error.count("\n") == 1


# ---- HellaSwag -----------------------------------------------------------------------------------------------------


def write_questions(*questions: dict) -> Path:
    path = Path("questions.jsonl")
    path.write_text("".join(json.dumps(each) + "\n" for each in questions), encoding="utf-8")
    return path


def test_questions_are_prepared_as_the_harness_does(run_eval):
    (question,) = hellaswag.read_questions(write_questions(QUESTION))
    assert question.context == "Pets: the cat sat on The mat"
    assert question.endings == ["and the dog sat", "naïve", "on the log ends here .", "the cat. Sat"]
    assert question.answer == 2


def test_the_log_probability_of_an_ending_is_that_of_its_tokens_behind_the_context(model, tokenizer):
    for context in ("the cat", "the cat ", "the dog sat on the mat and the cat sat on the log"):
        question = Question(context, ["sat", "on the mat"], 0)
        found = hellaswag.log_probabilities(model, tokenizer, question)
        for ending, value in zip(question.endings, found, strict=True):
            ids, known = tokenizer.encode(f"{context} {ending}"), len(tokenizer.encode(context.rstrip()))
            seen = ids[-17:]
            expected = -sum(loss_behind(model, seen[:place], seen[place])
                            for place in range(len(seen) - (len(ids) - known), len(seen)))  # fmt: skip
            assert value == pytest.approx(expected, abs=10 * ROUNDING)


def test_the_likeliest_ending_and_the_likeliest_by_its_length_are_counted(run_eval, monkeypatch):
    """Sums of -4, -6 and -9 over 2, 4 and 9 characters: the first one is likeliest, the last one by its length."""
    question = Question("c", ["ab", "abcd", "abcdefghi"], 0)
    monkeypatch.setattr(hellaswag, "log_probabilities", lambda *_: np.array([-4.0, -6.0, -9.0]))
    questions = [question, question._replace(answer=2), question, question._replace(answer=1)]
    result = hellaswag.evaluate(None, None, questions, lambda *_, **__: None)
    assert result == (4, 0.5, 0.25)
    assert result.error(0.5) == pytest.approx(math.sqrt(0.25 / 3))


def test_the_command_answers_questions_in_words_and_in_json(run_eval):
    path = write_questions(QUESTION, QUESTION | {"label": 0})
    found = json.loads(run_eval("--hellaswag", path, "--json"))
    assert found["questions"] == 2
    assert found["accuracy"] in (0, 0.5)
    assert f"Accuracy: {found['accuracy']:.2%} ± " in run_eval("--hellaswag", path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"label": "4"}, "label is 4, but there are 4 endings"),
        ({"label": ""}, "label is '', but must be the number of an ending"),
        ({"endings": []}, "endings is [], but must be a list of texts"),
        ({"endings": ["a", "[header]", "c", "d"]}, "one of its endings is empty"),
        ({"ctx_a": None}, "ctx_a is None, but must be text"),
    ],
)
def test_a_line_that_is_no_question_is_named(run_eval, change, complaint):
    error = run_eval("--hellaswag", write_questions(QUESTION, QUESTION | change), status=2)
    assert f"line 2 of questions.jsonl is no question: {complaint}" in error


def test_an_ending_beyond_the_models_context_is_refused(model, tokenizer):
    with pytest.raises(UserError, match=r"has \d+ tokens, but the model can read from 1 to 16"):
        hellaswag.log_probabilities(model, tokenizer, Question("the", [TEXT, "cat"], 1))


# ---- beside transformers -------------------------------------------------------------------------------------------


@pytest.mark.peers
def test_log_probabilities_are_those_of_transformers(saved, model, tokenizer, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from gpt.export import export

    torch.set_num_threads(1)
    export(saved, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    text = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = [0, *text(TEXT)["input_ids"]]
    total, done = 0.0, 0
    while done < len(ids) - 1:
        new = min(16, len(ids) - 1 - done)
        end = done + new
        start = max(0, end - 16)
        window = torch.tensor([ids[start : end + 1]])
        logits = theirs(window[:, :-1]).logits.log_softmax(-1)
        total -= logits.gather(-1, window[:, 1:, None])[0, -new:].sum().item()
        done = end
    found = score(model, tokenizer, tokenizer.encode_blocks([TEXT]))
    assert found.metrics.loss == pytest.approx(total / (len(ids) - 1), abs=1e-4)
