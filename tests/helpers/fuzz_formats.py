# SPDX-License-Identifier: Apache-2.0
"""Harms files and gives them to the readers, which must read them or raise UserError, in
proportion to a file's size, and do nothing else.

`python -m tests.helpers.fuzz_formats --count 20000` tries so many and prints what became of them,
the slowest and the largest; test_fuzz_formats.py tries a few. A harm is a function of its kind and
its seed, so `--kind KIND --seed SEED --count 1` does one again.
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import gzip
import io
import json
import pickle
import random
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.serialization
import google_crc32c
import numpy as np
import tensorstore as ts

from albert_jax.checkpoint.convert import torch_zip
from albert_jax.checkpoint.convert.archives import unpack
from albert_jax.checkpoint.convert.convert import _read_model_directory, convert
from albert_jax.checkpoint.convert.flax_msgpack import read_flax
from albert_jax.checkpoint.convert.readers import read_weights
from albert_jax.checkpoint.convert.safetensors_file import read_safetensors, write_safetensors
from albert_jax.checkpoint.convert.sources import open_weights
from albert_jax.checkpoint.convert.sstable import encode_table, parse_table
from albert_jax.checkpoint.convert.tensors import Tensor
from albert_jax.checkpoint.convert.tf_bundle import write_checkpoint
from albert_jax.checkpoint.convert.torch_zip import read_torch
from albert_jax.checkpoint.integrity import seal
from albert_jax.checkpoint.model_dir import load_model, load_optimizer
from albert_jax.config.model import AlbertConfig
from albert_jax.data.hf_tokenizer import read_tokenizer
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import UserError
from tests.helpers.conversions import SMALL, forge, made_up, write_original, write_transformers
from tests.helpers.paths import VOCABULARY
from tests.helpers.tf_checkpoints import read_checkpoint

# What one harmed file may take. The readers' own bounds leave 64 MiB free (`archives`, `digests`).
MOST_SECONDS = 3.0  # of CPU; seconds at most are expected of a machine that is shared
MOST_BYTES = 1 << 27

TENSORS = {
    "albert.pooler.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "albert.pooler.bias": np.ones(3, np.float16),
    "empty": np.zeros((0, 2), np.float32),
}


class _Storage:
    """Pickled as torch.save pickles a storage: by a persistent id."""

    def __init__(self, key: str, array: np.ndarray):
        self.key, self.array = key, array


class _Name:
    """Pickled as the global of that name, which need not be importable here."""

    def __init__(self, name: str):
        self.name = name


class _Call:
    def __init__(self, name: str, *arguments: object):
        self.name, self.arguments = name, arguments


class _Pickler(pickle._Pickler):  # the one in Python, which lets a global be made of any name
    def persistent_id(self, value: object) -> object:
        if isinstance(value, _Storage):
            kind = {"float32": "Float", "float16": "Half"}[str(value.array.dtype)]
            name = _Name(f"torch {kind}Storage")
            return ("storage", name, value.key, "cpu", value.array.size)
        return None

    def save(self, value: object, save_persistent_id: bool = True) -> None:
        if isinstance(value, _Name):
            self.write(b"c" + value.name.replace(" ", "\n").encode() + b"\n")
        elif isinstance(value, _Call):
            self.save(_Name(value.name))
            self.save(value.arguments)
            self.write(b"R")
        else:
            super().save(value, save_persistent_id)


def torch_pickle(tensors: dict[str, np.ndarray], *, extra: object = None) -> bytes:
    """The bytes that torch.save writes to data.pkl."""
    state: dict[str, object] = {}
    for number, (name, array) in enumerate(tensors.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        storage = _Storage(str(number), array)
        call = (storage, 0, array.shape, strides, False, _Call("collections OrderedDict"))
        state[name] = _Call("torch._utils _rebuild_tensor_v2", *call)
    if extra is not None:
        state["extra"] = extra
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(state)
    return file.getvalue()


def write_torch(path: Path, tensors: dict[str, np.ndarray], program: bytes | None = None) -> None:
    """Writes what torch.save would, or another pickle in its place."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program or torch_pickle(tensors))
        for number, array in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{number}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def write_flax(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes nested dicts as Flax does."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        tree.setdefault("albert", {})[name] = array
    path.write_bytes(flax.serialization.msgpack_serialize(tree))


def write_tar(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a tar archive, not gzipped, so that a flipped bit reaches its headers."""
    with tarfile.open(path, "w") as archive:
        for name, array in tensors.items():
            member = tarfile.TarInfo("folder/" + name * 9)  # a long name has a header of its own
            member.size = array.nbytes
            archive.addfile(member, io.BytesIO(array.tobytes()))


# ---------------------------------------------------------------------------------------- the harms

Harm = Callable[[bytes, random.Random], bytes]


def harm(content: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, repeats, exchanges, overwrites with numbers that break readers, a few times."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size] * rng.choice((1, 2, 100))
            case 3:
                data[at : at + size] = rng.randbytes(size)
            case 4:
                number = rng.choice((0, 1, 0x7F, 0xFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
                data[at : at + 8] = struct.pack(rng.choice("<>") + "Q", number)
            case 5:
                other = rng.randrange(len(data) + 1)
                data[at : at + size] = data[other : other + size]
    return bytes(data)


def replace(content: bytes, rng: random.Random) -> bytes:
    """Any bytes at all."""
    return rng.randbytes(rng.randrange(2 * len(content) + 1))


def harm_program(program: bytes, rng: random.Random) -> bytes:
    """Other instructions among a pickle's own, so that the machine is reached, not the checksum."""
    data = bytearray(harm(program, rng))
    known = b"}]()NKJM\x8a\x88\x89tRbsuae\x85\x86\x87qrhjQX\x8c\x94\x930c."
    for _ in range(rng.choice((0, 1, 4, 16))):
        data.insert(rng.randrange(len(data) + 1), rng.choice(known))
    return bytes(data)


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 255, 2**31, 2**53, 2**63, 2**64, 10**12, 10**400),
    *(0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "0", "nan", "../x", "/etc/passwd", "a/b", "\ud800", "\0", "x" * 100_000),
    *([], [1], [None], ["x", "x"], [[[]]], {}, {"0": 1}, {"": None}, {"content": []}),
)
KEYS = ("0", "x", "model_type", "architectures", "id2label", "hidden_size", "hidden_act", "head")
KEYS += ("problem_type", "weight_map", "tensors", "dtype", "shape", "params", "__metadata__", "")


