# SPDX-License-Identifier: Apache-2.0
"""Open the data of a pretraining run.

They are token stores, TFRecord shards, or text that is first made into a store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config.manifests import TextSettings, settings_in
from albert_jax.config.recipes import to_dict
from albert_jax.config.run import FIRST_VALUES, PretrainConfig
from albert_jax.config.sections import SCHEDULES, ExamplesConfig
from albert_jax.data.examples import PretrainingSource
from albert_jax.data.loader import ExampleSource
from albert_jax.data.masking import word_starts
from albert_jax.data.mixture import BLOCK, Mixture, seed_of, share_out, split_stores
from albert_jax.data.prepare.build import changed_inputs, prepare, unigram_statistics
from albert_jax.data.required import require_pretraining_data
from albert_jax.data.store import TokenStore
from albert_jax.data.store_manifest import SPLITS
from albert_jax.data.store_remote import local_store, remedy_for
from albert_jax.data.text.files import require_output_apart
from albert_jax.data.tfrecord import RecordSource
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.data.vocabulary import train_tokenizer
from albert_jax.utils.atomic import appearing_file, writing
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.json_values import JsonObject, json_sha256
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.streams import say
from albert_jax.utils.wording import first_ten, renamed, setting

MADE_OF = "made_of.json"
# Labels to count, and the fraction of one of them that is too much; 0.6 is usual.
LABELS_SEEN, ONE_SIDED = 200, 0.85

_PADDING = 128  # rows; embeddings may be padded to a multiple of 128 for the device


@dataclass(frozen=True)
class PretrainingData:
    """Hold training and held-out examples, and what is known about them."""

    train: ExampleSource
    train_as: Callable[[ExamplesConfig], ExampleSource]  # with other settings than the run's
    heldout: ExampleSource | None
    vocab: Path | None
    tokenizer: TextSettings
    identity: JsonObject  # what a run must share with the checkpoint that it resumes
    baselines: dict[
        str, float
    ]  # of the held-out tokens: unigram_entropy_nats, most_frequent_token_rate
    frequencies: Callable[[], np.ndarray]  # f64[V], of each piece in the training text
    mask_id: int  # of [MASK]


def open_data(config: PretrainConfig, workdir: Path | None) -> PretrainingData:
    """Return the configured data.

    Without a store, one is first made of `config.text` inside `workdir`.
    """
    require_pretraining_data(config)
    store = config.store
    if config.text and store is None:
        if workdir is None:
            raise UserError(
                f"{setting('text')} needs {setting('workdir', 'DIR')}, where the vocabulary and "
                "the store are kept"
            )
        names = {"vocab_size": "model.vocab_size", "output": "workdir"}
        with renamed(names | {"field": f"{setting('field')} of prepare"}):
            store = str(_store_from_text(config, workdir))
    assert store is not None
    stores = split_stores(store)
    if len(stores) > 1:
        return _with_heldout(_open_mixture(config, dict(stores)), config)
    if is_address(store):
        return _with_heldout(_open_store(config, store, local_store(store)), config)
    is_store = (Path(store) / "manifest.json").is_file() or (Path(store) / "progress").is_dir()
    if not is_store and (records := _record_files(store)):
        return _open_records(config, records)
    return _with_heldout(_open_store(config, store, Path(store)), config)


def _with_heldout(data: PretrainingData, config: PretrainConfig) -> PretrainingData:
    """Return the data with the held-out examples of the store in `heldout`, if it names one."""
    if config.heldout is None:
        return data
    folder = local_store(config.heldout)
    TokenStore.open(folder, split="heldout").check_vocabulary(data.identity["vocabulary"])
    of_heldout = dataclasses.replace(config, store=config.heldout)
    other = _open_store(of_heldout, config.heldout, folder)
    if other.heldout is None:
        raise without_heldout(config.heldout)
    if differing := differing_cleaning(data.tokenizer, other.tokenizer):
        raise UserError(
            f"the text of {setting('heldout')} {config.heldout} was cleaned otherwise than that of "
            f"the training data ({differing}), so that its figures would mean nothing; prepare it "
            "again with the same settings"
        )
    return dataclasses.replace(data, heldout=other.heldout, baselines=other.baselines)


def differing_cleaning(ours: TextSettings, theirs: TextSettings) -> str:
    """Return which settings of how text is cleaned differ, with their values, or "".

    The modes of one vocabulary make nearly the same ids, and do not count.
    """
    names = [key for key in TextSettings.__annotations__ if key != "mode"]
    pairs = [(key, ours.get(key), theirs.get(key)) for key in names]
    return ", ".join(f"{key} {b} and not {a}" for key, a, b in pairs if a != b)


def without_heldout(store: str | Path) -> UserError:
    """Return the error for a store without held-out examples."""
    return UserError(
        f"the store {store} has no held-out document; prepare it with {setting('holdout', 0.5)}, "
        "and with an empty line between its documents if all of its text is one"
    )


def _open_store(config: PretrainConfig, path: str, folder: Path) -> PretrainingData:
    is_made_here = config.store is None  # of config.text
    remedy = f"delete {folder} to have it made again" if is_made_here else remedy_for(path, folder)
    store, heldout = (TokenStore.open(folder, split=split, remedy=remedy) for split in SPLITS)
    settings = settings_in(store.record.vocabulary.to_json())
    tokenizer = Tokenizer.load(config.vocab or store.vocab_path, **settings)
    store.check_vocabulary(tokenizer.sha256)
    _check_vocab_size(config, tokenizer, path)
    make = partial(
        PretrainingSource,
        seed=config.train.seed,
        starts_word=word_starts(tokenizer, config.examples.word_start),
        special=tokenizer.special,
    )
    if not store.num_tokens:
        raise UserError(f"the store {path} has no documents to train on; prepare it with more text")
    totals = store.manifest["splits"]["heldout"]
    train = make(store, config=config.examples)
    return PretrainingData(
        train=train,
        # An epoch is planned once where the settings are the same.
        train_as=lambda x: train if x == config.examples else make(store, config=x),
        # Shuffled, so that a limited evaluation is not of the first documents only.
        heldout=make(heldout, config=config.examples) if heldout.num_documents else None,
        vocab=store.vocab_path,
        tokenizer=settings,
        identity={
            "vocabulary": tokenizer.sha256,
            "data": json_sha256(store.manifest["splits"]["train"]["shards"]),
            "records": None,
        },
        baselines=baselines_of(totals),
        frequencies=lambda: _frequencies(store),
        mask_id=tokenizer.special.mask,
    )


def _frequencies(store: TokenStore) -> np.ndarray:
    """Return each piece's frequency in a split, f64[V]."""
    counts = np.zeros(store.manifest["vocabulary"]["size"])
    for shard in store.shards:
        # In parts: bincount makes eight bytes of each token first.
        for start in range(0, len(shard.tokens), 1 << 22):
            counts += np.bincount(shard.tokens[start : start + (1 << 22)], minlength=len(counts))
    return counts / store.num_tokens


