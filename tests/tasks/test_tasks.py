# SPDX-License-Identifier: Apache-2.0
"""Tasks: readers on the real files, the original's features, metrics by other formulae, files."""

import csv
import dataclasses
import io
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.finetuned import configured_task
from albert_jax.models.heads import HEADS
from albert_jax.tasks import TASKS, RawExample, find_task, metrics
from albert_jax.tasks import race as race_reader
from albert_jax.tasks.custom import CustomTask, in_order
from albert_jax.tasks.glue import GLUE
from albert_jax.utils.errors import UserError
from tests.helpers.paths import REPOSITORY, VOCABULARY


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(VOCABULARY)


@pytest.fixture(scope="module")
def glue(shared: Path) -> Path:
    return shared / "data" / "glue"


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def pieces(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The pieces of ids as one string, ▁ as a space."""
    return "".join(tokenizer.pieces[i] for i in ids).replace("▁", " ")


# ----------------------------------------------------------------------------- GLUE's real files


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("sst2", (67349, 872, 1821)),
        ("cola", (8551, 1043, 1063)),
        ("mrpc", (3668, 408, 1725)),
        ("stsb", (5749, 1500, 1379)),
        ("rte", (2490, 277, 3000)),
        ("wnli", (635, 71, 146)),
        ("qnli", (None, 5463, 5463)),
    ],
)
def test_the_official_files_have_the_published_numbers_of_rows(glue, name, counts):
    task = find_task(name)
    for split, count in zip(("train", "dev", "test"), counts, strict=True):
        if count is None:
            continue
        examples = task.examples(split, glue)
        assert len(examples) == count
        assert {len(example.texts) for example in examples} == {1 if len(task.texts) == 1 else 2}
        assert all(text.strip() for example in examples for text in example.texts)
        if split == "test":
            assert {example.label for example in examples} == {None}
            assert [example.id for example in examples] == [str(i) for i in range(count)]
        elif task.labels:
            assert {example.label for example in examples} == set(task.labels)
        else:
            assert all(0 <= example.label <= 5 for example in examples)


def test_mnli_dev_matched_has_the_published_number_of_each_label(glue):
    examples = find_task("MNLI").examples("dev", glue)
    assert len(examples) == 9815
    counts = Counter(example.label for example in examples)
    assert counts == {"entailment": 3479, "contradiction": 3213, "neutral": 3123}


def test_the_diagnostic_set_is_read(glue):
    examples = TASKS["ax"].examples("test", glue)
    assert len(examples) == 1104
    assert examples[0].texts == ("The cat sat on the mat.", "The cat did not sit on the mat.")


def test_qqp_without_a_header_loses_its_short_rows_only_and_says_so(glue, tmp_path, capsys):
    source = glue / "samples" / "QQP" / "train.first23497.tsv"
    (tmp_path / "train.tsv").symlink_to(source)
    examples = TASKS["qqp"].examples("train", tmp_path)
    rows = [line.split("\t") for line in source.read_text(encoding="utf-8").split("\n")]
    whole = [row for row in rows if len(row) == 6]
    assert len(rows) == 23497 + 1
    assert len(whole) == len(examples) == 23496
    assert [(*e.texts, e.label) for e in examples] == [tuple(row[3:]) for row in whole]
    assert "train.tsv: left out for want of 6 columns: row 1\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "file", "columns"),
    [
        ("mrpc", "MRPC/train.tsv", (0, 3, 4)),
        ("rte", "RTE/train.tsv", (3, 1, 2)),
        ("stsb", "STS-B/dev.tsv", (9, 7, 8)),
        ("sst2", "SST-2/dev.tsv", (1, 0)),
        ("qnli", "QNLI/dev.tsv", (3, 1, 2)),
    ],
)
def test_texts_and_labels_are_those_of_the_originals_columns(glue, name, file, columns):
    """Read as the original does: csv without quoting, columns by number, the first row dropped."""
    text = (glue / file).read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    expected = [tuple(row[i] for i in columns) for row in rows]
    examples = TASKS[name].examples(Path(file).stem, glue)
    if name == "stsb":
        expected = [(float(label), *texts) for label, *texts in expected]
    assert [(e.label, *e.texts) for e in examples] == expected


def test_quotes_in_mrpc_are_plain_text_and_its_byte_order_mark_is_no_part_of_a_name(glue):
    examples = TASKS["mrpc"].examples("dev", glue)
    assert examples[0].texts[1].startswith('" The foodservice pie business')
    assert sum(text.count('"') % 2 for e in examples for text in e.texts) > 0


# ------------------------------------------------------------------- files laid out as GLUE's are

MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
)
CLASSES = ("entailment", "neutral", "contradiction")


def sentence_pairs(count: int) -> list[tuple[str, str]]:
    """Made-up pairs, no two alike, with quotation marks that nothing closes."""
    places = ("Zürich", "São Paulo", 'the "old town', "O'Neil's", "東京")
    return [
        (f"A train left {places[i % 5]} at {i} o'clock.", f'"It had {i + 2} cars, all of them red.')
        for i in range(count)
    ]


def mnli_file(count: int) -> str:
    rows = (
        f"{i}\t{i}p\t{i}q\tfiction\t( a )\t( b )\t(S a)\t(S b)\t{a}\t{b}\tx\t{CLASSES[i % 3]}\n"
        for i, (a, b) in enumerate(sentence_pairs(count))
    )
    return MNLI_HEADER + "".join(rows)


def test_mnli_tsv_has_its_sentences_in_columns_8_and_9_and_its_label_last(tmp_path):
    train = write(tmp_path, {"train.tsv": mnli_file(9)})
    lines = (train / "train.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    examples = TASKS["mnli"].examples("train", train)
    assert [example.texts for example in examples] == [(row[8], row[9]) for row in rows]
    assert [example.label for example in examples] == [row[-1] for row in rows]
    # The dev file's 16 columns: four more labels before the gold one.
    wide = [[*row[:11], *(["x"] * 4), row[11]] for row in rows]
    header = [*lines[0].split("\t")[:10], *(f"label{i}" for i in range(1, 6)), "gold_label"]
    text = "".join("\t".join(row) + "\n" for row in [header, *wide])
    data = write(tmp_path, {"MNLI/dev_mismatched.tsv": text})
    dev = TASKS["mnli"].examples("dev_mismatched", data)
    assert [(e.texts, e.label) for e in dev] == [(e.texts, e.label) for e in examples]


def test_the_diagnostic_set_with_labels_is_the_other_by_their_order(tmp_path):
    rows = "".join(f"{i}\t{a}\t{b}\n" for i, (a, b) in enumerate(sentence_pairs(6)))
    text = f"index\tsentence1\tsentence2\n{rows}"
    plain = TASKS["ax"].examples("test", write(tmp_path / "plain", {"diagnostic.tsv": text}))
    assert len(plain) == 6
    labels = ("entailment", "neutral", "contradiction") * 2
    rows = ["Lexical Semantics\tDomain\tPremise\tHypothesis\tLabel"]
    rows += ["\t".join(["", "News", *e.texts, x]) for e, x in zip(plain, labels, strict=True)]
    files = {"diagnostic/diagnostic-full.tsv": "\n".join(rows), "diagnostic/diagnostic.tsv": "x"}
    found = TASKS["ax"].examples("test", write(tmp_path / "full", files))
    assert [(e.id, e.texts) for e in found] == [(e.id, e.texts) for e in plain]
    assert tuple(e.label for e in found) == labels
    right = {e.id: e.label for e in found}
    assert TASKS["ax"].metrics(found, right) == {"matthews": pytest.approx(1)}


def test_qqp_with_its_header_reads_no_header_as_an_example(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    pairs = sentence_pairs(32)
    rows = [f"{i}\t{2 * i}\t{2 * i + 1}\t{a}\t{b}\t{i % 2}\n" for i, (a, b) in enumerate(pairs)]
    write(tmp_path, {"dev.tsv": header + "".join(rows)})
    examples = TASKS["qqp"].examples("dev", tmp_path)
    assert [e.texts for e in examples] == pairs
    assert Counter(example.label for example in examples) == {"0": 16, "1": 16}


TFDS_MAKE = """
import importlib.resources, sys
sys.modules.setdefault("importlib_resources", importlib.resources)  # TFDS wants it undeclared
import tensorflow_datasets as tfds
import tensorflow_datasets.text.glue
tfds.download.DownloadManager.download_and_extract = lambda self, url: {inputs!r}
for name in ("rte", "mnli"):
    builder = tfds.builder("glue/" + name, file_format="array_record")
    builder.download_and_prepare()
"""
TFDS_READ = """
import json, sys
from albert_jax.utils.errors import UserError
from albert_jax.tasks import TASKS
found = [
    [name, split, sorted([e.texts, e.label] for e in TASKS[name].examples(split, "tfds"))]
    for name, split in (("rte", "dev"), ("mnli", "train"), ("mnli", "dev_mismatched"))
]
found.append(sorted(int(e.id) for e in TASKS["rte"].examples("test", "tfds")))
try:
    TASKS["rte"].examples("validation", "tfds")
except UserError as error:
    found.append(str(error))
assert "tensorflow" not in sys.modules
print(json.dumps(found))
"""


def test_tfds_gives_the_examples_of_the_files_without_tensorflow(tmp_path):
    """TFDS's own GLUE reader prepares them; it numbers MNLI's labels in another order."""
    labels = ("entailment", "not_entailment")
    rows = [f"{i}\t{a}\t{b}" for i, (a, b) in enumerate(sentence_pairs(300))]
    labelled = "".join(f"{row}\t{labels[i % 2]}\n" for i, row in enumerate(rows))
    files = {f"RTE/{split}.tsv": RTE_HEADER + labelled for split in ("train", "dev")}
    files["RTE/test.tsv"] = "\n".join(["index\tsentence1\tsentence2", *rows, ""])
    for split in ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"):
        files[f"MNLI/{split}.tsv"] = mnli_file(48)
    inputs = write(tmp_path / "inputs", files)
    environment = os.environ | {
        "TFDS_DATA_DIR": str(tmp_path / "tfds"),
        "PYTHONPATH": str(REPOSITORY),
    }
    for script in (TFDS_MAKE.format(inputs=str(inputs)), TFDS_READ):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    *found, ids, error = json.loads(done.stdout.splitlines()[-1])
    for name, split, examples in found:
        expected = TASKS[name].examples(split, inputs)
        assert examples == sorted([list(e.texts), e.label] for e in expected)
    assert ids == list(range(300))
    assert error.startswith("split 'validation' of rte is unknown; known: train, dev, test")


# ------------------------------------------------------------------------------------- features


def test_features_are_those_of_the_original(tokenizer):
    """classifier_utils.convert_single_example, on 48 single texts and pairs."""
    rows = json.loads((VOCABULARY.parent / "classifier_features.json").read_text(encoding="utf-8"))
    task = dataclasses.replace(TASKS["rte"], labels=("x", "y", "z"))
    assert len(rows) == 48
    for row in rows:
        texts = tuple(text for text in (row["text_a"], row["text_b"]) if text is not None)
        example = RawExample("0", texts, row["label"])
        (found,) = task.features(example, 7, tokenizer, row["max_seq_length"])
        assert found.input_ids == row["input_ids"], row
        assert found.segment_ids == row["segment_ids"]
        assert found.targets == {"labels": row["label_id"]}
        assert found.example == 7


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("sst2", ("the [MASK] sat",)),
        ("pair", ("one", "the [MASK] sat")),
        ("multiple-choice", ("one", "two", "the [MASK] sat", "one")),
        ("multiple-choice", ("the [MASK] sat", "a _ b", "one", "two")),
        ("token-classification", ("the", "[MASK]", "sat")),
        ("squad1", ("the [MASK] sat", "the [MASK] sat")),
    ],
)
def test_a_literal_special_token_is_one_where_the_mode_says_so(name, texts):
    extra = {"answer": None} if name == "squad1" else {}
    for mode in ("google", "hf"):
        special = Tokenizer.load(VOCABULARY, mode=mode)
        example = RawExample("0", texts, extra=extra)
        (row,) = TASKS[name].features(example, 0, special, 64)
        # SQuAD's texts are text in every mode, because an answer must be found in the context.
        is_plain = mode == "google" or name == "squad1"
        assert (special.special.mask in np.hstack(row.input_ids)) is not is_plain


def test_an_empty_second_text_is_none(tokenizer):
    """classifier_utils.py:523: no second [SEP], whose room the first text has."""
    example = RawExample("0", ("one two three four five six", "  "))
    (found,) = TASKS["rte"].features(example, 0, tokenizer, 6)
    assert found.input_ids == [2, *tokenizer.encode(example.texts[0]).ids[:4], 3]
    assert found.segment_ids == [0] * 6


def test_a_score_is_a_target_as_it_is_and_a_test_example_has_none(tokenizer):
    task = TASKS["stsb"]
    (scored,) = task.features(RawExample("0", ("a", "b"), 3.75), 0, tokenizer, 16)
    (unscored,) = task.features(RawExample("0", ("a", "b")), 0, tokenizer, 16)
    assert scored.targets == {"labels": 3.75}
    assert unscored.targets == {}


def test_labels_stand_in_the_originals_order():
    for name in ("mnli", "ax"):
        assert TASKS[name].labels == ("contradiction", "entailment", "neutral")
    for name in ("qnli", "rte"):
        assert TASKS[name].labels == ("entailment", "not_entailment")


def test_every_task_has_a_head_and_its_own_name():
    for name, task in TASKS.items():
        assert task.name == name
        assert task.head in HEADS
    assert find_task("SST-2") is TASKS["sst2"]
    with pytest.raises(UserError, match=r"task 'imdb' is unknown; known: cola, sst2"):
        find_task("imdb")


# -------------------------------------------------------------------------------------- metrics

LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1)
NUMBERS = st.floats(-5, 5).map(lambda x: round(x, 1))
SCORES = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=20)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_matthews_and_f1_of_two_labels_are_those_of_the_confusion_matrix(pairs):
    golds, found = zip(*pairs, strict=True)
    n = Counter(pairs)
    tp, tn, fp, fn = n[True, True], n[False, False], n[False, True], n[True, False]
    root = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert metrics.matthews(golds, found) == pytest.approx((tp * tn - fp * fn) / (root or 1))
    precision, recall = tp / ((tp + fp) or 1), tp / ((tp + fn) or 1)
    expected = 2 * precision * recall / ((precision + recall) or 1)
    assert metrics.f1(golds, found, True) == pytest.approx(expected)
    assert metrics.accuracy(golds, found) == pytest.approx((tp + tn) / len(pairs))


@given(LABELS)
def test_matthews_of_more_labels_is_gorodkins_sum_over_the_confusion_matrix(pairs):
    golds, found = zip(*pairs, strict=True)
    c = np.array([[pairs.count((g, p)) for p in "abc"] for g in "abc"], dtype=float)
    s, t, p = c.sum(), c.sum(axis=1), c.sum(axis=0)
    root = np.sqrt((s**2 - (p**2).sum()) * (s**2 - (t**2).sum()))
    expected = (c.trace() * s - (t * p).sum()) / root if root else 0.0
    assert metrics.matthews(golds, found) == pytest.approx(expected, abs=1e-9)


@given(SCORES)
def test_correlations_are_scipys(pairs):
    golds, found = zip(*pairs, strict=True)
    if len({*golds}) == 1 or len({*found}) == 1:
        assert metrics.pearson(golds, found) == metrics.spearman(golds, found) == 0.0
        return
    expected = scipy.stats.pearsonr(golds, found).statistic
    assert metrics.pearson(golds, found) == pytest.approx(expected, abs=1e-9)
    expected = scipy.stats.spearmanr(golds, found).statistic
    assert metrics.spearman(golds, found) == pytest.approx(expected, abs=1e-9)


@given(LABELS)
def test_macro_f1_is_the_mean_over_the_labels_that_occur(pairs):
    golds, found = zip(*pairs, strict=True)
    labels = {*golds, *found}
    expected = sum(
        2 * pairs.count((x, x)) / (golds.count(x) + found.count(x)) for x in labels
    ) / len(labels)
    assert metrics.macro_f1(golds, found) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O B-LOC", {("PER", 1, 2), ("LOC", 4, 4)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("I-PER I-PER I-LOC O I-LOC", {("PER", 0, 1), ("LOC", 2, 2), ("LOC", 4, 4)}),  # IOB1
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("S-X B-X I-X E-X I-X S-X", {("X", 0, 0), ("X", 1, 3), ("X", 4, 4), ("X", 5, 5)}),
        ("O O", set()),
    ],
)
def test_chunks_are_conllevals(tags, expected):
    assert metrics.chunks(tags.split()) == expected


def test_chunk_scores_are_those_of_conllevals_published_example():
    """459 phrases, 539 found, 371 correct: 68.83, 80.83 and 74.35 per cent."""
    right, missed, wrong = ["B-X"], ["O"], ["B-Y"]
    golds = [right] * 371 + [right] * (459 - 371) + [missed] * (539 - 371)
    found = [right] * 371 + [missed] * (459 - 371) + [wrong] * (539 - 371)
    scores = metrics.chunk_scores(golds, found)
    percent = [round(100 * scores[name], 2) for name in ("precision", "recall", "f1")]
    assert percent == [68.83, 80.83, 74.35]


# -------------------------------------------------------------------------- predictions and files


@pytest.mark.parametrize("task", [task for task in GLUE if task.labels], ids=lambda t: t.name)
def test_right_logits_score_one_and_are_written_as_glues_server_wants(task, tmp_path, tokenizer):
    rng = random.Random(0)
    split = task.splits[-1]
    examples = [
        RawExample(str(i), ("a",), rng.choice(task.labels), {"split": split}) for i in range(20)
    ]
    logits = [np.eye(len(task.labels))[task.labels.index(e.label)] for e in examples]
    rows = [task.features(e, i, tokenizer, 8)[0] for i, e in enumerate(examples)]
    found = task.predictions(examples, rows, [{"logits": x} for x in logits])
    assert all(score == pytest.approx(1) for score in task.metrics(examples, found).values())
    (path,) = task.write_predictions(tmp_path, examples, found)
    official = {"sst2": "SST-2", "cola": "CoLA", "mnli": "MNLI-mm"}.get(task.name)
    assert path == tmp_path / f"{official or task.name.upper()}.tsv"
    expected = "index\tprediction\n" + "".join(f"{e.id}\t{e.label}\n" for e in examples)
    assert path.read_bytes().decode() == expected


def test_mnlis_matched_and_mismatched_predictions_are_two_files(tmp_path):
    examples = [
        RawExample("0", ("a", "b"), None, {"split": f"test_{half}"})
        for half in ("matched", "mismatched")
    ]
    paths = TASKS["mnli"].write_predictions(tmp_path, examples, {"0": "neutral"})
    assert [path.name for path in paths] == ["MNLI-m.tsv", "MNLI-mm.tsv"]


def test_scores_are_written_within_0_to_5_and_scored_as_they_are(tmp_path, tokenizer):
    task = TASKS["stsb"]
    examples = [RawExample(str(i), ("a", "b"), float(i)) for i in range(4)]
    found = {"0": -0.5, "1": 1.23456, "2": 2.0, "3": 5.25}
    (path,) = task.write_predictions(tmp_path, examples, found)
    rows = "index\tprediction\n0\t0.000\n1\t1.235\n2\t2.000\n3\t5.000\n"
    assert path.read_text() == rows
    assert path.name == "STS-B.tsv"
    expected = scipy.stats.pearsonr(range(4), list(found.values())).statistic
    assert task.metrics(examples, found)["pearson"] == pytest.approx(expected)
    feature = task.features(examples[0], 0, tokenizer, 8)
    assert task.predictions(examples, feature, [{"logits": np.array([2.5])}]) == {"0": 2.5}


def test_a_test_split_without_labels_cannot_be_scored(tmp_path):
    rows = "".join(f"{i}\t{a}\t{b}\n" for i, (a, b) in enumerate(sentence_pairs(3)))
    write(tmp_path, {"test.tsv": f"index\tsentence1\tsentence2\n{rows}"})
    examples = TASKS["rte"].examples("test", tmp_path)
    with pytest.raises(UserError, match="3 of 3 examples of rte have no label"):
        TASKS["rte"].metrics(examples, {})


def test_a_json_row_is_an_example_with_tfdss_names_or_the_tsvs():
    task = TASKS["mrpc"]
    row = {"sentence1": "a", "sentence2": "b"}
    assert task.from_record(row, 3, "x") == RawExample("3", ("a", "b"))
    row = {"#1 String": "a", "#2 String": "b", "id": "q7", "label": "unknown"}
    assert task.from_record(row, 3, "x") == RawExample("q7", ("a", "b"))
    with pytest.raises(UserError, match=r"row 4 lacks 'sentence2': .*; found 'sentence1'"):
        task.from_record({"sentence1": "a"}, 3, "in.jsonl row 4")


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"texts": ("headline", "body")}, "'headline', 'body'"),
        ({"label": "mine"}, "'mine'"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_a_column_that_is_asked_of_glue_is_not_replaced_by_another(
    tmp_path, settings, missing, kind
):
    row = {"premise": "a", "hypothesis": "b", "label": "neutral"}
    between = {"csv": ",", "tsv": "\t"}.get(kind, "")
    table = f"{between.join(row)}\n{between.join(row.values())}\n"
    write(tmp_path, {f"dev_matched.{kind}": json.dumps(row) if kind == "jsonl" else table})
    assert TASKS["mnli"].examples("dev", tmp_path)[0].texts == ("a", "b")
    task = dataclasses.replace(TASKS["mnli"], **settings)
    with pytest.raises(UserError, match=f"lacks .*{missing}.*: expected"):
        task.examples("dev", tmp_path)
    if "texts" in settings:
        with pytest.raises(UserError, match=f"row 1 lacks {missing}: expected"):
            task.from_record(row, 0, "row 1")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mnli", {"texts": ["a"]}, "names 1 columns for mnli, 'a'; name two columns"),
        ("mnli", {"texts": ["a", "b", "c"]}, "names 3 columns for mnli, .*; name two columns"),
        ("sst2", {"texts": ["a", "b"]}, "names 2 columns for sst2, 'a', 'b'; name one column"),
        ("mnli", {"texts": ["a", "a"]}, "the column 'a' twice"),
        ("mnli", {"texts": ["a", "gold_label"]}, "the column 'gold_label' twice"),
        ("mnli", {"label": "sentence1"}, "the column 'sentence1' twice"),
        ("mnli", {"label": ""}, "a column of mnli has no name"),
    ],
)
def test_glues_columns_are_as_many_as_its_texts_and_each_another(name, settings, message):
    with pytest.raises(UserError, match=message):
        configured_task(name, **settings)


@pytest.mark.parametrize("name", ["sst2", "single"])
def test_one_string_is_one_column(name):
    assert configured_task(name, texts="review").text_columns == ("review",)


# --------------------------------------------------------------------------------------- errors

RTE_HEADER = "index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"dev\.tsv is empty"),
        ("\n\n", r"dev\.tsv is empty"),
        (RTE_HEADER, "holds no examples"),
        (
            "index\tsentence1\tlabel\n0\ta\tentailment\n",
            r"row 1 lacks the column 'sentence2': expected 'sentence1', 'sentence2', 'label'; "
            "found 'index', 'sentence1', 'label'; the task is rte; choose another with task='NAME'",
        ),
        (
            RTE_HEADER + "0\ta\tb\tentailment\n1\ta\tnot_entailment\n",
            r"row 3 has 3 columns; expected 4 \('index', 'sentence1', 'sentence2', 'label'\); "
            "found '1', 'a'",
        ),
        (
            RTE_HEADER + "0\ta\tb\tneutral\n",
            r"row 2: label 'neutral' is unknown; expected entailment, not_entailment",
        ),
        (
            (RTE_HEADER + "0\ta\tb\xe9").encode("latin-1"),
            r"row 2: invalid UTF-8 at byte .*\(0xe9\)",
        ),
        ((RTE_HEADER + "0\ta\tb").encode("utf-16"), "is UTF-16 text, .*iconv -f UTF-16 -t UTF-8"),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_row(tmp_path, text, message):
    write(tmp_path, {"dev.tsv": text})
    with pytest.raises(UserError, match=message) as caught:
        TASKS["rte"].examples("dev", tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_other_mistakes_in_glue_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no train\.tsv or train\.jsonl or train\.csv, .*RTE or "):
        TASKS["rte"].examples("train", tmp_path)
    with pytest.raises(UserError, match="split 'valid' of mnli is unknown; known: train, dev_matc"):
        TASKS["mnli"].examples("valid", tmp_path)
    write(tmp_path, {"test.tsv": "index\tsentence\n0\ta\n0\tb\n", "train.tsv": "x\ty\n"})
    with pytest.raises(UserError, match="two examples with the id 0"):
        TASKS["sst2"].examples("test", tmp_path)
    with pytest.raises(UserError, match=r"row 1 has 2 columns; expected 4 \('source', 'label'"):
        TASKS["cola"].examples("train", tmp_path)
    write(tmp_path, {"dev.tsv": "sentence1\tsentence2\tscore\na\tb\tfine\n"})
    with pytest.raises(UserError, match="row 2: 'score' is \"fine\"; expected a finite number"):
        TASKS["stsb"].examples("dev", tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        TASKS["rte"].write_predictions(tmp_path / "dev.tsv", [RawExample("0", ("a",))], {"0": "x"})


@given(st.binary(max_size=60))
def test_any_bytes_give_examples_or_one_user_error(tmp_path_factory, data):
    folder = write(tmp_path_factory.getbasetemp(), {"dev.tsv": RTE_HEADER.encode() + data})
    try:
        found = TASKS["rte"].examples("dev", folder)
    except UserError as error:
        found = str(error).splitlines()
        assert len(found) == 1
    assert found


# ----------------------------------------------------------------------------------------- RACE

PASSAGE = {
    "id": "high12.txt",
    "article": "Anna bought 3 apples in Rome. " * 20,
    "questions": ["Where was Anna?", "She bought _ in Rome, and _ again."],
    "options": [["Rome", "Oslo", "Paris", "Bern"], ["3 apples", "pears", "nothing", "a house"]],
    "answers": ["A", "B"],
}


def race(folder: Path) -> Path:
    """Three passages as published: RACE/dev/{middle,high}/NUMBER.txt."""
    files = {
        f"RACE/dev/{level}/{number}.txt": json.dumps(PASSAGE | {"id": f"{level}{number}.txt"})
        for level, number in (("high", 12), ("high", 7), ("middle", 3))
    }
    return write(folder, files | {"RACE/dev/high/._7.txt": b"\0\x05\x16"})


def test_race_is_read_from_its_folders_level_by_level_in_the_files_order(tmp_path):
    examples = TASKS["race"].examples("dev", race(tmp_path))
    assert [example.id for example in examples] == [
        f"{name}.txt-{i}" for name in ("middle3", "high7", "high12") for i in (0, 1)
    ]
    assert [example.label for example in examples] == ["A", "B"] * 3
    assert examples[1].texts == (
        PASSAGE["article"],
        PASSAGE["questions"][1],
        *PASSAGE["options"][1],
    )
    assert examples == TASKS["race"].examples("dev", tmp_path / "RACE")
    assert TASKS["race-high"].examples("dev", tmp_path) == examples[2:]
    assert TASKS["race-middle"].examples("dev", tmp_path) == examples[:2]


def test_race_of_tfds_is_that_of_the_folders(tmp_path, monkeypatch):
    """Rows as TFDS's reader makes them; writing its nested lists takes TensorFlow."""

    def rows(name, split):
        assert split == "dev"
        for number in {"race/high": (7, 12), "race/middle": (3,)}[name]:
            id = f"{name.removeprefix('race/')}{number}.txt"
            row = {key: PASSAGE[key] for key in ("article", "questions", "options", "answers")}
            yield f"TFDS {name} {split}[0]", row | {"example_id": id}

    published = TASKS["race"].examples("dev", race(tmp_path))
    monkeypatch.setattr(race_reader, "tfds_rows", rows)
    assert TASKS["race"].examples("dev", "tfds") == published


def test_race_as_the_original_wants_it_merged_is_the_same(tmp_path):
    published = TASKS["race-high"].examples("dev", race(tmp_path))
    folder = tmp_path / "RACE" / "dev" / "high"
    lines = [folder / name for name in ("7.txt", "12.txt")]
    merged = write(
        tmp_path / "merged",
        {"dev/high/all.txt": "\n".join(file.read_text() for file in lines) + "\n"},
    )
    assert TASKS["race-high"].examples("dev", merged) == published
    (folder / "all.txt").write_text("not read where the passages are")
    assert TASKS["race-high"].examples("dev", tmp_path) == published


def test_an_option_fills_the_blank_or_follows_the_question(tokenizer):
    example = RawExample("0", ("The end.", "She bought _ in Rome, _.", "Pears", "x", "y", "z"), "C")
    (row,) = TASKS["race"].features(example, 0, tokenizer, 64)
    assert len(row.input_ids) == len(row.segment_ids) == 4
    expected = "[CLS] the end.[SEP] she bought pears in rome, pears.[SEP]"
    assert pieces(tokenizer, row.input_ids[0]) == expected
    assert row.targets == {"labels": 2}
    example = RawExample("0", ("The end.", "Where?", "In Rome", "x", "y", "z"))
    (row,) = TASKS["race"].features(example, 0, tokenizer, 64)
    assert pieces(tokenizer, row.input_ids[0]) == "[CLS] the end.[SEP] where? in rome[SEP]"
    cls_passage_sep = row.input_ids[0].index(3) + 1
    tail = len(row.input_ids[0]) - cls_passage_sep
    assert row.segment_ids[0] == [0] * cls_passage_sep + [1] * tail


@pytest.mark.parametrize("length", [8, 32, 131, 140, 512])
def test_a_choice_keeps_the_passages_start_and_the_questions_last_128_tokens(tokenizer, length):
    passage, question = "one two three four " * 60, "five six seven eight nine ten " * 50
    texts = (passage, question, *("yes", "no", "perhaps", "never"))
    (row,) = TASKS["race"].features(RawExample("0", texts), 0, tokenizer, length)
    context = tokenizer.encode(passage).ids
    for ids, option in zip(row.input_ids, texts[2:], strict=True):
        asked = tokenizer.encode(f"{question} {option}").ids[-128:]
        if length > 131:  # race_utils.py:172-179
            kept = context[: length - 3 - len(asked)]
        else:
            kept, asked = [], asked[-(length - 3) :]
        assert ids == [2, *kept, 3, *asked, 3]
        assert len(ids) <= length


def test_race_is_scored_by_level_and_written(tmp_path, tokenizer):
    task = TASKS["race"]
    examples = task.examples("dev", race(tmp_path))
    rows = [task.features(e, i, tokenizer, 32)[0] for i, e in enumerate(examples)]
    outputs = [{"logits": np.array([3.0, 0, 2, 1])} for _ in rows]  # always A
    outputs[-1] = {"logits": np.array([0, 3.0, 2, 1])}
    found = task.predictions(examples, rows, outputs)
    scores = task.metrics(examples, found)
    assert scores == {"accuracy": 4 / 6, "accuracy_middle": 1 / 2, "accuracy_high": 3 / 4}
    (path,) = task.write_predictions(tmp_path, examples, found)
    assert json.loads(path.read_text())["high12.txt-1"] == "B"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ["A", "E"]}, r"question 2: answers\[1\] 'E' is unknown; expected A, B, C, D"),
        ({"answers": ["A"]}, "has 2 questions, 2 lists of options and 1 answers"),
        ({"options": [["a", "b", "c", "d"], ["a", "b"]]}, r"question 2: 'options\[1\]' has 2 opt"),
        (None, "is not JSON"),
    ],
)
def test_a_bad_passage_is_named(tmp_path, change, message):
    text = "{" if change is None else json.dumps(PASSAGE | change)
    write(tmp_path, {"dev/middle/4.txt": text})
    with pytest.raises(UserError, match=message) as caught:
        TASKS["race-middle"].examples("dev", tmp_path)
    assert "4.txt" in str(caught.value)
    with pytest.raises(UserError, match=r"no folder .* data is RACE's folder"):
        TASKS["race-high"].examples("dev", tmp_path)


