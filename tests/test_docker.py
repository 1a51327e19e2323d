# SPDX-License-Identifier: Apache-2.0
"""The images of docker/: what they copy, install and run is what this repository has."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES = {"cpu": (), "cuda": ("cuda",), "tpu": ("tpu", "gcs")}


def read(image: str) -> str:
    text = (REPOSITORY / "docker" / f"{image}.Dockerfile").read_text(encoding="utf-8")
    return text.replace("\\\n", " ")


def test_there_is_an_image_for_each_kind_of_device() -> None:
    assert {path.name.partition(".")[0] for path in (REPOSITORY / "docker").iterdir()} == {*IMAGES}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_its_extras_locks_by_hash_and_nothing_else(image: str) -> None:
    installs = re.findall(r"pip install ([^;&\n]*)", read(image))
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]
    locks = re.findall(r"--requirement (\S+)", installs[0])
    wanted = ["requirements.lock", *(f"requirements-{extra}.lock" for extra in IMAGES[image])]
    assert locks == wanted
    assert {*IMAGES[image]} <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("image", IMAGES)
def test_what_an_image_copies_is_there_and_is_what_building_reads(image: str) -> None:
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", read(image), flags=re.MULTILINE)
    copied = {name for line in lines for name in line.split()}
    assert [name for name in copied if not (REPOSITORY / name).exists()] == []
    needed = {"pyproject.toml", PROJECT["readme"], "albert_jax", PROJECT["license-files"][0]}
    assert needed <= copied
    sent = Path(REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line.removeprefix("!") for line in sent if line.startswith("!")}
    assert copied <= kept | {name for name in copied if name.startswith("requirements-")}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_a_python_that_the_package_is_for_and_not_as_root(image: str) -> None:
    text = read(image)
    (version,) = re.findall(r"^ARG PYTHON=(\S+)$", text, flags=re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    assert re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE) == ["python:${PYTHON}-slim"] * 2
    (user,) = re.findall(r"^USER (\d+)$", text, flags=re.MULTILINE)
    assert int(user) > 0
    assert text.index("USER") < text.index("ENTRYPOINT")
    (command,) = re.findall(r'^ENTRYPOINT \["(\S+)"\]$', text, flags=re.MULTILINE)
    assert command in PROJECT["scripts"]
    assert f"docker build --file docker/{image}.Dockerfile" in text
