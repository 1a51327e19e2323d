# SPDX-License-Identifier: Apache-2.0
"""Convert any ALBERT between formats, bit for bit.

The formats are the original's checkpoints, transformers' folders and model directories.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypedDict, cast

import msgspec

from albert_jax.checkpoint import model_dir
from albert_jax.checkpoint.convert import writers
from albert_jax.checkpoint.convert.card import CardSubject, model_card
from albert_jax.checkpoint.convert.own_exports import FILES, check_export_destination, write_card
from albert_jax.checkpoint.convert.readers import Weights, read_weights
from albert_jax.checkpoint.convert.sources import (
    fetched,
    find_vocabulary,
    has_model_files,
    open_weights,
)
from albert_jax.checkpoint.disk import cause_of, require_space
from albert_jax.checkpoint.integrity import named_leaves, nest
from albert_jax.checkpoint.model_export import check_destination, export_model
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.manifests import (
    VOCABULARY,
    ConvertedTensor,
    HeadManifest,
    Mode,
    ModelManifest,
    TextSettings,
)
from albert_jax.config.model import AlbertConfig
from albert_jax.data.hf_tokenizer import Choice, HfTokenizer, read_tokenizer
from albert_jax.data.tokenizer import Tokenizer, vocabulary_file
from albert_jax.utils.atomic import appearing_whole, require_apart
from albert_jax.utils.columns import aligned
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.results import Result
from albert_jax.utils.streams import say
from albert_jax.utils.wording import first_ten, positional, setting, shortened

Format = Literal["albert-jax", "hf", "tf"]

_OURS = "albert_jax model directory"
_PADDING = 127  # rows without a piece, of embeddings that are padded to a multiple of 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Inventory(Result):
    """Hold what a conversion found and wrote.

    Attributes:
        source: the source as it was given.
        kind: the kind of the source, in words.
        config: the fields of `AlbertConfig`.
        parts: the parts of the parameters, as embeddings, encoder, pooler.
        head: kind, labels and task of a fine-tuned head, or None.
        parameters: the number of parameters.
        vocabulary: the name of the vocabulary's file, or None.
        tokenizer: how text is cleaned.
        tensors: each tensor's name in the source, its name here and its shape.
        optimizer_tensors: the number of the optimizer's tensors that were kept.
        ignored: the number of tensors of each kind that were left out.
        dest: the path that was written.
        to: its format.
        notes: what the user should know.
    """

    source: str
    kind: str
    config: JsonObject
    parts: list[str]
    head: HeadManifest | None
    parameters: int
    vocabulary: str | None
    tokenizer: TextSettings
    tensors: list[ConvertedTensor]
    optimizer_tensors: int
    ignored: dict[str, int]
    dest: str
    to: Format
    notes: list[str]


def convert(
    source: str | Path,
    dest: str | Path,
    to: Format = "albert-jax",
    *,
    head: str | None = None,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    no_vocab: bool = False,
    mode: Mode | None = None,
    do_lower_case: bool | None = None,
    with_optimizer: bool = False,
    base: str | Path | None = None,
) -> Inventory:
    """Convert a model between formats, bit for bit; docs/checkpoints.md describes the formats.

    `dest` appears when it is complete. What was found is printed to stderr.

    Args:
        source: a TensorFlow checkpoint or archive, a transformers folder, a model directory, or a
            model's name.
        dest: the folder to write.
        to: "albert-jax" (a model directory), "hf" (transformers) or "tf" (the original's
            checkpoint).
        head: the kind of a fine-tuned head with one output, which the weights do not show.
        config: the configuration file, if it is not beside the weights.
        vocab: the vocabulary, if it is not beside the weights.
        no_vocab: convert without a vocabulary.
        mode: the tokenizer's mode (docs/reference/tokenizers.md); unset, as the source has it.
        do_lower_case: whether the vocabulary is lower-cased; unset, as the source has it, else
            True.
        base: the model that an adapter was trained on, if it is no longer where it was.
        with_optimizer: keep the optimizer's slots, where both formats have them.

    Returns:
        The tensors, the configuration and the notes.

    Raises:
        UserError: if the source cannot be read or does not fit the format, or `dest` is neither
            empty nor an unchanged conversion to the same format; then nothing is written.
    """
    if to not in ("albert-jax", *FILES):
        raise UserError(f"{setting('to')} {to!r} is unknown; known: albert-jax, {', '.join(FILES)}")
    if with_optimizer and to == "hf":
        raise UserError("transformers' format has no place for the optimizer; drop one of the two")
    if no_vocab and vocab is not None:
        raise UserError(
            f"{setting('no_vocab')} and {setting('vocab')} exclude each other; drop one of the two"
        )
    _check_destination(dest, to, [source, f"{source}.index", config, vocab])
    dest = Path(dest)
    if base is not None:
        require_model_directory(source, "source", base=base)  # which keeps the merged model
    with fetched(source) as origin:
        path = origin.path
        if has_model_files(path):
            for name, given in (("config", config), ("head", head)):
                if given is not None:
                    raise UserError(f"{path} has its own configuration; leave {setting(name)} out")
            found = _read_model_directory(path, with_optimizer)
        else:
            found = _read_source(path, config, head, with_optimizer)
        asked: _SomeTextSettings = {}
        if mode is not None:
            asked["mode"] = mode
        if do_lower_case is not None:
            asked["do_lower_case"] = do_lower_case
        vocabulary = None if no_vocab else _choose_vocabulary(found, vocab, asked)
        inventory = _inventory(origin.origin, found, vocabulary, str(dest), to)
        _print(inventory)
        notes = _write(dest, to, found, vocabulary, inventory)
    for note in notes:
        say(f"note: {note}")
    say(f"{dest}: {to}, written whole")
    return dataclasses.replace(inventory, notes=[*inventory.notes, *notes])


class CardWords(TypedDict):
    """Hold what a model card says in addition to the model's facts: its title, and a licence."""

    title: str
    license: str | None


