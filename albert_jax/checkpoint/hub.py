# SPDX-License-Identifier: Apache-2.0
"""Fetch and check the files of a repository on the Hugging Face hub, and upload files.

huggingface_hub, an optional package, handles revisions, tokens, HF_ENDPOINT, its cache,
HF_HUB_OFFLINE and progress bars. The contents of a repository are not trusted. Only files that a
conversion reads are fetched, each with a limit on its size, and they are compared with the digests
that the hub lists.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.checkpoint.convert.own_exports import SENTENCES
from albert_jax.checkpoint.convert.parameters import check_sizes, parameter_shapes
from albert_jax.config.manifests import TRANSFORMERS_WEIGHTS
from albert_jax.config.model import AlbertConfig
from albert_jax.config.model_names import COMMIT, MAIN, ModelName, hub_endpoint, shown_endpoint
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_foreign_json
from albert_jax.utils.log_secrets import secrets_hidden
from albert_jax.utils.wording import first_ten, setting, shortened, without_secrets

_CONFIG = "config.json"
# Beside the weights: file -> most bytes. Those of ALBERT have some 1 KB, 0.8 MB and 1.3 MB.
_BESIDE = {
    _CONFIG: 1 << 22,
    "tokenizer_config.json": 1 << 22,
    "special_tokens_map.json": 1 << 22,
    "added_tokens.json": 1 << 22,
    "tokenizer.json": 1 << 26,
    "spiece.model": 1 << 26,
}
# What another model's files would be read with.
_OF_A_MODEL = {*_BESIDE, "vocab.txt", *TRANSFORMERS_WEIGHTS, *SENTENCES}
_MOST_INDEX = 1 << 22
_PART = r"-\d{5}-of-\d{5}"
_MOST_PARTS = 100
_FREE = 1 << 26  # bytes of weights beside those that the configuration asks for
_MOST_OF_WEIGHTS = 2  # times as many bytes as float32 parameters: tied copies, position ids
_LOG_IN = "log in with hf auth login, or set HF_TOKEN"
_SYSTEMS_WORDS = re.compile(r"\[Errno -?\d+\] ([\w ]+)")  # inside what HTTP clients make of them


@dataclass(frozen=True)
class Snapshot:
    """Hold a repository's files on this disk, and their commit."""

    folder: Path
    commit: str


@dataclass(frozen=True)
class _File:
    """Hold what the hub lists of a file: its size and, if there is one, a digest."""

    size: int | None
    sha256: str | None = None  # of a file in large-file storage
    git_sha1: str | None = None  # of any other: of its header and its content


def snapshot(named: ModelName) -> Snapshot:
    """Fetch the files of a repository that a conversion reads, and return their folder.

    Without a network, this is the copy in huggingface_hub's cache. Raises UserError if there is no
    such repository, revision or file, or access is refused. Also raises it if the model is no
    ALBERT, is larger than its configuration says, or differs from what the hub lists.
    """
    hub = _huggingface_hub(_FETCHING.format(named), ", or give a folder")
    with _as_sentences(hub, named, "fetched"):
        try:
            info = hub.HfApi(endpoint=hub_endpoint(), library_name="albert_jax").model_info(
                named.name, revision=named.revision, files_metadata=True
            )
        except _network_errors(hub) as error:
            if isinstance(error, hub.errors.HfHubHTTPError) and _status_of(error) < 500:
                raise  # the hub answered, and refuses it
            return _offline(hub, named, error)
        commit = str(info.sha)
        if not COMMIT.fullmatch(commit):
            raise UserError(f"{shown_endpoint()} gives no commit of {named}; check HF_ENDPOINT")
        listed = {each.rfilename: _listed(each) for each in info.siblings or ()}
        return Snapshot(_Download(hub, named, commit, listed).run(), commit)


