# SPDX-License-Identifier: Apache-2.0
"""Open data sets of the Hugging Face hub, and folders in its layouts, with the library `datasets`.

A data set is named hf:NAME[/CONFIG], where NAME may have an owner. Or it is a folder, written by
`save_to_disk` or with Parquet or Arrow files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.data.text.tables_text import text_column
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.log_secrets import secrets_hidden
from albert_jax.utils.wording import shortened, without_secrets

HUB = "hf:"
# Owner, name and configuration; the last one or two may be missing.
_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+){0,2}")
# The names of the split `dev` in data sets.
_DEV = ("validation", "dev", "valid", "val")
_FILES = (".parquet", ".arrow")
_SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`: all splits, or one


def is_hub_data(data: str | Path, own: Iterable[str] = ()) -> bool:
    """Return whether `data` names a data set of the hub, or is a folder in one of its layouts.

    Tables for train, dev and test have priority over Parquet and Arrow files beside them, and so
    have the task's own files or folders, which `own` has patterns of.
    """
    if str(data).startswith(HUB):
        return True
    folder = Path(data)
    if not folder.is_dir():
        return False
    if any(_has(folder, name) for name in _SAVED):
        return True
    for path in folder.iterdir():
        is_split = path.name.partition(".")[0] in ("train", "dev", "test")
        if is_split and path.is_file() and path.suffix not in _FILES:
            return False
    if any(next(folder.glob(pattern), None) for pattern in own):
        return False
    return any(
        next(folder.glob(f"{part}*{kind}"), None) for part in ("", "data/") for kind in _FILES
    )


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


@dataclass(frozen=True)
class HubSplit:
    """Hold one split of a data set, whose rows have names instead of the numbers of classes."""

    place: str  # for errors
    columns: tuple[str, ...]
    data: Any  # a `datasets.Dataset`
    names: Mapping[str, Sequence[str]]  # of the classes, by column

    def rows(self) -> Iterator[tuple[str, JsonObject]]:
        """Yield each row with its place; -1, the hub's "unlabelled", is None."""
        for index, row in enumerate(self.data):
            named = {
                column: _named(value, self.names[column]) if column in self.names else value
                for column, value in row.items()
            }
            yield f"{self.place}[{index}]", named


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    is_class = isinstance(value, int) and 0 <= value < len(names)
    return names[value] if is_class else None if value == -1 else value


def open_hub_split(data: str | Path, split: str) -> HubSplit:
    """Return a split (train, dev, test, dev_matched, …) of a data set, downloaded if necessary.

    Raises UserError if the library is not installed, or the data set cannot be fetched or lacks the
    split.
    """
    splits = _splits(str(data), _state_of(str(data)))
    name = _split_name(str(data), split, list(splits))
    chosen = splits[name]
    names = {
        column: found
        for column, feature in chosen.features.items()
        if (found := _class_names(feature)) is not None
    }
    return HubSplit(f"{data} {name}", tuple(chosen.features), chosen, names)


def _state_of(data: str) -> tuple[tuple[str, int], ...]:
    """Return a value that changes whenever a folder's files do; () if there is no folder."""
    folder = Path(data.removeprefix(HUB))
    files = [*folder.glob("*"), *folder.glob("*/*")] if folder.is_dir() else []
    return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in files if path.is_file()))


@functools.lru_cache(maxsize=4)
def _splits(data: str, state: tuple[tuple[str, int], ...]) -> Mapping[str, Any]:
    """Return the splits of a data set by name; `state` is its folder's."""
    library = _library(data)
    folder = Path(data.removeprefix(HUB))
    with (
        _refusals(data),
        contextlib.redirect_stdout(sys.stderr),  # stdout is the results'
        secrets_hidden("datasets", "huggingface_hub", "fsspec"),
    ):
        if any(_has(folder, name) for name in _SAVED):
            found = library.load_from_disk(str(folder))
            return found if isinstance(found, Mapping) else {"train": found}
        loaded: Mapping[str, Any] = _with_config(data, library.load_dataset)
        return loaded


