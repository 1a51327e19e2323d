# SPDX-License-Identifier: Apache-2.0
"""Prepare text into a token store: in bounded memory, by several processes, restartable by unit.

The steps: plan the units (inputs cut or grouped to up to 64 MiB), forecast from a sample, make
every unit that is not finished, write the manifest. Until then the records of finished units are in
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
from typing import Any, Literal, TypedDict, cast

import numpy as np

from albert_jax import __version__
from albert_jax.config.manifests import (
    CONFIG,
    SLOW_MODES,
    VOCABULARIES,
    VOCABULARY,
    Mode,
    vocabulary_name,
)
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
from albert_jax.data.text.files import file_state, find_files, require_output_apart
from albert_jax.data.text.lines import Piece, Reading
from albert_jax.data.text.python_docs import PROSE_BYTES, is_docs, versions_of
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.cores import own_cores
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.json_files import decode_json
from albert_jax.utils.json_values import JsonObject, flat
from albert_jax.utils.progress import ProgressMeter, show_bytes
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.streams import say
from albert_jax.utils.wording import setting

SETTINGS_FILE = "progress/settings.json"
MOST_UNKNOWN = 0.02  # of all tokens; Wikipedia has 0.0002 with a vocabulary trained on it
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
    keep_accents: bool = False,
) -> PreparedStore:
    """Make a token store of text; a call that was interrupted continues where it was.

    The same inputs and settings give the same bytes, whatever the number of workers. Files and
    `output` may have gs:// or another of fsspec's addresses.

    Args:
        inputs: files, folders, glob patterns, or the documentation of `python-docs` and
            `package-docs`; splits of a data set for the formats tfds and hf.
        vocab: the vocabulary's file, or a directory that has one.
        output: the folder of the store.
        format: "text", "wiki", "tfds:NAME" or "hf:NAME[/CONFIG]".
        workers: processes that read and encode; unset, one for each core.
        holdout: the fraction of documents that are held out from training.
        sentences: how lines become sentences: "lines" takes each line, "split" splits paragraphs,
            "wrapped" first joins wrapped lines; "auto" decides for each file.
        strict: raise an error for invalid UTF-8, instead of replacing it.
        language: the language whose rules split sentences.
        data_dir: the folder of prepared TFDS data sets.
        field: the column, key or feature that holds the text, in data sets, Parquet and JSONL.
        mode: the tokenizer's mode (docs/reference/tokenizers.md); unset, that of the model or the
            store which the vocabulary belongs to, else google for a SentencePiece model, and the
            vocabulary's own for others.
        do_lower_case: lower-case the text, unless that model or store is cased; False never does.
        beam: options of a Beam pipeline that runs the work, as NAME=VALUE; unset, it runs here.
        progress: print progress to stderr.
        keep_accents: keep the accents; False keeps them if that model or store does.

    Returns:
        The store's manifest, with the size of each split.

    Raises:
        UserError: if an input or a setting is wrong, the disk is full or an address cannot be
            reached.
        TryAgain: if a worker was killed, or another `prepare` wrote to the same address.
    """
    if not str(output):
        raise UserError("'' is no path; give one for the store")
    if beam is not None and workers is not None:
        raise UserError("workers are this machine's; give Beam its own, as direct_num_workers=2")
    pipeline = None if beam is None else make_pipeline(beam)
    output = str(output)
    if beam is not None and not is_address(output):
        output = os.path.abspath(output)  # workers stand elsewhere
    place = open_place(output)
    inputs = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    reading = Reading(format, sentences, strict, language, data_dir, field)
    tokenizer = Tokenizer.load(
        vocab,
        mode=mode,
        do_lower_case=None if do_lower_case else False,
        keep_accents=keep_accents or None,
    )
    _check(tokenizer, holdout, workers)
    if tokenizer.settings["do_lower_case"] and (cased := _cased_pieces(tokenizer)):
        _say(
            f"{tokenizer.path} has {cased:,} pieces with upper-case letters, which lower-cased "
            f"text never uses; prepare with {setting('do_lower_case', False)} if it was trained so",
            progress,
        )
    pieces = find_pieces(inputs, reading)
    if not reading.names_data_set:
        require_output_apart(output, inputs, (piece.path for piece in pieces))
    settings = _settings(tokenizer, reading, holdout, pieces)
    if (finished := _finished(place, settings, pieces)) is not None:
        place.remove_folder("progress")  # of a run killed at its very end
        newer = "" if is_address(output) else _newer_than(Path(output) / "manifest.json", pieces)
        _say(f"{place.name} is complete already{newer}", progress)
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
    workers = workers or (own_cores() if pipeline is None else 1)
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
        of_units = _finished_records(units, job)
        manifest = _manifest(of_units, settings, pieces)
        no_piece = _unknown_share(of_units, tokenizer.special.unk)
        document = sealed(manifest.to_json())
        place.write("manifest.json", json_bytes(document))
        place.remove_folder("progress")
    _summarize(manifest, place.name, progress)
    if no_piece > MOST_UNKNOWN:
        _say(
            f"{no_piece:.1%} of the tokens are <unk>, of which nothing can be learnt; is the "
            "vocabulary for such text, and for text that is cleaned alike ("
            f"{setting('do_lower_case')}, {setting('keep_accents')})?",
            progress,
        )
    return PreparedStore(manifest=replace(manifest, checksum=document[CHECKSUM]))


def _cased_pieces(tokenizer: Tokenizer) -> int:
    """Return how many pieces have upper-case letters, if more than a few; else 0."""
    special = {tokenizer.pieces[id] for id in tokenizer.special}
    count = sum(piece != piece.lower() for piece in tokenizer.pieces if piece not in special)
    return count if count > tokenizer.vocab_size / 100 else 0


def _say(text: str, progress: bool) -> None:
    if progress:
        say(f"prepare: {text}")


# --------------------------------------------------------------------------------- before it starts


def _check(tokenizer: Tokenizer, holdout: float, workers: int | None) -> None:
    if not 0 <= holdout < 1:
        raise UserError(
            f"{setting('holdout')} {holdout} must lie in [0, 1): it is a share of the documents"
        )
    if workers is not None and workers < 1:
        raise UserError(f"{setting('workers')} {workers} must be at least 1")
    if tokenizer.vocab_size > MAX_VOCAB_SIZE:
        raise UserError(
            f"{tokenizer.path} has {tokenizer.vocab_size} pieces; a store holds at most "
            f"{MAX_VOCAB_SIZE}"
        )


def _settings(
    tokenizer: Tokenizer, reading: Reading, holdout: float, pieces: Sequence[Piece]
) -> Settings:
    """Return all that the store's bytes depend on, in addition to the inputs."""
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
        # Older stores, from before `field` existed, do not have it.
        reading={
            k: v
            for k, v in asdict(reading).items()
            if k != "data_dir" and (k, v) != ("field", None)
        },
        holdout=holdout,
        made_with=made_with,
    )


