# SPDX-License-Identifier: Apache-2.0
"""Upload a model to the Hugging Face hub, in transformers' layout, with a model card."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from albert_jax.checkpoint import hub
from albert_jax.checkpoint.convert.card import check_license
from albert_jax.checkpoint.convert.convert import CardWords, card_of, convert_as_it_is
from albert_jax.checkpoint.convert.own_exports import CARD, FILES, file_names
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.manifests import holds_transformers_weights, is_model_directory
from albert_jax.config.model_names import ModelName, name_of
from albert_jax.utils.arguments import path_of
from albert_jax.utils.atomic import scratch_folder
from albert_jax.utils.errors import UserError
from albert_jax.utils.results import Result
from albert_jax.utils.streams import say
from albert_jax.utils.wording import first_ten, setting, settings_are_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Pushed(Result):
    """Hold what was uploaded.

    Attributes:
        repository: OWNER/NAME.
        revision: the branch.
        url: the address of the commit.
        files: the names of the files.
    """

    repository: str
    revision: str
    url: str
    files: list[str]


def push(
    model: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
) -> Pushed:
    """Upload a model to a repository of the Hugging Face hub, in one commit.

    Args:
        model: a model directory or a model's name, which is converted to transformers' layout and
            gets a model card; or a transformers folder, which is checked and uploaded as it is,
            with a card if it has none.
        repository: "hub:OWNER/NAME"; a missing repository is made.
        private: make a missing repository private.
        revision: the branch to commit to; a missing branch is made. Unset, main.
        license: the licence's identifier in the card; unset, that of released weights and of the
            packaged model, else unknown.

    Returns:
        The commit's address and the files.

    Raises:
        UserError: if the model cannot be read, or the hub refuses or cannot be reached.
    """
    named = _repository(repository, revision)
    check_license(license)
    hub.require_token(named)
    with scratch_folder() as scratch:
        folder = path_of(model, "model")
        if holds_transformers_weights(folder) and not is_model_directory(folder):
            files = _checked_folder(folder, scratch, named, license)
        else:
            source = require_model_directory(model)
            folder = scratch / "hf"
            words = CardWords(title=named.name, license=license)
            convert_as_it_is(source, folder, str(model), to="hf", card=words)
            files = {name: folder / name for name in file_names(folder)}
        url = hub.upload(files, named, private=private)
    say(f"{named}: {len(files)} files at {url}")
    return Pushed(repository=named.name, revision=named.revision, url=url, files=sorted(files))


def _repository(repository: str, revision: str | None) -> ModelName:
    forced = repository if repository.startswith(("hub:", "hf:")) else f"hub:{repository}"
    named = name_of(forced)
    assert named is not None, "it has a prefix"
    if "/" not in named.name:
        raise UserError(f"{repository} has no owner; give hub:OWNER/NAME")
    if revision is None:
        return named
    if "@" in repository and named.revision != revision:
        raise UserError(
            f"{repository} and {setting('revision', revision)} name two revisions; give one"
        )
    again = name_of(f"hub:{named.name}@{revision}")
    assert again is not None, "it has a prefix"
    return dataclasses.replace(named, revision=again.revision)


def _checked_folder(
    folder: Path, scratch: Path, named: ModelName, license: str | None
) -> dict[str, Path]:
    """Return the files of a transformers folder that a model needs, by name.

    Raises UserError if they make no readable model.
    """
    try:
        card = card_of(folder, named.name, license)
    except UserError as error:
        whose = settings_are_of("convert")
        raise UserError(f"{folder} cannot be uploaded as it is: {error} ({whose})") from None
    paths = {name: folder / name for name in file_names(folder)}
    there = {name: path for name, path in paths.items() if path.is_file()}
    wanted = {*hub.chosen_files(there, str(folder)), *FILES["hf"]}
    files = {name: path for name, path in there.items() if name in wanted}
    if CARD in files and license is not None:
        raise UserError(
            f"{files[CARD]} names the licence; change it there, leave out {setting('license')}"
        )
    if CARD not in files:
        (scratch / CARD).write_text(card, encoding="utf-8")
        files[CARD] = scratch / CARD
    if others := sorted(paths.keys() - files.keys()):
        say(f"note: left out, as no model needs it: {first_ten(others)}")
    return files
