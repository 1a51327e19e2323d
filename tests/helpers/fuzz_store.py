# SPDX-License-Identifier: Apache-2.0
"""Harms a small token store and opens it: each harm must be refused in one line, or change nothing.

`python -m tests.helpers.fuzz_store --times 5000` runs alone and says what came of it;
test_store.py runs a few hundred.
"""

import argparse
import hashlib
import json
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.examples import PretrainingSource
from albert_jax.data.loader import batch_at
from albert_jax.data.masking import word_starts
from albert_jax.data.prepare.build import prepare
from albert_jax.data.store import ShardWriter, TokenStore
from albert_jax.data.store_manifest import (
    FORMAT_REVISION,
    FORMAT_VERSION,
    SPLITS,
    Input,
    ShardRecord,
    SplitRecord,
    Splits,
    StoreManifest,
    StoreVocabulary,
    json_bytes,
    sealed,
)
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import UserError
from tests.helpers.paths import DATA

OLD_STORE = DATA / "store_0.1"


def sha256_of(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_store(path: Path, documents: list[list[list[int]]]) -> None:
    """Write a store of one shard, all of it for training; the documents come in two batches."""
    writer = ShardWriter(path / "train", "00000")
    for batch in (documents[:1], documents[1:]):
        sentences = [sentence for document in batch for sentence in document]
        writer.add(
            np.array([token for sentence in sentences for token in sentence]),
            np.array([len(sentence) for sentence in sentences]),
            np.array([len(document) for document in batch]),
        )
    (path / "spiece.model").write_bytes(b"a vocabulary")
    manifest = StoreManifest(
        format_version=FORMAT_VERSION,
        format_revision=FORMAT_REVISION,
        vocabulary=StoreVocabulary(sha256_of(path / "spiece.model"), 65536, "google", True),
        reading={},
        holdout=0.0,
        made_with={},
        counts={"files_lines": 1},
        splits=Splits(_split([writer.finish()]), _split([])),
        inputs=[Input("text.txt", 5)],
    )
    (path / "manifest.json").write_bytes(json_bytes(sealed(manifest.to_json())))


def _split(shards: list[ShardRecord]) -> SplitRecord:
    keys = ("tokens", "sentences", "documents", "bytes")
    totals = (sum(getattr(shard, key) for shard in shards) for key in keys)
    return SplitRecord(*totals, None, None, None, shards)


def batches_digest(store: TokenStore, batches: int = 4) -> str:
    """Return a digest of a store's first batches of 8 short rows."""
    tokenizer = Tokenizer.load(store.vocab_path)
    source = PretrainingSource(
        store,
        ExamplesConfig(max_seq_length=32, max_predictions_per_seq=5),
        seed=3,
        starts_word=word_starts(tokenizer),
    )
    digest = hashlib.sha256()
    for number in range(batches):
        for key, values in batch_at(source, number, 8).items():
            digest.update(key.encode())
            digest.update(values.tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ harms


def _flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 50))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def _overwrite(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.randint(1, 600))
    data[start:stop] = rng.choice((bytes(stop - start), rng.randbytes(stop - start)))
    file.write_bytes(data)


def _cut(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])


def _grow(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randint(1, 9)))


def _empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def _delete(file: Path, rng: random.Random) -> None:
    file.unlink()


def _rename(file: Path, rng: random.Random) -> None:
    file.rename(file.with_name(rng.choice(("x", file.name + "~", file.name[1:]))))


def _replace_by_folder(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


FILE_HARMS = (_flip, _flip, _flip, _overwrite, _cut, _grow, _empty, _delete, _rename)
FILE_HARMS += (_replace_by_folder,)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 5, 2**31, 2**32, 2**63, 2**64, 10**400, 0.5, 1e300),
    *("", "x", "0", "../../x", "train", "\x00", "é" * 300, [], {}, [0], {"x": 1}, [[[]]]),
)