def _finished(place: Place, settings: Settings, pieces: Sequence[Piece]) -> StoreManifest | None:
    """Return the manifest if the store is complete, intact, and of these settings and inputs.

    Raises UserError if something else is in its place.
    """
    if not (entries := place.entries()):
        return None
    there = place.read(["manifest.json", SETTINGS_FILE])
    if "manifest.json" in there:
        if CONFIG in entries:
            raise UserError(f"{place.name} is a model directory; name a new or empty folder")
        remedy = f"delete {place.name} and run the same command again"
        file = f"{place.name}/manifest.json"
        manifest = parse_manifest(there["manifest.json"], file, remedy=remedy)
        _refuse_differences(place, manifest.settings(), settings)
        if manifest.inputs != _inputs(pieces):
            raise UserError(
                f"{place.name} is complete and was made of other inputs; choose another "
                f"{setting('output')}"
            )
        place.verify(files_of(manifest), remedy)
        return manifest
    if SETTINGS_FILE in there:
        hint = "delete that file and run the same command again, which keeps what is finished"
        name = f"{place.name}/{SETTINGS_FILE}"
        begun = decode_json(there[SETTINGS_FILE], Settings, name=name, hint=hint)
        _refuse_differences(place, begun.to_json(), settings)
        return None
    # A vocabulary alone is a user's own; cleaning up after a failure would delete it.
    own = {"progress", *VOCABULARIES, *SPLITS} if "progress" in entries else set()
    if foreign := entries.keys() - own:
        raise UserError(
            f"{place.name} holds {min(foreign)}, which is no part of a store; name a new or empty "
            "folder"
        )
    return None


