# SPDX-License-Identifier: Apache-2.0
"""What `predict` and `evaluate` say and write: what was cut, what went wrong, where answers go."""

import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.cli import main as cli
from albert_jax.config.run import FinetuneConfig
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.distributed.compilation_cache import cached_programs
from albert_jax.inference import finetuned
from albert_jax.inference.answers import Answer, SpanAnswer
from albert_jax.inference.api import Albert, load
from albert_jax.inference.evaluate import evaluate, evaluation_table
from albert_jax.inference.finetuned import HeadOutputs, load_fine_tuned
from albert_jax.inference.predict import _chunks, predict, predict_file, predict_split
from albert_jax.models.albert import init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.tasks import TASKS, Features
from albert_jax.tasks.collate import as_rows
from albert_jax.tasks.cuts import Cut, cuts_of, lines_about
from albert_jax.tasks.scores import line_of, metric_lines
from albert_jax.training.finetune_setup import set_up
from albert_jax.utils.errors import UserError
from tests.helpers.paths import VOCABULARY
from tests.helpers.task_models import task_model
from tests.helpers.toy_task import TINY

TOKENIZER = Tokenizer.load(VOCABULARY)
LONG = "the value of the list is open " * 9


def command(model: Path, *arguments: object) -> list[str]:
    return ["predict", "--model", str(model), *map(str, arguments)]


def write_lines(path: Path, *records: object) -> Path:
    lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tokens(*texts: str) -> int:
    return sum(map(len, TOKENIZER.encode_ids(texts)))


# -------------------------------------------------------------------------------- what is left out


# By task: an input that is too long for rows of 32 tokens, and how many of its tokens are lost.
TOO_LONG = {
    "single": ({"text": LONG}, tokens(LONG) - 30),
    "stsb": ({"sentence1": LONG, "sentence2": "a"}, tokens(LONG, "a") - 29),
    "race": (
        {"article": LONG, "question": "What is", "options": ["a", "b", "a value of a list", "d"]},
        tokens(LONG, "What is a value of a list") - 29,
    ),
    "token-classification": ({"words": ["the", "xq" * 60, "is"]}, tokens("xq" * 60) - 30),
    "squad1": (
        {"question": "what is the value " * 30, "context": "It is open."},
        tokens("what is the value " * 30) - 9,
    ),
}


@pytest.mark.parametrize("task", TOO_LONG)
def test_an_answer_says_that_its_text_was_cut_and_by_how_much(model, task: str) -> None:
    record, left_out = TOO_LONG[task]
    settings = {"settings": {"max_query_length": 9}} if task.startswith("squad") else {}
    short = {k: ["a"] * len(x) if isinstance(x, list) else "a" for k, x in record.items()}
    cut, whole = predict(model(task, **settings), [record, short])
    assert (cut["truncated"], cut["tokens_left_out"]) == (True, left_out)
    assert left_out > 0
    assert not {"truncated", "tokens_left_out"} & whole.keys()


def test_a_head_without_names_for_its_labels_answers_by_their_numbers(model) -> None:
    """Of a TensorFlow checkpoint, or of transformers without id2label."""
    (answer,) = predict(model("single", labels=None), [{"text": "a"}])
    assert answer["prediction"] in ("LABEL_0", "LABEL_1")
    assert answer["probabilities"].keys() == {"LABEL_0", "LABEL_1"}
    (answer,) = predict(model("multi-label", labels=None), [{"text": "a"}])
    assert set(answer["prediction"]) <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    options = {"question": "What?", "options": ["a", "b", "c"]}
    record = {"passage": "It is.", **options}
    (answer,) = predict(model("multiple-choice", labels=None), [record])
    assert answer["prediction"] in ("0", "1", "2")
    (answer,) = predict(model("sst2", labels=None), [{"sentence": "a"}])
    assert answer["prediction"] in ("0", "1")
    with pytest.raises(UserError, match="has the labels LABEL_0, LABEL_1, LABEL_2, and sst2"):
        predict(model("mnli", labels=None, task=None), [{"sentence": "a"}], task="sst2")


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("sst2", ["POSITIVE", "Negative"]),
        ("sst2", ["negative", "positive"]),
        ("mrpc", ["not_equivalent", "equivalent"]),
        ("mnli", ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"]),
    ],
)
def test_a_heads_published_names_are_the_tasks_labels(tmp_path, task, labels) -> None:
    named = {"POSITIVE": "1", "Negative": "0", "negative": "0", "positive": "1"}
    named |= {"not_equivalent": "0", "equivalent": "1"}
    record = dict(zip(TASKS[task].text_columns, ["a", "b"], strict=False))
    (answer,) = predict(task_model(tmp_path / "named", task, labels=labels), [record])
    (own,) = predict(task_model(tmp_path / "unnamed", task, labels=None), [record])
    order = [named.get(label, label.lower()) for label in labels]
    assert answer["probabilities"] == dict(zip(order, own["probabilities"].values(), strict=True))


def test_labels_without_names_say_which_of_two_orders_is_taken(model, capsys) -> None:
    predict(model("mnli", labels=None), [{"premise": "a", "hypothesis": "b"}])
    said = "as contradiction, entailment, neutral, the original code's order; if it was trained"
    assert said in capsys.readouterr().err
    predict(model("sst2", labels=None), [{"sentence": "a"}])
    assert "names no labels; taken as 0, 1\n" in capsys.readouterr().err