def convert_as_it_is(
    path: Path,
    dest: Path,
    origin: str,
    *,
    to: Format = "albert-jax",
    check: Callable[[AlbertConfig], None] | None = None,
    card: CardWords | None = None,
) -> int:
    """Convert a model on this disk without flags, and return its number of parameters.

    `origin` is recorded as where it comes from. `check` is called with the configuration before
    anything is written. No inventory is printed. Raises UserError as `convert` does.
    """
    with fetched(path) as opened:
        found = _read_as_it_is(opened.path)
        if check is not None:
            check(found.weights.config)
        vocabulary = _choose_vocabulary(found, None, {})
        inventory = _inventory(origin, found, vocabulary, str(dest), to)
        for note in _write(dest, to, found, vocabulary, inventory, card):
            say(f"note: {note}")
    return inventory.parameters


def card_of(folder: Path, title: str, license: str | None) -> str:
    """Return the model card of a transformers folder; raises UserError if it cannot be read."""
    found = _read_as_it_is(folder)
    vocabulary = _choose_vocabulary(found, None, {})
    words: CardWords = {"title": title, "license": license}
    return _card(found, _inventory(str(folder), found, vocabulary, "", "hf"), words)


def _read_as_it_is(path: Path) -> _Found:
    if has_model_files(path):
        return _read_model_directory(path, with_optimizer=False)
    return _read_source(path, None, None, with_optimizer=False)


def _check_destination(
    dest: str | Path, to: Format, inputs: Sequence[str | Path | None] = ()
) -> None:
    """Raise UserError if writing `dest` would destroy one of the inputs or anything else."""
    here = [x for x in inputs if x is not None and not is_address(str(x))]
    require_apart(dest, here, positional("dest"))
    model_dir.require_no_runs_model(dest)
    if to == "albert-jax":
        check_destination(dest, _is_conversion)
    else:
        check_export_destination(dest, to)


def _is_conversion(manifest: ModelManifest) -> bool:
    return manifest.inventory is not None


# ------------------------------------------------------------------------------------- the reading


@dataclass
class _Found:
    """Hold what a source has."""

    kind: str
    weights: Weights
    find_vocabulary: Callable[[str | None], Choice | None]  # takes the mode that is asked for
    settings: TextSettings
    hf: HfTokenizer | None  # the contents of a transformers folder's files
    notes: list[str]
    provenance: JsonObject = field(default_factory=dict)  # of a model directory


class _SomeTextSettings(TypedDict, total=False):
    """Hold those of `TextSettings` that the user or a source gives."""

    mode: Mode
    do_lower_case: bool
    keep_accents: bool


class _Provenance(TypedDict, total=False):
    """Hold what `_write` keeps in a manifest for the conversion back."""

    transformers: JsonObject
    dtype: Literal["float32", "float16", "bfloat16"]
    global_step: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None


