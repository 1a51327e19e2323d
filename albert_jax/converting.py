# SPDX-License-Identifier: Apache-2.0
"""Converts any ALBERT there is: the original's checkpoints, transformers' folders, our own model
directories, each into each, bit for bit."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from albert_jax import model_dir
from albert_jax.appearing import appearing_whole
from albert_jax.digests import named_leaves, nest
from albert_jax.errors import UserError
from albert_jax.formats import exporting
from albert_jax.formats.parameters import LABELS, parameter_shapes
from albert_jax.formats.sources import (
    Source,
    fetch,
    find_vocabulary,
    is_model_directory,
    open_source,
    read_json,
)
from albert_jax.formats.weights import Weights, read_weights
from albert_jax.streams import say
from albert_jax.tokenizer import Tokenizer

Format = Literal["albert-jax", "hf", "tf"]


def convert(
    source: str | Path,
    dest: str | Path,
    to: Format = "albert-jax",
    *,
    head: str | None = None,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    no_vocab: bool = False,
    do_lower_case: bool | None = None,
    with_optimizer: bool = False,
) -> dict[str, Any]:
    """Converts a model and returns its inventory, JSON values; docs/checkpoints.md has the formats.

    `head` says what a head of one output is; `config` and `vocab` name files that are not beside
    the weights; `no_vocab` goes without one; `do_lower_case` is as the vocabulary was trained
    (None: as the source says, else True). `dest` appears whole. What is found is printed to stderr.
    Raises UserError for what cannot be read or does not fit, and then writes nothing.
    """
    if to not in ("albert-jax", *exporting.FILES):
        raise UserError(f"to {to!r} is unknown; known: albert-jax, {', '.join(exporting.FILES)}")
    if with_optimizer and to == "hf":
        raise UserError("transformers' format has no place for the optimizer; drop one of the two")
    dest = Path(dest)
    if to == "albert-jax":
        model_dir.check_destination(dest)
    else:
        exporting.check_destination(dest, to)
    with tempfile.TemporaryDirectory(prefix="albert_jax_convert_") as scratch:
        path = fetch(source, Path(scratch))
        if is_model_directory(path):
            if config is not None:
                raise UserError(f"{path} has its own configuration; leave --config out")
            weights, found, settings = _read_model_directory(path, with_optimizer)
            kind = "albert_jax model directory"
        else:
            opened = open_source(path)
            weights = read_weights(
                opened,
                config=Path(config) if config is not None else None,
                head=head,
                with_optimizer=with_optimizer,
            )
            found = None if no_vocab or vocab is not None else find_vocabulary(opened)
            settings, kind = _tokenizer_settings(opened), opened.description
        if do_lower_case is not None:
            settings["do_lower_case"] = do_lower_case
        found = None if no_vocab else Path(vocab) if vocab is not None else found
        found = _check_vocabulary(found, weights, settings)
        report = _report(str(source), kind, weights, found, settings)
        _print(report)
        notes = _write(dest, to, weights, found, settings, report)
    for note in notes:
        say(f"note: {note}")
    say(f"{dest}: {to}, written whole")
    return report | {"dest": str(dest), "to": to, "notes": [*report["notes"], *notes]}


# ------------------------------------------------------------------------------------- the reading


def _read_model_directory(
    path: Path, with_optimizer: bool
) -> tuple[Weights, Path | None, dict[str, Any]]:
    """A model directory's weights, vocabulary and tokenizer settings."""
    model = model_dir.load_model(path)
    params = named_leaves(model.params)
    head = model.manifest.get("head")
    provenance = model.manifest["provenance"]
    outputs = params["head/output_bias"].shape[0] if "head/output_bias" in params else 0
    kind = head["kind"] if head else None
    expected = parameter_shapes(model.config, kind, LABELS.get(str(kind), outputs))
    wrong = [name for name, x in params.items() if x.shape != expected.get(name)]
    if wrong:
        raise UserError(f"{path} has parameters of no ALBERT: {', '.join(sorted(wrong))}")
    kept = model.manifest.get("optimizer")
    slots = model_dir.load_optimizer(path) if with_optimizer else None
    if with_optimizer and slots is None:
        raise UserError(f"{path} has no optimizer; go without --with-optimizer")
    weights = Weights(
        params=params,
        config=model.config,
        head=head,
        inventory=[
            {"source": name, "path": name} | entry
            for name, entry in model.manifest["tensors"].items()
        ],
        transformers=provenance.get("transformers", {}),
        optimizer=named_leaves(slots) if slots else None,
        global_step=provenance.get("global_step"),
        dtype=provenance.get("dtype", "float32"),
        ignored={"optimizer's tensors": len(kept)} if kept and not slots else {},
        notes=("albert_config.json, Google's meaning of each name",),
    )
    settings = {key: model.tokenizer[key] for key in ("mode", "do_lower_case")}
    return weights, model.tokenizer["path"], settings