class _Download:
    """Fetch one repository's files, one by one, into huggingface_hub's cache."""

    def __init__(
        self, hub: Any, named: ModelName, commit: str, listed: Mapping[str, _File]
    ) -> None:
        self._hub, self._named, self._commit, self._listed = hub, named, commit, listed

    def run(self) -> Path:
        chosen = chosen_files(self._listed, str(self._named))
        self._require_sizes(chosen, _BESIDE)  # the weights' is not known yet
        # By the revision, so that huggingface_hub records its commit for use without a network.
        config = self._fetched(_CONFIG, self._named.revision)
        if config.parent.name != self._commit:
            raise UserError(f"{self._named} has changed during the download; run this again")
        _require_albert(config, str(self._named))
        self._require_sizes(chosen, _limits(config, chosen))
        self._require_room(chosen)
        for name in chosen:
            self._fetched(name)
        return config.parent

    def _require_sizes(self, names: Collection[str], limits: Mapping[str, float]) -> None:
        for name in names:
            size, most = self._listed[name].size, limits.get(name, math.inf)
            if size is None or size < 0:
                raise UserError(f"{self._named}: the hub lists {name} without a size; refused")
            if size > most:
                raise UserError(
                    f"{self._named}: {name} has {size:,} bytes, over the {most:,.0f} that an "
                    "ALBERT of its configuration can need; refused"
                )

    def _require_room(self, names: Collection[str]) -> None:
        cache = Path(self._hub.constants.HF_HUB_CACHE)
        there = next(folder for folder in (cache, *cache.parents) if folder.exists())
        needed = sum(self._listed[name].size or 0 for name in names)
        if needed > (free := shutil.disk_usage(there).free):
            raise UserError(
                f"{self._named} has {needed:,} bytes, and {there} {free:,} free; make room, or set "
                "HF_HOME to a folder with more"
            )

    def _fetched(self, name: str, revision: str | None = None) -> Path:
        """Return the path of a file on this disk, after comparing it with the hub's digest."""
        path = Path(
            self._hub.hf_hub_download(
                self._named.name,
                name,
                revision=revision or self._commit,
                endpoint=hub_endpoint(),
                library_name="albert_jax",
            )
        )
        if not _is(path, self._listed[name]):
            self._forget(path)
            raise UserError(
                f"{self._named}: {name} differs from what the hub lists; run this again"
            )
        return path

    def _forget(self, path: Path) -> None:
        """Remove a file from huggingface_hub's cache, which would otherwise consider it right."""
        content = path.resolve()
        repository = path.parents[2]  # REPOSITORY/snapshots/COMMIT/NAME, a link to a blob
        if content.is_relative_to(repository.resolve()):  # else it is the user's own link
            content.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def chosen_files(there: Collection[str], repository: str) -> list[str]:
    """Return the names of a repository's files that a conversion reads.

    They are the configuration, the first format of weights with its parts, the vocabulary and the
    tokenizer's settings. Raises UserError if there is no configuration or no readable weights.
    """
    weights = next((name for name in TRANSFORMERS_WEIGHTS if name in there), None)
    if weights is None or _CONFIG not in there:
        wanted = _CONFIG if weights else f"none of {', '.join(TRANSFORMERS_WEIGHTS)}"
        held = f" (it has {first_ten(sorted(there))})" if there else ""
        raise UserError(
            f"{repository} holds no model that albert_jax reads: {'no ' if weights else ''}"
            f"{wanted}{held}; give the repository of an ALBERT in PyTorch's, safetensors' or "
            "Flax's format"
        )
    chosen = [name for name in _BESIDE if name in there]
    if "spiece.model" not in there:  # what a conversion looks at then
        chosen += sorted(n for n in there if n.endswith(".model") and "/" not in n)[:2]
        chosen += [name for name in ("vocab.txt",) if name in there]
    if weights.endswith(".index.json"):
        stem, suffix = weights.removesuffix(".index.json").split(".")
        part = re.compile(rf"{re.escape(stem)}{_PART}\.{suffix}")
        chosen += sorted(filter(part.fullmatch, there))[:_MOST_PARTS]
    return [*chosen, weights]