def harm_json(content: bytes, rng: random.Random) -> bytes:
    """Other values, names and places in a JSON document, which stays JSON mostly."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        value = _harm_value(value, rng)
    text = json.dumps(value).encode()
    return harm(text, rng) if rng.random() < 0.05 else text


def _harm_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        inner = list(value) if isinstance(value, dict) else list(range(len(value)))
        at = rng.choice(inner)
        match rng.randrange(8):
            case 0:
                del value[at]
            case 1 if isinstance(value, dict):
                value[rng.choice(KEYS)] = copy.deepcopy(rng.choice(ODD))
            case 2 if isinstance(value, dict):
                value[rng.choice(KEYS)] = value.pop(at)
            case 3:
                value[at] = value[rng.choice(inner)]
            case _:
                value[at] = _harm_value(value[at], rng)
        return json.loads(json.dumps(value))  # nothing in itself
    if isinstance(value, (int, float)) and abs(value) < 1e300 and rng.random() < 0.3:
        return value * rng.choice((-1, 0, 2, 0.5, 1e300)) + rng.choice((-1, 0, 1))
    return copy.deepcopy(rng.choice(ODD))


def harm_header(content: bytes, rng: random.Random) -> bytes:
    """The JSON that a safetensors file begins with, its length set right."""
    size = int.from_bytes(content[:8], "little")
    header = harm_json(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def harm_table(content: bytes, rng: random.Random) -> bytes:
    """The entries of a TensorFlow index, its checksums made right again."""
    items = list(parse_table(content))
    at = rng.randrange(len(items))
    key, value = items[at]
    items[at] = (key, harm(value, rng)) if rng.random() < 0.7 else (harm(key, rng), value)
    return encode_table(sorted(dict(items).items()))


def harm_gzip(content: bytes, rng: random.Random) -> bytes:
    """What is compressed, so that gzip's checksum is right."""
    return gzip.compress(harm(gzip.decompress(content), rng), 1)


