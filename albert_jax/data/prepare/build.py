# SPDX-License-Identifier: Apache-2.0
"""`prepare`: text -> token store, in bounded memory, by several processes, restartable by unit.

Plan the units (inputs cut or gathered to up to 64 MiB), look at a sample and forecast, make every
unit that is not finished yet, write the manifest. Until then the records of finished units are in
STORE/progress.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from albert_jax import __version__
from albert_jax.config.manifests import SLOW_MODES, VOCABULARIES, VOCABULARY, Mode, vocabulary_name
from albert_jax.data.prepare.beam_runner import make_pipeline, run_units_on_beam
from albert_jax.data.prepare.forecast import make_forecast
from albert_jax.data.prepare.local_runner import run_units
from albert_jax.data.prepare.storage import Place, existing_folder, open_place
from albert_jax.data.prepare.units import (
    Job,
    Unit,
    UnitRecord,
    document_hash,
    plan_units,
    read_unit_records,
)
from albert_jax.data.store_manifest import (
    CHECKSUM,
    FORMAT_REVISION,
    FORMAT_VERSION,
    MAX_VOCAB_SIZE,
    SETTINGS,
    SPLITS,
    Input,
    PreparedStore,
    Settings,
    SplitRecord,
    Splits,
    StoreManifest,
    StoreVocabulary,
    files_of,
    json_bytes,
    parse_manifest,
    sealed,
)
from albert_jax.data.text.documents import COUNTS, find_pieces, read_piece, summarize_counts
from albert_jax.data.text.files import require_output_apart
from albert_jax.data.text.lines import Piece, Reading
from albert_jax.data.text.python_docs import versions_of
from albert_jax.data.tokenizer import Tokenizer, vocabulary_file
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.json_files import decode_json
from albert_jax.utils.progress import ProgressMeter, show_bytes
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.streams import say

SETTINGS_FILE = "progress/settings.json"
_DEFAULT_MODE: Mode = "google"  # of a SentencePiece model: as the original has it
MOST_ALONE = 1.1  # sentences a document; with fewer, nine in ten documents at least have one


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
    field: str | None = None,
    mode: Mode | None = None,
    do_lower_case: bool = True,
    beam: Sequence[str] | None = None,
    progress: bool = True,
) -> PreparedStore:
    """Makes a token store of files, folders, patterns or the docs of `python_docs`; returns its
    manifest.

    Files and `output` may lie at gs:// or another of fsspec's addresses. `format` is text, wiki,
    tfds:NAME or hf:NAME[/CONFIG] (then the inputs name splits); `field` is the column or key that
    holds the text of the hub's data sets, of Parquet and of JSONL files. `mode` is of a
    SentencePiece model, unset google; other vocabularies say it themselves. `workers` unset takes
    all cores. `holdout` is the share of documents kept from training. `beam`, Beam's pipeline
    options as NAME=VALUE, runs the units there instead. The same inputs and settings give the same
    bytes, whatever the number of workers; killed, the same call goes on where it was.
    Raises UserError for bad inputs or settings, a full disk and an address that cannot be reached,
    TryAgain where a worker was killed or two prepares wrote one address.
    """
    if beam is not None and workers is not None:
        raise UserError("workers are this machine's; give Beam its own, as direct_num_workers=2")
    pipeline = None if beam is None else make_pipeline(beam)
    output = str(output)
    if beam is not None and not is_address(output):
        output = os.path.abspath(output)  # workers stand elsewhere
    place = open_place(output)
    inputs = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    reading = Reading(format, sentences, strict, language, data_dir, field)
    tokenizer = _load_tokenizer(vocab, mode, do_lower_case)
    _check(tokenizer, holdout, workers)
    pieces = find_pieces(inputs, reading)
    if not reading.names_data_set:
        require_output_apart(output, inputs, (piece.path for piece in pieces))
    settings = _settings(tokenizer, reading, holdout, pieces)
    if (finished := _finished(place, settings, pieces)) is not None:
        place.remove_folder("progress")  # of a run killed at its very end
        _say(f"{place.name} is complete already", progress)
        return PreparedStore(manifest=finished)
    units = plan_units(pieces, reading)
    hashes = _first_documents(units, reading, tokenizer, wanted=2 if holdout else 1)
    # Of two documents one is held out and one is not, so neither split is ever empty.
    fixed = (min(hashes), max(hashes)) if len(hashes) == 2 else None
    if fixed is None:
        why = ": all the text is one document" if holdout else ""
        _say(f"nothing is held out{why}", progress)
    job = Job(
        place.name,
        reading,
        vocabulary_name(tokenizer.path),
        tokenizer.settings,
        holdout,
        fixed,
        json.dumps(settings.to_json()),
    )
    workers = workers or (_cores() if pipeline is None else 1)
    records = read_unit_records(units, job)
    waiting = [unit for unit, record in zip(units, records, strict=True) if record is None]
    if len(waiting) < len(units):
        _say(f"{len(units) - len(waiting)} of {len(units)} units are finished already", progress)
    forecast = make_forecast(waiting, reading, tokenizer, workers)
    if forecast.example:
        _say(forecast.example, progress)
    unknown = "the data set does not say its size, so that nothing can be forecast"
    is_known = forecast.input_bytes or not waiting
    _say(forecast.describe(place.free()) if is_known else unknown, progress)
    forecast.check_disk(place.name, place.free())
    with _workplace(place, settings, tokenizer, forecast.bytes):
        _remove_stale(place, units, waiting)
        total = sum(unit.bytes for unit in waiting)
        meter = ProgressMeter("prepare", total, unit="B", show=progress)
        try:
            if pipeline is None:
                run_units(waiting, job, workers, meter.add)
            else:
                run_units_on_beam(waiting, job, pipeline, meter.add)
        finally:
            meter.close()
        manifest = _manifest(units, job, settings, pieces)
        document = sealed(manifest.to_json())
        place.write("manifest.json", json_bytes(document))
        place.remove_folder("progress")
    _summarize(manifest, place.name, progress)
    return PreparedStore(manifest=replace(manifest, checksum=document[CHECKSUM]))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer than cpu_count where the process is confined
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _say(text: str, progress: bool) -> None:
    if progress:
        say(f"prepare: {text}")


# --------------------------------------------------------------------------------- before it starts


def _load_tokenizer(vocab: str | Path, mode: Mode | None, do_lower_case: bool) -> Tokenizer:
    """The vocabulary; without a mode a SentencePiece model has the original's, and another one says
    itself how it is used, unless it is to be cased."""
    if mode is None:
        if vocabulary_file(vocab, _DEFAULT_MODE).suffix in (".json", ".txt"):
            return Tokenizer.load(vocab, do_lower_case=None if do_lower_case else False)
        mode = _DEFAULT_MODE
    return Tokenizer.load(vocab, mode=mode, do_lower_case=do_lower_case)


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
) -> Settings:
    """All that the store's bytes depend on, beside the inputs."""
    made_with = {
        "albert_jax": __version__,
        "sentencepiece": version("sentencepiece"),
        "sentencex": version("sentencex"),
        "unicode": unicodedata.unidata_version,
    }
    name = vocabulary_name(tokenizer.path)
    if tokenizer.mode not in SLOW_MODES:
        made_with["tokenizers"] = version("tokenizers")
    for piece in pieces:
        if piece.kind == "docs":
            made_with |= versions_of(piece.path)
    return Settings(
        format_version=FORMAT_VERSION,
        vocabulary=StoreVocabulary(
            tokenizer.sha256,
            tokenizer.vocab_size,
            tokenizer.mode,
            tokenizer.do_lower_case,
            tokenizer.settings.get("keep_accents"),
            None if name == VOCABULARY else cast(Any, name),
        ),
        # Stores that were made before there were fields say none.
        reading={
            k: v
            for k, v in asdict(reading).items()
            if k != "data_dir" and (k, v) != ("field", None)
        },
        holdout=holdout,
        made_with=made_with,
    )


