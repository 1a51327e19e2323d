# SPDX-License-Identifier: Apache-2.0
"""libtpu on a machine without a TPU: no word of it beside what a command says."""

import importlib.util
import os
import subprocess
import sys

import pytest

from albert_jax import tpu_library
from albert_jax.tpu_library import quiet_without_chips


@pytest.fixture
def environment(monkeypatch):
    """Without the TPU's variables; those that the test sets go with it."""
    for name in list(os.environ):
        if name.startswith(("TPU_", "ALLOW_MULTIPLE_LIBTPU")):
            monkeypatch.delenv(name)
    kept = dict(os.environ)
    monkeypatch.setattr(os, "environ", kept)
    return kept


@pytest.mark.parametrize(
    ("file", "is_chip"),
    [("null", False), ("vfio/vfio", False), ("accel0", True), ("vfio/0", True)],
)
@pytest.mark.parametrize("installed", [True, False])
def test_answers_only_where_libtpu_is_and_no_chip(
    file, is_chip, installed, tmp_path, environment, monkeypatch
):
    monkeypatch.setattr(tpu_library, "is_installed", lambda: installed)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    environment["TPU_WORKER_HOSTNAMES"] = "mine"
    quiet_without_chips(tmp_path)
    assert environment["TPU_WORKER_HOSTNAMES"] == "mine"
    assert ("TPU_ACCELERATOR_TYPE" in environment) == (installed and not is_chip)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_mistake_is_one_line_beside_libtpu(environment):
    del environment["JAX_PLATFORMS"]  # so that JAX tries the TPU
    arguments = "benchmark --model base-v2 --batch-size 4 --devices 77"
    command = [sys.executable, "-m", "albert_jax", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