def harm_manifest(content: bytes, rng: random.Random) -> bytes:
    """A model directory's manifest with a fitting checksum."""
    document = json.loads(content)
    del document["crc32c"]
    harmed = harm_json(json.dumps(document).encode(), rng)
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(harmed)
        harmed = json.dumps(seal(document) if isinstance(document, dict) else document).encode()
    return harmed


def harm_node(content: bytes, rng: random.Random) -> bytes:
    """A file of OCDBT's with its length and checksum made right again; without them any file."""
    data = bytearray(harm(content[:-4], rng))
    if content[:2] == b"\x0c\xdb" and len(data) >= 12:
        data[4:12] = (len(data) + 4).to_bytes(8, "little")
    return bytes(data) + google_crc32c.value(bytes(data)).to_bytes(4, "little")


# -------------------------------------------------------------------------------------- the readers


@dataclass(frozen=True)
class Kind:
    """Sound files, of which one is harmed, how that is done, and who reads them."""

    files: tuple[Path, ...]
    harm: Harm
    read: Callable[[], object]


def _read_all(tensors: dict[str, Tensor]) -> None:
    for tensor in tensors.values():
        tensor.read()


def _unpack(path: Path) -> None:
    folder = path.with_name("unpacked")
    shutil.rmtree(folder, ignore_errors=True)
    unpack(path, folder)


def _weights(path: Path) -> None:
    read_weights(open_weights(path), config=None, head=None, with_optimizer=path.name == "tf")


def _model(folder: Path) -> None:
    """All that is read of a model directory, the values of no use to a model too."""
    with contextlib.suppress(UserError):
        load_model(folder, check_values=False)
    load_optimizer(folder)
    found = _read_model_directory(folder, with_optimizer=False)
    vocabulary = found.find_vocabulary(None)
    if vocabulary:
        Tokenizer.load(vocabulary, **found.settings)


def _sealed_model(folder: Path) -> None:
    """As one reads it whose changed files have the digests that its manifest says."""
    kept = (folder / "manifest.json").read_bytes()
    try:
        forge(folder, lambda manifest: None)
        _model(folder)
    finally:
        (folder / "manifest.json").write_bytes(kept)


def _tokenizer(path: Path) -> None:
    for mode in ("google", "hf"):
        tokenizer = Tokenizer.load(path, mode=mode)
        tokenizer.encode("The list (of) 3,000 naïve words, [MASK].")
        tokenizer.decode(range(0, tokenizer.vocab_size, 97))