def _open_mixture(config: PretrainConfig, weights: dict[str, float | None]) -> PretrainingData:
    folders = {path: local_store(path) for path in weights}
    stores = {
        path: TokenStore.open(folder, split="heldout", remedy=remedy_for(path, folder))
        for path, folder in folders.items()
    }
    first, *others = stores
    for path in others:
        ours, theirs = (stores[p].manifest["vocabulary"] for p in (first, path))
        if differing := [key for key in ours if ours[key] != theirs.get(key)]:
            raise UserError(
                f"the stores {first} and {path} were made with two vocabularies (they differ in "
                f"{', '.join(differing)}); prepare the text of one again with the other's"
            )
    seed = config.train.seed
    parts = []
    for number, path in enumerate(stores):
        train = dataclasses.replace(config.train, seed=seed_of(seed, number))
        parts.append(_open_store(dataclasses.replace(config, train=train), path, folders[path]))
    given = zip(weights.values(), parts, strict=True)
    counts = share_out([weight or len(part.train) for weight, part in given], list(stores))
    held = {i: part.heldout for i, part in enumerate(parts) if part.heldout is not None}
    heldout, baselines = None, {}
    if held:
        names = [list(stores)[i] for i in held]
        held_counts = share_out([counts[i] for i in held], names)
        heldout = Mixture(list(held.values()), held_counts, names=names, seed=seed)
        baselines = _mixed_baselines([stores[name] for name in names], held_counts)
    data = [[part.identity["data"], count] for part, count in zip(parts, counts, strict=True)]
    mix = partial(Mixture, counts=counts, names=list(stores), seed=seed)
    return dataclasses.replace(
        parts[0],
        train=mix([part.train for part in parts]),
        train_as=lambda examples: mix([part.train_as(examples) for part in parts]),
        heldout=heldout,
        identity=parts[0].identity | {"data": json_sha256(data)},
        baselines=baselines,
        frequencies=lambda: sum(
            (
                part.frequencies() * (count / BLOCK)
                for part, count in zip(parts, counts, strict=True)
            ),
            start=np.zeros(1),
        ),
    )


def _mixed_baselines(stores: list[TokenStore], counts: tuple[int, ...]) -> dict[str, float]:
    """Return `baselines_of` for a mixture, whose frequencies are weighted by the stores' shares."""
    rates = sum(
        (
            _frequencies(store) * (count / BLOCK)
            for store, count in zip(stores, counts, strict=True)
        ),
        start=np.zeros(1),
    )
    return baselines_of(unigram_statistics(rates))


