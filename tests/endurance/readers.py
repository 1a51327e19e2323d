# SPDX-License-Identifier: Apache-2.0
"""Sound files for the readers of data, tables, logs and settings, beside those for the readers of
models in tests.helpers.fuzz_formats; `kinds` has all."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert_jax.config.recipes import to_dict
from albert_jax.data.prepare.build import prepare
from albert_jax.data.pretraining import open_data
from albert_jax.data.store import TokenStore
from albert_jax.data.store_manifest import SPLITS, parse_manifest
from albert_jax.data.text.documents import find_pieces, read_piece
from albert_jax.data.text.lines import Reading
from albert_jax.data.tfrecord import read_examples, write_records
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.perf.tpu.estimate_table import ESTIMATES
from albert_jax.perf.tpu.estimate_table import read_table as read_estimates
from albert_jax.tasks import TASKS
from albert_jax.training.metrics import read_metrics
from albert_jax.training.pretrain import _read_config
from albert_jax.utils.text_files import read_texts
from tests.helpers import fuzz_formats
from tests.helpers.fuzz_formats import Harm, Kind, harm, harm_gzip, harm_json
from tests.helpers.pretraining_runs import VOCABULARY, tiny_config, write_corpus

SQUAD = {
    "version": "2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": 'Ada wrote "it" in 1843.',
                    "qas": [
                        {
                            "id": f"q{i}",
                            "question": "Who wrote it?",
                            "answers": [{"text": "Ada", "answer_start": 0}],
                            "is_impossible": False,
                        }
                        for i in range(3)
                    ],
                }
            ],
        }
    ],
}
RACE = {
    "id": "middle1.txt",
    "article": "An article.",
    "questions": ["Who?", "It is _ ."],
    "options": [["a", "b", "c", "d"], ["a", "b", "c", "d"]],
    "answers": ["A", "D"],
}


def kinds(folder: Path) -> dict[str, Kind]:
    """Every reader with its sound files, made in `folder`."""
    return fuzz_formats.kinds(folder / "formats") | _tables(folder / "tables") | _others(folder)


def _tables(folder: Path) -> dict[str, Kind]:
    rows = [("a good film", "1"), ("a bad film", "0"), ("no, film", "1"), ("Ünïcode", "0")] * 3
    lines = {
        "csv": "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows),
        "tsv": "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows),
        "jsonl": "".join(json.dumps({"text": t, "label": x}) + "\n" for t, x in rows),
    }
    found = {}
    for kind, text in lines.items():
        file = _write(folder / kind / f"train.{kind}", text.encode())
        found[f"{kind} table"] = Kind((file,), harm, _task("single", file.parent))
    packed = _write(folder / "gz" / "train.csv.gz", gzip.compress(lines["csv"].encode(), mtime=0))
    found["gz table"] = Kind((packed,), harm_gzip, _task("single", packed.parent))
    found["any bytes for a gz table"] = Kind((packed,), harm, _task("single", packed.parent))
    conll = "Ada B-PER\nwrote O\nit O\n\nIn O\nParis B-LOC\n"
    file = _write(folder / "conll" / "train.conll", conll.encode())
    found["CoNLL"] = Kind((file,), harm, _task("token-classification", file.parent))
    cola = "gj04\t1\t\tOur friends won't buy it.\ngj04\t0\t*\tOne more and I go.\n"
    file = _write(folder / "cola" / "train.tsv", cola.encode())
    found["GLUE"] = Kind((file,), harm, _task("cola", file.parent))
    for name, how in (("SQuAD", harm_json), ("SQuAD's bytes", harm)):
        file = _write(folder / name / "train-v2.0.json", json.dumps(SQUAD).encode())
        found[name] = Kind((file,), how, _task("squad2", file.parent))
    for name, how in (("RACE", harm_json), ("RACE's bytes", harm)):
        file = _write(folder / name / "train" / "middle" / "1.txt", json.dumps(RACE).encode())
        _write(file.parents[1] / "high" / "1.txt", json.dumps(RACE).encode())
        found[name] = Kind((file,), how, _task("race", file.parents[2]))
    return found


def _task(name: str, folder: Path) -> Callable[[], object]:
    return lambda: TASKS[name].examples("train", folder)


def _others(folder: Path) -> dict[str, Kind]:
    found: dict[str, Kind] = {}

    def add(name: str, file: Path, read: Callable[[], object], *harms: Harm) -> None:
        for how in harms:
            title = name if how is harms[0] else f"{name}, by {how.__name__}"
            found[title] = Kind((file,), how, read)

    (folder / "text").mkdir()
    text = write_corpus(folder / "text" / "corpus.txt", documents=6)
    add("text", text, _corpus(text, "text"), harm)
    packed = _write(folder / "packed" / "corpus.gz", gzip.compress(text.read_bytes(), mtime=0))
    add("gz text", packed, _corpus(packed, "text"), harm, harm_gzip)
    wiki = '<doc id="1" url="u" title="T">\nT\n\nOne sentence. Two more.\n</doc>\n\n' * 4
    file = _write(folder / "wiki" / "wiki_00", wiki.encode())
    add("wiki extract", file, _corpus(file, "wiki"), harm)
    file = _write(folder / "lines.txt", b"A text.\nAnother one.\n\nThe last.\n")
    add("texts", file, lambda f=file: read_texts(str(f)), harm)

    store = folder / "store"
    prepare([text], vocab=VOCABULARY, output=store, workers=1, holdout=0.2, progress=False)
    manifest = store / "manifest.json"
    read = lambda: _parse(manifest)  # noqa: E731
    add("store's manifest", manifest, read, harm_json, harm)
    files = tuple(sorted(path for path in store.rglob("*") if path.is_file()))
    found["store"] = Kind(files, harm, lambda: _open_store(store))

    records = folder / "records" / "a.tfrecord"
    records.parent.mkdir()
    examples = open_data(tiny_config(store, folder / "run"), None).train
    write_records(records, (examples.draw(i) for i in range(8)))
    add("TFRecord", records, lambda: list(read_examples(records)), harm)

    log = [{"kind": "train", "step": i, "loss": 1.0} for i in range(1, 20)]
    file = _write(folder / "run" / "metrics.jsonl", "".join(map(_line, log)).encode())
    add("log", file, lambda f=file: read_metrics(f), harm)
    settings = json.dumps(to_dict(tiny_config(store, folder / "run")))
    file = _write(folder / "run" / "config.json", settings.encode())
    add("run's settings", file, lambda f=file: _read_config(f.parent), harm_json, harm)
    rows = ESTIMATES.read_bytes().splitlines(True)[:3]
    file = _write(folder / "estimates.jsonl", b"".join(rows))
    add("estimates", file, lambda f=file: read_estimates(f), harm)
    return found


def _write(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _corpus(file: Path, format: str) -> Callable[[], object]:
    reading = Reading(format, "auto", False, "en", None)

    def read() -> int:
        counts: Counter[str] = Counter()
        return sum(
            len(document)
            for piece in find_pieces([file], reading)
            for document in read_piece(piece, reading, counts=counts)
        )

    return read


def _parse(manifest: Path) -> object:
    return parse_manifest(manifest.read_bytes(), str(manifest), remedy="prepare it again")


def _open_store(store: Path) -> None:
    for split in SPLITS:
        opened = TokenStore.open(store, split=split)
        Tokenizer.load(opened.vocab_path)