# --------------------------------------------------------------------------------- a user's files


def test_csv_tsv_and_jsonl_of_one_content_are_one_task(tmp_path):
    rows = [("1", 'She said "no",\nthen left.', "b"), ("2", "Ça va, naïve?", "a")]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("id", "text", "label"), *rows])
    lines = [json.dumps(dict(zip(("id", "text", "label"), row, strict=True))) for row in rows]
    flat = [(i, text.replace("\n", " "), label) for i, text, label in rows]
    write(
        tmp_path,
        {
            "csv/train.csv": "\ufeff" + buffer.getvalue(),
            "jsonl/train.jsonl": "\n".join(lines),
            "tsv/train.tsv": "".join(
                "\t".join(r) + "\r\n" for r in [("id", "text", "label"), *flat]
            ),
        },
    )
    found = {k: TASKS["single"].examples("train", tmp_path / k) for k in ("csv", "jsonl", "tsv")}
    assert found["csv"] == found["jsonl"] == [RawExample(i, (text,), x) for i, text, x in rows]
    assert found["tsv"] == [RawExample(i, (text,), x) for i, text, x in flat]
    assert TASKS["single"].learn(found["csv"]).labels == ("a", "b")


def test_labels_are_learnt_from_the_training_file_and_others_refused(tmp_path, tokenizer):
    data = write(
        tmp_path,
        {
            "train.csv": "text_a,text_b,label\na,b,10\nc,d,9\ne,f,10\n",
            "dev.csv": "text_a,text_b,label\na,b,9\nc,d,11\n",
            "test.csv": "text_b,text_a\nb,a\n",
        },
    )
    train = TASKS["pair"].examples("train", data)
    task = TASKS["pair"].learn(train)
    assert task.labels == ("9", "10")  # as numbers
    assert [task.features(e, 0, tokenizer, 16)[0].targets["labels"] for e in train] == [1, 0, 1]
    with pytest.raises(UserError, match=r"dev\.csv row 3: label '11' is unknown; expected 9, 10"):
        task.examples("dev", data)
    assert task.examples("test", data) == [RawExample("0", ("a", "b"))]
    assert task == TASKS["pair"].with_labels(["9", "10"])
    with pytest.raises(UserError, match="has the one label '10'"):
        TASKS["pair"].learn(train[::2])


