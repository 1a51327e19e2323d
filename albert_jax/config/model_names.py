# SPDX-License-Identifier: Apache-2.0
"""Find a model by its name, and its place in the user's cache.

A name is that of a packaged model (mini), of a released one (base-v2, also albert-base-v2), or of a
repository of the Hugging Face hub (OWNER/NAME, OWNER/NAME@REVISION). An existing path is a path,
whatever its name; the prefixes `released:` and `hub:` mark a name. Nothing is fetched here, and
only the standard library is needed.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from albert_jax.config.manifests import is_model_directory
from albert_jax.config.model import MODELS
from albert_jax.config.packaged import PACKAGED, packaged_path
from albert_jax.utils.errors import UserError
from albert_jax.utils.user_cache import user_cache
from albert_jax.utils.wording import did_you_mean, shortened, without_secrets

HUB = "https://huggingface.co"
MAIN = "main"  # the revision of a name that has none
COMMIT = re.compile(r"[0-9a-f]{40}")

_RELEASED = re.compile(r"(?:albert[-_])?([a-z]+)[-_](v\d)")
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_REPOSITORY = re.compile(rf"(?P<name>{_PART}(/{_PART})?)(@(?P<revision>[\w][\w./-]{{0,199}}))?")
_MOST_NAME = 200  # characters in a file's name; file systems take 255 bytes
_PREFIXES = ("hub:", "hf:", "released:")
_OFFICIAL = "albert/albert-"  # the hub's repositories of the released models begin so
_KEY = re.compile(r"[0-9a-z][0-9a-z-]{0,99}")


@dataclass(frozen=True)
class ModelName:
    """Name a model; `revision` is a branch, tag or commit of the hub."""

    kind: Literal["packaged", "released", "hub"]
    name: str
    revision: str = MAIN

    def __str__(self) -> str:
        if self.kind != "hub":
            return self.name
        return self.name if self.revision == MAIN else f"{self.name}@{self.revision}"

    @property
    def forced(self) -> str:
        """The name with the prefix that distinguishes it from a path."""
        return f"{'hub' if self.kind == 'hub' else 'released'}:{self}"

    @property
    def released(self) -> str | None:
        """The released model that this names, as base-v2, or None.

        A repository of the hub may name one too.
        """
        prefix = _OFFICIAL if self.kind == "hub" else ""
        return next((name for name in MODELS if self.name == f"{prefix}{name}"), None)


def repository_of(released: str) -> ModelName:
    """Return the hub's repository of a released model."""
    return ModelName("hub", f"{_OFFICIAL}{released}")


def name_of(given: str | Path) -> ModelName | None:
    """Return the model that `given` names, or None if it is a path.

    All that exists on this disk is a path, and so is all that cannot be a name. Raises UserError if
    a prefix stands before something that is no name of its kind.
    """
    text = str(given)
    if text.startswith(_PREFIXES):
        return named_by(text)
    if Path(given).exists():
        return None
    # OWNER/NAME below a folder that is here is a path that was mistyped.
    owner, slash, _ = text.partition("/")
    return None if slash and Path(owner).exists() else named_by(text)


def named_by(text: str) -> ModelName | None:
    """Return the model that a text names, whatever is on this disk; None if it is no name.

    Raises UserError if a prefix stands before something that is no name of its kind.
    """
    prefix, _, rest = text.partition(":")
    if prefix == "released":
        return _released(rest)
    if prefix in ("hub", "hf"):
        return _repository(rest.lstrip("/") if prefix == "hf" else rest, text)
    if "/" in text:
        return _repository(text, text) if _REPOSITORY.fullmatch(text) else None
    return _known(text)


def known_names() -> tuple[str, ...]:
    """Return the names that have no owner."""
    return (*MODELS, *PACKAGED)


def hidden_by(path: Path) -> str | None:
    """Return the known model that an existing path hides by its name, with its prefix, or None."""
    found = _known(str(path))
    return f"released:{found.name}" if found else None


def model_path(given: str | Path) -> Path:
    """Return the model directory of a packaged or cached model's name.

    Any other name and any path is returned unchanged.
    """
    named = name_of(given)
    return (kept_model(named) if named else None) or Path(given)


def kept_model(named: ModelName) -> Path | None:
    """Return the model directory that the cache has for a name, or None."""
    if named.kind == "packaged":
        return packaged_path(named.name)
    folder = cache_folder(named)
    try:
        key = ref_file(named).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        key = named.revision  # perhaps a commit
    kept = folder / key
    return kept if _KEY.fullmatch(key) and is_model_directory(kept) else None


def cache_folder(named: ModelName) -> Path:
    """Return the cache's folder for a name, with a model directory for each state of its source.

    `ref_file` in it names the model directory of a revision.
    """
    if named.kind == "released":
        return user_cache("models") / "released" / named.name
    host = urlsplit(shown_endpoint()).netloc.replace(":", "-")
    hub = "hub" if hub_endpoint() == HUB else f"hub-{host}"
    return user_cache("models") / hub / named.name.replace("/", "--")


def ref_file(named: ModelName) -> Path:
    """Return the file that names a revision's model directory, as it was when it was fetched."""
    name = quote(named.revision, safe="")
    if len(name) > _MOST_NAME:
        name = hashlib.sha256(name.encode()).hexdigest()
    return cache_folder(named) / "refs" / name


def hub_endpoint() -> str:
    """Return the hub's address, as huggingface_hub takes it from HF_ENDPOINT."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def shown_endpoint() -> str:
    """Return the hub's address for messages and folder names, without a user's password."""
    return without_secrets(hub_endpoint())


def _known(text: str) -> ModelName | None:
    if text in PACKAGED:
        return ModelName("packaged", text)
    found = _RELEASED.fullmatch(text)
    name = f"{found[1]}-{found[2]}" if found else ""
    return ModelName("released", name) if name in MODELS else None


def _released(name: str) -> ModelName:
    if found := _known(name):
        return found
    known = known_names()
    raise UserError(
        f"released model {shortened(name)!r} is unknown{did_you_mean(name, known)}; known: "
        f"{', '.join(known)}"
    )


def _repository(name: str, given: str) -> ModelName:
    found = _REPOSITORY.fullmatch(name)
    if found is None or ".." in name or "--" in found["name"]:
        raise UserError(
            f"{shortened(given)} names no repository of the hub; give hub:OWNER/NAME or "
            "hub:OWNER/NAME@REVISION"
        )
    return ModelName("hub", found["name"], found["revision"] or MAIN)
