# SPDX-License-Identifier: Apache-2.0
"""The table of released models, made here of small ones from servers on loopback."""

import tarfile
from pathlib import Path

import pytest
import yaml

from albert_jax.checkpoint.convert.convert import convert
from albert_jax.config.model import MODELS
from benchmarks import released_models
from tests.helpers.fake_hub import fake_hub
from tests.helpers.paths import REPOSITORY
from tests.helpers.servers import serving_files

WORKFLOW = REPOSITORY / ".github" / "workflows" / "released.yml"


def test_every_archive_is_in_the_table_and_a_dozen_repositories() -> None:
    assert {f"released:{name}" for name in MODELS} < set(released_models.NAMES)
    assert len(released_models.HUB) == 12
    assert released_models.expected("released:large-v1") == "large-v1"
    assert released_models.expected("albert/albert-base-v2") == "base-v2"
    assert released_models.expected("hub:base-v2") is None
    assert released_models.expected("textattack/albert-base-v2-MRPC") is None


def test_the_workflow_is_started_by_hand_and_calls_the_script() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert set(workflow[True]) == {"workflow_dispatch"}  # YAML 1.1 takes the key "on" for a truth
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step.get("run", "") for step in workflow["jobs"]["verify"]["steps"]]
    assert any("python -m benchmarks.released_models $MODELS" in step for step in steps)
    assert not any("${{" in step for step in steps)  # an input is never part of a script


def test_a_row_has_the_commands_last_words_where_it_printed_no_json() -> None:
    row = released_models.row_of("me/it", "", "fetching\nalbert-jax: no | network\n", 1.6)
    assert released_models.table([row]).splitlines()[-1] == (
        "| me/it | FAIL |  |  | 2 | no / network |"
    )


@pytest.mark.extras
@pytest.mark.slow
def test_the_table_is_made_from_other_servers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    convert("mini", tmp_path / "hf", to="hf")
    convert("mini", tmp_path / "tf", to="tf")
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives" / "albert_base_v2.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "tf", "albert_base")

    with serving_files(tmp_path / "archives") as archives, fake_hub() as hub:
        hub.add("me/mini", tmp_path / "hf")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("ALBERT_JAX_ARCHIVES", archives)
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
        output = tmp_path / "table.md"
        names = ["me/mini", "released:base-v2", "released:large-v2"]
        assert released_models.main([*names, "--output", str(output)]) == 1
    printed = capsys.readouterr().out
    assert output.read_text(encoding="utf-8") == printed
    _, _, mini, base, large = printed.splitlines()
    assert mini.startswith("| me/mini | PASS |  | 3,071,042 | ")
    assert base.startswith("| released:base-v2 | FAIL | ")
    assert "it is not base-v2: vocab_size is 8000, not 30000" in base
    assert "albert_large_v2.tar.gz cannot be downloaded (HTTP Error 404: File not found)" in large