def test_a_score_of_ones_own_is_scored_by_correlation_and_error(tmp_path, tokenizer):
    data = write(tmp_path, {"dev.tsv": "text\tlabel\na\t-1.5\nb\t2\nc\t4\n"})
    task = TASKS["regression"]
    examples = task.examples("dev", data)
    assert task.learn(examples) == task
    with pytest.raises(UserError, match=r"has the one score 2\.0; give it examples of different"):
        task.learn(examples[1:2] * 3)
    rows = [task.features(e, i, tokenizer, 8)[0] for i, e in enumerate(examples)]
    assert [row.targets["labels"] for row in rows] == [-1.5, 2.0, 4.0]
    found = task.predictions(examples, rows, [{"logits": np.float32(i)} for i in (1, 3, 2)])
    scores = task.metrics(examples, found)
    assert scores["mean_squared_error"] == pytest.approx((2.5**2 + 1 + 4) / 3)
    assert scores["spearman"] == pytest.approx(0.5)
    write(tmp_path, {"dev.tsv": "text\tlabel\na\thigh\n"})
    with pytest.raises(UserError, match="row 2: 'label' is \"high\"; expected a finite number"):
        task.examples("dev", data)


def test_choices_may_be_a_list_or_columns_numbered_or_lettered(tmp_path, tokenizer):
    row = {"passage": "p", "question": "q?", "options": ["x", "y", "z"], "label": 2}
    write(tmp_path, {"train.jsonl": json.dumps(row), "dev.csv": "ask,a,b,answer\nq?,x,y,B\n"})
    train = TASKS["multiple-choice"].examples("train", tmp_path)
    assert train == [RawExample("0", ("p", "q?", "x", "y", "z"), "2")]
    task = TASKS["multiple-choice"].learn(train)
    assert task.labels == ("0", "1", "2")
    (feature,) = task.features(train[0], 0, tokenizer, 16)
    assert feature.targets == {"labels": 2}
    assert len(feature.input_ids) == 3
    columns = CustomTask(
        name="mine", head="multiple_choice", texts=("", "ask", "a", "b"), label="answer"
    )
    examples = columns.examples("dev", tmp_path)
    assert examples == [RawExample("0", ("", "q?", "x", "y"), "B")]
    assert columns.learn(examples).labels == ("A", "B")
    write(tmp_path, {"dev.jsonl": json.dumps(row | {"label": 3})})
    (tmp_path / "dev.csv").unlink()
    with pytest.raises(UserError, match="row 1: label '3' is unknown; expected 0, 1, 2"):
        TASKS["multiple-choice"].examples("dev", tmp_path)
    odd = json.dumps(row | {"options": ["x", "y"], "label": 0})
    write(tmp_path, {"dev.jsonl": json.dumps(row) + "\n" + odd})
    with pytest.raises(UserError, match=r"row 2 has 2 options and .* row 1 has 3"):
        TASKS["multiple-choice"].examples("dev", tmp_path)


