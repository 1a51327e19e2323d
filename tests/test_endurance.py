# SPDX-License-Identifier: Apache-2.0
"""Each campaign with a few tries: that it runs, and finds nothing lost. docs/reliability.md has the
results of many."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.paths import REPOSITORY

CAMPAIGNS = {"kills": 8, "damage": 200, "mutations": 2000, "soak": 600, "signals": 4, "writers": 8}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_campaign_loses_nothing(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.endurance.{name}", "--tries", str(CAMPAIGNS[name])],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        timeout=580,
    )
    assert done.stdout, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["lost"] == []
    assert result["tries"] >= CAMPAIGNS[name]
    assert done.returncode == 0
