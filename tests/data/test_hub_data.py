# SPDX-License-Identifier: Apache-2.0
"""Data sets of the hub: a stand-in for the library, and the library itself on folders that it
wrote; Parquet and JSONL as text."""

import importlib.machinery
import importlib.util
import json
import shutil
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from albert_jax.cli import main as cli
from albert_jax.config.run import FinetuneConfig
from albert_jax.data import hub
from albert_jax.data.prepare.build import prepare
from albert_jax.data.store import TokenStore
from albert_jax.data.text.documents import cut_piece, find_pieces, read_documents, read_piece
from albert_jax.data.text.lines import Reading
from albert_jax.data.text.tables_text import parquet_bytes
from albert_jax.tasks import find_task
from albert_jax.training.run_inputs import require_finetuning_inputs
from albert_jax.utils.errors import UserError
from tests.helpers.paths import VOCABULARY

WORDS = ["the list is open", "a file of the value", "return the string", "it was given"]


@dataclass
class Feature:
    """As a Value, a ClassLabel or a list of another feature."""

    dtype: str = "string"
    names: Sequence[str] | None = None
    feature: Any = None


LABEL = Feature("int64", names=["neg", "pos"])


class Rows(list):
    """As a Dataset, or as an IterableDataset of that number of files."""

    num_shards = 2
    _fingerprint = "1"

    def __init__(self, features: dict[str, Feature], rows: Sequence[dict]) -> None:
        super().__init__(rows)
        self.features = features

    def shard(self, num_shards: int, index: int) -> Iterator[dict]:
        return iter(self[index::num_shards])