def _finished(place: Place, settings: Settings, pieces: Sequence[Piece]) -> StoreManifest | None:
    """The manifest where the store is complete, whole, and of these settings and inputs.

    Raises UserError where something else is in its place.
    """
    if not (entries := place.entries()):
        return None
    there = place.read(["manifest.json", SETTINGS_FILE])
    if "manifest.json" in there:
        remedy = f"delete {place.name} and run the same command again"
        file = f"{place.name}/manifest.json"
        manifest = parse_manifest(there["manifest.json"], file, remedy=remedy)
        _refuse_differences(place, manifest.settings(), settings)
        if manifest.inputs != _inputs(pieces):
            raise UserError(
                f"{place.name} is complete and was made of other inputs; choose another --output"
            )
        place.verify(files_of(manifest), remedy)
        return manifest
    if SETTINGS_FILE in there:
        hint = "delete that file and run the same command again, which keeps what is finished"
        name = f"{place.name}/{SETTINGS_FILE}"
        begun = decode_json(there[SETTINGS_FILE], Settings, name=name, hint=hint)
        _refuse_differences(place, begun.to_json(), settings)
        return None
    # A vocabulary by itself is somebody's own, which tidying up after a failure would delete.
    own = {"progress", *VOCABULARIES, *SPLITS} if "progress" in entries else set()
    if foreign := entries.keys() - own:
        raise UserError(
            f"{place.name} holds {min(foreign)}, which is no part of a store; name a new or empty "
            "folder"
        )
    return None


