# SPDX-License-Identifier: Apache-2.0
"""Compiled programs are kept where one asks for it, and nobody's JAX is changed unasked."""

import os
import subprocess
import sys

import jax
import pytest

import albert_jax
from albert_jax.distributed.compilation_cache import compilation_cache
from tests.helpers.models import worded_albert
from tests.helpers.paths import REPOSITORY
from tests.helpers.pretraining_runs import random_model


def settings():
    return (
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
    )


def test_programs_are_kept_while_entered_and_then_as_before(tmp_path):
    before = settings()
    with compilation_cache(str(tmp_path / "kept")):
        assert settings() == (str(tmp_path / "kept"), 0.1)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.jit(lambda x: x * 3 + 1)(1.5).block_until_ready()
    assert settings() == before
    kept = len(list((tmp_path / "kept").iterdir()))
    assert kept > 0
    jax.jit(lambda x: x * 5 + 1)(1.5).block_until_ready()
    assert len(list((tmp_path / "kept").iterdir())) == kept


@pytest.mark.parametrize("folder", ["", None])
def test_no_folder_leaves_what_is_set_from_outside(folder):
    before = settings()  # the tests' own folder
    with compilation_cache(folder):
        assert settings() == before


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path, capsys):
    (tmp_path / "file").touch()
    before = settings()
    with compilation_cache(str(tmp_path / "file" / "kept")):
        assert settings() == before
    assert capsys.readouterr().err == (
        f"compiled programs are not kept: {tmp_path}/file/kept cannot be made: Not a directory\n"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model") / "model", worded_albert())


@pytest.mark.parametrize("asked", ["library", "command"])
def test_the_command_line_keeps_programs_and_the_library_does_not(model, tmp_path, asked):
    called = "albert_jax.load(sys.argv[1]).fill_mask('a [MASK]')"
    arguments = {
        "library": ["-c", f"import sys, albert_jax; {called}", str(model)],
        "command": ["-m", "albert_jax", "fill-mask", str(model), "a [MASK]"],
    }[asked]
    without = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run(
        [sys.executable, *arguments],
        env=without | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
        timeout=300,
    )
    kept = tmp_path / "albert_jax" / "xla"
    assert kept.is_dir() == (asked == "command")
    assert asked == "library" or any(kept.iterdir())


def test_loading_a_model_changes_no_setting_of_jax(model):
    before = dict(jax.config.values)
    albert_jax.load(model)
    assert dict(jax.config.values) == before