def _limits(config: Path, chosen: Collection[str]) -> dict[str, float]:
    """Return the most bytes that each file may have, from the configuration."""
    values = {"model_type": "albert", **read_foreign_json(config)}  # the first releases wrote none
    architecture, _ = AlbertConfig.from_dict(values, config)
    check_sizes(architecture, config)
    count = sum(math.prod(shape) for shape in parameter_shapes(architecture).values())
    limits = dict.fromkeys(chosen, float(_MOST_OF_WEIGHTS * 4 * count + _FREE))
    limits |= {name: _MOST_INDEX for name in chosen if name.endswith(".index.json")}
    vocabularies = {name: 1 << 26 for name in chosen if name.endswith((".model", ".txt"))}
    return limits | vocabularies | _BESIDE


def _require_albert(config: Path, repository: str) -> None:
    kind = read_foreign_json(config).get("model_type", "albert")
    if kind != "albert":
        raise UserError(
            f"{repository} is a model of type {shortened(str(kind))}; albert_jax reads ALBERT alone"
        )


def _listed(sibling: Any) -> _File:
    lfs = sibling.lfs
    size = sibling.size if isinstance(sibling.size, int) else None
    if lfs is None:
        return _File(size, git_sha1=sibling.blob_id)
    return _File(size, sha256=getattr(lfs, "sha256", None))


def _is(path: Path, listed: _File) -> bool:
    """Return whether a file has the listed size and, if there is one, the digest."""
    size = path.stat().st_size
    if listed.size is not None and size != listed.size:
        return False
    wanted = listed.sha256 or listed.git_sha1
    if wanted is None:
        return True
    digest = hashlib.sha256() if listed.sha256 else hashlib.sha1(b"blob %d\0" % size)  # noqa: S324
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest() == wanted


def _offline(hub: Any, named: ModelName, why: Exception) -> Snapshot:
    """Return the copy in huggingface_hub's own cache."""
    status = _status_of(why)
    told = f"{shown_endpoint()} cannot be reached ({f'status {status}' if status else _said(why)})"
    try:
        found = hub.snapshot_download(
            named.name, revision=named.revision, local_files_only=True, allow_patterns=[_CONFIG]
        )
    except (OSError, ValueError):
        raise UserError(
            f"{named} is not on this disk, and {told}; run this once with a network, or give a "
            "folder"
        ) from None
    folder = Path(found)
    there = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    if not any(name in there for name in ("spiece.model", "tokenizer.json", "vocab.txt")):
        raise UserError(
            f"the copy of {named} on this disk has no vocabulary, and {told}; run this once with a "
            "network, or convert its folder with albert-jax convert"
        )
    chosen = chosen_files(there, f"the copy of {named} on this disk")
    _require_albert(folder / _CONFIG, str(named))
    limits = _limits(folder / _CONFIG, chosen)
    if too_large := [name for name in chosen if there[name] > limits[name]]:
        raise UserError(f"{named}: {first_ten(too_large)} is larger than any ALBERT's; refused")
    return Snapshot(folder, folder.name)


# ------------------------------------------------------------------------------------ going there


def require_token(named: ModelName) -> None:
    """Raise UserError if a repository cannot be written.

    huggingface_hub, or a token where it looks for one, may be missing.
    """
    if _huggingface_hub(_WRITING.format(named)).get_token() is None:
        raise UserError(
            f"writing to {named} needs a token with write access, and there is none; {_LOG_IN}"
        )