def _refuse_differences(place: Place, theirs: dict[str, Any], ours: Settings) -> None:
    def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value[:12] if key == "sha256" else value

    old, new = dict(flat(theirs)), dict(flat(ours.to_json()))
    differences = [
        f"{key} {old.get(key)} there, {new.get(key)} now"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    ]
    if differences:
        what = "another vocabulary" if "vocabulary.sha256" in str(differences) else "other settings"
        raise UserError(
            f"{place.name} was made with {what} ({'; '.join(differences)}); choose another "
            "--output, or delete it"
        )


def _inputs(pieces: Sequence[Piece]) -> list[Input]:
    # A file's name may be no UTF-8, which JSON must be.
    names = (os.fsencode(piece.path).decode("utf-8", "backslashreplace") for piece in pieces)
    return [Input(name, piece.size) for name, piece in zip(names, pieces, strict=True)]


def _first_documents(
    units: Sequence[Unit], reading: Reading, tokenizer: Tokenizer, *, wanted: int
) -> list[int]:
    """Hashes of the first documents that have tokens and differ; UserError where there is none."""
    hashes: list[int] = []
    for piece in itertools.chain.from_iterable(unit.pieces for unit in units):
        for document in read_piece(piece, reading):
            value = document_hash(document)
            if value not in hashes and _has_tokens(document, tokenizer):
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


def _has_tokens(document: Sequence[str], tokenizer: Tokenizer) -> bool:
    some = (document[start : start + 256] for start in range(0, len(document), 256))
    return any(any(tokenizer.encode_ids(sentences)) for sentences in some)


@contextlib.contextmanager
def _workplace(
    place: Place, settings: Settings, tokenizer: Tokenizer, needed: float
) -> Iterator[None]:
    """The store, for this process alone; afterwards nothing at all is in it if no unit is done.

    Turns a full disk and other failures of the file system into UserError.
    """
    try:
        with place.writing():
            if "manifest.json" in place.entries():
                raise UserError(
                    f"another prepare has just completed {place.name}; run it again to see"
                )
            try:
                place.write(SETTINGS_FILE, json_bytes(settings.to_json()))
                _copy_vocabulary(tokenizer, place)
                yield
            finally:
                _clean(place)
    except OSError as error:
        raise _explain(error, place.disk, needed) from error


def _copy_vocabulary(tokenizer: Tokenizer, place: Place) -> None:
    model = tokenizer.path.read_bytes()
    if hashlib.sha256(model).hexdigest() != tokenizer.sha256:
        raise UserError(f"{tokenizer.path} changed while it was read; run the same command again")
    place.write(vocabulary_name(tokenizer.path), model)