def changed_inputs(store: Path, inputs: Sequence[str]) -> list[str]:
    """Return files that `inputs` name and a finished store was not made of, or the other way round.

    A file of another size is one too; one that is only newer is reported on stderr. The files
    beside the store are a run's own. There are none if an input is no longer there, since a
    finished store does not need it, or at an address, where looking takes long.
    """
    if any(map(is_address, inputs)):
        return []
    named = [given for given in inputs if not is_docs(given)]
    try:
        pieces = [_at(path) for given in named for path in find_files(given)]
    except UserError:
        return []
    manifest = store / "manifest.json"
    remedy = f"delete {store} to have it made again"
    there = parse_manifest(manifest.read_bytes(), str(manifest), remedy=remedy).inputs
    here = _inputs(pieces)
    differing = {(each.path, each.bytes) for each in there} ^ {(x.path, x.bytes) for x in here}
    own = f"{os.path.realpath(store.parent)}/"
    changed = {
        path
        for path, _ in differing
        if path not in PROSE_BYTES and not os.path.realpath(path).startswith(own)
    }
    if not changed and (newer := _newer_than(manifest, pieces)):
        say(f"{store} is made already{newer}")
    return sorted(changed)


def _at(path: str) -> Piece:
    """Return a whole file as a piece, without a look into it."""
    state = file_state(path)
    return Piece("text", path, 0, state.size, state.size, size=state.size, stamp=state.stamp)


def _newer_than(manifest: Path, pieces: Sequence[Piece]) -> str:
    """Return words on an input that was written after the store, or ""."""
    made = manifest.stat().st_mtime_ns
    here = (piece for piece in pieces if os.path.isfile(piece.path))
    newer = next((piece.path for piece in here if piece.stamp > made), None)  # stamp: its time
    if newer is None:
        return ""
    return f", but {newer} is newer: if its text has changed, delete the store and run this again"


def _refuse_differences(place: Place, theirs: JsonObject, ours: Settings) -> None:
    def named(settings: JsonObject) -> JsonObject:
        values = flat(settings).items()
        return {key: x[:12] if key.endswith("sha256") else x for key, x in values}

    old, new = named(theirs), named(ours.to_json())
    differences = [
        f"{key} {old.get(key)} there, {new.get(key)} now"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    ]
    if differences:
        what = "another vocabulary" if "vocabulary.sha256" in str(differences) else "other settings"
        raise UserError(
            f"{place.name} was made with {what} ({'; '.join(differences)}); choose another "
            f"{setting('output')}, or delete it"
        )


def _inputs(pieces: Sequence[Piece]) -> list[Input]:
    # A file's name may be no UTF-8, but JSON must be.
    names = (os.fsencode(piece.path).decode("utf-8", "backslashreplace") for piece in pieces)
    return [Input(name, piece.size) for name, piece in zip(names, pieces, strict=True)]