def upload(files: Mapping[str, Path], named: ModelName, *, private: bool) -> str:
    """Upload files in one commit, by their names in the repository; return the commit's address.

    A missing repository is made. Files of an earlier model, which would be read with these, are
    deleted. Raises UserError if the hub cannot be reached or refuses, and with `private` for a
    repository that is public.
    """
    hub = _huggingface_hub(_WRITING.format(named))
    api = hub.HfApi(endpoint=hub_endpoint(), library_name="albert_jax")
    with _as_sentences(hub, named, "written"):
        api.create_repo(named.name, private=private, exist_ok=True)
        if private and not api.repo_info(named.name).private:
            raise UserError(
                f"{named.name} exists and is public, so {setting('private', True)} cannot hold; "
                f"make it private in its settings, or leave {setting('private')} out"
            )
        if named.revision != MAIN:
            api.create_branch(named.name, branch=named.revision, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(files[name]))
            for name in sorted(files)
        ]
        # An earlier model's vocabulary or weights would be read with the new ones.
        there = api.list_repo_files(named.name, revision=named.revision)
        operations += [
            hub.CommitOperationDelete(path_in_repo=name)
            for name in sorted({*there} & _OF_A_MODEL - files.keys())
        ]
        commit = api.create_commit(
            named.name,
            operations,
            commit_message="Upload an ALBERT with albert_jax",
            revision=named.revision,
        )
    return str(commit.commit_url)


# ------------------------------------------------------------------------------------- its errors


# What needs huggingface_hub.
_FETCHING = "{} is no path here, and a repository of the Hugging Face hub"
_WRITING = "writing to {}"


def _huggingface_hub(what: str, otherwise: str = "") -> Any:
    """Return the package; raises UserError, that `what` needs it, if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.hf_api  # with which all that log anything are there
    except ImportError:
        raise UserError(
            f"{what} needs huggingface_hub; pip install 'albert-jax[hub]'{otherwise}"
        ) from None
    return huggingface_hub


def _status_of(error: Any) -> int:
    """Return the status of a hub's answer; 0 if unknown."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else 0


def _network_errors(hub: Any) -> tuple[type[Exception], ...]:
    """Return the errors of a network, for whichever client the installed version has.

    The hub's answers other than success are among them; requests' errors are OSError.
    """
    return (OSError, hub.errors.HfHubHTTPError.__mro__[1])


def _failures(hub: Any) -> tuple[type[Exception], ...]:
    """Return the errors of a failed transfer, including those of huggingface_hub's own checks."""
    return (*_network_errors(hub), ValueError, RuntimeError)


@contextlib.contextmanager
def _as_sentences(hub: Any, named: ModelName, done: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into UserError, and hide secrets in what it logs.

    `done` says what was attempted.
    """
    errors = hub.errors
    try:
        with secrets_hidden(hub.__name__):
            yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{named} is gated; accept its conditions at {shown_endpoint()}/{named.name}, and "
            f"{_LOG_IN}"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{named.name} has no revision {named.revision!r}; give one of its branches, tags or "
            "commits after the @"
        ) from None
    except errors.RepositoryNotFoundError:
        if done == "written":
            told = f"or you may not write there; {_LOG_IN}, with a token that may write"
        else:
            told = f"or it is private; check the name, or {_LOG_IN}"
        raise UserError(
            f"{named.name} is no path here, and {shown_endpoint()} has no such repository, {told}"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise _not_done(named, done, error) from None
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{named} lacks a file that it lists ({_said(error)}); run this again"
        ) from None
    except errors.HfHubHTTPError as error:
        if _status_of(error) in (401, 403):
            told = f"{shown_endpoint()} refuses {named} ({_said(error)})"
            raise UserError(f"{told}; {_LOG_IN}") from None
        raise _not_done(named, done, error) from None
    except _failures(hub) as error:
        raise _not_done(named, done, error) from None


def _not_done(named: ModelName, done: str, error: Exception) -> UserError:
    return UserError(
        f"{named} cannot be {done} ({_said(error)}); run this again, it continues where it was"
        if done == "fetched"
        else f"{named} cannot be {done} ({_said(error)}); run this again"
    )


def _said(error: Exception) -> str:
    """Return a library's message in a short line, without headers and addresses with secrets."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return _said(error.__cause__)
    if found := _SYSTEMS_WORDS.search(str(error)):
        return found[1]
    lines = [line.strip() for line in without_secrets(str(error)).splitlines() if line.strip()]
    return shortened(" ".join(lines[:2])) if lines else type(error).__name__
