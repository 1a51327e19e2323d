# SPDX-License-Identifier: Apache-2.0
"""What `predict` and `evaluate` read: texts a line, tables from standard input, a file for a split,
columns of other names."""

import gzip
import io
import json
import types
from pathlib import Path

import pytest

from albert_jax.cli import main as cli
from albert_jax.inference.evaluate import evaluate
from albert_jax.inference.predict import predict, predict_file
from albert_jax.utils.errors import UserError

TEXTS = ["the list is open", "a file", "return the value of a string"]


def answers(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def give_stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    stdin = types.SimpleNamespace(buffer=io.BytesIO(text.encode()))
    monkeypatch.setattr("sys.stdin", stdin)


def command(model: Path, *arguments: object) -> int:
    return cli.main(["predict", "--model", str(model), *map(str, arguments)])


def wanted(path: Path) -> list[dict]:
    return [a.to_json() for a in predict(path, [{"text": text} for text in TEXTS])]


@pytest.mark.parametrize("name", ["texts.txt", "texts.txt.gz", "-", "texts.log"])
def test_plain_lines_are_texts(model, tmp_path: Path, monkeypatch, name: str) -> None:
    text = "".join(f"{line}\n" for line in TEXTS)
    more = [] if name.startswith("texts.txt") else ["--input-format", "text"]
    if name == "-":
        give_stdin(monkeypatch, text)
    elif name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    else:
        (tmp_path / name).write_text(text)
    source = name if name == "-" else tmp_path / name
    dest = tmp_path / "out.jsonl"
    assert command(model("single"), "--input", source, "--output", dest, *more) == 0
    assert answers(dest) == wanted(model("single"))


def test_an_empty_line_is_an_empty_text_which_is_named_or_skipped(
    model, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "texts.txt").write_text("the list\n\na file\n")
    arguments = ["--input", tmp_path / "texts.txt", "--output", tmp_path / "out.jsonl"]
    assert command(model("single"), *arguments) == 2
    assert "texts.txt row 2: 'text' is empty" in capsys.readouterr().err
    assert command(model("single"), *arguments, "--skip-bad") == 0
    assert ["error" in row for row in answers(tmp_path / "out.jsonl")] == [False, True, False]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_come_from_standard_input_too(model, tmp_path: Path, monkeypatch, kind) -> None:
    rows = {
        "csv": ["id,text", *(f'{n},"{text}"' for n, text in enumerate(TEXTS))],
        "tsv": ["id\ttext", *(f"{n}\t{text}" for n, text in enumerate(TEXTS))],
        "jsonl": [json.dumps({"id": n, "text": text}) for n, text in enumerate(TEXTS)],
    }
    give_stdin(monkeypatch, "".join(f"{row}\n" for row in rows[kind]))
    predict_file(model("single"), "-", str(tmp_path / "out.jsonl"), input_format=kind)
    found = [row["prediction"] for row in answers(tmp_path / "out.jsonl")]
    assert found == [row["prediction"] for row in wanted(model("single"))]


def test_words_come_from_lines_or_from_conll(model, tmp_path: Path, monkeypatch) -> None:
    path = model("token-classification")
    give_stdin(monkeypatch, "the list  is open\na\tfile\n")
    predict_file(path, "-", str(tmp_path / "lines.jsonl"), input_format="text")
    give_stdin(monkeypatch, "the\nlist\nis\nopen\n\na\nfile\n")
    predict_file(path, "-", str(tmp_path / "conll.jsonl"), input_format="conll")
    found = answers(tmp_path / "lines.jsonl")
    assert [len(row["prediction"]) for row in found] == [4, 2]
    assert found == answers(tmp_path / "conll.jsonl")


@pytest.mark.parametrize(
    ("task", "source", "settings", "said"),
    [
        ("pair", "t.txt", {}, "has a text a line, and pair takes text_a and text_b; give JSONL"),
        ("squad1", "t.txt", {}, "has a text a line, and squad1 takes several; give JSONL"),
        ("single", "t.txt", {"input_format": "conll"}, "single does not read CoNLL"),
        ("single", "t.conll", {}, "has a word a line, by its name, which single does not read"),
    ],
)
def test_formats_that_a_task_cannot_read_are_refused(
    model, tmp_path: Path, task: str, source: str, settings: dict, said: str
) -> None:
    (tmp_path / source).write_text("the list\n")
    with pytest.raises(UserError, match=said):
        predict_file(model(task), str(tmp_path / source), str(tmp_path / "o.jsonl"), **settings)


def test_the_format_is_said_of_inputs_only(model, tmp_path: Path, capsys) -> None:
    assert command(model("single"), "--data", tmp_path, "--input-format", "csv") == 2
    assert "--input-format is for --input" in capsys.readouterr().err


def test_a_split_may_be_one_file_with_columns_of_other_names(model, tmp_path: Path) -> None:
    path = model("single")
    rows = [f"{text},{label}\n" for text, label in zip(TEXTS, ("no", "yes", "no"), strict=True)]
    (tmp_path / "reviews.csv.gz").write_bytes(
        gzip.compress(("review,verdict\n" + "".join(rows)).encode())
    )
    (tmp_path / "dev.csv").write_text("text,label\n" + "".join(rows))
    given = tmp_path / "reviews.csv.gz"
    found = evaluate(
        None, path, given, texts=["review"], label="verdict", output=tmp_path / "official"
    )
    whole = evaluate(None, path, tmp_path, output=tmp_path / "official")
    assert found.metrics == whole.metrics
    with pytest.raises(UserError, match=r"dev.csv is not the test split by its name; give split="):
        evaluate(None, path, tmp_path / "dev.csv", split="test", output=tmp_path / "official")
    (tmp_path / "reviews.xml").write_text("<review/>")
    with pytest.raises(UserError, match=r"reviews.xml is not csv or tsv or jsonl by its name"):
        evaluate(None, path, tmp_path / "reviews.xml", output=tmp_path / "official")


def test_the_columns_of_an_input_may_have_other_names(
    model, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "in.csv").write_text(
        "id,review\n" + "".join(f"{n},{t}\n" for n, t in enumerate(TEXTS))
    )
    arguments = ["--input", tmp_path / "in.csv", "--output", tmp_path / "out.jsonl"]
    assert command(model("single"), *arguments) == 2
    assert "; name its columns with --texts, as --texts review\n" in capsys.readouterr().err
    assert command(model("single"), *arguments, "--texts", "review") == 0
    found = [row["prediction"] for row in answers(tmp_path / "out.jsonl")]
    assert found == [row["prediction"] for row in wanted(model("single"))]