def test_an_option_fills_a_gap_and_no_word_of_a_users_own_question(tokenizer):
    for task, question, wanted in (
        ("multiple-choice", "what is max_length?", "what is max_length? a"),
        ("multiple-choice", "it is _, and ___.", "it is a, and a."),
        ("multiple-choice", "他是_的人。", "他是a的人。"),
        ("race", "what is max_length?", "what is maxalength?"),
        ("race", "it is _, and ___.", "it is a, and aaa."),
    ):
        texts = ("p", question, "a", "b", "c", "d")
        task = TASKS[task]
        (row,) = task.features(RawExample("0", texts), 0, tokenizer, 64)
        asked = tokenizer.encode(wanted).ids
        assert row.input_ids[0][-len(asked) - 1 : -1] == asked


def test_labels_that_are_equal_as_numbers_have_one_order():
    labels = ["1", "01", "2", "02", "10"]
    assert {tuple(in_order(order)) for order in itertools.permutations(labels)} == {
        ("01", "1", "02", "2", "10")
    }


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
\u0301 SYM O O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


@pytest.mark.parametrize("labels", ["01", "AB"])
def test_choices_of_a_model_without_names_are_named_as_in_the_file(tmp_path, tokenizer, labels):
    task = TASKS["multiple-choice"]
    asked = {"passage": "p", "question": "q", "options": ["a", "b"]}
    lines = [json.dumps(asked | {"label": label}) for label in labels]
    write(tmp_path, {"dev.jsonl": "\n".join(lines)})
    examples = task.examples("dev", tmp_path)
    rows = [task.features(e, i, tokenizer, 16)[0] for i, e in enumerate(examples)]
    assert [row.targets["labels"] for row in rows] == [0, 1]
    outputs = [{"logits": np.eye(2)[i]} for i in range(2)]
    found = task.predictions(examples, rows, outputs)
    assert list(found.values()) == [*labels]
    assert task.metrics(examples, found) == {"accuracy": 1.0}
    mixed = asked | {"label": "B" if labels == "01" else "1"}
    write(tmp_path, {"dev.jsonl": "\n".join([*lines, json.dumps(mixed)])})
    with pytest.raises(UserError, match=r"label '\d' is unknown; expected A, B"):
        task.examples("dev", tmp_path)