def _tokenizer_settings(source: Source) -> dict[str, Any]:
    """How the source's own code cleans text."""
    if source.kind == "tf":
        return {"mode": "google", "do_lower_case": True}  # its flag's default
    file = source.file.with_name("tokenizer_config.json")
    values: Mapping[str, Any] = read_json(file) if file.is_file() else {}
    if values.get("keep_accents"):
        say(f"note: {file.name} keeps accents, which albert_jax's tokenizer drops")
    return {"mode": "hf", "do_lower_case": bool(values.get("do_lower_case", True))}


def _check_vocabulary(
    vocab: Path | None, weights: Weights, settings: Mapping[str, Any]
) -> Path | None:
    """The vocabulary's file; UserError if it is not the model's."""
    if vocab is None:
        return None
    tokenizer = Tokenizer.load(vocab, **settings)
    if tokenizer.vocab_size != weights.config.vocab_size:
        raise UserError(
            f"the vocabulary {vocab} has {tokenizer.vocab_size} pieces and the model "
            f"{weights.config.vocab_size}; give the model's own with --vocab FILE, or go without "
            "text by --no-vocab"
        )
    return tokenizer.path


# ------------------------------------------------------------------------------------- the writing


def _write(
    dest: Path,
    to: Format,
    weights: Weights,
    vocab: Path | None,
    settings: Mapping[str, Any],
    report: Mapping[str, Any],
) -> list[str]:
    """Writes `dest` and returns what the user should know."""
    if to != "albert-jax":
        with appearing_whole(dest) as folder:
            if to == "hf":
                return exporting.write_hf(folder, weights, vocab, settings)
            return exporting.write_tf(folder, weights, vocab)
    provenance = {key: report[key] for key in ("source", "kind", "notes", "ignored")}
    provenance |= {"transformers": weights.transformers, "dtype": weights.dtype}
    provenance |= {"global_step": weights.global_step}
    model_dir.export_model(
        dest,
        params=nest(weights.params),
        config=weights.config,
        vocab=vocab,
        tokenizer=settings,
        provenance=provenance,
        head=weights.head,
        inventory=weights.inventory,
        optimizer=nest(weights.optimizer) if weights.optimizer else None,
    )
    return []


# ---------------------------------------------------------------------------------- what is printed


def _report(
    source: str,
    kind: str,
    weights: Weights,
    vocab: Path | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The inventory with what surrounds it, as JSON values."""
    return {
        "source": source,
        "kind": kind,
        "config": dataclasses.asdict(weights.config),
        "parts": weights.parts,
        "head": weights.head,
        "parameters": sum(array.size for array in weights.params.values()),
        "vocabulary": vocab.name if vocab else None,
        "tokenizer": dict(settings),
        "tensors": weights.inventory,
        "optimizer_tensors": len(weights.optimizer or {}),
        "ignored": weights.ignored,
        "notes": list(weights.notes),
    }


def _print(report: Mapping[str, Any]) -> None:
    rows = report["tensors"]
    shapes = [f"{row['dtype']}[{','.join(map(str, row['shape']))}]" for row in rows]
    wide = max(len(row["source"]) for row in rows)
    middle, narrow = max(len(row["path"]) for row in rows), max(map(len, shapes))
    say(f"{report['source']}: {report['kind']}")
    for note in report["notes"]:
        say(note)
    for row, shape in zip(rows, shapes, strict=True):
        name, path = f"{row['source']:<{wide}}", f"{row['path']:<{middle}}"
        say(f"  {name}  {path}  {shape:<{narrow}}  {row['crc32c']}")
    say(
        f"{len(rows)} tensors, {report['parameters']:,} parameters in {', '.join(report['parts'])}"
        + "".join(f"; {count} {name} ignored" for name, count in report["ignored"].items())
        + (f"; {report['optimizer_tensors']} of the optimizer" * bool(report["optimizer_tensors"]))
    )
    head = report["head"]
    if head:
        labels = f", labels {', '.join(head['labels'])}" if head["labels"] else ""
        say(f"head: {head['kind']}{labels}")
    vocabulary, settings = report["vocabulary"], report["tokenizer"]
    case = "lower-cased" if settings["do_lower_case"] else "cased"
    say(
        f"vocabulary: {vocabulary}, text cleaned as {settings['mode']}'s, {case}"
        if vocabulary
        else "vocabulary: none; the model takes ids and no text"
    )
