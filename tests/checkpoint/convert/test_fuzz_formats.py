# SPDX-License-Identifier: Apache-2.0
"""Every reader of files that come from elsewhere reads a harmed one or says UserError, in
proportion to its size; tests/helpers/fuzz_formats.py does so for as long as one likes."""

import pytest

from tests.helpers.fuzz_formats import MOST_BYTES, MOST_SECONDS, Kind, attempt, kinds

SEEDS = 16  # of each kind of harm


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return kinds(tmp_path_factory.mktemp("fuzz") / "files")


def test_sound_files_are_read(found: dict[str, Kind]) -> None:
    for kind in found.values():
        kind.read()


def test_harmed_files_are_read_or_refused_in_proportion(found: dict[str, Kind]) -> None:
    refused = dict.fromkeys(found, 0)
    for name, kind in found.items():
        for seed in range(SEEDS):
            outcome = attempt(kind, seed)
            assert outcome.seconds < MOST_SECONDS, (name, seed, outcome)
            assert outcome.bytes < MOST_BYTES, (name, seed, outcome)
            assert len(outcome.told) < 5000, (name, seed)
            refused[name] += bool(outcome.told)
    unnoticed = [name for name, count in refused.items() if not count]
    assert unnoticed == [], "a harm that no reader ever refuses does not reach it"