def test_questions_of_one_call_may_have_different_numbers_of_options(tokenizer):
    task = dataclasses.replace(TASKS["multiple-choice"], labels=())
    asked = [{"passage": "p", "question": "q", "options": list("abc"[:n])} for n in (2, 3, 2)]
    examples = [task.from_record(record, i, f"row {i}") for i, record in enumerate(asked)]
    examples = [dataclasses.replace(each, id=str(i)) for i, each in enumerate(examples)]
    rows = [task.features(e, i, tokenizer, 16)[0] for i, e in enumerate(examples)]
    outputs = [{"logits": np.eye(len(x["options"]))[-1]} for x in asked]
    found = task.for_answers().predictions(examples, rows, outputs)
    assert [*found.values()] == ["1", "2", "1"]


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([None, 0, "x"], ["3", "0", "x"]),
        ([None, "3", 0, ""], ["4", "3", "0", "5"]),
        (["", "", "a"], ["0", "1", "a"]),
        ([None, None], ["0", "1"]),
    ],
)
def test_a_row_without_an_id_gets_a_number_that_no_other_has(tmp_path, ids, found):
    rows = [{"id": id, "text": "a", "sentence": "a", "label": "x"} for id in ids]
    text = "\n".join(map(json.dumps, rows))
    write(tmp_path, {"dev.jsonl": text, "test.jsonl": text})
    for name, split in (("single", "dev"), ("sst2", "test")):
        examples = TASKS[name].examples(split, tmp_path, needs_labels=name == "single")
        assert [example.id for example in examples] == found
    record = {"id": "", "text": "a"}
    assert TASKS["single"].from_record(record, 7, "x").id == "7"