def _clean(place: Place) -> None:
    """Leaves finished units only, or nothing at all where there is none."""
    entries = place.entries()
    if "manifest.json" in entries:
        return
    finished = set(map(_unit_of, place.entries("progress"))) - {""}
    if finished:
        _remove_others(place, finished)
        return
    for folder in SPLITS:
        place.remove_folder(folder)
    place.remove([name for name in VOCABULARIES if name in entries])
    place.remove_folder("progress")  # last: with it, the rest is known for what it is


def _unit_of(file: str) -> str:
    """The name of the unit whose record or shard a file is, "" where it is none's."""
    return file[:5] if re.match(r"[0-9]{5}[-.]", file) else ""


def _explain(error: OSError, disk: Path, needed: float) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(existing_folder(disk)).free
        return UserError(
            f"the disk of {disk} is full: {show_bytes(free)} free, about {show_bytes(needed)} "
            "needed in all; free some space and run the same command again, which keeps what is "
            "finished"
        )
    place = error.filename or disk
    return UserError(
        f"{place}: {error.strerror or error}; mend that and run the same command again"
    )


def _remove_stale(place: Place, units: Sequence[Unit], waiting: Sequence[Unit]) -> None:
    """Removes what killed runs and changed inputs left: all that is of no finished unit."""
    _remove_others(place, {unit.name for unit in units} - {unit.name for unit in waiting})


def _remove_others(place: Place, finished: set[str]) -> None:
    """Removes records and shards of all units but those named."""
    for folder in ("progress", *SPLITS):
        stale = [file for file in place.entries(folder) if _unit_of(file) not in {"", *finished}]
        place.remove(f"{folder}/{file}" for file in stale)


# ---------------------------------------------------------------------------------- when it is done


def _manifest(
    units: Sequence[Unit], job: Job, settings: Settings, pieces: Sequence[Piece]
) -> StoreManifest:
    """What the units' records come to; it has no times, paths of the store or process counts."""
    records = []
    for unit, record in zip(units, read_unit_records(units, job), strict=True):
        if record is None:  # at an address two may be at work, and the second began by tidying up
            raise TryAgain(
                f"unit {unit.name} is gone from {job.store}; run one prepare of a store at a time, "
                "and now the same command again: what is finished is kept"
            )
        records.append(record)
    counts = Counter(dict.fromkeys(COUNTS, 0))  # 0 where there was none
    for record in records:
        counts.update(record.counts)
    return StoreManifest(
        **{name: getattr(settings, name) for name in SETTINGS},
        counts=dict(counts),
        splits=Splits(**{split: _split_record(records, split) for split in SPLITS}),
        inputs=_inputs(pieces),
        format_revision=FORMAT_REVISION,
    )


def _split_record(records: Sequence[UnitRecord], split: str) -> SplitRecord:
    shards = [shard for record in records for shard in record.split(split).shards]
    totals = {
        key: sum(getattr(shard, key) for shard in shards)
        for key in ("tokens", "sentences", "documents", "bytes")
    }
    occurring = sum(record.split(split).counts() for record in records)
    return SplitRecord(**totals, **unigram_statistics(np.asarray(occurring)), shards=shards)


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


def _summarize(manifest: StoreManifest, store: str, progress: bool) -> None:
    for line in summarize_counts(manifest.counts):
        _say(line, progress)
    totals = [manifest.split(split) for split in SPLITS]
    for split, total in zip(SPLITS, totals, strict=True):
        _say(
            f"{store}/{split}: {total.documents:,} documents, {total.sentences:,} "
            f"sentences, {total.tokens:,} tokens, {show_bytes(total.bytes)}",
            progress,
        )
    documents, sentences = sum(t.documents for t in totals), sum(t.sentences for t in totals)
    if sentences <= MOST_ALONE * documents:
        _say(
            "nearly all documents have one sentence, of which the order of sentences cannot be "
            "learnt: where an empty line follows each sentence, prepare with --sentences wrapped, "
            "by which two empty lines end a document; else pretrain with --examples.objective none",
            progress,
        )
    if documents == 1 and sentences > 1:
        _say(
            "all of the text is one document, so nothing is held out: an empty line ends a "
            "document, in wrapped lines two do; if each line is a sentence or a paragraph, prepare "
            "with --sentences lines or split",
            progress,
        )