def _database(params: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{params}/"}}


def _plain_nodes(params: Path) -> None:
    """Writes orbax's database again without compression, so that a harm reaches what is in it."""
    copy = params.with_name("plain")
    config = {"compression": None, "max_inline_value_bytes": 100}
    source = ts.KvStore.open(_database(params)).result()
    target = ts.KvStore.open(_database(copy) | {"config": config}).result()
    with ts.Transaction() as transaction:
        for key in source.list().result():
            target.with_transaction(transaction).write(
                key, source.read(key).result().value
            ).result()
    shutil.rmtree(params)
    copy.rename(params)


def _write_zarray(params: Path, name: str, metadata: bytes) -> None:
    ts.KvStore.open(_database(params)).result().write(f"{name}/.zarray", metadata).result()


def kinds(folder: Path) -> dict[str, Kind]:
    """Writes sound files into a folder; returns every kind of harm by name."""
    folder.mkdir(exist_ok=True)
    files = {name: folder / name for name in ("a.safetensors", "a.bin", "a.msgpack", "a.tar")}
    for path, write in zip(files.values(), _WRITERS, strict=True):
        write(path, TENSORS)
    (folder / "a.tar.gz").write_bytes(gzip.compress(files["a.tar"].read_bytes()))
    program = folder / "a.pkl"
    program.write_bytes(torch_pickle(TENSORS))
    write_checkpoint(folder / "ckpt", TENSORS)
    write_original(folder / "tf", made_up(), slots=True)
    hf = write_transformers(
        folder / "hf",
        made_up(parts=("pooler",), head="classification"),
        head={"kind": "classification", "labels": ["a", "b", "c"]},
    )
    parts = write_transformers(folder / "parts", made_up())
    names = list(read_safetensors(parts / "model.safetensors"))
    (parts / "model.safetensors").rename(parts / "part.safetensors")
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")}))
    texts = _model_with_texts(folder)
    model, plain = folder / "model", folder / "plain_model"
    convert(folder / "tf", model, with_optimizer=True)
    shutil.copytree(model, plain)
    _plain_nodes(plain / "params")

    def run_program() -> None:
        try:
            torch_zip._state_dict(torch_zip._run(program.read_bytes()))
        except (torch_zip._Damaged, torch_zip._Refused, ValueError) as error:  # as `read_torch`
            raise UserError(str(error)) from None

    def zip_program() -> None:
        write_torch(folder / "zipped.bin", TENSORS, program.read_bytes())
        _read_all(read_torch(folder / "zipped.bin"))

    def read_original() -> None:
        read_checkpoint(folder / "ckpt")

    zarray, array = folder / "zarray.json", "embeddings.position_embeddings"
    database = ts.KvStore.open(_database(plain / "params")).result()
    zarray.write_bytes(database.read(f"{array}/.zarray").result().value)

    def read_zarray() -> None:
        forged = folder / "forged_model"
        shutil.rmtree(forged, ignore_errors=True)
        shutil.copytree(plain, forged)
        _write_zarray(forged / "params", array, zarray.read_bytes())
        _model(forged)

    sources: dict[str, tuple[Path, Harm, Callable[[], object]]] = {
        "safetensors": (
            files["a.safetensors"],
            harm,
            lambda: _read_all(read_safetensors(files["a.safetensors"])),
        ),
        "safetensors header": (
            files["a.safetensors"],
            harm_header,
            lambda: _read_all(read_safetensors(files["a.safetensors"])),
        ),
        "torch": (files["a.bin"], harm, lambda: _read_all(read_torch(files["a.bin"]))),
        "torch program": (program, harm_program, run_program),
        "torch program in its zip": (program, harm_program, zip_program),
        "flax": (files["a.msgpack"], harm, lambda: _read_all(read_flax(files["a.msgpack"]))),
        "tar": (files["a.tar"], harm, lambda: _unpack(files["a.tar"])),
        "tar.gz": (folder / "a.tar.gz", harm, lambda: _unpack(folder / "a.tar.gz")),
        "tar in tar.gz": (folder / "a.tar.gz", harm_gzip, lambda: _unpack(folder / "a.tar.gz")),
        "index": (folder / "ckpt.index", harm, read_original),
        "index, sealed": (folder / "ckpt.index", harm_table, read_original),
        "index of a model, sealed": (
            folder / "tf" / "model.ckpt-best.index",
            harm_table,
            lambda: _weights(folder / "tf"),
        ),
        "data": (folder / "ckpt.data-00000-of-00001", harm, read_original),
        "albert_config.json": (
            folder / "tf" / "albert_config.json",
            harm_json,
            lambda: _weights(folder / "tf"),
        ),
        "config.json": (hf / "config.json", harm_json, lambda: _weights(hf)),
        "header of a model": (hf / "model.safetensors", harm_header, lambda: _weights(hf)),
        "weight_map": (index, harm_json, lambda: _weights(parts)),
        "manifest, sealed": (model / "manifest.json", harm_manifest, lambda: _model(model)),
        "manifest": (model / "manifest.json", harm, lambda: _model(model)),
        "configuration of a model": (
            model / "albert_config.json",
            harm_json,
            lambda: _sealed_model(model),
        ),
        "spiece.model": (texts / "spiece.model", harm, lambda: _tokenizer(texts / "spiece.model")),
    }
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        sources[name] = (texts / name, harm_json, lambda: read_tokenizer(texts))
    sources["zarray"] = (zarray, harm_json, read_zarray)
    found = {name: Kind((file,), *values) for name, (file, *values) in sources.items()}
    for name, where, harms in (
        ("orbax", model / "params", harm),
        ("orbax, sealed", plain / "params", harm_node),
        ("orbax of an optimizer", model / "optimizer", harm),
    ):
        read = functools.partial(_model, where.parent)
        found[name] = Kind(_files_in(where), harms, read)
    for name in ("safetensors", "torch", "flax", "tar", "index", "manifest", "spiece.model"):
        found[f"any bytes for {name}"] = dataclasses.replace(found[name], harm=replace)
    return found


def _files_in(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))