@pytest.mark.parametrize("split", ["dev", "dev_matched", "dev_mismatched"])
def test_a_file_of_a_whole_split_is_mnlis_too(tmp_path, split):
    row = json.dumps({"sentence1": "a", "sentence2": "b", "label": "neutral"})
    file = write(tmp_path, {"dev.jsonl": row, "test.jsonl": row}) / "dev.jsonl"
    assert len(TASKS["mnli"].examples(split, file)) == 1
    with pytest.raises(UserError, match="is not the dev_matched split by its name"):
        TASKS["mnli"].examples("dev", tmp_path / "test.jsonl")


def test_conll_files_and_jsonl_of_words_are_one_task(tmp_path):
    rows = [
        {"words": ["EU", "rejects", "\u0301"], "tags": ["B-ORG", "O", "O"]},
        {"words": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]},
    ]
    write(tmp_path, {"train.conll": CONLL, "dev.jsonl": "\n".join(map(json.dumps, rows))})
    write(tmp_path, {"test.txt": "EU\nrejects\n\nPeter\n"})
    base = TASKS["token-classification"]
    train = base.examples("train", tmp_path)
    assert train == base.examples("dev", tmp_path)
    assert [example.texts for example in train] == [tuple(row["words"]) for row in rows]
    assert [e.texts for e in base.examples("test", tmp_path)] == [("EU", "rejects"), ("Peter",)]
    task = base.learn(train)
    assert task.labels == ("B-ORG", "B-PER", "I-PER", "O")
    assert task.metric == "f1"
    assert task.with_labels(["NN", "VB"]).metric == "accuracy"
    write(tmp_path, {"train.conll": "EU B-ORG\nrejects\n"})
    with pytest.raises(UserError, match=r"train\.conll row 2 has 1 columns; expected 2"):
        base.examples("train", tmp_path)