def _with_config(data: str, load: Any) -> Any:
    """Return the result of `load` for a data set's name and configuration."""
    name = data.removeprefix(HUB)
    if name and (not data.startswith(HUB) or Path(name).is_dir()):
        return load(name)
    if not _NAME.fullmatch(name):
        raise UserError(f"{data} is no folder, and no data set's name: hf:OWNER/NAME[/CONFIG]")
    first, _, rest = name.partition("/")
    second, _, config = rest.partition("/")
    if not second or config:
        return load(f"{first}/{second}" if second else first, config or None)
    try:
        return load(name, None)  # an owner's
    except Exception:
        with contextlib.suppress(Exception):
            return load(first, second)  # one of no owner, with its configuration
        raise  # the first, which is the likelier


def _split_name(data: str, split: str, known: list[str]) -> str:
    first, _, more = split.partition("_")
    firsts = _DEV if first == "dev" else (first,)
    wanted = [f"{name}_{more}" if more else name for name in firsts]
    found = next((name for name in wanted if name in known), None)
    if found is None:
        raise UserError(
            f"{data} has no split {split} (or {wanted[0]}); it has {', '.join(known)}; save its "
            f"rows as {split}.jsonl in a folder of your own, or name a split that it has"
        )
    return found


def _class_names(feature: Any) -> Sequence[str] | None:
    """Return the names of a column of classes, or of lists of them; None for other columns."""
    names = getattr(feature, "names", None)
    if names is None and hasattr(feature, "feature"):
        return _class_names(feature.feature)
    return None if names is None else tuple(names)


# -------------------------------------------------------------------------------- text, as it comes


@dataclass(frozen=True)
class HubText:
    """Hold one split's texts, in parts that are read independently."""

    place: str
    field: str  # the column of the text
    parts: int
    num_bytes: int  # of the split, from its data set; 0 if unknown
    stamp: int  # differs if the data set has changed
    data: Any

    def texts(self, part: int) -> Iterator[bytes]:
        """Yield the texts of a part as UTF-8; raises UserError if they cannot be fetched."""
        with _refusals(self.place):
            for row in self.data.shard(num_shards=self.parts, index=part):
                text = row[self.field]
                yield ("" if text is None else str(text)).encode("utf-8", errors="replace")


def open_hub_text(data: str, split: str, field: str | None) -> HubText:
    """Return the text of a split, which is fetched as it is read.

    Raises UserError if the library is not installed, or the data set, the split or the column does
    not exist.
    """
    return _text(data, split, field, _state_of(data))


@functools.lru_cache(maxsize=4)
def _text(data: str, split: str, field: str | None, state: tuple[tuple[str, int], ...]) -> HubText:
    library = _library(data)
    folder = Path(data.removeprefix(HUB))
    if any(_has(folder, name) for name in _SAVED):
        splits = _splits(data, state)
        chosen = splits[_split_name(data, split, list(splits))]
        size, digest = int(chosen.data.nbytes), str(chosen._fingerprint)
        parts = max(1, size >> 24)
    else:
        with _refusals(data):
            builder = _with_config(data, library.load_dataset_builder)
            streams = builder.as_streaming_dataset()
        name = _split_name(data, split, list(streams))
        chosen, digest = streams[name], str(builder.hash)
        parts = max(1, int(chosen.num_shards))
        infos = builder.info.splits or {}
        size = int(infos[name].num_bytes or 0) if name in infos else 0
    features = chosen.features or {}
    texts = [
        column
        for column, feature in features.items()
        if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    return HubText(
        f"{data} {split}",
        text_column(data, texts, list(features), field),
        parts,
        size,
        int(hashlib.sha256(digest.encode()).hexdigest()[:15], 16),
        chosen,
    )


# ------------------------------------------------------------------------------------- the library


def _library(data: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            f"{data} is read by the library datasets, which is not installed; pip install "
            "'albert-jax[hf-data]'"
        )
    import datasets

    return datasets


@contextlib.contextmanager
def _refusals(data: str) -> Iterator[None]:
    """Turn any exception of the library into UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # its own kinds, its clients', and those of data sets' files
        reason = shortened(" ".join(without_secrets(str(error)).split())) or "no reason given"
        raise UserError(
            f"{data} cannot be read ({type(error).__name__}: {reason}); it is hf:NAME[/CONFIG] of "
            "the hub, fetched before or reachable, or a folder of its layout"
        ) from error