def _model_with_texts(folder: Path) -> Path:
    """A transformers folder with a vocabulary, and its tokenizer's files."""
    config = AlbertConfig(**(vars(SMALL) | {"vocab_size": 8000}))
    source = write_original(folder / "with_vocabulary", made_up(config), config).parent
    shutil.copyfile(VOCABULARY, source / "30k-clean.model")
    convert(source, folder / "texts", "hf")
    return folder / "texts"


_WRITERS: tuple[Callable[[Path, dict[str, np.ndarray]], None], ...] = (
    write_safetensors,
    write_torch,
    write_flax,
    write_tar,
)

# -------------------------------------------------------------------------------------- the attempt


@dataclass(frozen=True)
class Outcome:
    """What became of a harmed file: the error's words, none where it was read; and what it took."""

    told: str
    seconds: float  # of CPU, all threads
    bytes: int  # of memory, at their most


def attempt(kind: Kind, seed: int) -> Outcome:
    """Harms the file, has it read, puts the sound one back; any error but UserError is raised."""
    rng = random.Random(seed)
    file = rng.choice(kind.files)
    sound = file.read_bytes()
    try:
        file.write_bytes(kind.harm(sound, rng))
        before, start, told = _reset_peak(), time.process_time(), ""
        try:
            kind.read()
        except UserError as error:
            told = str(error)
        return Outcome(told, time.process_time() - start, max(0, _peak() - before))
    finally:
        file.write_bytes(sound)


def _reset_peak() -> int:
    """The bytes in use, from which on the peak is counted; 0 where the system does not count so."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first of so many")
    parser.add_argument("--kind", default="", help="one of the kinds; unset: all in turn")
    arguments = parser.parse_args()
    limit = 8 << 30  # of address space: a reader that takes more is stopped, and the machine lives
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tried: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, tuple[float, int]] = {}
    largest: dict[str, tuple[int, int]] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        found = kinds(Path(name) / "files")
        chosen = [arguments.kind] if arguments.kind in found else list(found)
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            kind = chosen[seed % len(chosen)]
            print(f"\r{seed} {kind:40}", end="", file=sys.stderr)  # where a crash would end it
            try:
                outcome = attempt(found[kind], seed)
            except Exception as error:
                failed += 1
                tried[kind]["FAILED"] += 1
                print(f"\n--kind {kind!r} --seed {seed}: {error!r:.200}", file=sys.stderr)
                if arguments.count == 1:
                    raise
                continue
            tried[kind]["refused" if outcome.told else "read"] += 1
            slowest[kind] = max(slowest.get(kind, (0.0, 0)), (outcome.seconds, seed))
            largest[kind] = max(largest.get(kind, (0, 0)), (outcome.bytes, seed))
    print(json.dumps({"tried": tried, "in all": sum(map(Counter.total, tried.values()))}, indent=1))
    print(
        json.dumps(
            {"slowest CPU s": sorted(((*v, k) for k, v in slowest.items()), reverse=True)[:5]}
        )
    )
    print(
        json.dumps({"most bytes": sorted(((*v, k) for k, v in largest.items()), reverse=True)[:5]})
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
