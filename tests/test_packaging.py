# SPDX-License-Identifier: Apache-2.0
"""What a clone promises: two commands, a CI script and locks that agree with each other."""

import hashlib
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import yaml
from flit_core.buildapi import build_sdist, build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import albert_jax
from tests.helpers.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
_NOT_OF_A_RELEASE = {
    ".git",
    ".jax_cache",
    ".hypothesis",
    "__pycache__",
    ".mypy_cache",
    ".venv",
    "site",
}
LOCKS = ["requirements.lock", "requirements-dev.lock"]
EXTRAS = ["tpu", "gcs", "cuda", "cuda13"]  # whose locks have what they add to requirements.lock


def _locked(name: str) -> dict[str, list[Requirement]]:
    """Package -> its pins: more than one where Python versions differ."""
    pins: dict[str, list[Requirement]] = {}
    for line in (REPOSITORY / name).read_text().splitlines():
        if line[0] not in " #":
            pin = Requirement(line.rstrip("\\ "))
            pins.setdefault(pin.name, []).append(pin)
    return pins


def _set_up_commands() -> list[str]:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return [line for line in readme.splitlines() if line.startswith("python3 -m venv ")]


def test_the_readme_has_two_commands_and_ci_runs_the_second() -> None:
    run, tests = _set_up_commands()
    assert run.endswith(" pretrain configs/python_docs.py --workdir runs/python_docs")
    assert tests.endswith("&& .venv/bin/pytest -n 2")
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"grep -E '(.*)' README\.md", script)
    assert [line for line in (run, tests) if re.search(pattern, line)] == [tests]
    subprocess.run(["bash", "-n", REPOSITORY / ".ci" / "run"], check=True)


@pytest.mark.parametrize("lock", [*LOCKS, *(f"requirements-{extra}.lock" for extra in EXTRAS)])
def test_every_pin_is_exact_and_hashed_and_no_address_is_named(lock: str) -> None:
    text = (REPOSITORY / lock).read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > (50 if lock in LOCKS else 1)
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.]+( ;.*)? \\\n    --hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in text
    assert "index" not in text


def test_both_locks_have_the_same_versions() -> None:
    run, tests = (_locked(lock) for lock in LOCKS)
    versions = {name: {str(pin.specifier) for pin in pins} for name, pins in tests.items()}
    for name, pins in run.items():
        assert {str(pin.specifier) for pin in pins} == versions[name]


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_is_within_the_ranges(lock: str) -> None:
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    if "dev" in lock:
        wanted += PROJECT["project"]["optional-dependencies"]["dev"]
    pins = _locked(lock)
    for requirement in map(Requirement, wanted):
        found = pins[requirement.name.lower().replace("_", "-")]
        for pin in found:
            (exact,) = pin.specifier
            assert Version(exact.version) in requirement.specifier, requirement


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("lock", LOCKS)
def test_each_python_gets_one_version_of_each_package(lock: str, python: str) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    for name, pins in _locked(lock).items():
        chosen = [pin for pin in pins if not pin.marker or pin.marker.evaluate(environment)]
        assert len(chosen) <= 1, name


def _asked_by(extra: str) -> Iterator[Requirement]:
    """What an extra asks for; of jax's own extras what jax of this Python asks for."""
    for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"][extra]):
        yield requirement
        for of in requirement.extras:
            for inner in map(Requirement, requires(requirement.name) or []):
                if inner.marker and inner.marker.evaluate({"extra": of}):
                    yield inner


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extras_lock_has_what_it_adds_and_nothing_twice(extra: str) -> None:
    """Installed together with requirements.lock, as the launcher and the image do."""
    base, added = _locked("requirements.lock"), _locked(f"requirements-{extra}.lock")
    assert base.keys() & added.keys() == set()
    pins = {
        canonicalize_name(name): next(iter(pin.specifier)).version
        for name, several in (base | added).items()
        for pin in several
        if not pin.marker or pin.marker.evaluate()
    }
    if version("jax") != pins["jax"]:
        pytest.skip("jax here is not the lock's")
    asked = list(_asked_by(extra))
    for requirement in asked:
        assert Version(pins[canonicalize_name(requirement.name)]) in requirement.specifier
    assert any(requirement.name in added for requirement in asked)


def test_what_repeats_a_version_has_the_same() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = _locked("requirements-dev.lock")["ruff"]
    assert f"=={hooks[0]['rev'].removeprefix('v')}" == str(ruff.specifier)
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == albert_jax.__version__
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    pythons = {
        line.rpartition(" ")[2]
        for line in PROJECT["project"]["classifiers"]
        if re.search(r":: 3\.\d+$", line)
    }
    assert set(workflow["jobs"]["all"]["strategy"]["matrix"]["python"]) == pythons


def test_the_wheel_has_the_packaged_model_its_card_and_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    wheel = tmp_path / build_wheel(str(tmp_path))
    assert wheel.stat().st_size < 8_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        told = archive.read(metadata).decode()
    packaged = REPOSITORY / "albert_jax" / "packaged"
    files = {str(path.relative_to(REPOSITORY)) for path in packaged.rglob("*") if path.is_file()}
    assert {f"albert_jax/packaged/{name}" for name in ("LICENSE", "mini/README.md")} <= files
    assert files <= names
    assert "License-Expression: Apache-2.0 AND CC-BY-SA-4.0" in told
    assert {line for line in told.splitlines() if line.startswith("License-File: ")} == {
        "License-File: LICENSE",
        "License-File: NOTICE",
        "License-File: albert_jax/packaged/LICENSE",
    }


def test_a_release_is_the_same_bytes_whenever_and_wherever_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    clone = tmp_path / "clone"
    shutil.copytree(
        REPOSITORY,
        clone,
        copy_function=shutil.copy,  # at other times
        ignore=lambda _, names: _NOT_OF_A_RELEASE.intersection(names),
    )
    digests = []
    for number, folder in enumerate((REPOSITORY, clone)):
        monkeypatch.chdir(folder)
        out = tmp_path / str(number)
        out.mkdir()
        built = [build_wheel(str(out)), build_sdist(str(out))]
        digests.append([hashlib.sha256((out / name).read_bytes()).hexdigest() for name in built])
    assert digests[0] == digests[1]


def test_every_page_that_names_the_version_names_this_one() -> None:
    newest = re.search(
        r"^## (\S+) - \d{4}-\d\d-\d\d$", (REPOSITORY / "CHANGELOG.md").read_text(), re.M
    )
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"]
    assert newest is not None
    assert newest[1] == cited == albert_jax.__version__
    short = albert_jax.__version__.rpartition(".")[0]
    for page, named in (("README.md", short), ("docs/comparison.md", albert_jax.__version__)):
        found = re.findall(r"\| albert_jax (?:\| )?(\S+) \|", (REPOSITORY / page).read_text())
        assert set(found) == {named}, page