@pytest.mark.parametrize("length", [4, 6, 9, 64])
def test_each_word_has_one_prediction_however_short_the_rows(tmp_path, tokenizer, length):
    words = ("Internationalisation", "of", "\u0301", "the", "x", "unbelievably", "sesquipedalian")
    tags = ("O", "B-X", "I-X", "O", "B-X", "O", "B-X")
    task = TASKS["token-classification"].with_labels(("O", "B-X", "I-X"))
    examples = [RawExample("s", words, tags)]
    rows = task.features(examples[0], 0, tokenizer, length)
    assert all(len(row.input_ids) == len(row.segment_ids) <= length for row in rows)
    assert all(row.input_ids[0] == 2 and row.input_ids[-1] == 3 for row in rows)
    assert sum(np.sum(np.array(row.targets["labels"]) >= 0) for row in rows) == len(words)
    # A model that answers the target where there is one, and I-X elsewhere.
    outputs = [
        {"logits": np.eye(3)[[2 if t < 0 else t for t in r.targets["labels"]]]} for r in rows
    ]
    found = task.predictions(examples, rows, outputs)
    assert found == {"s": tags}
    assert task.metrics(examples, found)["f1"] == 1.0
    paths = task.write_predictions(tmp_path, examples, found)
    lines = paths[1].read_text().splitlines()
    assert lines == [" ".join(row) for row in zip(words, tags, tags, strict=True)]
    if length == 64:
        ids = [2, *(i for word in words for i in tokenizer.encode(word).ids or [1]), 3]
        assert rows[0].input_ids == ids


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        (
            "single",
            "dev.csv",
            "text,label\na\n",
            r"row 2 has 1 columns; expected 2 \('text', 'label'\)",
        ),
        (
            "single",
            "dev.csv",
            "texts,label\na,b\n",
            "row 1 lacks the column 'text': .*; found 'texts', 'label'; name its columns",
        ),
        ("single", "dev.csv", 'text,label\na,b\n"c,d\n', "row 3 is not CSV"),
        (
            "single",
            "dev.jsonl",
            '{"text": "a"}',
            "row 1 lacks 'label': expected 'text', 'label'; found 'text'; name its columns with",
        ),
        (
            "single",
            "dev.jsonl",
            '{"text": ["a"], "label": "x"}',
            r"row 1: 'text' is \[\"a\"\]; expected a text",
        ),
        ("single", "dev.jsonl", "[1]", "row 1 is not a JSON object"),
        ("single", "dev.jsonl", "{", "row 1 is not JSON"),
        ("single", "dev.csv", "text,label\n,b\n", "row 2: 'text' is empty"),
        ("single", "dev.csv", b"text,label\n\xff,b\n", r"row 2: invalid UTF-8 at byte 11 \(0xff\)"),
        ("single", "dev.csv", "", "is empty"),
        ("single", "none.csv", "", r"no dev\.csv or dev\.tsv or dev\.jsonl, plain or \.gz, in"),
        ("token-classification", "dev.jsonl", '{"words": "a", "tags": ["O"]}', "a list of words"),
        (
            "token-classification",
            "dev.jsonl",
            '{"words": ["a"], "tags": []}',
            r"row 1 has 1 words, but 'tags' is \[\]; expected a list of one label a word",
        ),
    ],
)
def test_a_mistake_in_a_users_file_is_one_sentence(tmp_path, name, file, text, message):
    write(tmp_path, {file: text})
    with pytest.raises(UserError, match=message) as caught:
        TASKS[name].examples("dev", tmp_path)
    assert "\n" not in str(caught.value)


def test_classes_are_scored_and_written_by_id(tmp_path, tokenizer):
    task = TASKS["single"].with_labels(("no", "yes"))
    examples = [RawExample(f"q{i}", ("a",), label) for i, label in enumerate(("no", "yes", "no"))]
    rows = [task.features(e, i, tokenizer, 8)[0] for i, e in enumerate(examples)]
    found = task.predictions(examples, rows, [{"logits": np.array([0.0, 1.0])}] * 3)
    assert task.metrics(examples, found) == {"accuracy": 1 / 3, "macro_f1": 0.25}
    (path,) = task.write_predictions(tmp_path, examples, found)
    assert path.read_text().splitlines()[1] == '{"id": "q1", "prediction": "yes"}'
