# SPDX-License-Identifier: Apache-2.0
"""Tables, JSONL and CoNLL as `finetune`, `evaluate` and `predict` read them: one reader, as a
stream, whatever ends the lines, with the row of what is wrong."""

import csv
import gzip
import io
import itertools
import json
import re
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.config.run import FinetuneConfig
from albert_jax.config.task_names import TASK_NAMES, label_pairs
from albert_jax.data.text.tables_text import is_jsonl
from albert_jax.inference import predict
from albert_jax.inference.finetuned import configured_task
from albert_jax.tasks import TASKS, RawExample, find_task
from albert_jax.tasks.glue import GLUE
from albert_jax.tasks.tables import conll_rows, csv_rows, json_rows, tsv_rows
from albert_jax.training.finetune_setup import _labelled
from albert_jax.utils.errors import UserError
from albert_jax.utils.text_files import file_lines, kind_of, lines_together, unpacked_name


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def trained(folder: Path, name: str, content: str | bytes, task: str = "single") -> list:
    """(texts, label) of a training file."""
    folder = write(folder, name, content).parent
    return [(e.texts, e.label) for e in TASKS[task].examples(name.partition(".")[0], folder)]


def asked(folder: Path, name: str, content: str | bytes, task: str = "single") -> list:
    """(place's row, texts) of a file that `predict` answers."""
    path = write(folder, name, content)
    return [
        (int(re.search(r" row (\d+)$", place)[1]), TASKS[task].from_record(x, 0, place).texts)
        for chunk in predict._chunks(str(path), TASKS[task], skip_bad=False)
        for place, x in chunk
    ]


# ------------------------------------------------------------------------------------------ lines