def baselines_of(totals: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a model that knows only a store's token frequencies."""
    return {
        name: float(totals[name])
        for name in ("unigram_entropy_nats", "most_frequent_token_rate")
        if totals.get(name) is not None
    }


@dataclass(frozen=True)
class _MadeOf:
    """Record what a run's own vocabulary was made of, or its store if the vocabulary was given.

    In the work directory they are vocabulary/made_of.json and store_made_of.json.
    """

    text: list[str]
    vocab_size: int


def _store_from_text(config: PretrainConfig, workdir: Path) -> Path:
    vocabulary, store = workdir / "vocabulary", workdir / "store"
    if not (store / "manifest.json").is_file():
        require_output_apart(workdir, config.text, where=setting("workdir"))
    if given := config.vocab or config.init_from:
        wanted = _MadeOf(list(config.text), Tokenizer.load(given).vocab_size)
        record = workdir / "store_made_of.json"  # a store has no room for it
        _require_same(_made_of(store / "manifest.json", record), wanted, store)
        if (store / "manifest.json").is_file():
            _require_unchanged(store, config.text)
        else:
            prepare(config.text, vocab=given, output=store, holdout=0.05)
            _record(wanted, record)
        return store
    wanted = _MadeOf(list(config.text), config.model.vocab_size)
    made_of = _made_of(vocabulary / "spiece.model", vocabulary / MADE_OF)
    _require_same(made_of, wanted, vocabulary)
    if made_of is None:
        train_tokenizer(config.text, output=vocabulary, vocab_size=config.model.vocab_size)
        _record(wanted, vocabulary / MADE_OF)
    if made_of is not None and (store / "manifest.json").is_file():
        _require_unchanged(store, config.text)
    else:
        # A small corpus needs more than 1 % held out for figures that mean something.
        prepare(config.text, vocab=vocabulary, output=store, holdout=0.05)
    return store


def _require_unchanged(store: Path, text: Sequence[str]) -> None:
    if changed := changed_inputs(store, text):
        raise UserError(
            f"{store} was made of other text than {setting('text')} names now (changed, new or "
            f"gone: {first_ten(changed)}); give another {setting('workdir')} for the text as it "
            f"is, or {setting('store', store)} in place of {setting('text')} to go on with what "
            "was prepared"
        )


def _record(made_of: _MadeOf, record: Path) -> None:
    with writing(record.parent), appearing_file(record) as temporary:
        temporary.write_text(json.dumps(asdict(made_of)), encoding="utf-8")


def _made_of(made: Path, record: Path) -> _MadeOf | None:
    """Return what a file was made of, by its record; None if it is unknown, or there is no file."""
    if not made.is_file():
        return None
    with contextlib.suppress(FileNotFoundError, UserError):
        return read_json(record, _MadeOf, hint="")
    return None


def _require_same(made_of: _MadeOf | None, wanted: _MadeOf, folder: Path) -> None:
    if made_of is not None and made_of != wanted:
        raise UserError(
            f"{folder} was made of {', '.join(made_of.text)} with {made_of.vocab_size:,} pieces, "
            f"and {', '.join(wanted.text)} with {wanted.vocab_size:,} is asked for; give another "
            f"{setting('workdir')}"
        )


def _record_files(pattern: str) -> list[str]:
    if Path(pattern).is_dir():
        pattern = str(Path(pattern) / "*.tfrecord*")
    return sorted(f for f in glob.glob(pattern) if Path(f).is_file())


def _heldout_records(given: str) -> list[str] | str:
    if not is_address(given) and (found := _record_files(given)):
        return found
    if is_address(given) or (Path(given) / "manifest.json").is_file():
        raise UserError(
            f"{setting('heldout')} {given} is no TFRecord file; a run on TFRecord shards is "
            "evaluated on other shards, in a folder or by a pattern on this machine"
        )
    return given


def _open_records(config: PretrainConfig, files: list[str]) -> PretrainingData:
    if config.vocab is None:
        raise UserError(
            f"TFRecord shards carry no vocabulary; give {setting('vocab', 'SPM')}, the model they "
            "were made with"
        )
    tokenizer = Tokenizer.load(config.vocab)
    _check_vocab_size(config, tokenizer, files[0])
    heldout = None
    if config.heldout is not None:
        heldout = RecordSource(
            _heldout_records(config.heldout),
            seed=config.train.seed,
            shuffle=True,
            vocab_size=tokenizer.vocab_size,
        )
    train = RecordSource(
        files, seed=config.train.seed, shuffle=True, vocab_size=tokenizer.vocab_size
    )
    for records in filter(None, (train, heldout)):
        _check_lengths(records, config)

    def train_as(examples: ExamplesConfig) -> ExampleSource:
        if examples != config.examples:
            raise UserError(
                f"TFRecord shards hold rows as they were drawn, so that {setting('train.length')} "
                f"{config.train.length!r} and {setting('train.masking')} "
                f"{config.train.masking!r} cannot be had; leave them out, or give a token store"
            )
        return train

    def frequencies() -> np.ndarray:
        raise UserError(
            f"{setting('output_bias', 'unigram')} needs the frequencies of a token store; TFRecord "
            "shards have none, leave it out"
        )

    return PretrainingData(
        train=train,
        train_as=train_as,
        heldout=heldout,
        vocab=tokenizer.path,
        tokenizer=tokenizer.settings,
        # Not "data", under which 0.1 wrote the files' paths and sizes: its runs can be continued.
        identity={"vocabulary": tokenizer.sha256, "records": train.sha256},
        baselines={},
        frequencies=frequencies,
        mask_id=tokenizer.special.mask,
    )


def _check_lengths(records: RecordSource, config: PretrainConfig) -> None:
    """Raise UserError for rows that the model has no positions for, and report unlike settings."""
    longest, examples = config.model.max_position_embeddings, config.examples
    name = records.files[0].path
    if records.max_seq_length > longest:
        raise UserError(
            f"the rows of {name} have {records.max_seq_length} tokens, and the model has {longest} "
            f"positions; give {setting('model.max_position_embeddings')} and "
            f"{setting('examples.max_seq_length', records.max_seq_length)}"
        )
    found = records.max_seq_length, records.max_predictions_per_seq
    asked = examples.max_seq_length, examples.max_predictions_per_seq
    if found != asked:
        say(
            f"note: the rows of {name} have {found[0]} tokens and {found[1]} predictions, and the "
            f"settings {asked[0]} and {asked[1]}, by which FLOPs are counted; give "
            f"{setting('examples.max_seq_length', found[0])} "
            f"{setting('examples.max_predictions_per_seq', found[1])}"
        )


def objective_warnings(data: PretrainingData, config: PretrainConfig) -> list[str]:
    """Return a line if nearly all labels of the second objective are the same.

    Documents of one sentence cause this: the partner is then always from another document, label 1,
    and a model that always answers 1 is right. The labels of the first examples are counted.
    """
    objective = {"sop": "sentence-order", "nsp": "next-sentence"}.get(config.examples.objective)
    if objective is None:
        return []
    labels = [int(data.train[i]["sentence_order_labels"]) for i in range(LABELS_SEEN)]
    ones = sum(labels) / len(labels)
    if max(ones, 1 - ones) < ONE_SIDED:
        return []
    return [
        f"{max(ones, 1 - ones):.0%} of the {objective} labels are {round(ones)}, so that they "
        "teach nothing: where documents have one sentence each, give "
        f"{setting('examples.objective', 'none')}; where an empty line follows each sentence, "
        f"prepare the text again with {setting('sentences', 'wrapped')}, by which two empty lines "
        "end a document"
    ]


def _check_vocab_size(config: PretrainConfig, tokenizer: Tokenizer, path: str) -> None:
    """Raise UserError unless every piece has a row of the embeddings and few rows have no piece.

    A model that training starts from may have any number of rows without a piece, because it may
    have grown by added tokens.
    """
    pieces, rows = tokenizer.vocab_size, config.model.vocab_size
    most = pieces + _PADDING if config.init_from is None else math.inf
    if not pieces <= rows < most:
        raise UserError(
            f"the vocabulary of {path} has {pieces} pieces and the model "
            f"{rows}; give {setting('model.vocab_size', pieces)}, or vocab_size={pieces} in the "
            "recipe"
        )
    if rows > pieces:
        say(f"note: rows {pieces:,} to {rows - 1:,} of the embeddings have no piece")


def pretraining_identity(config: PretrainConfig, data: PretrainingData) -> JsonObject:
    """Return what a run must share with the checkpoint that it resumes.

    These are the weights, the examples and the updates.
    """
    return {**data.identity, **settings_identity(config)}


def settings_identity(config: PretrainConfig) -> JsonObject:
    """Return the part of `pretraining_identity` that needs no data."""
    settings = to_dict(config)
    keys = ("steps", "batch_size", "accumulate", "seed")
    train, optimizer = settings["train"], settings["optimizer"]
    if optimizer["schedule"] != "wsd":
        del optimizer["decay_share"]
    if optimizer["schedule"] == "polynomial":
        del optimizer["schedule"]  # 0.1 wrote none
    return {
        "model": settings["model"],
        "examples": settings["examples"],
        "optimizer": optimizer,
        "train": {key: train[key] for key in keys}
        | {key: train[key] for key in SCHEDULES if train[key]},
        # Each a key of its own: a checkpoint that is older than the key is resumed.
        **{key: settings[key] for key in ("positions", *FIRST_VALUES)},
    }
