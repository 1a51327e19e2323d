# SPDX-License-Identifier: Apache-2.0
"""libtpu on a machine without a TPU: no word of it beside what a command says."""

import importlib.util
import os
import subprocess
import sys

import pytest

from albert_jax.perf.tpu import libtpu
from albert_jax.perf.tpu.libtpu import check_profiler, quiet_without_chips
from albert_jax.utils.errors import UserError


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
    monkeypatch.setattr(libtpu, "is_installed", lambda: installed)
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


@pytest.mark.parametrize(
    ("found", "platforms", "crashes"),
    [
        ("0.0.42.1", "", False),
        ("0.0.52", "", True),
        ("0.0.420", "tpu,cpu", True),
        ("0.0.52", "cpu", False),
        (None, "", False),
    ],
)
def test_a_profile_is_refused_where_libtpu_is_not_the_one_of_this_jax(
    found, platforms, crashes, environment, monkeypatch
):
    versions = {"libtpu": found, "jax": "0.10.2"}
    asked = ["numpy>=2.0", 'libtpu==0.0.42.*; extra == "tpu"']
    monkeypatch.setattr(libtpu, "version", lambda: versions["libtpu"])
    monkeypatch.setattr(libtpu.importlib.metadata, "version", versions.get)
    monkeypatch.setattr(libtpu.importlib.metadata, "requires", lambda _: asked)
    environment["JAX_PLATFORMS"] = platforms
    if not crashes:
        check_profiler()
        return
    told = rf"libtpu {found} .* jax 0.10.2, which is made for 0.0.42.\*; pip install 'jax\[tpu\]==0"
    with pytest.raises(UserError, match=told):
        check_profiler()