def _read_source(
    path: Path, config: str | Path | None, head: str | None, with_optimizer: bool
) -> _Found:
    source = open_weights(path)
    weights = read_weights(
        source,
        config=Path(config) if config is not None else None,
        head=head,
        with_optimizer=with_optimizer,
    )
    settings: TextSettings = {"mode": "google", "do_lower_case": True}  # its flag's default
    hf = None
    if source.kind == "hf":
        hf = read_tokenizer(source.file.parent)
        settings = {**hf.settings_of(Path(VOCABULARY))}
    find = partial(find_vocabulary, source, hf)
    return _Found(source.description, weights, find, settings, hf, list(weights.notes))


def _read_model_directory(path: Path, with_optimizer: bool) -> _Found:
    model = model_dir.load_model(path, as_float32=True)
    try:
        provenance = msgspec.convert(model.manifest["provenance"], _Provenance)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise UserError(
            f"the manifest of {path} describes no conversion that albert_jax makes "
            f"({shortened(str(error))}); convert the model's source again"
        ) from None
    kept = model.manifest.get("optimizer")
    slots = model_dir.load_optimizer(path) if with_optimizer else None
    if with_optimizer and slots is None:
        raise UserError(f"{path} has no optimizer; go without {setting('with_optimizer')}")
    weights = Weights(
        params=named_leaves(model.params),
        config=model.config,
        head=model.head,
        inventory=[
            ConvertedTensor.from_json({"source": name, "path": name} | entry)
            for name, entry in model.manifest["tensors"].items()
        ],
        transformers=provenance.get("transformers", {}),
        optimizer=named_leaves(slots) if slots else None,
        global_step=provenance.get("global_step"),
        dtype=provenance.get("dtype", "float32"),
        ignored={"optimizer's tensors": len(kept)} if kept and not slots else {},
        notes=("albert_config.json, Google's meaning of each name",),
    )
    kept_as, own = model.tokenizer["path"], model.tokenizer["mode"]
    choice = None if kept_as is None else Choice(kept_as, own, "")
    return _Found(
        _OURS,
        weights,
        lambda _: choice,
        model.text_settings,
        None,
        list(weights.notes),
        model.manifest["provenance"],
    )


