# SPDX-License-Identifier: Apache-2.0
"""`prepare`: text -> token store, in bounded memory, by several processes, restartable by unit.

Plan the units (inputs cut or gathered to up to 64 MiB), look at a sample and forecast, make every
unit that is not finished yet, write the manifest. Until then the records of finished units are in
STORE/progress.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import itertools
import json
import os
import platform
import re
import shutil
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from albert_jax import __version__
from albert_jax.appearing import appearing_file
from albert_jax.data.beam import make_pipeline, run_units_on_beam
from albert_jax.data.corpus import find_pieces, read_piece
from albert_jax.data.forecast import Meter, existing_folder, make_forecast, show_bytes
from albert_jax.data.lines import Piece, Reading
from albert_jax.data.pool import run_units
from albert_jax.data.sentences import LAYOUTS
from albert_jax.data.store import (
    FORMAT_VERSION,
    MAX_VOCAB_SIZE,
    SPLITS,
    read_manifest,
    sha256_of,
    sync_folder,
    write_json,
)
from albert_jax.data.units import (
    Job,
    Unit,
    document_hash,
    plan_units,
    read_record,
)
from albert_jax.errors import UserError
from albert_jax.tokenizer import Tokenizer

# What `counts` in the manifest always has, 0 where there was none.
COUNTS = (
    "invalid_utf8_bytes",
    "nul_characters",
    "byte_order_marks",
    "line_separators",
    "lines_cut",
    "documents_cut",
    "short_lines_dropped",
    "lines_outside_documents",
    *(f"files_{layout}" for layout in (*LAYOUTS, "wiki")),
)


def prepare(
    inputs: Sequence[str | Path] | str | Path,
    *,
    vocab: str | Path,
    output: str | Path,
    format: str = "text",
    workers: int | None = None,
    holdout: float = 0.01,
    sentences: Literal["auto", "lines", "split", "wrapped"] = "auto",
    strict: bool = False,
    language: str = "en",
    data_dir: str | None = None,
    mode: Literal["google", "hf"] = "google",
    do_lower_case: bool = True,
    beam: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Makes a token store of files, folders, patterns or `python-docs`; returns its manifest.

    `format` is text, wiki or tfds:NAME (then the inputs name splits). `workers` unset takes all
    cores. `holdout` is the share of documents kept from training. `beam`, Beam's pipeline options
    as NAME=VALUE, runs the units there instead. The same inputs and settings give the same bytes,
    whatever the number of workers; killed, the same call goes on where it was.
    Raises UserError for bad inputs or settings and a full disk, TryAgain where a worker was killed.
    """
    if beam is not None and workers is not None:
        raise UserError("workers are this machine's; give Beam its own, as direct_num_workers=2")
    pipeline = None if beam is None else make_pipeline(beam)
    store = Path(output if beam is None else os.path.abspath(output))  # workers stand elsewhere
    inputs = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    reading = Reading(format, sentences, strict, language, data_dir)
    tokenizer = Tokenizer.load(vocab, mode=mode, do_lower_case=do_lower_case)
    _check(tokenizer, holdout, workers)
    pieces = find_pieces(inputs, reading)
    settings = _settings(tokenizer, reading, holdout, pieces)
    if (manifest := _finished(store, settings, pieces)) is not None:
        shutil.rmtree(store / "progress", ignore_errors=True)  # of a run killed at its very end
        _say(f"{store} is complete already", progress)
        return manifest
    units = plan_units(pieces, reading)
    hashes = _first_documents(units, reading, tokenizer, wanted=2 if holdout else 1)
    # Of two documents one is held out and one is not, so neither split is ever empty.
    fixed = (min(hashes), max(hashes)) if len(hashes) == 2 else None
    if fixed is None:
        why = ": all the text is one document" if holdout else ""
        _say(f"nothing is held out{why}", progress)
    job = Job(str(store), reading, mode, do_lower_case, holdout, fixed, json.dumps(settings))
    workers = workers or (_cores() if pipeline is None else 1)
    waiting = [unit for unit in units if read_record(unit, job) is None]
    if len(waiting) < len(units):
        _say(f"{len(units) - len(waiting)} of {len(units)} units are finished already", progress)
    forecast = make_forecast(waiting, reading, tokenizer, workers)
    if forecast.example:
        _say(forecast.example, progress)
    _say(forecast.describe(store), progress)
    forecast.check_disk(store)
    with _workplace(store, settings, tokenizer, forecast.bytes):
        _remove_stale(store, units, waiting)
        meter = Meter(sum(unit.bytes for unit in waiting), progress)
        try:
            if pipeline is None:
                run_units(waiting, job, workers, meter.add)
            else:
                run_units_on_beam(waiting, job, pipeline, meter.add)
        finally:
            meter.close()
        manifest = _manifest(units, job, settings, pieces, tokenizer)
        write_json(store / "manifest.json", manifest)
        shutil.rmtree(store / "progress")
    _summarize(manifest, store, progress)
    return manifest


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer than cpu_count where the process is confined
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _say(text: str, progress: bool) -> None:
    if progress:
        print(f"prepare: {text}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------- before it starts


def _check(tokenizer: Tokenizer, holdout: float, workers: int | None) -> None:
    if not 0 <= holdout < 1:
        raise UserError(f"holdout {holdout} must lie in [0, 1): it is a share of the documents")
    if workers is not None and workers < 1:
        raise UserError(f"workers {workers} must be at least 1")
    if tokenizer.vocab_size > MAX_VOCAB_SIZE:
        raise UserError(
            f"{tokenizer.path} has {tokenizer.vocab_size} pieces; a store holds at most "
            f"{MAX_VOCAB_SIZE}"
        )


def _settings(
    tokenizer: Tokenizer, reading: Reading, holdout: float, pieces: Sequence[Piece]
) -> dict[str, Any]:
    """All that the store's bytes depend on, beside the inputs."""
    made_with = {
        "albert_jax": __version__,
        "sentencepiece": version("sentencepiece"),
        "sentencex": version("sentencex"),
        "unicode": unicodedata.unidata_version,
    }
    if any(piece.kind == "python-docs" for piece in pieces):
        made_with["python"] = platform.python_version()
    return {
        "format_version": FORMAT_VERSION,
        "vocabulary": {
            "sha256": tokenizer.sha256,
            "size": tokenizer.vocab_size,
            "mode": tokenizer.mode,
            "do_lower_case": tokenizer.do_lower_case,
        },
        "reading": {k: v for k, v in asdict(reading).items() if k != "data_dir"},
        "holdout": holdout,
        "made_with": made_with,
    }


def _finished(
    store: Path, settings: dict[str, Any], pieces: Sequence[Piece]
) -> dict[str, Any] | None:
    """The manifest where the store is complete and of these settings and inputs.

    Raises UserError where something else is in its place.
    """
    if not store.exists():
        return None
    if not store.is_dir():
        raise UserError(f"{store} is a file; name a folder for the store")
    manifest = read_manifest(store)
    if manifest is not None:
        _refuse_differences(store, {key: manifest.get(key) for key in settings}, settings)
        if manifest["inputs"] != _inputs(pieces):
            raise UserError(
                f"{store} is complete and was made of other inputs; choose another --output"
            )
        return manifest
    if (store / "progress" / "settings.json").exists():
        begun = json.loads((store / "progress" / "settings.json").read_text(encoding="utf-8"))
        _refuse_differences(store, begun, settings)
    elif foreign := {entry.name for entry in store.iterdir()} - {"progress", "spiece.model"}:
        raise UserError(
            f"{store} holds {min(foreign)}, which is no part of a store; name a new or empty folder"
        )
    return None


def _refuse_differences(store: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value[:12] if key == "sha256" else value

    old, new = dict(flat(theirs)), dict(flat(ours))
    differences = [
        f"{key} {old.get(key)} there, {new.get(key)} now"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    ]
    if differences:
        what = "another vocabulary" if "vocabulary.sha256" in str(differences) else "other settings"
        raise UserError(
            f"{store} was made with {what} ({'; '.join(differences)}); choose another --output, "
            "or delete it"
        )


def _inputs(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    return [{"path": piece.path, "bytes": piece.size} for piece in pieces]


def _first_documents(
    units: Sequence[Unit], reading: Reading, tokenizer: Tokenizer, *, wanted: int
) -> list[int]:
    """Hashes of the first documents that have tokens and differ; UserError where there is none."""
    hashes: list[int] = []
    for piece in itertools.chain.from_iterable(unit.pieces for unit in units):
        for document in read_piece(piece, reading):
            value = document_hash(document)
            if value not in hashes and any(tokenizer.encode_ids([s])[0] for s in document):
                hashes.append(value)
                if len(hashes) == wanted:
                    return hashes
    if not hashes:
        inputs = {piece.path for unit in units for piece in unit.pieces}
        hint = "; a wiki extract has <doc …> lines, other text wants --format text"
        raise UserError(
            f"no text in {min(inputs)}{f' and {len(inputs) - 1} more' if len(inputs) > 1 else ''}"
            f"{hint if reading.format == 'wiki' else '; give files that are not empty'}"
        )
    return hashes


@contextlib.contextmanager
def _workplace(
    store: Path, settings: dict[str, Any], tokenizer: Tokenizer, needed: float
) -> Iterator[None]:
    """The store's folder, locked; afterwards no temporary file, and nothing at all if none is done.

    Turns a full disk and other failures of the file system into UserError.
    """
    created = not store.exists()
    progress = store / "progress"
    try:
        progress.mkdir(parents=True, exist_ok=True)
        with open(progress / "lock", "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by any death
            except OSError:
                raise UserError(f"another prepare is writing {store}; wait for it to end") from None
            if (store / "manifest.json").exists():
                raise UserError(f"another prepare has just completed {store}; run it again to see")
            try:
                write_json(progress / "settings.json", settings)
                _copy_vocabulary(tokenizer.path, store, tokenizer.sha256)
                yield
            finally:
                _clean(store, created)
    except OSError as error:
        raise _explain(error, store, needed) from error


def _copy_vocabulary(source: Path, store: Path, sha256: str) -> None:
    with appearing_file(store / "spiece.model") as temporary:
        shutil.copyfile(source, temporary)
        if sha256_of(temporary) != sha256:
            raise UserError(f"{source} changed while it was read; run the same command again")
    sync_folder(store)


def _clean(store: Path, created: bool) -> None:
    for temporary in store.glob("**/*.tmp"):
        temporary.unlink(missing_ok=True)
    if (store / "manifest.json").exists() or any((store / "progress").glob("[0-9]*.json")):
        return
    for split in SPLITS:
        shutil.rmtree(store / split, ignore_errors=True)
    shutil.rmtree(store / "progress", ignore_errors=True)
    (store / "spiece.model").unlink(missing_ok=True)
    if created:
        with contextlib.suppress(OSError):
            store.rmdir()


def _explain(error: OSError, store: Path, needed: float) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(existing_folder(store)).free
        return UserError(
            f"the disk of {store} is full: {show_bytes(free)} free, about {show_bytes(needed)} "
            "needed in all; free some space and run the same command again, which keeps what is "
            "finished"
        )
    place = error.filename or store
    return UserError(
        f"{place}: {error.strerror or error}; mend that and run the same command again"
    )


def _remove_stale(store: Path, units: Sequence[Unit], waiting: Sequence[Unit]) -> None:
    """Removes what killed runs and changed inputs left: all that is of no finished unit."""
    kept = {unit.name for unit in units} - {unit.name for unit in waiting}
    for pattern in ("progress/[0-9]*.json", *(f"{split}/*" for split in SPLITS)):
        for file in store.glob(pattern):
            if re.split(r"[-.]", file.name)[0] not in kept:
                file.unlink()


# ---------------------------------------------------------------------------------- when it is done


def _manifest(
    units: Sequence[Unit],
    job: Job,
    settings: dict[str, Any],
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """What the units' records come to; it has no times, paths of the store or process counts."""
    counts = Counter(dict.fromkeys(COUNTS, 0))
    tokens = {split: np.zeros(tokenizer.vocab_size, np.int64) for split in SPLITS}
    shards: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for unit in units:
        record = read_record(unit, job)
        assert record is not None, f"unit {unit.name} has no record"
        counts.update(record["counts"])
        for split in SPLITS:
            shards[split] += record["splits"][split]["shards"]
            packed = base64.b64decode(record["splits"][split]["token_counts"])
            tokens[split] += np.frombuffer(zlib.decompress(packed), "<i8")
    splits = {}
    for split in SPLITS:
        totals = {
            key: sum(shard[key] for shard in shards[split])
            for key in ("tokens", "sentences", "documents", "bytes")
        }
        splits[split] = totals | unigram_statistics(tokens[split]) | {"shards": shards[split]}
    return settings | {"counts": dict(counts), "splits": splits, "inputs": _inputs(pieces)}


def unigram_statistics(counts: np.ndarray) -> dict[str, Any]:
    """What a model scores that knows only how often each token occurs, in any unit: nats a token,
    hits."""
    total = counts.sum()
    if not total:
        return dict.fromkeys(
            ("unigram_entropy_nats", "most_frequent_token_id", "most_frequent_token_rate")
        )
    rates = counts[counts > 0] / total
    return {
        "unigram_entropy_nats": float(-(rates * np.log(rates)).sum()),
        "most_frequent_token_id": int(counts.argmax()),
        "most_frequent_token_rate": float(counts.max() / total),
    }


def _summarize(manifest: dict[str, Any], store: Path, progress: bool) -> None:
    mended = {name: n for name, n in manifest["counts"].items() if n and name[:6] != "files_"}
    kinds = LAYOUTS | {"wiki": "wiki extracts"}
    files = {name: manifest["counts"][f"files_{kind}"] for kind, name in kinds.items()}
    for title, found in (("files", files), ("mended or left out", mended)):
        if any(found.values()):
            listed = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in found.items() if n)
            _say(f"{title}: {listed}", progress)
    for split in SPLITS:
        totals = manifest["splits"][split]
        _say(
            f"{store}/{split}: {totals['documents']:,} documents, {totals['sentences']:,} "
            f"sentences, {totals['tokens']:,} tokens, {show_bytes(totals['bytes'])}",
            progress,
        )