def _first_documents(
    units: Sequence[Unit], reading: Reading, tokenizer: Tokenizer, *, wanted: int
) -> list[int]:
    """Return the hashes of the first different documents that have tokens.

    Raises UserError if there is none.
    """
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
        hint = f"; a wiki extract has <doc …> lines, other text wants {setting('format', 'text')}"
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
    """Hold the store for this process alone.

    If no unit is finished at the end, the store is left empty. A full disk and other failures of
    the file system become UserError.
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
    """Remove everything but finished units; without any, remove everything."""
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
    # Last: while it exists, the folder is recognised as an unfinished store.
    place.remove_folder("progress")


def _unit_of(file: str) -> str:
    """Return the name of the unit to which a record or shard belongs, or ""."""
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
        f"{place}: {error.strerror or error}; correct that and run the same command again"
    )


def _remove_stale(place: Place, units: Sequence[Unit], waiting: Sequence[Unit]) -> None:
    """Remove what killed runs and changed inputs left, that is, all that no finished unit owns."""
    _remove_others(place, {unit.name for unit in units} - {unit.name for unit in waiting})


def _remove_others(place: Place, finished: set[str]) -> None:
    """Remove records and shards of all units but those named."""
    for folder in ("progress", *SPLITS):
        stale = [file for file in place.entries(folder) if _unit_of(file) not in {"", *finished}]
        place.remove(f"{folder}/{file}" for file in stale)


# ---------------------------------------------------------------------------------- when it is done


def _finished_records(units: Sequence[Unit], job: Job) -> list[UnitRecord]:
    records: list[UnitRecord] = []
    for unit, record in zip(units, read_unit_records(units, job), strict=True):
        if record is None:  # at an address two may be at work, and the second began by tidying up
            raise TryAgain(
                f"unit {unit.name} is gone from {job.store}; run one prepare of a store at a time, "
                "and now the same command again: what is finished is kept"
            )
        records.append(record)
    return records


def _manifest(
    records: Sequence[UnitRecord], settings: Settings, pieces: Sequence[Piece]
) -> StoreManifest:
    """Return the manifest of the units' records.

    It has no times, paths of the store or numbers of processes.
    """
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


def _unknown_share(records: Sequence[UnitRecord], unk: int) -> float:
    """Return the share of all tokens that are the unknown piece."""
    occurring = sum(record.split(split).counts() for record in records for split in SPLITS)
    found = np.asarray(occurring)
    return float(found[unk] / found.sum()) if found.any() else 0.0


def _split_record(records: Sequence[UnitRecord], split: str) -> SplitRecord:
    shards = [shard for record in records for shard in record.split(split).shards]
    totals = {
        key: sum(getattr(shard, key) for shard in shards)
        for key in ("tokens", "sentences", "documents", "bytes")
    }
    occurring = sum(record.split(split).counts() for record in records)
    return SplitRecord(**totals, **unigram_statistics(np.asarray(occurring)), shards=shards)


class UnigramStatistics(TypedDict):
    """Hold the scores of a model that knows only how often each token occurs."""

    unigram_entropy_nats: float | None
    most_frequent_token_id: int | None
    most_frequent_token_rate: float | None


def unigram_statistics(counts: np.ndarray) -> UnigramStatistics:
    """Return the scores of a model that knows only how often each token occurs.

    They are the entropy in nats for each token, and the most frequent token's id and rate.
    """
    total = counts.sum()
    if not total:
        return UnigramStatistics(
            unigram_entropy_nats=None, most_frequent_token_id=None, most_frequent_token_rate=None
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
            "learnt: where an empty line follows each sentence, prepare with "
            f"{setting('sentences', 'wrapped')}, by which two empty lines end a document; else "
            f"pretrain with {setting('examples.objective', 'none')}",
            progress,
        )
    if documents == 1 and sentences > 1:
        _say(
            "all of the text is one document, so nothing is held out: an empty line ends a "
            "document, in wrapped lines two do; if each line is a sentence or a paragraph, prepare "
            f"with {setting('sentences')} lines or split",
            progress,
        )