def _choose_vocabulary(
    found: _Found, given: str | Path | None, asked: _SomeTextSettings
) -> Path | None:
    """Return the vocabulary's file, the user's or the source's, and set the text settings.

    `asked` has the user's settings; notes for the user are added. Raises UserError for a vocabulary
    that is not the model's. Also raises it for a tokenizer that makes other ids than this
    package's, unless the user chose the vocabulary.
    """
    choice = None
    if given is None:
        choice = found.find_vocabulary(asked.get("mode"))
        if choice is None:
            return None
    path = choice.file if choice else vocabulary_file(given or "", asked.get("mode"))
    tokenizer = Tokenizer.load(path, **_settings_for(found, path, choice) | asked)
    if choice and choice.why:
        found.notes.append(f"text in mode {tokenizer.mode}: {choice.why}")
    found.settings = tokenizer.settings
    if found.hf and (differences := found.hf.differences(tokenizer.path)):
        told = f"its tokenizer has {first_ten(differences)}"
        if given is None:
            has_fast = tokenizer.path.suffix == ".model" and found.hf.fast is not None
            advice = f", {setting('mode', 'hf-fast')} to take its tokenizer.json" * has_fast
            raise UserError(
                f"{tokenizer.path.parent}: {told}, which albert_jax's does not know, so that texts "
                f"would get other ids; give {tokenizer.path.name} itself with {setting('vocab')} "
                f"to go without these, or {setting('no_vocab', True)} to go without text{advice}"
            )
        found.notes.append(f"{told}; albert_jax goes without, as {setting('vocab')} was given")
    pieces, rows = tokenizer.vocab_size, found.weights.config.vocab_size
    most = pieces + (found.hf.added_count if found.hf else 0) + max(_PADDING, rows // 10)
    if given is None and found.kind == _OURS:
        most = rows  # it was looked at when the model directory was made
    if not pieces <= rows <= most:
        raise UserError(
            f"the vocabulary {tokenizer.path} has {pieces} pieces and the model {rows}; "
            f"give the model's own with {setting('vocab', 'FILE')}, or go without text by "
            f"{setting('no_vocab', True)}"
        )
    if pieces < rows:
        found.notes.append(
            f"rows {pieces:,} to {rows - 1:,} of the embeddings have no piece in the vocabulary; "
            "they are kept, and never answered"
        )
    return tokenizer.path


def _settings_for(found: _Found, vocabulary: Path, choice: Choice | None) -> _SomeTextSettings:
    """Return how the source says that text is cleaned for a vocabulary, its own or another."""
    theirs = found.settings if found.hf is None else found.hf.settings_of(vocabulary)
    settings: _SomeTextSettings = {**theirs}
    if choice is not None:
        settings["mode"] = cast("Mode", choice.mode)  # or else Tokenizer.load refuses it
    elif vocabulary.suffix in (".json", ".txt"):
        del settings["mode"]  # it says itself what it is
    return settings


# ------------------------------------------------------------------------------------- the writing


def _write(
    dest: Path,
    to: Format,
    found: _Found,
    vocab: Path | None,
    inventory: Inventory,
    card: CardWords | None = None,
) -> list[str]:
    """Write `dest` and return what the user should know."""
    weights = found.weights
    if to != "albert-jax":
        words: CardWords = card or {"title": dest.resolve().name, "license": None}
        return _write_export(dest, to, found, vocab, _card(found, inventory, words))
    provenance = {
        **found.provenance,  # a model directory's: what made it stays known
        "source": inventory.source,
        "kind": inventory.kind,
        "notes": inventory.notes,
        "ignored": inventory.ignored,
        "transformers": weights.transformers,
        "dtype": weights.dtype,
        "global_step": weights.global_step,
    }
    export_model(
        dest,
        params=nest(weights.params),
        config=weights.config,
        vocab=vocab,
        tokenizer=found.settings,
        provenance=provenance,
        head=weights.head,
        inventory=weights.inventory,
        optimizer=nest(weights.optimizer) if weights.optimizer else None,
        replaces=_is_conversion,
    )
    return []


def _card(found: _Found, inventory: Inventory, words: CardWords) -> str:
    return model_card(
        CardSubject(
            title=words["title"],
            license=words["license"],
            config=found.weights.config,
            head=found.weights.head,
            parameters=inventory.parameters,
            vocabulary=inventory.vocabulary is not None,
            origin=inventory.source,
            provenance=found.provenance,
            masked_lm="predictions" in found.weights.parts,
        )
    )


def _write_export(
    dest: Path, to: Format, found: _Found, vocab: Path | None, card: str
) -> list[str]:
    weights = found.weights
    size = sum(x.nbytes for x in (*weights.params.values(), *(weights.optimizer or {}).values()))
    with appearing_whole(dest) as folder:
        _check_destination(dest, to)  # it may have appeared since
        try:
            require_space(folder, size)
            if to == "hf":
                notes = writers.write_hf(folder, weights, vocab, found.settings)
                write_card(folder, card)
                return notes
            return writers.write_tf(folder, weights, vocab, found.settings)
        except OSError as error:
            cause = cause_of(error, dest.resolve().parent, size)
            raise UserError(f"{dest} NOT written: {cause}") from error


# ---------------------------------------------------------------------------------- what is printed


def _inventory(source: str, found: _Found, vocab: Path | None, dest: str, to: Format) -> Inventory:
    weights = found.weights
    return Inventory(
        source=source,
        kind=found.kind,
        config=dataclasses.asdict(weights.config),
        parts=weights.parts,
        head=weights.head,
        parameters=sum(array.size for array in weights.params.values()),
        vocabulary=vocab.name if vocab else None,
        tokenizer=found.settings,
        tensors=weights.inventory,
        optimizer_tensors=len(weights.optimizer or {}),
        ignored=weights.ignored,
        dest=dest,
        to=to,
        notes=list(found.notes),
    )


def _print(inventory: Inventory) -> None:
    say(f"{inventory.source}: {inventory.kind}")
    for note in inventory.notes:
        say(note)
    rows = [
        (each.source, each.path, f"{each.dtype}[{','.join(map(str, each.shape))}]", each.crc32c)
        for each in inventory.tensors
    ]
    say(aligned(rows, indent="  "))
    say(
        f"{len(rows)} tensors, {inventory.parameters:,} parameters in {', '.join(inventory.parts)}"
        + "".join(f"; {count} {name} ignored" for name, count in inventory.ignored.items())
        + (f"; {inventory.optimizer_tensors} of the optimizer" * bool(inventory.optimizer_tensors))
    )
    if head := inventory.head:
        labels = f", labels {first_ten(head.labels)}" if head.labels else ""
        say(f"head: {head.kind}{labels}")
    vocabulary, settings = inventory.vocabulary, inventory.tokenizer
    case = "lower-cased" if settings["do_lower_case"] else "cased"
    case += ", accents kept" * settings.get("keep_accents", False)
    say(
        f"vocabulary: {vocabulary}, text cleaned as {settings['mode']}'s, {case}"
        if vocabulary
        else "vocabulary: none; the model takes ids and no text"
    )