class Library(types.ModuleType):
    """As `datasets`, which knows the data sets that it is given."""

    def __init__(self, **known: dict[str, Rows]) -> None:
        super().__init__("datasets")
        self.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
        self.known, self.asked = known, []

    def load_dataset(self, name: str, config: str | None = None) -> dict[str, Rows]:
        self.asked.append((name, config))
        if name not in self.known:
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub\n(offline)")
        return self.known[name]

    def load_dataset_builder(self, name: str, config: str | None = None) -> Any:
        splits = self.load_dataset(name, config)
        info = types.SimpleNamespace(splits={})
        streaming = types.SimpleNamespace(as_streaming_dataset=lambda: splits)
        return types.SimpleNamespace(info=info, hash="1", **vars(streaming))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`library(imdb={"train": Rows(…)})` is what `import datasets` gives."""

    def made(**known: dict[str, Rows]) -> Library:
        found = Library(**known)
        monkeypatch.setitem(sys.modules, "datasets", found)
        return found

    hub._splits.cache_clear()
    hub._text.cache_clear()
    yield made
    hub._splits.cache_clear()
    hub._text.cache_clear()


def reviews(labels: Sequence[int] = (0, 1, 1, 0)) -> Rows:
    rows = [{"text": text, "label": label} for text, label in zip(WORDS, labels, strict=True)]
    return Rows({"text": Feature(), "label": LABEL}, rows)


# ---------------------------------------------------------------------------------------- the tasks


def test_classes_have_their_names_and_minus_1_is_no_label(library) -> None:
    library(imdb={"train": reviews(), "validation": reviews(), "test": reviews([-1] * 4)})
    task = find_task("single")
    train = task.examples("train", "hf:imdb")
    assert [example.label for example in train] == ["neg", "pos", "pos", "neg"]
    assert task.learn(train).labels == ("neg", "pos")
    assert train[1].place == "hf:imdb train[1]"
    assert [e.texts for e in task.examples("dev", "hf:imdb")] == [(text,) for text in WORDS]
    unlabelled = task.examples("test", "hf:imdb", needs_labels=False)
    assert [example.label for example in unlabelled] == [None] * 4


def test_a_users_own_tables_go_before_parquet_beside_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert hub.is_hub_data(tmp_path)
    (tmp_path / "train.csv").write_text("text,label\na,b\nb,c\n")
    assert not hub.is_hub_data(tmp_path)
    assert not hub.is_hub_data(tmp_path / "train.csv")


NLI = {"sentence1": "a", "sentence2": "b", "gold_label": "neutral"}
PASSAGE = {"article": "a", "questions": ["b"], "options": [["a", "b", "c", "d"]], "answers": ["A"]}


@pytest.mark.parametrize(
    ("task", "file", "content"),
    [
        ("cola", "CoLA/dev.tsv", "gj04\t1\t\tIt is open.\n"),
        ("mnli", "dev_matched.jsonl", json.dumps(NLI)),
        ("race-middle", "RACE/dev/middle/1.txt", json.dumps(PASSAGE)),
        ("squad1", "dev-v1.1.json", '{"data": []}'),
    ],
)
def test_a_tasks_own_files_go_before_parquet_beside_them(
    tmp_path: Path, task: str, file: str, content: str
) -> None:
    for name in ("stray.parquet", "train.parquet"):
        (tmp_path / name).write_bytes(b"PAR1")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    if task == "squad1":
        with pytest.raises(UserError, match=r"dev-v1.1.json holds no question"):
            find_task(task).examples("dev", tmp_path)
    else:
        assert len(find_task(task).examples("dev", tmp_path)) == 1


def test_a_name_may_have_an_owner_and_a_configuration(library) -> None:
    known = library(**{"nyu-mll/glue": {"train": reviews()}, "imdb": {"train": reviews()}})
    for data in ("hf:nyu-mll/glue/sst2", "hf:nyu-mll/glue", "hf:imdb", "hf:imdb/plain"):
        hub.open_hub_split(data, "train")
    assert known.asked == [
        ("nyu-mll/glue", "sst2"),
        ("nyu-mll/glue", None),
        ("imdb", None),
        ("imdb/plain", None),  # no owner has that
        ("imdb", "plain"),
    ]


def test_glue_has_the_hubs_names_in_the_tasks_order(library) -> None:
    sst2 = Feature("int64", names=["negative", "positive"])
    nli = Feature("int64", names=["entailment", "neutral", "contradiction"])
    rows = [{"sentence": "it is", "label": n, "idx": 7 + n} for n in (1, 0)]
    pairs = [{"premise": "a", "hypothesis": "b", "label": n, "idx": n} for n in (0, 1, 2)]
    texts = {"premise": Feature(), "hypothesis": Feature(), "label": nli, "idx": Feature("int32")}
    library(
        sst2={"train": Rows({"sentence": Feature(), "label": sst2, "idx": Feature("int32")}, rows)},
        mnli={"validation_mismatched": Rows(texts, pairs)},
    )
    found = find_task("sst2").examples("train", "hf:sst2")
    assert [example.label for example in found] == ["1", "0"]
    found = find_task("mnli").examples("dev_mismatched", "hf:mnli")
    assert [example.label for example in found] == ["entailment", "neutral", "contradiction"]


def test_words_have_lists_of_classes(library) -> None:
    tags = Feature("", feature=Feature("int64", names=["O", "B-PER"]))
    tags.names = None
    rows = [{"tokens": ["in", "Ulm"], "ner_tags": [0, 1]}]
    library(ner={"train": Rows({"tokens": Feature(""), "ner_tags": tags}, rows)})
    with pytest.raises(UserError, match=r"texts=\('tokens',\), label='ner_tags'"):
        find_task("token-classification").examples("train", "hf:ner")
    task = find_task("token-classification")
    task = replace(task, texts=("tokens",), label="ner_tags")
    (example,) = task.examples("train", "hf:ner")
    assert example.label == ("O", "B-PER")


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["open", "is open"], "answer_start": [12, 9]},
        [{"text": "open", "answer_start": 12}, {"text": "is open", "answer_start": 9}],
    ],
)
def test_questions_are_flat_rows(library, answers) -> None:
    row = {"id": "q1", "title": "t", "context": WORDS[0], "question": "is it?", "answers": answers}
    names = {name: Feature() for name in row}
    library(squad={"validation": Rows(names, [row])})
    (example,) = find_task("squad1").examples("dev", "hf:squad")
    assert example.extra["answer"] == ("open", 12)
    assert example.extra["answers"] == ("open", "is open")
    assert example.texts == ("is it?", WORDS[0])
    bad = {**row, "answers": {"text": ["open"], "answer_start": []}}
    library(squad={"validation": Rows(names, [bad])})
    hub._splits.cache_clear()
    with pytest.raises(UserError, match=r"validation\[0\]: 'answers' has 1 texts and 0 starts"):
        find_task("squad1").examples("dev", "hf:squad")


def test_questions_on_a_passage_are_numbered_as_in_races_files(library) -> None:
    rows = [
        {"example_id": f"{level}1.txt", "article": level, "question": f"{n}?", "answer": "B"}
        | {"options": ["a", "b", "c", "d"]}
        for level in ("high", "middle")
        for n in range(2)
    ]
    names = {name: Feature() for name in rows[0]}
    library(race={"train": Rows(names, rows)})
    found = find_task("race").examples("train", "hf:race/all")
    assert [e.id for e in found] == [
        *("middle1.txt-0", "middle1.txt-1", "high1.txt-0", "high1.txt-1")
    ]
    assert {e.label for e in found} == {"B"}


# --------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_had_is_one_sentence(library, monkeypatch, capsys, tmp_path) -> None:
    library(imdb={"train": reviews(), "unsupervised": reviews()})
    task = find_task("single")
    with pytest.raises(UserError, match=r"ConnectionError: Couldn't reach 'no' on the Hub \(off"):
        task.examples("train", "hf:no")
    with pytest.raises(UserError, match=r"hf: is no folder, and no data set's name: hf:OWNER"):
        task.examples("train", "hf:")
    with pytest.raises(UserError, match=r"no split dev \(or validation\); it has train, unsuperv"):
        task.examples("dev", "hf:imdb")
    with pytest.raises(UserError, match=r"lacks the columns 'text_a', 'text_b'.*found 'text', 'la"):
        find_task("pair").examples("train", "hf:imdb")
    require_finetuning_inputs(
        FinetuneConfig(model="mini", data="hf:imdb"), workdir_too=False
    )  # is no folder
    monkeypatch.delitem(sys.modules, "datasets")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    hub._splits.cache_clear()
    arguments = [
        "prepare",
        "--format",
        "hf:imdb",
        "--vocab",
        VOCABULARY,
        "--output",
        tmp_path / "s",
    ]
    assert cli.main([*map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert "not installed; pip install 'albert-jax[hf-data]'" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "s").exists()


# -------------------------------------------------------------------------------------------- text


def test_a_store_of_a_stream_has_its_documents_in_order(library, tmp_path, capsys) -> None:
    texts = [f"{text}. {text} too.\n\nAnd {text}." for text in WORDS]
    rows = Rows({"body": Feature(), "n": Feature("int64")}, [{"body": x, "n": 0} for x in texts])
    library(**{"owner/name": {"train": rows}})
    reading = Reading(format="hf:owner/name/config", field="body")
    found = list(read_documents(["train"], reading))
    assert [document[0] for document in found] == [
        f"{text}." for text in (WORDS[0], WORDS[2], WORDS[1], WORDS[3])
    ]
    assert {len(document) for document in found} == {3}
    settings = {"vocab": VOCABULARY, "format": "hf:owner/name/config", "field": "body"}
    prepare([], output=tmp_path / "store", workers=1, **settings)
    assert "does not say its size, so that nothing can be forecast" in capsys.readouterr().err
    store = TokenStore.open(tmp_path / "store")
    assert store.manifest["reading"]["field"] == "body"
    assert sum(split["documents"] for split in store.manifest["splits"].values()) == 4
    assert [each["path"] for each in store.manifest["inputs"]] == ["train"]
    hub._text.cache_clear()
    with pytest.raises(
        UserError, match=r"no column of text 'title' .it has of text: body.; name o"
    ):
        list(read_documents(["train"], Reading(format="hf:owner/name", field="title")))
    assert list(read_documents([], Reading(format="hf:owner/name"))) == found  # the only one


def write_jsonl(path: Path, texts: Sequence[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": 1, key: text}) + "\n" for text in texts))
    return path


def test_jsonl_is_a_document_a_line_however_it_is_cut(tmp_path: Path) -> None:
    texts = [f"{WORDS[n % 4]} {n}.\n\nAgain {n}." for n in range(300)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    found = list(read_documents(path))
    assert found == [[f"{WORDS[n % 4]} {n}.", f"Again {n}."] for n in range(300)]
    (whole,) = find_pieces([path], Reading())
    pieces = cut_piece(whole, whole.bytes // 7, Reading())
    assert len(pieces) > 4
    assert [d for piece in pieces for d in read_piece(piece, Reading())] == found
    ticks: list[int] = []
    list(read_piece(pieces[1], Reading(), tick=ticks.append))
    assert sum(ticks) == pieces[1].end - pieces[1].start


def test_jsonl_says_which_row_has_no_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"], key="body")
    assert list(read_documents(path, Reading(field="body"))) == [["one"], ["two"]]
    with pytest.raises(UserError, match=r"row 1 has no text 'text' \(it has id, body\); name an"):
        list(read_documents(path))
    path.write_text('{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    assert list(read_documents(path)) == [["one"], ["two"]]
    path.write_text('{"text": 1, "\\u001b[31m": 2}\n')
    with pytest.raises(UserError, match=r"row 1 has no text 'text' \(it has text, \\x1b\[31m\)"):
        list(read_documents(path))
    path.write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(UserError, match=r"row 2 is not JSON: .*; JSONL has one object a line"):
        list(read_documents(path))


# ---------------------------------------------------------------------------- the libraries at work


@pytest.mark.extras
def test_parquet_is_read_by_pyarrow_alone(tmp_path: Path) -> None:
    reason = "needs pyarrow, which albert-jax[hf-data] installs"
    pa = pytest.importorskip("pyarrow", reason=reason)
    parquet = pytest.importorskip("pyarrow.parquet", reason=reason)
    texts = [f"{WORDS[n % 4]} {n}." for n in range(50)]
    table = pa.table({"n": list(range(50)), "text": [*texts[:-1], None]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=8)
    found = list(read_documents(tmp_path))
    assert found == [[text] for text in texts[:-1]]
    prepare(tmp_path / "a.parquet", vocab=VOCABULARY, output=tmp_path / "store", progress=False)
    assert TokenStore.open(tmp_path / "store").manifest["splits"]["train"]["documents"] > 40
    with pytest.raises(UserError, match=r"no column of text 'n' \(it has of text: text\)"):
        list(read_documents(tmp_path / "a.parquet", Reading(field="n")))
    # A dictionary's texts, behind a column of two leaves.
    columns = {"nested": [{"a": "x", "b": n} for n in range(4)]}
    columns["text"] = pa.array(WORDS).dictionary_encode()
    nested, alone = str(tmp_path / "nested.parquet"), str(tmp_path / "alone.parquet")
    parquet.write_table(pa.table(columns), nested)
    parquet.write_table(pa.table({"text": columns["text"]}), alone)
    assert list(read_documents(nested)) == [[text] for text in WORDS]
    assert parquet_bytes(nested, None) == parquet_bytes(alone, None)
    parquet.write_table(pa.table({"text": [["a"]]}), alone)
    with pytest.raises(UserError, match=r"it has text of list<element: string>"):
        list(read_documents(alone))
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:200])
    with pytest.raises(UserError, match=r"b.parquet is a damaged Parquet file"):
        list(read_documents(tmp_path / "b.parquet"))


@pytest.mark.extras
@pytest.mark.filterwarnings("default")  # of the libraries' own
def test_folders_that_the_library_wrote_are_read_as_its_data_sets(tmp_path, monkeypatch) -> None:
    reason = "needs datasets, which albert-jax[hf-data] installs"
    datasets = pytest.importorskip("datasets", reason=reason)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {"text": WORDS, "label": [0, 1, -1, 0]}
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    features = datasets.Features(kinds)
    split = datasets.Dataset.from_dict(columns, features=features)
    whole = datasets.DatasetDict({"train": split, "validation": split})
    whole.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "folder" / "data").mkdir(parents=True)
    for name, each in whole.items():
        each.to_parquet(str(tmp_path / "folder" / "data" / f"{name}-00000-of-00001.parquet"))
    (tmp_path / "folder" / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n"
        "    dtype:\n      class_label:\n        names:\n          '0': bad\n          '1': good\n"
        "  splits:\n  - name: train\n    num_bytes: 200\n    num_examples: 4\n"
        "  - name: validation\n    num_bytes: 200\n    num_examples: 4\n---\n"
    )
    for folder, names in (("saved", ["neg", "pos"]), ("folder", ["bad", "good"])):
        data = tmp_path / folder
        found = find_task("single").examples("dev", data, needs_labels=False)
        assert [e.label for e in found] == [names[0], names[1], None, names[0]]
        assert [e.texts[0] for e in found] == WORDS
        reading = Reading(format=f"hf:{data}", field="text")
        assert list(read_documents(["train"], reading)) == [[text] for text in WORDS]
        store = tmp_path / f"store-{folder}"
        prepare([], vocab=VOCABULARY, output=store, format=f"hf:{data}", progress=False, workers=2)
        splits = TokenStore.open(store).manifest["splits"].values()
        assert sum(split["documents"] for split in splits) == 4
    with pytest.raises(UserError, match="is no folder, and no data set's name"):
        find_task("single").examples("train", f"hf:{tmp_path / 'none'}")
    shutil.rmtree(tmp_path / "saved")
    split.select([1]).save_to_disk(str(tmp_path / "saved"))
    assert [e.texts[0] for e in find_task("single").examples("train", tmp_path / "saved")] == [
        WORDS[1]
    ]
