# SPDX-License-Identifier: Apache-2.0
"""A token store served by TFDS: every document of it, in order, without TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from albert_jax.data.prepare import units
from albert_jax.data.prepare.build import prepare
from albert_jax.data.store import SPLITS
from tests.helpers.paths import REPOSITORY, VOCABULARY
from tests.helpers.texts import UNIT_BYTES, make_text, sentences_of

MAKE = """
import contextlib, sys
import albert_jax.data.store_tfds
from albert_jax.data.store_tfds import AlbertTokenStore
from albert_jax.utils.errors import UserError
albert_jax.data.store_tfds.SHARD_EXAMPLES = 50
albert_jax.data.store_tfds.BATCH_EXAMPLES = 20
for store in sys.argv[2:]:
    builder = AlbertTokenStore(store=store, data_dir=sys.argv[1])
    with contextlib.redirect_stdout(None):
        builder.download_and_prepare()
    print(builder.data_dir)
try:
    AlbertTokenStore(store="absent", data_dir=sys.argv[1])
except UserError as error:
    print(error)
assert "tensorflow" not in sys.modules
"""

# In a process that does not know the builder's class.
READ = """
import itertools, json, sys
import tensorflow_datasets as tfds
data_dir, folder, output = sys.argv[1:]
name = "/".join(folder.split("/")[-3:-1])
builder = tfds.builder_from_directory(folder)
found = {}
for split in builder.info.splits:
    source = builder.as_data_source(split)
    same = tfds.data_source(name, split=split, data_dir=data_dir)
    assert len(source) == len(same)
    found[split] = []
    for example, again in zip(source, same, strict=True):
        assert (example["tokens"] == again["tokens"]).all()
        assert example["tokens"].dtype == "uint16"
        ends = itertools.accumulate(example["sentence_lengths"].tolist(), initial=0)
        document = [example["tokens"][a:b].tolist() for a, b in itertools.pairwise(ends)]
        assert sum(map(len, document)) == len(example["tokens"])
        found[split].append(document)
json.dump([found, builder.info.metadata], open(output, "w"))
assert "tensorflow" not in sys.modules
"""


def run_script(script: str, *arguments: str | Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """A store of several shards and one that holds nothing out."""
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", UNIT_BYTES)
    for name, size, holdout in (("many", 3 * UNIT_BYTES, 0.1), ("whole", 20_000, 0)):
        text = make_text(tmp_path / f"{name}.txt", size, seed=size)
        prepare(
            text,
            vocab=VOCABULARY,
            output=tmp_path / name,
            holdout=holdout,
            workers=1,
            progress=False,
        )
    return tmp_path / "many", tmp_path / "whole"


def test_tfds_serves_every_document_in_order_and_takes_no_store_for_another(stores, tmp_path):
    assert len(list((stores[0] / "train").glob("*.tokens"))) > 1
    *folders, error = run_script(MAKE, tmp_path / "tfds", *stores)
    assert error == "absent is no token store (no manifest.json); make one with albert-jax prepare"
    assert len(set(folders)) == 2
    assert len(list(Path(folders[0]).glob("*train.array_record*"))) > 2
    for store, folder in zip(stores, folders, strict=True):
        run_script(READ, tmp_path / "tfds", folder, tmp_path / "found.json")
        found, metadata = json.loads((tmp_path / "found.json").read_text())
        expected = {split: sentences_of(store, split) for split in SPLITS}
        assert found == {split: documents for split, documents in expected.items() if documents}
        manifest = json.loads((store / "manifest.json").read_text())
        assert metadata["vocabulary"] == manifest["vocabulary"]
    assert "heldout" not in found