def test_what_just_fits_is_not_cut(model) -> None:
    path = model("single")
    words = ["the", "list", "is", "open"] * 20
    texts = [" ".join(words[:n]) for n in range(1, 60)]
    for text, answer in zip(texts, predict(path, [{"text": t} for t in texts]), strict=True):
        lost = max(tokens(text) - 30, 0)
        assert answer.get("tokens_left_out", 0) == lost
        assert answer.get("truncated", False) is (lost > 0)


def test_a_context_and_a_long_sentence_are_read_in_windows_and_lose_nothing(model) -> None:
    words = {"words": ["the", "value", "of", "the", "list", "is", "open"] * 9}
    (answer,) = predict(model("token-classification"), [words])
    assert len(answer["prediction"]) == 63
    assert "truncated" not in answer
    (answer,) = predict(model("squad1"), [{"question": "What?", "context": LONG}])
    assert "truncated" not in answer


def test_the_questions_own_limit_is_counted_apart(model) -> None:
    """RACE keeps the last 128 tokens of question and option, however long rows are."""
    task = TASKS["race"]
    question = "what is the value " * 60
    length = tokens(question + " a")
    record = {"article": LONG, "question": question, "options": ["a"] * 4}
    example = task.from_record(record, 0, "row 1")
    whole = 3 + tokens(LONG) + 128
    for row, expected in (
        (whole, []),
        (whole - 5, [Cut("max_seq_length", 5, whole)]),
        (100, [Cut("max_seq_length", tokens(LONG) + 31, whole)]),
    ):
        features = task.features(example, 0, TOKENIZER, row)
        found = cuts_of(task, example, features, TOKENIZER, row)
        assert found == [*expected, Cut("MAX_QA_LENGTH", length - 128, length)]


@pytest.mark.parametrize(
    ("cuts", "row", "line"),
    [
        (
            [Cut("max_seq_length", 3, 40), Cut("max_seq_length", 9, 512)],
            31,
            "2 of 1,000 inputs were cut to 31 tokens; the longest has 512: max_seq_length=512 "
            "holds it",
        ),
        (
            [Cut("max_seq_length", 3, 1040)],
            64,
            "1 of 1,000 inputs was cut to 64 tokens; the longest has 1,040: "
            "max_seq_length=512, the most that the model takes, holds more",
        ),
        (
            [Cut("max_seq_length", 3, 1040)],
            512,
            "1 of 1,000 inputs was cut to 512 tokens; the longest has 1,040: the model takes no "
            "more",
        ),
        (
            [Cut("max_query_length", 6, 70)],
            384,
            "1 of 1,000 inputs was cut to 64 tokens of question; the longest has 70: finetune's "
            "max_query_length=70 holds it",
        ),
        (
            [Cut("MAX_QA_LENGTH", 6, 134)],
            384,
            "1 of 1,000 inputs was cut to the last 128 tokens of question and option, as in the "
            "original; the longest has 134",
        ),
    ],
)
def test_what_was_cut_is_said_with_what_would_hold_it(cuts, row: int, line: str) -> None:
    by_example = {i: [cut] for i, cut in enumerate(cuts)}
    told = lines_about(by_example, 1000, "inputs", max_seq_length=row, longest=512)
    assert told == [line]