def _mutate_json(value: Any, rng: random.Random) -> Any:
    """The value with one place of it changed, removed, doubled or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        value = dict(value)
        key = rng.choice(list(value))
        choice = rng.random()
        if choice < 0.12:
            del value[key]
        elif choice < 0.18:
            value[key + "x"] = value.pop(key)
        elif choice < 0.22:
            value["an additional key"] = rng.choice(ODD_VALUES)
        else:
            value[key] = _mutate_json(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.85:
        number = rng.randrange(len(value))
        choice = rng.random()
        if choice < 0.15:
            return value[:number] + value[number + 1 :]
        if choice < 0.3:
            return [*value, value[number]]
        return [*value[:number], _mutate_json(value[number], rng), *value[number + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 2, 1000))
    if isinstance(value, str) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice("0af./é") + value[place + 1 :]
    return rng.choice(ODD_VALUES)


def _harm_manifest(file: Path, rng: random.Random) -> str:
    """Another manifest; half of them are forged, with a checksum that is right for them."""
    manifest = json.loads(file.read_text(encoding="utf-8"))
    changed = _mutate_json(manifest, rng)
    is_forged = isinstance(changed, dict) and rng.random() < 0.5
    file.write_text(json.dumps(sealed(changed) if is_forged else changed), encoding="utf-8")
    return "forged manifest" if is_forged else "manifest"


def harm(store: Path, rng: random.Random) -> str:
    """Harm a store in one way; return the way's name."""
    if rng.random() < 0.35:
        return _harm_manifest(store / "manifest.json", rng)
    files = [file for file in sorted(store.rglob("*")) if file.is_file()]
    if rng.random() < 0.05:
        first, second = rng.sample(files, 2)
        first.rename(store / "swapped")
        second.rename(first)
        (store / "swapped").rename(second)
        return "swap"
    way = rng.choice(FILE_HARMS)
    way(rng.choice(files), rng)
    return way.__name__.strip("_")


def _contents(store: Path) -> tuple[Any, ...]:
    """All that training takes from a store."""
    splits = [TokenStore.open(store, split=split) for split in SPLITS]
    arrays = [
        array.tobytes()
        for split in splits
        for shard in split.shards
        for array in (shard.tokens, shard.sentence_starts, shard.document_starts)
    ]
    digests = [batches_digest(split, batches=1) for split in splits if split.shards]
    vocabulary = splits[0].manifest["vocabulary"]
    return arrays, digests, vocabulary, splits[0].vocab_path.read_bytes()


def harm_and_open(folder: Path, *, times: int, seed: int, old: bool = False) -> Counter[str]:
    """Harm copies of a small store and open each; count what came of it.

    "refused" were answered by UserError of one line, "the same" opened and gave what the unharmed
    store gives, "silent" gave something else; so may a "forged" manifest, which nothing can tell
    from another store's. Any other error is raised.
    """
    rng = random.Random(seed)
    whole, harmed = folder / "whole", folder / "harmed"
    if old:
        shutil.copytree(OLD_STORE, whole)
    else:
        text = "\n\n".join(f"The list is {i}.\nIt is a string.\nThe end." for i in range(30))
        (folder / "text.txt").write_text(text)
        vocabulary = OLD_STORE / "spiece.model"
        prepare(
            folder / "text.txt",
            vocab=vocabulary,
            output=whole,
            holdout=0.3,
            workers=1,
            progress=False,
        )
    expected = _contents(whole)
    found: Counter[str] = Counter()
    for number in range(times):
        shutil.rmtree(harmed, ignore_errors=True)
        shutil.copytree(whole, harmed)
        way = harm(harmed, rng)
        try:
            otherwise = "forged" if way == "forged manifest" else "silent"
            kind = "the same" if _contents(harmed) == expected else otherwise
        except UserError as error:
            kind = "several lines" if "\n" in str(error) else "refused"
        except Exception as error:
            error.add_note(f"harm {number}: {way}")
            raise
        if kind in ("silent", "several lines"):
            print(f"{kind}: harm {number}, {way}")
        found[kind] += 1
        found[f"{kind}: {way}"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--old", action="store_true", help="a store of version 0.1")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = harm_and_open(
            Path(folder), times=arguments.times, seed=arguments.seed, old=arguments.old
        )
    for name, count in sorted(found.items()):
        print(f"{name:<30} {count:>6}")


if __name__ == "__main__":
    main()