class Blocks:
    """A stream that gives its bytes in blocks of given sizes, and counts them."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._stream, self._sizes = io.BytesIO(data), itertools.cycle(sizes)
        self.read = 0

    def read1(self, size: int = -1) -> bytes:
        data = self._stream.read(next(self._sizes))
        self.read += len(data)
        return data


def lines_of(data: bytes, sizes: list[int]) -> list[tuple[int, str]]:
    return list(itertools.chain.from_iterable(lines_together(Blocks(data, sizes), "x")))


@given(
    st.text(st.sampled_from("ab\u00e9\u2028\n\r"), max_size=40),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
)
def test_lines_are_the_same_in_blocks_of_any_size(text, sizes):
    first = re.search("\r\n|\r|\n", text)
    is_lone = first is not None and first[0] == "\r"
    expected = re.split("\r\n|\r|\n", text) if is_lone else re.split("\r?\n", text)
    if expected[-1] == "":
        expected.pop()
    found = lines_of(text.encode(), sizes)
    assert found == list(enumerate(expected, start=1))


def test_a_long_line_is_not_searched_again_with_every_block():
    lines = lines_of(b"a" * 3_000_000 + b"\nb", [1000])
    assert [(number, len(text)) for number, text in lines] == [(1, 3_000_000), (2, 1)]


def test_a_row_is_given_before_the_rest_is_read():
    stream = Blocks(b'{"text": "a"}\n' * 100_000, [1000])
    lines = itertools.chain.from_iterable(lines_together(stream, "x"))
    assert next(json_rows(lines, "x"))[1] == {"text": "a"}
    assert stream.read == 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a\tb\n".encode("utf-16"),
            "is UTF-16 text, not UTF-8 text; .*: iconv -f UTF-16",
        ),
        (b"\xfe\xff\0a", "is UTF-16 text"),
        ("a\n".encode("utf-32"), "is UTF-32 text"),
        ("ab\nc".encode("utf-16-le"), "row 1 has a NUL byte at byte 1; .* if it is UTF-16"),
        (b"text\na\nb\0\n", "row 3 has a NUL byte at byte 8"),
        (b"text\n\xe9", r"row 2: invalid UTF-8 at byte 5 \(0xe9\)"),
        (b"\xef\xbb\xbftext\xff\n", r"row 1: invalid UTF-8 at byte 7 \(0xff\)"),
        (
            b"PK\x03\x04\x0a\0\0\0",
            "is a zip archive or an Excel workbook, .*; save its table",
        ),
        (b"PAR1\x15\x04", "is a Parquet file"),
        (b"BZh91AY&SY", "is bzip2-compressed, .*; decompress it with bzcat"),
        (b"", "is empty"),
        (b"\n \n\r\n", "is empty"),
    ],
)
def test_what_is_no_text_is_said_with_the_way_out(tmp_path, content, message):
    path = write(tmp_path, "in.csv", content)
    with pytest.raises(UserError, match=message) as caught:
        list(file_lines(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl", "train.conll"])
@pytest.mark.parametrize("read", [trained, asked])
def test_all_readers_read_text_files_alike(tmp_path, name, read):
    task = "token-classification" if name.endswith(".conll") else "single"
    for content, message in (("a".encode("utf-16"), "UTF-16 text"), (b"\n", "is empty")):
        with pytest.raises(UserError, match=message):
            read(tmp_path, name, content, task)


def test_a_damaged_gz_file_is_named(tmp_path):
    data = gzip.compress(json.dumps({"text": "a", "label": "x"}).encode() * 99)
    path = write(tmp_path, "train.jsonl", data[:-20])
    with pytest.raises(UserError, match=r"train\.jsonl is a damaged gz file"):
        list(file_lines(path))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        list(file_lines(tmp_path / "folder.csv"))


def test_what_a_file_is_shows_in_its_name():
    names = ("a.b/x.CSV", "x.tsv.gz", "x.jsonl", "x.GZ", "x", "x.conll.GZ")
    assert [kind_of(name) for name in names] == ["csv", "tsv", "jsonl", "", "", "conll"]
    plain = [unpacked_name(name) for name in names]
    assert plain == ["x.CSV", "x.tsv", "x.jsonl", "x", "x", "x.conll"]
    assert [is_jsonl(name) for name in ("x.NDJSON.gz", "gs://b/x.jsonl", "jsonl")] == [1, 1, 0]


# ----------------------------------------------------------------------------------------- tables


TABLE = [("id", "text", "label"), ("1", "a b", "x"), ("2", "c", "y"), ("3", "d", "x")]
LINES = {"csv": [",".join(row) for row in TABLE], "tsv": ["\t".join(row) for row in TABLE]}
ROWS = [(("a b",), "x"), (("c",), "y"), (("d",), "x")]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ("\n".join, (2, 3, 4)),
        ("\r\n".join, (2, 3, 4)),
        ("\r".join, (2, 3, 4)),
        (lambda lines: "\ufeff" + "\n".join(lines), (2, 3, 4)),
        (lambda lines: "\n\n  \n".join(lines), (4, 7, 10)),
        (lambda lines: "\n" + "\n".join(lines) + "\n\n\n", (3, 4, 5)),
    ],
    ids=["LF", "CRLF", "CR", "byte order mark", "blank lines", "blank ends"],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_lines_may_end_as_they_like_and_be_blank(tmp_path, kind, change, rows, end):
    content = change(LINES[kind])
    assert trained(tmp_path, f"train.{kind}{end}", content) == ROWS
    found = asked(tmp_path, f"in.{kind}{end}", content)
    assert found == list(zip(rows, [texts for texts, _ in ROWS], strict=True))


def test_blanks_beside_the_commas_of_a_header_are_no_part_of_a_name(tmp_path):
    content = "id, text , label\n1,a b,x\n"
    assert trained(tmp_path, "train.csv", content) == ROWS[:1]
    assert asked(tmp_path, "in.csv", content) == [(2, ("a b",))]


def test_a_row_number_is_that_of_the_line_where_the_row_begins(tmp_path):
    content = 'text,label\n"a\nb",x\n\n"c\r\nd",x\ne,x,z\n'
    rows = csv_rows(enumerate(content.replace("\r", "").split("\n"), start=1), "f")
    assert [next(rows)[0] for _ in range(2)] == ["f row 2", "f row 5"]
    with pytest.raises(UserError, match=r"row 7 has 3 columns; expected 2 \('text', 'label'\)"):
        asked(tmp_path, "in.csv", content)
    with pytest.raises(UserError, match="row 7 has 3 columns"):
        trained(tmp_path, "train.csv", content)


@pytest.mark.parametrize("read", [trained, asked])
def test_an_unbalanced_quote_is_an_error_where_it_opens(tmp_path, read):
    with pytest.raises(UserError, match=r"row 3 is not CSV: a quote that opens in it is never"):
        read(tmp_path, "train.csv", 'text,label\na,x\n"b,y\nc,x\nd,y\n')
    with pytest.raises(UserError, match=r"row 3 is not CSV"):
        read(tmp_path, "train.csv", 'text,label\na,x\n"b" c,y\n')
    with pytest.raises(UserError, match=r"row 2 is not CSV: a carriage return stands in a cell"):
        read(tmp_path, "train.csv", "text,label\na\rb,x\n")


def test_answers_before_a_bad_row_are_given(tmp_path):
    path = write(tmp_path, "in.csv", "text\n" + "a\n" * 20 + '"b\n')
    chunks = predict._chunks(str(path), TASKS["single"], skip_bad=False)
    assert [len(next(chunks)) for _ in range(3)] == [1, 8, 11]
    with pytest.raises(UserError, match="row 22 is not CSV"):
        next(chunks)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_cell_may_be_longer_than_the_csv_modules_own_limit(tmp_path, kind):
    text = "word " * 40_000
    rows = {"csv": f"text,label\n{text},x\n", "tsv": f"text\tlabel\n{text}\tx\n"}
    rows["jsonl"] = json.dumps({"text": text, "label": "x"})
    assert trained(tmp_path, f"train.{kind}", rows[kind]) == [((text,), "x")]
    assert asked(tmp_path, f"in.{kind}", rows[kind])[0][1] == (text,)


@given(st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=2), min_size=1, max_size=5))
def test_what_the_csv_module_writes_is_read_back(rows):
    rows = [[cell.replace("\0", "").replace("\r", "\n") for cell in row] for row in rows]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("a", "b"), *rows])
    lines = itertools.chain.from_iterable(
        lines_together(io.BytesIO(buffer.getvalue().encode("utf-8", "replace")), "f")
    )
    expected = [[c.encode("utf-8", "replace").decode() for c in row] for row in rows]
    assert [list(row.values()) for _, row in csv_rows(lines, "f")] == expected


@given(st.text(st.sampled_from('a,"\n\r\t '), max_size=30))
def test_any_table_gives_rows_or_one_user_error(text):
    lines = list(enumerate(text.split("\n"), start=1))
    for read in (csv_rows, tsv_rows):
        try:
            told = [place for place, _ in read(lines, "f")]
        except UserError as error:
            told = [str(error)]
        assert all(place.startswith("f row ") for place in told)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", "text,text,label\na,b,x\n", "row 1 names two columns 'text'; rename one"),
        (
            "train.csv",
            "Review Text,raw,★ rating\na,b,c\n",
            "row 1 lacks the columns 'text', 'label': expected 'text', 'label'; found "
            "'Review Text', 'raw', '★ rating'; name its columns with texts and label",
        ),
        ("train.csv", "Text,label\na,x\n", "lacks the column 'text': .* found 'Text', 'label'"),
        ("train.csv", "text;label\na;x\n", "found 'text;label'; its columns seem .* by ';'"),
        ("train.tsv", "text,label\na,x\n", "found 'text,label'; its columns seem .* by ','"),
        ("train.csv", "text,label\na,x,\n", "row 2 has 3 columns; expected 2"),
        ("train.csv", "text,label\n", "holds no examples"),
        ("train.jsonl", '{"text": "a", "text": "b", "label": 1}', "row 1 has the key 'text' twice"),
        ("train.jsonl", "[\n{}]", "row 1 is not JSON: .* JSONL has one object a line"),
        ("train.jsonl", '["a"]', r"row 1 is not a JSON object with .*: found \[\"a\"\]"),
        ("train.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}", "row 1 is not JSON: Exceeds"),
        ("train.jsonl", "[" * 100_000, "row 1 is not JSON: "),
        ("train.jsonl", '{"Text": "a"}', "row 1 lacks 'text', 'label': .*; found 'Text'; name its"),
    ],
)
def test_a_table_of_another_form_is_one_sentence(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        trained(tmp_path, name, content)
    assert "\n" not in str(caught.value)


def test_columns_without_a_name_and_a_comma_at_each_end_are_read(tmp_path):
    assert trained(tmp_path, "train.csv", "text,label,,\na,x,,\n") == [(("a",), "x")]


RACE = {
    "id": "m1",
    "article": "a",
    "questions": ["q"],
    "options": [["a", "b", "c", "d"]],
    "answers": ["A"],
}
SQUAD = {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "id": "i"}]}]}]}


@pytest.mark.parametrize(
    ("task", "name", "content"),
    [
        ("rte", "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n"),
        ("mnli", "dev_matched.jsonl", '{"premise": "a", "hypothesis": "b", "label": "neutral"}'),
        ("single", "dev.csv", "text,label\na,x\n"),
        ("token-classification", "dev.conll", "a O\n"),
        ("race-middle", "dev/middle/1.txt", json.dumps(RACE)),
        ("race-middle", "dev/middle/all.txt", json.dumps(RACE)),
        ("squad1", "dev-v1.1.json", json.dumps(SQUAD)),
        ("squad1", "dev-v1.1.part.json", json.dumps(SQUAD)),
    ],
)
def test_every_file_of_a_task_may_be_gz(tmp_path, task, name, content):
    write(tmp_path / "plain", name, content)
    write(tmp_path / "gz", f"{name}.gz", content)
    plain = TASKS[task].examples("dev", tmp_path / "plain")
    assert plain == TASKS[task].examples("dev", tmp_path / "gz")
    assert len(plain) == 1


# ------------------------------------------------------------------------------------------ CoNLL


def test_only_tabs_and_spaces_stand_between_conlls_columns(tmp_path):
    content = "New\u00a0York \t B-LOC\n\u3000 O\n\nx\tO\n"
    (first, second) = trained(tmp_path, "train.conll", content, "token-classification")
    assert first == (("New\u00a0York", "\u3000"), ("B-LOC", "O"))
    assert second == (("x",), ("O",))
    rows = conll_rows([(1, "a b c"), (2, "d\te")], "f", "words", "tags")
    with pytest.raises(UserError, match=r"f row 2 has 2 columns; expected 3 .*found 'd', 'e'"):
        list(rows)


def test_predict_reads_conll_with_tags_and_without(tmp_path):
    expected = [(1, ("a", "b")), (4, ("c",))]
    for name in ("in.conll", "in.txt", "in.conll.gz"):
        for content in ("a X O\nb X O\n\nc X O\n", "a\nb\n\nc"):
            assert asked(tmp_path, name, content, "token-classification") == expected
    with pytest.raises(
        UserError, match=r"in\.conll has a word a line, .* which single does not re"
    ):
        asked(tmp_path, "in.conll", "a\n")


def test_written_words_with_spaces_are_one_word_when_read_back(tmp_path):
    task = TASKS["token-classification"].with_labels(("O", "B LOC"))
    words = ("New York", "a\tb\nc", "\u3000x", "y")
    example = RawExample("s", words, ("B LOC", "O", "O", "O"))
    found = {"s": ("O", "O", "O", "B LOC")}
    _, path = task.write_predictions(tmp_path, [example], found)
    ((_, row),) = conll_rows(file_lines(path), "f", "words", "tags")
    assert [word.split() for word in row["words"]] == [word.split() for word in words]
    assert [tag.split() for tag in row["tags"]] == [["O"]] * 3 + [["B", "LOC"]]
    assert all(len(line.split(" ")) == 3 for line in path.read_text().splitlines())


def test_a_written_line_has_as_many_columns_everywhere(tmp_path):
    task = TASKS["token-classification"].with_labels(("O", "X"))
    examples = [RawExample("0", ("a",), ("O",)), RawExample("1", ("b",))]
    _, path = task.write_predictions(tmp_path, examples, {"0": ("X",), "1": ("O",)})
    assert path.read_text() == "a X\n\nb O\n"


# ----------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("rte", {"ENTAILMENT": "entailment", " Not_Entailment ": "not_entailment"}),
        ("sst2", {"NEGATIVE": "0", "positive": "1", "1": "1", 0: "0", 1.0: "1"}),
        ("cola", {"unacceptable": "0", "Acceptable": "1"}),
        ("mrpc", {"not_equivalent": "0", "equivalent": "1"}),
        ("qqp", {"not_duplicate": "0", "duplicate": "1"}),
        ("wnli", {"not_entailment": "0", "entailment": "1"}),
        ("mnli", {"NEUTRAL": "neutral", -1: None, "-1": None}),
    ],
)
def test_labels_are_matched_without_case_and_by_their_published_names(
    tmp_path, capsys, task, labels
):
    texts = dict.fromkeys(TASKS[task].keys or TASKS[task].texts, "a")
    rows = [json.dumps(texts | {"label": label}) for label in labels]
    write(tmp_path, f"{TASKS[task].splits[1]}.jsonl", "\n".join(rows))
    assert [e.label for e in TASKS[task].examples("dev", tmp_path)] == list(labels.values())
    assert capsys.readouterr().err == ""


# nyu-mll/glue on the hub and glue of TFDS.
PUBLISHED = {
    "rte": ("entailment", "not_entailment"),
    "qnli": ("entailment", "not_entailment"),
    "mnli": ("entailment", "neutral", "contradiction"),
}


@pytest.mark.parametrize("task", PUBLISHED)
@pytest.mark.parametrize("kind", ["jsonl", "tsv", "csv"])
def test_numbers_for_names_are_taken_in_the_published_order_and_it_is_said(
    tmp_path, capsys, task, kind
):
    names = TASKS[task].keys or TASKS[task].texts
    rows = [dict.fromkeys(names, "a") | {"label": i} for i in range(len(PUBLISHED[task]))] * 2
    mark = {"tsv": "\t", "csv": ","}.get(kind, "")
    lines = [mark.join((*names, "label"))] + [mark.join(map(str, r.values())) for r in rows]
    if kind == "jsonl":
        lines = [json.dumps(row) for row in rows]
    write(tmp_path, f"{TASKS[task].splits[1]}.{kind}", "\n".join(lines))
    found = [e.label for e in TASKS[task].examples("dev", tmp_path)]
    assert found == list(PUBLISHED[task]) * 2
    told = ", ".join(f"{i} {name}" for i, name in enumerate(PUBLISHED[task]))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"its labels are numbers, taken as {told}, the order of the published" in line


def test_the_published_order_is_tfdss_own():
    """Its builders' label lists, which are the hub's too."""
    glue_of_tfds = pytest.importorskip("tensorflow_datasets.text.glue")
    configs = {c.name: c.label_classes for c in glue_of_tfds.Glue.BUILDER_CONFIGS}
    for task in (task for task in GLUE if task.published):
        assert tuple(configs[task.tfds]) == task.published, task.name


def test_a_label_that_is_unknown_in_any_case_is_named_with_the_way_out(tmp_path):
    write(tmp_path, "dev.jsonl", json.dumps({"sentence": "a", "label": "good"}))
    told = r"row 1: label 'good' is unknown; expected 0, 1, .* with labels='LABEL=MEANING'$"
    with pytest.raises(UserError, match=told):
        TASKS["sst2"].examples("dev", tmp_path)
    task = TASKS["single"].with_labels(("US", "us", "it"))
    write(tmp_path, "dev.csv", "text,label\na,IT\nb,US\nc,us\nd,Us\n")
    with pytest.raises(UserError, match="row 5: label 'Us' is unknown; expected US, us, it"):
        task.examples("dev", tmp_path)
    write(tmp_path, "dev.csv", "text,label\na,IT\nb,US\nc,us\n")
    assert [e.label for e in task.examples("dev", tmp_path)] == ["it", "US", "us"]


def test_labels_of_a_training_file_that_differ_in_case_alone_are_pointed_out(capsys):
    train = [RawExample(str(i), ("a",), label) for i, label in enumerate(("Yes", "yes", "no"))]
    assert TASKS["single"].learn(train).labels == ("Yes", "no", "yes")
    assert "the labels Yes, yes differ in case alone" in capsys.readouterr().err


def test_labels_of_any_length_are_sorted():
    long = "9" * 5000
    train = [RawExample(str(i), ("a",), label) for i, label in enumerate((long, "1"))]
    assert TASKS["single"].learn(train).labels == ("1", long)


@pytest.mark.parametrize(
    ("given", "pairs"),
    [
        (("a=0,b=1",), (("a", "0"), ("b", "1"))),
        (("a=0", "b = 1"), (("a", "0"), ("b", "1"))),
        ("a=0,a=0", (("a", "0"),)),
        (("x=y=0",), (("x=y", "0"),)),
        ((), ()),
    ],
)
def test_labels_are_given_as_pairs(given, pairs):
    assert label_pairs(given) == pairs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a",), "'a' must be a label of the file, = and"),
        (("a=",), "'a=' must be"),
        (("=0",), "'=0' must be"),
        (("a=0,",), "'' must be"),
        (("a=0,a=1",), "gives 'a' two meanings, '0' and '1'"),
    ],
)
def test_labels_that_are_no_pairs_are_refused_when_settings_are_made(given, message):
    with pytest.raises(UserError, match=message):
        FinetuneConfig(task="sst2", labels=given)


def test_the_files_labels_are_renamed(tmp_path, capsys):
    """For published tasks, numbers of another order too, and for one's own, before they are
    learnt."""
    write(tmp_path, "dev.jsonl", '{"sentence": "a", "label": "good"}')
    sst2 = configured_task("sst2", renamed=label_pairs("GOOD=positive,bad=0"))
    assert sst2.examples("dev", tmp_path)[0].label == "1"
    rows = [{"sentence1": "a", "sentence2": "b", "label": i} for i in (0, 1)]
    write(tmp_path, "dev.jsonl", "\n".join(map(json.dumps, rows)))
    rte = configured_task("rte", renamed=label_pairs("0=not_entailment,1=entailment"))
    labels = [e.label for e in rte.examples("dev", tmp_path)]
    assert labels == ["not_entailment", "entailment"]
    # Nothing is guessed beside a mapping of numbers.
    rte = configured_task("rte", renamed=label_pairs("0=not_entailment"))
    with pytest.raises(UserError, match="row 2: label '1' is unknown"):
        rte.examples("dev", tmp_path)
    wrong = configured_task("rte", renamed=label_pairs("0=no"))
    with pytest.raises(UserError, match="row 1: labels='0=no' names the label 'no', which is unk"):
        wrong.examples("dev", tmp_path)
    write(tmp_path, "train.csv", "text,label\na,1\nb,2\nc,3\n")
    own = configured_task("single", renamed=label_pairs("1=bad,2=bad,3=good"))
    assert own.learn(own.examples("train", tmp_path)).labels == ("bad", "good")
    choice = configured_task("multiple-choice", renamed=label_pairs("1=0,2=1"))
    record = {"passage": "p", "question": "q", "options": ["x", "y"], "label": 2}
    write(tmp_path, "train.jsonl", json.dumps(record))
    (tmp_path / "train.csv").unlink()
    assert choice.examples("train", tmp_path)[0].label == "1"
    write(tmp_path, "dev/middle/1.txt", json.dumps(RACE | {"answers": [2]}))
    race = configured_task("race-middle", renamed=label_pairs("0=A,1=B,2=C,3=D"))
    assert race.examples("dev", tmp_path)[0].label == "C"
    assert capsys.readouterr().err == ""
    for task in ("stsb", "regression", "squad1"):
        with pytest.raises(UserError, match=f"task {task} has no use for labels"):
            configured_task(task, renamed=label_pairs("a=0"))


def test_a_test_split_of_ones_own_may_say_that_it_has_no_labels(tmp_path):
    task = TASKS["single"].with_labels(("x", "y"))
    write(tmp_path, "test.csv", "text,label\na,-1\nb,-1\n")
    assert [e.label for e in task.examples("test", tmp_path)] == [None, None]
    write(tmp_path, "dev.csv", "text,label\na,-1\n")
    with pytest.raises(UserError, match="row 2: label '-1' is unknown"):
        task.examples("dev", tmp_path)
    minus = task.with_labels(("-1", "0", "1"))
    assert [e.label for e in minus.examples("test", tmp_path)] == ["-1", "-1"]


@pytest.mark.parametrize("label", ["-1", "unknown", "n/a", "[1]", "true", "NaN", '"x"', "null"])
@pytest.mark.parametrize("task", ["single", "regression", "rte", "stsb"])
def test_a_label_that_no_one_needs_is_not_looked_at(tmp_path, task, label):
    texts = dict.fromkeys(TASKS[task].texts, "a")
    own = TASKS[task].with_labels(("a", "b")) if task == "single" else TASKS[task]
    value = json.dumps(label) if (label.isalpha() and label.islower()) or "/" in label else label
    line = json.dumps(texts | {"label": 0})[:-2] + value + "}"
    write(tmp_path, "dev.jsonl", line)
    (example,) = own.examples("dev", tmp_path, needs_labels=False)
    assert example.texts == tuple(texts.values())
    assert own.from_record(json.loads(line), 0, "x").label is None
    write(tmp_path, "dev.jsonl", json.dumps(texts))
    assert own.examples("dev", tmp_path, needs_labels=False) == [
        RawExample("0", example.texts, None, example.extra)
    ]


def test_rows_without_agreement_are_left_out_and_counted(tmp_path, capsys):
    """MultiNLI's own files have them; GLUE's do not."""
    labels = ("neutral", "-", "entailment", "-")
    rows = [{"sentence1": "a", "sentence2": "b", "gold_label": label} for label in labels]
    write(tmp_path, "dev_matched.jsonl", "\n".join(map(json.dumps, rows)))
    found = TASKS["mnli"].examples("dev", tmp_path)
    assert [(e.id, e.label) for e in found] == [("0", "neutral"), ("1", "entailment")]
    assert "left out 2 rows without a gold label (-)" in capsys.readouterr().err
    assert len(TASKS["mnli"].examples("dev", tmp_path, needs_labels=False)) == 4


def test_a_missing_label_of_a_training_file_is_named_with_its_row(tmp_path):
    write(tmp_path, "train.csv", "text,label\na,x\nb,\nc,\n")
    with pytest.raises(UserError, match=r"train\.csv row 3 has no label, as 2 of 3 train examples"):
        _labelled(TASKS["single"], "train", str(tmp_path))


def test_two_examples_of_one_id_are_named_with_their_rows(tmp_path):
    write(tmp_path, "train.csv", "id,text,label\n7,a,x\n8,b,x\n7,c,x\n")
    with pytest.raises(UserError, match=r"two examples with the id 7: .* row 2 and .* row 4; give"):
        TASKS["single"].examples("train", tmp_path)


# --------------------------------------------------------------------------------------- settings


def test_the_names_of_tasks_are_those_that_settings_are_checked_by():
    assert tuple(TASKS) == TASK_NAMES
    for name in ("SST-2", "sst_2", "Token-Classification"):
        assert find_task(FinetuneConfig(task=name).task).name in TASKS


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("nope", None),
        ("singel", "single"),
        ("sst3", "sst2"),
        ("Token-Class", "token-classification"),
    ],
)
def test_an_unknown_task_is_refused_when_settings_are_made(name, nearest):
    meant = rf" \(did you mean '{nearest}'\?\)" if nearest else ""
    with pytest.raises(UserError, match=f"task '{name}' is unknown{meant}; known: cola, sst2, "):
        FinetuneConfig(task=name)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("single", {"texts": ("a", "b", "c")}, "3 columns for single, 'a', 'b', 'c'; name one col"),
        ("multiple-choice", {"texts": ("q",)}, "1 columns for .*; name passage, question and opt"),
        ("token-classification", {"texts": ("a", "b")}, "name the column of words"),
        ("pair", {"texts": ("a", "")}, "a column of pair has no name"),
        ("single", {"label": ""}, "a column of single has no name"),
    ],
)
def test_columns_that_a_task_would_pass_over_are_refused(task, settings, message):
    with pytest.raises(UserError, match=message):
        configured_task(task, **settings)


# ---------------------------------------------------------------------------------- standard input


def test_rows_of_standard_input_come_together_as_they_came(monkeypatch):
    stream = Blocks(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n\n{"te' + b'xt": "c"}', [35, 100])
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stream))
    chunks = predict._chunks("-", TASKS["single"], skip_bad=False)
    found = [[(place, row["text"]) for place, row in chunk] for chunk in chunks]
    name = "standard input row"
    assert found == [[(f"{name} 1", "a"), (f"{name} 2", "b")], [(f"{name} 4", "c")]]


def test_what_stands_before_a_bad_line_of_standard_input_is_given_first(monkeypatch):
    stream = io.BytesIO(b'{"text": "a"}\n{"text": "\xff"}\n')
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stream))
    chunks = predict._chunks("-", TASKS["single"], skip_bad=False)
    assert [row for _, row in next(chunks)] == [{"text": "a"}]
    with pytest.raises(UserError, match=r"standard input row 2: invalid UTF-8 at byte 24 \(0xff\)"):
        list(chunks)


@pytest.mark.parametrize("inputs", ["text", b"text", {"text": "a"}])
def test_one_input_in_place_of_a_list_is_refused(inputs):
    with pytest.raises(UserError, match=r"the inputs are .*; give a list of records"):
        predict.predict("model", inputs)


@pytest.mark.parametrize("name", ["id", "index", "idx"])
def test_an_id_that_an_answer_cannot_repeat_is_refused(name):
    for value in (float("nan"), True, 1.5, [1], {}):
        with pytest.raises(UserError, match=f"row 1: '{name}' is .*; expected a string or a whole"):
            predict._id_of(5, "row 1", {"text": "a", name: value})
    records = [{"text": "a", name: value} for value in ("", "x", 7, None)]
    found = [predict._id_of(5, "row", record) for record in records]
    assert found == ["", "x", 7, 5]  # null: the row's number