def test_commands_say_at_the_end_how_many_texts_were_cut(model, tmp_path, capsys) -> None:
    path = model("sst2")
    records = [{"sentence": "open"}, {"sentence": LONG}, {"sentence": f"{LONG} list"}]
    source = write_lines(tmp_path / "in.jsonl", *records)
    needed = tokens(f"{LONG} list") + 2
    assert cli.main(command(path, "--input", source, "--output", tmp_path / "out.jsonl")) == 0
    of = "were cut to 32 tokens; the longest has"
    assert capsys.readouterr().err.splitlines() == [
        f"predict: 2 of 3 inputs {of} {needed}: the model takes no more"
    ]
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev", "test"):
        rows = [r | {"label": str(i % 2)} for i, r in enumerate(records)]
        write_lines(data / f"{split}.jsonl", *rows)
    arguments = ["--model", str(path), "--data", str(data)]
    assert cli.main(["evaluate", *arguments, "--max-seq-length", "16", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["truncated"] == 2
    assert printed.err.splitlines() == [
        f"2 of 3 dev examples were cut to 16 tokens; the longest has {needed}: --max-seq-length "
        "32, the most that the model takes, holds more"
    ]
    assert cli.main(["predict", *arguments]) == 0
    told = capsys.readouterr().err
    assert told == f"2 of 3 test examples {of} {needed}: the model takes no more\n"
    set_up(FinetuneConfig(task="sst2", model=str(path), data=str(data), max_seq_length=32))
    assert capsys.readouterr().err.splitlines() == [
        f"2 of 3 {split} examples {of} {needed}: the model takes no more"
        for split in ("train", "dev")
    ]


# ------------------------------------------------------------------------------- inputs gone wrong

GOOD, BAD = {"text": "open", "id": "a"}, {"txt": "open", "id": "b"}


@pytest.mark.parametrize(("bad", "told"), [(BAD, "lacks 'text'"), ("no JSON", "is not JSON")])
def test_a_bad_row_ends_with_its_error_and_what_came_before_is_kept(
    model, tmp_path, capsys, bad: object, told: str
) -> None:
    source = write_lines(tmp_path / "in.jsonl", *[GOOD] * 20, "", bad, *[GOOD] * 3)
    dest = write_lines(tmp_path / "out.jsonl", {"an": "earlier file"})
    assert cli.main(command(model("single"), "--input", source, "--output", dest)) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{source} row 22 {told}" in error
    assert error.endswith(f"; what came before is in {dest}.partial")
    assert read_lines(dest) == [{"an": "earlier file"}]
    assert len(read_lines(tmp_path / "out.jsonl.partial")) == 20


@pytest.mark.parametrize("from_stdin", [False, True])
def test_bad_rows_are_answered_by_their_errors_where_asked_for(
    model, tmp_path, capsys, monkeypatch, from_stdin: bool
) -> None:
    long = {"text": LONG}
    rows = [GOOD, "no JSON", "", '["text"]', BAD, long, {"text": 7, "id": 7}, '{"text": "\udcff"}']
    source, dest = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    source.write_text("\n".join(lines), errors="surrogateescape")
    if from_stdin:
        stdin = types.SimpleNamespace(buffer=io.BytesIO(source.read_bytes()))
        monkeypatch.setattr("sys.stdin", stdin)
    place = "-" if from_stdin else source
    line = command(model("single"), "--input", place, "--output", dest, "--skip-bad")
    assert cli.main(line) == 0
    answers = read_lines(dest)
    assert [answer["id"] for answer in answers] == ["a", 1, 2, "b", 4, 7, 6]
    name = "standard input" if from_stdin else str(source)
    wrong = {i: a["error"] for i, a in enumerate(answers) if "error" in a}
    assert {i: error.partition(":")[0] for i, error in wrong.items()} == {
        1: f"{name} row 2 is not JSON",
        2: f"{name} row 4 is not a JSON object",
        3: f"{name} row 5 lacks 'text'",
        5: f"{name} row 7",  # a number is no text
        6: f"{name} row 8",
    }
    assert all(a.keys() == {"id", "error"} for a in answers if "error" in a)
    assert answers[4]["truncated"]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "predict: 5 of 7 inputs have an error instead of an answer"
    assert told[1].startswith("predict: 1 of 7 inputs was cut")


def test_skipping_is_for_inputs_and_not_for_a_splits_official_file(model, tmp_path, capsys) -> None:
    assert cli.main(command(model("single"), "--data", tmp_path, "--skip-bad")) == 2
    assert "--skip-bad is for --input" in capsys.readouterr().err


def test_python_answers_bad_inputs_alike(model) -> None:
    path = model("single")
    inputs: list = [GOOD, BAD, "open", None, {"text": "open", "id": float("nan")}, {"text": "list"}]
    found = list(albert_jax.predict(path, inputs, skip_bad=True))
    assert [answer["id"] for answer in found] == ["a", "b", 2, 3, 4, 5]
    assert found == list(albert_jax.predict(path, iter(inputs), skip_bad=True))
    assert ["error" in answer for answer in found] == [False, True, True, True, True, False]
    assert found[2]["error"].startswith('input 2 is "open"; give a mapping')
    answers = predict(path, inputs)
    assert next(answers)["id"] == "a"
    with pytest.raises(UserError, match=r"^input 1 lacks 'text'"):
        next(answers)
    for wrong in ("open", b"open", {"text": "open"}):
        with pytest.raises(UserError, match="give a list of records"):
            predict(path, wrong)  # type: ignore[arg-type]


def test_ids_may_repeat_and_may_be_numbers(model) -> None:
    ids = ["x", "x", 7, None, np.int64(3), "\ud800"]
    found = list(predict(model("single"), [{"text": "open", "id": each} for each in ids]))
    assert [answer["id"] for answer in found] == ["x", "x", 7, 3, 3, "\ud800"]
    assert '"id": 3' in json.dumps(found[-2])
    (answer,) = predict(model("single"), [{"text": "open", "id": None, "idx": 5}])
    assert answer["id"] == 5


def test_keys_that_are_no_names_are_an_error_that_shows_them(model) -> None:
    for record in ({0: "open"}, {0: "open", 1: "yes"}):
        with pytest.raises(UserError, match=r"lacks 'text': expected 'text'; found 0"):
            list(predict(model("single"), [record]))  # type: ignore[list-item]
    answers = list(predict(model("single"), [{0: "open"}, {"text": "open"}], skip_bad=True))  # type: ignore[list-item]
    assert ["error" in answer for answer in answers] == [True, False]


def test_a_users_own_column_may_be_called_as_an_id(model) -> None:
    path = model("single", settings={"texts": ["index"], "label": "label"})
    first, second = predict(path, [{"index": "open"}, {"index": "open"}])
    assert (first["id"], second["id"]) == ("open", "open")
    assert first["prediction"] == second["prediction"]


def test_a_question_that_leaves_no_room_is_named_by_its_row(model) -> None:
    asked = {"question": "what is the value of the list " * 9, "context": "It is open."}
    good = {"question": "What?", "context": "It is open."}
    with pytest.raises(UserError, match=r"^input 1: max_seq_length 32 leaves no room.*; shorten"):
        list(predict(model("squad1"), [good, asked]))


@pytest.mark.parametrize("task", ["squad1", "squad2"])
def test_a_context_without_a_word_has_no_answer(model, task: str) -> None:
    contexts = ("", " \n", "\u200b", "\u0301")
    for answer in predict(model(task), [{"question": "What?", "context": c} for c in contexts]):
        if answer["prediction"]:
            assert task == "squad1"  # the vocabulary has a piece for what is left
        else:
            assert answer["start"] is None
        assert answer["probability"] is None or answer["prediction"]
    (answer,) = predict(model("squad1"), [{"question": "What?", "context": ""}])
    assert isinstance(answer, SpanAnswer)
    assert (answer.start, answer["start"], answer.probability) == (None, None, None)
    assert SpanAnswer.from_json(json.loads(json.dumps(answer))) == answer
    assert (answer["prediction"], answer["start"], answer["probability"]) == ("", None, None)


def test_words_that_are_cleaned_away_have_an_answer(model) -> None:
    (answer,) = predict(model("token-classification"), [{"words": ["a", "\u200b", "\u0301", "b"]}])
    assert len(answer["prediction"]) == 4
    question = {"article": "\u200b", "question": "What?", "options": ["\u0301", "a", "list", "b"]}
    (answer,) = predict(model("race"), [question])
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=3e-6)


# ---------------------------------------------------------------------------- what is not a number


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose output is NaN for a text with the word "string"."""
    (word,) = TOKENIZER.encode_ids(["string"])[0]
    compute = HeadOutputs.__call__

    def outputs(self, params, rows, tick=None):
        found = compute(self, params, rows, tick)
        for row, output in zip(rows, found, strict=True):
            if any(word in ids for ids in row.ids):
                for array in output.values():
                    if array.dtype.kind == "f":
                        array.fill(np.nan)
        return found

    jax_array = jax.device_get
    monkeypatch.setattr(finetuned.jax, "device_get", lambda x: jax.tree.map(np.array, jax_array(x)))
    monkeypatch.setattr(HeadOutputs, "__call__", outputs)


NOT_FINITE = {
    "sst2": {"sentence": "a string"},
    "stsb": {"sentence1": "a", "sentence2": "a string"},
    "squad1": {"question": "What?", "context": "a string"},
    "squad2": {"question": "What?", "context": "a string"},
    "race": {"article": "a", "question": "b", "options": ["a", "b", "string", "d"]},
    "token-classification": {"words": ["a", "string"]},
}


@pytest.mark.parametrize("task", NOT_FINITE)
def test_outputs_that_are_not_finite_are_an_error_with_the_input(
    model, overflowing, task: str
) -> None:
    bad = NOT_FINITE[task]
    good = {k: ["a"] * len(x) if isinstance(x, list) else "a" for k, x in bad.items()}
    message = f"input 1: the model's outputs are not finite; the weights in {model(task)}"
    answers = predict(model(task), [good, bad, good])
    assert "prediction" in next(answers)
    with pytest.raises(UserError, match=message):
        next(answers)
    skipped = list(predict(model(task), [good, bad, good], skip_bad=True))
    assert ["prediction" in answer for answer in skipped] == [True, False, True]
    assert skipped[1]["error"].startswith(message)


def test_a_split_with_an_output_that_is_not_finite_is_not_scored(
    model, overflowing, tmp_path, capsys
) -> None:
    for split in ("dev", "test"):
        rows = [{"sentence": "a list", "label": "1"}, {"sentence": "a string", "label": "0"}]
        write_lines(tmp_path / f"{split}.jsonl", *rows)
    arguments = ["--model", str(model("sst2")), "--data", str(tmp_path)]
    output = ["--output", str(tmp_path / "out")]
    for name, split in (("evaluate", "dev"), ("predict", "test")):
        assert cli.main([name, *arguments, *output]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert f"example 1 of sst2 {split}: the model's outputs are not finite" in error
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------- where answers go


def test_answers_never_replace_the_inputs_by_whatever_name(model, tmp_path, capsys) -> None:
    source = write_lines(tmp_path / "in.jsonl", GOOD)
    content = source.read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.jsonl").symlink_to(source)
    os.link(source, tmp_path / "hard.jsonl")
    names = ("in.jsonl", "sub/../in.jsonl", "link.jsonl", "hard.jsonl")
    for name in names:
        assert (
            cli.main(command(model("single"), "--input", source, "--output", tmp_path / name)) == 2
        )
        assert "is the input itself; name another place for --output" in capsys.readouterr().err
    partial = write_lines(tmp_path / "out.jsonl.partial", GOOD)
    assert (
        cli.main(command(model("single"), "--input", partial, "--output", tmp_path / "out.jsonl"))
        == 2
    )
    assert source.read_bytes() == content == partial.read_bytes()


def test_redirected_streams_that_are_one_file_are_refused(model, tmp_path) -> None:
    source = write_lines(tmp_path / "in.jsonl", GOOD)
    content = source.read_bytes()
    line = [sys.executable, "-m", "albert_jax", *command(model("single"))]
    for given, redirected in (("-", f"< {source} >> {source}"), (str(source), f">> {source}")):
        shell = f'"$@" --input {given} {redirected}'
        found = subprocess.run(
            ["/bin/sh", "-c", shell, "sh", *line], capture_output=True, text=True, check=False
        )
        assert found.returncode == 2
        assert "is the input itself" in found.stderr
    assert source.read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_device_and_a_full_disk_are_one_line(model, tmp_path, capsys) -> None:
    source = write_lines(tmp_path / "in.jsonl", *[GOOD] * 99)
    assert cli.main(command(model("single"), "--input", source, "--output", "/dev/full")) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "/dev/full NOT written: No space left on device" in error
    dest = write_lines(tmp_path / "out.jsonl", {"an": "earlier file"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with cached_programs(None):  # JAX's cache shall not meet the limit
            status = cli.main(command(model("single"), "--input", source, "--output", dest))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert status == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{dest} NOT written: File too large; what came before is in {dest}.partial" in error
    assert (tmp_path / "out.jsonl.partial").stat().st_size == 2000
    assert read_lines(dest) == [{"an": "earlier file"}]


def test_an_ascii_stdout_and_a_lone_surrogate_get_jsons_own_escapes(model, tmp_path) -> None:
    record = '{"text": "open", "id": "Zürich \\ud800"}'
    source = write_lines(tmp_path / "in.jsonl", record)
    dest = tmp_path / "out.jsonl"
    assert cli.main(command(model("single"), "--input", source, "--output", dest)) == 0
    assert read_lines(dest)[0]["id"] == "Zürich \ud800"
    line = [sys.executable, "-m", "albert_jax", *command(model("single"), "--input", source)]
    found = subprocess.run(
        line,
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
    )
    assert json.loads(found.stdout.decode("ascii"))["id"] == "Zürich \ud800"


def test_a_missing_input_and_a_folder_for_output_are_one_line(model, tmp_path, capsys) -> None:
    path, source = model("single"), write_lines(tmp_path / "in.jsonl", GOOD)
    for given, output, told in (
        (
            tmp_path / "none.jsonl",
            tmp_path / "out.jsonl",
            "none.jsonl cannot be read: No such file",
        ),
        (source, tmp_path, "is a folder; name a file for --output"),
        (source, source / "out.jsonl", "out.jsonl NOT written: "),
    ):
        assert cli.main(command(path, "--input", given, "--output", output)) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert told in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl"]


def test_the_official_files_appear_whole_and_never_in_the_datas_folder(
    model, tmp_path, monkeypatch
) -> None:
    path, data = model("sst2"), tmp_path / "data"
    (data / "SST-2").mkdir(parents=True)
    write_lines(data / "SST-2" / "test.jsonl", {"sentence": "open"}, {"sentence": "a list"})
    (tmp_path / "link").symlink_to(data)
    for folder in (data, tmp_path / "link", data / ".." / "data", data / "SST-2"):
        with pytest.raises(UserError, match="is the folder of the data"):
            predict_split(path, data, output=folder)
        with pytest.raises(UserError, match="is the folder of the data"):
            evaluate(None, path, data, split="test", output=folder)
    with pytest.raises(UserError, match="name a folder for output, not -"):
        predict_split(path, data, output="-")
    with pytest.raises(UserError, match="is a file; name a folder for output"):
        predict_split(path, data, output=data / "SST-2" / "test.jsonl")
    (file,) = predict_split(path, data, output=tmp_path)
    assert file == tmp_path / "SST-2.tsv"
    content = file.read_text()
    assert len(content.splitlines()) == 3

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"SST-2.tsv cannot be written: No space left"):
        predict_split(path, data, output=tmp_path)
    assert file.read_text() == content
    assert {p.name for p in tmp_path.iterdir()} == {"data", "link", "SST-2.tsv"}


def test_files_of_data_have_folders_of_their_own_beside_the_model(model, tmp_path) -> None:
    copy = shutil.copytree(model("single"), tmp_path / "copy")
    (tmp_path / "data").mkdir()
    found = []
    names = ("dev.jsonl", "a.jsonl", "b.v1.jsonl", "b.v2.jsonl")
    for name in names:
        file = write_lines(tmp_path / "data" / name, {"text": "open", "label": "yes"})
        found.append(Path(evaluate(None, copy, file).predictions_file))
    beside = tmp_path / "predictions" / "copy"
    names = ("single-dev", "single-dev-a", "single-dev-b.v1", "single-dev-b.v2")
    expected = [beside / name for name in names]
    assert [file.parent for file in found] == expected


def test_a_data_file_is_not_replaced_by_predictions_of_its_name(model, tmp_path) -> None:
    paragraph = {"context": "It is open.", "qas": [{"id": "q", "question": "What?"}]}
    data = tmp_path / "predictions.json"
    data.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    content = data.read_bytes()
    with pytest.raises(UserError, match="is the folder of the data"):
        predict_split(model("squad1"), data, output=tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.json").hardlink_to(data)
    with pytest.raises(UserError, match=r"predictions.json is the input itself"):
        predict_split(model("squad1"), data, output=tmp_path / "out")
    assert data.read_bytes() == content
    assert {p.name for p in tmp_path.iterdir()} == {"predictions.json", "out"}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]


# ------------------------------------------------------------------------------------- for people


def test_metrics_are_shown_in_percent_the_chosen_one_first_and_none_twice() -> None:
    squad1 = {"exact": 83.25, "exact_match": 83.25, "f1": 90.214, "total": 178}
    assert [row[:2] for row in metric_lines(TASKS["squad1"], "f1", squad1)] == [
        ("f1", "90.21%"),
        ("exact", "83.25%"),
    ]
    assert line_of(TASKS["squad1"], "f1", squad1) == "f1 90.21%  exact 83.25%"
    squad2 = {"exact": 50.0, "f1": 51.0, "total": 6078, "HasAns_f1": 9.0, "HasAns_total": 2910}
    squad2 |= {"best_f1": 60.0, "best_f1_thresh": -1.25}
    assert [tuple(row) for row in metric_lines(TASKS["squad2"], "f1", squad2)] == [
        ("f1", "51.00%", ""),
        ("exact", "50.00%", ""),
        ("HasAns_f1", "9.00%", ""),
        ("HasAns_total", "2,910", ""),
        ("best_f1", "60.00%", "threshold tuned on these very answers"),
        ("best_f1_thresh", "-1.2500", "threshold tuned on these very answers"),
    ]
    assert line_of(TASKS["squad2"], "f1", squad2) == "f1 51.00%  exact 50.00%  HasAns_f1 9.00%"
    mrpc = {"accuracy": 0.875, "f1": 0.91234}
    assert line_of(TASKS["mrpc"], "accuracy", mrpc) == "accuracy 87.50%  f1 91.23%"
    scores = {"spearman": 0.5, "pearson": -0.25, "mean_squared_error": 1.23456}
    assert [tuple(row) for row in metric_lines(TASKS["regression"], "pearson", scores)] == [
        ("pearson", "-0.2500", "-1 to 1"),
        ("spearman", "0.5000", "-1 to 1"),
        ("mean_squared_error", "1.235", "of the labels' own unit, squared"),
    ]
    assert line_of(TASKS["cola"], "matthews", {"matthews": None}) == "matthews -"


def test_evaluate_shows_a_table_and_keeps_jsons_scale(model, tmp_path) -> None:
    rows = [{"sentence": f"open {i}", "label": str(i % 2)} for i in range(4)]
    write_lines(tmp_path / "dev.jsonl", *rows)
    found = evaluate(None, model("sst2"), tmp_path, output=tmp_path / "official")
    assert found["metrics"]["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert (found["metric"], found["truncated"]) == ("accuracy", 0)
    assert evaluation_table(
        dataclasses.replace(found, metrics={"accuracy": 0.25})
    ).splitlines() == [
        "sst2 dev, 4 examples",
        "  accuracy                 25.00%",
        f"  predictions              {tmp_path / 'official' / 'SST-2.tsv'}",
    ]


@pytest.mark.parametrize("pack", [0, 32])
def test_computing_calls_back_after_each_batch(pack: int) -> None:
    for_head = AlbertForTask(TINY, kind="classification", labels=2)
    params = init_params(for_head, jax.random.key(1))
    rows = as_rows(Features(i, [5] * n, [0] * n) for i, n in enumerate([20, 9, 30, 4, 9, 4] * 60))
    calls: list[tuple[int, int]] = []
    HeadOutputs(for_head, pack=pack)(params, rows, lambda *done: calls.append(done))
    assert len(calls) > 2
    assert calls[-1] == (360, 360)
    assert calls == sorted(calls)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        HeadOutputs(for_head, pack=pack)(params, rows, stop)


def test_evaluating_and_predicting_have_a_bar_on_a_terminal(model, tmp_path, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    write_lines(tmp_path / "dev.jsonl", *[{"sentence": "open", "label": "1"}] * 40)
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    evaluate(None, model("sst2"), tmp_path, output=tmp_path / "out")
    assert "dev, 40 examples:   0%" in screen.getvalue()
    assert "0/40" in screen.getvalue()
    source = write_lines(tmp_path / "in.jsonl", *[{"sentence": "open"}] * 40)
    predict_file(model("sst2"), str(source), str(tmp_path / "out.jsonl"))
    assert "predict: 0 inputs" in screen.getvalue()


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("single", "it has a classification head: give task='single' for a text, task='pair'"),
        ("stsb", "it has a regression head: give task='regression'"),
        ("race", "task='multiple-choice', or task='race'"),
        ("token-classification", "task='token-classification'"),
        ("squad1", "task='squad1'"),
        ("squad2", "task='squad2'"),
    ],
)
def test_a_model_that_does_not_say_its_task_is_answered_with_those_that_fit(
    model, task: str, hint: str
) -> None:
    with pytest.raises(UserError, match=hint):
        load_fine_tuned(model(task, task=None))


@pytest.mark.parametrize("length", [-5, 0, 3, 33])
def test_rows_of_a_length_that_the_model_cannot_have_are_refused(model, length: int) -> None:
    with pytest.raises(UserError, match=f"max_seq_length {length} must be 8 to 32"):
        predict(model("single"), [GOOD], max_seq_length=length)


def test_predict_file_returns_how_many_it_answered(model, tmp_path) -> None:
    source = write_lines(tmp_path / "in.jsonl", *[GOOD] * 3)
    dest = tmp_path / "new" / "out.jsonl"
    assert predict_file(model("single"), str(source), str(dest)) == 3
    assert [answer["id"] for answer in read_lines(dest)] == ["a"] * 3
    empty = write_lines(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="is empty"):
        predict_file(model("single"), str(empty), str(dest))
    (tmp_path / "header.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"header.csv has no example; give one a line"):
        predict_file(model("single"), str(tmp_path / "header.csv"), str(dest))
    assert len(read_lines(dest)) == 3


def test_sentences_in_a_text_file_are_not_taken_for_words_and_tags(model, tmp_path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("The list sat\non the file\n")
    words = model("token-classification")
    with pytest.raises(
        UserError, match=r"row 1: the last column has no label .* \('sat', 'file'\)"
    ):
        predict_file(words, str(source), str(tmp_path / "out.jsonl"))
    for kind, count in (("text", 2), ("conll", 1)):
        assert predict_file(words, str(source), "-", input_format=kind) == count
    source.write_text("The N\nlist O\n")
    assert predict_file(words, str(source), "-") == 1
    source.write_text("Foo B-NEW\n\nThe N\nlist O\n")  # a tag that training did not have
    assert predict_file(words, str(source), "-") == 2
    source.write_text("The noun\n")
    assert predict_file(words, str(source), "-", labels="noun=N") == 1
    unnamed = model("token-classification", labels=None)
    assert predict_file(unnamed, str(source), "-") == 1


@pytest.mark.parametrize(
    ("kind", "written", "count"),
    [
        ("csv", "text\none\ntwo\n\n", 2),
        ("tsv", "text\none\n\n\n", 1),
        ("csv", 'text\none\n"two\n\nlines"\n', 2),
        ("text", "one\ntwo\n", 2),
    ],
)
def test_what_arrived_together_is_answered_before_the_next_arrives(
    model, monkeypatch, kind, written, count
) -> None:
    class Waiting(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            found = super().read1(size)
            assert found or len(answers) == count, "not all are answered"
            return found

    answers: list[object] = []
    task = load_fine_tuned(model("single")).task
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=Waiting(written.encode())))
    for chunk in _chunks("-", task, kind, skip_bad=False):
        answers += chunk
    assert len(answers) == count


# ---------------------------------------------------------------------------------- Albert.predict

# By task: inputs by their order, and the records that they are.
ASKED: dict[str, tuple[list[object], list[dict[str, object]]]] = {
    "sst2": (
        ["the list is open", {"sentence": "a file"}, LONG],
        [{"sentence": "the list is open"}, {"sentence": "a file"}, {"sentence": LONG}],
    ),
    "multi-label": (
        ["the list is open", "a file"],
        [{"text": "the list is open"}, {"text": "a file"}],
    ),
    "mnli": (
        [("the list", "a value"), ["is open", "the file is read"]],
        [
            {"premise": "the list", "hypothesis": "a value"},
            {"premise": "is open", "hypothesis": "the file is read"},
        ],
    ),
    "similarity": (
        [("the list", "a list"), ("the list", LONG)],
        [{"text_a": "the list", "text_b": "a list"}, {"text_a": "the list", "text_b": LONG}],
    ),
    "stsb": (
        [("the list", "a list")],
        [{"sentence1": "the list", "sentence2": "a list"}],
    ),
    "token-classification": (
        ["the list  is open", ["the", "list is"]],
        [{"words": ["the", "list", "is", "open"]}, {"words": ["the", "list is"]}],
    ),
    "squad1": (
        [("What is open?", "The list is open.")],
        [{"question": "What is open?", "context": "The list is open."}],
    ),
    "squad2": (
        [("What is open?", "The list is open.")],
        [{"question": "What is open?", "context": "The list is open."}],
    ),
    "race": (
        [("The list is open.", "What is", ["a", "b", "the list", "d"])],
        [
            {
                "article": "The list is open.",
                "question": "What is",
                "options": ["a", "b", "the list", "d"],
            }
        ],
    ),
}


@pytest.mark.parametrize("task", ASKED)
def test_albert_answers_as_the_command_does(model, tmp_path, task: str) -> None:
    inputs, records = ASKED[task]
    path = model(task)
    source = write_lines(tmp_path / "in.jsonl", *records)
    assert cli.main(command(path, "--input", source, "--output", tmp_path / "out.jsonl")) == 0
    printed = read_lines(tmp_path / "out.jsonl")
    albert = load(path)
    assert albert.predict(inputs) == printed
    assert albert.predict(iter(records)) == printed
    first = inputs[0] if isinstance(inputs[0], str | dict) else tuple(inputs[0])
    assert albert.predict(first) == albert.predict([first])[0]
    kinds = {type(answer) for answer in albert.predict(inputs)}
    assert kinds == {SpanAnswer if task.startswith("squad") else Answer}


def test_a_list_is_computed_together(model, monkeypatch) -> None:
    """Where the answers to a stream come one by one, the first alone."""
    rows: list[int] = []
    compute = HeadOutputs.__call__
    monkeypatch.setattr(
        HeadOutputs, "__call__", lambda *given: rows.append(len(given[2])) or compute(*given)
    )
    texts = ["the list is open"] * 9
    load(model("sst2")).predict(texts)
    assert rows == [9]
    list(predict(model("sst2"), [{"sentence": text} for text in texts]))
    assert rows == [9, 1, 8]


def test_alberts_answers_have_the_types_of_their_heads(model) -> None:
    label = load(model("sst2")).predict("the list is open")
    assert label.probabilities is not None
    assert label.prediction == max(label.probabilities, key=label.probabilities.get)
    assert "prediction" in repr(label)
    assert isinstance(load(model("stsb")).predict(("a", "b")).prediction, float)
    tags = load(model("token-classification")).predict(["the list is open", "a"])
    assert [len(answer.prediction) for answer in tags] == [4, 1]
    assert repr(tags).splitlines()[0].split() == ["id", "prediction"]
    span = load(model("squad1")).predict(("What is open?", "The list is open."))
    assert "The list is open."[span.start :].startswith(span.prediction)


def test_a_setting_that_there_is_not_is_no_answers(model, tmp_path) -> None:
    """Python's own error: it would else answer as though nothing had been asked."""
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(TypeError, match="no setting max_length"):
        predict_file(model("single"), str(source), "-", max_length=9)  # type: ignore[call-arg]


def test_settings_of_an_answer_are_those_of_its_call(model) -> None:
    albert = load(model("sst2"))
    whole = albert.predict(["the list is open"] * 3)
    cut = albert.predict(["the list is open " * 3], max_seq_length=8)
    assert cut[0].truncated
    assert albert.predict(["the list is open"] * 3) == whole
    packed = albert.predict(["the list is open"] * 3, pack=32)
    for one, other in zip(packed, whole, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("task", "inputs", "told"),
    [
        ("sst2", ("a", "b"), r"inputs\[0\] has 2 texts, and sst2 takes 1 \(sentence\); give a"),
        ("mnli", ["a"], r"inputs\[0\] has 1 text, and mnli takes 2 \(sentence1, sentence2\)"),
        ("sst2", ["a", 3], r"inputs\[1\] 3 must be a string"),
        ("sst2", [{"text": "a"}], r"inputs\[0\] lacks 'sentence'"),
        ("token-classification", [""], r"inputs\[0\].* list of words"),
        ("single", {"open", "shut"}, r"inputs \{.*\} must be a text, a tuple or mapping"),
        ("single", np.array([["open"], ["shut"]]), r"inputs array.* must be a text, a tuple or"),
    ],
)
def test_an_input_of_another_form_is_one_sentence(model, task: str, inputs, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load(model(task)).predict(inputs)


@pytest.mark.parametrize(
    ("task", "inputs", "settings", "told"),
    [
        ("single", {"review": "open"}, {}, "found 'review'; rename 'review' to 'text'$"),
        ("single", "open", {"max_seq_length": 3}, "give max_seq_length=8$"),
        ("squad1", ("a", "b"), {"pack": 32}, "leave out pack, which is for"),
        ("single", "a", {"exit": "patience=1", "pack": 8}, "exit answers .*; leave out pack$"),
        ("pair", ("a " * 99, "b " * 40), {"long": "windows"}, "or give long='cut'$"),
        (None, "open", {}, "give task='single' for a text, task='pair' for two, or GLUE's"),
    ],
)
def test_errors_in_python_name_its_arguments(model, task, inputs, settings, told: str) -> None:
    path = model(task) if task else model("single", task=None)
    albert = load(path)
    with pytest.raises(UserError, match=told) as raised:
        albert.predict(inputs, **settings)
    assert "--" not in str(raised.value)
    if isinstance(inputs, dict) or task is None:
        with pytest.raises(UserError, match=told):
            list(predict(path, [inputs if isinstance(inputs, dict) else GOOD]))


def test_the_same_error_of_a_file_names_flags(model, tmp_path, capsys) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"review": "open"})
    assert cli.main(command(model("single"), "--input", source)) == 2
    assert "name its columns with --texts, as --texts review" in capsys.readouterr().err


@pytest.mark.parametrize("head", [{"kind": "classification"}, {"kind": "x", "labels": None}, {}])
def test_a_head_that_is_none_is_refused(model, head: dict) -> None:
    albert = load(model("single"))
    with pytest.raises(UserError, match=r'is no head: .*; give {"kind": …'):
        Albert(albert.config, albert.params, albert.tokenizer, head=head)


def test_a_model_without_the_pooler_of_its_head_is_refused(model) -> None:
    albert = load(model("single"))
    params = {name: x for name, x in albert.params.items() if name != "pooler"}
    lacking = Albert(albert.config, params, albert.tokenizer, head=albert.head)
    with pytest.raises(UserError, match=r"has no pooler, which its head \(classification\) needs"):
        lacking.predict("open", task="single")


def test_a_model_without_a_head_is_told_to_be_fine_tuned() -> None:
    with pytest.raises(UserError, match=r"mini is not fine-tuned .it has no head.; fine-tune it"):
        load("mini").predict("a text")
