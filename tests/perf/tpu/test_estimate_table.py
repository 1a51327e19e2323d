# SPDX-License-Identifier: Apache-2.0
"""A table of estimates keeps what it is given, and a recipe's chip-hours come from its own step."""

import dataclasses
import json
from pathlib import Path

import pytest

from albert_jax.cli.info import describe_path, description_table
from albert_jax.cli.main import main
from albert_jax.cli.recipe_plan import with_plan
from albert_jax.config.model import ComputeConfig, model_config
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import ExamplesConfig
from albert_jax.models.flops import train_flops_per_sequence
from albert_jax.perf.tpu import estimate, estimate_report, estimate_table
from albert_jax.perf.tpu.estimate_table import (
    chip_hours,
    command,
    draw_scaling,
    read_table,
    record,
    row_of,
    scaling,
    scaling_figure,
)
from albert_jax.perf.tpu.topology import parse_slice
from albert_jax.utils.errors import UserError
from albert_jax.utils.plots import styled
from tests.helpers.paths import REPOSITORY
from tests.helpers.pictures import faults, legend_entries

RECIPE = REPOSITORY / "configs" / "pretrain.py"


def row(topology="v5e:2x2", ms=2.0, collective=1.0, **changes):
    figures = {
        "model": "base-v2",
        "topology": topology,
        "phase": "train",
        "batch_size": 16,
        "sequence": 512,
        "predictions": 77,
        "dtype": "bfloat16",
        "remat": "none",
        "attention": "auto",
        "unroll": 0,
        "accumulate": 1,
        "mode": "jit",
        "chips": parse_slice(topology).chips,
        "global_batch_size": 16 * parse_slice(topology).chips,
        "fits": True,
        "ms_per_sequence_per_chip": ms,
        "step_ms": 16 * ms,
        "ms_of": {"cycles": 16 * ms - collective, "collective": collective},
        "mfu": 0.5,
        "hbm_bytes": 1 << 30,
        "hbm_capacity_bytes": 15 << 30,
        "collective_bytes": 1000,
        "compile_seconds": 9.0,
        "commit": "0123abc",
        "versions": {"jax": "1.0", "libtpu": "2.0", "numpy": "3.0"},
        "operations": [{"ms": 1.0}],
    }
    return row_of(figures | changes, date="2026-11-23")


BASE = PretrainConfig(
    model=model_config("base-v2"),
    compute=ComputeConfig(dtype="bfloat16"),
    examples=ExamplesConfig(max_predictions_per_seq=20),
)


def test_a_row_replaces_that_of_its_setting_and_no_other(tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    assert read_table(table) == []
    for each in (row(), row("v5e:16x16"), row(remat="full"), row(ms=3.0)):
        rows = record(table, each)
    assert read_table(table) == rows
    assert sorted((r["topology"], r["remat"], r["ms_per_sequence_per_chip"]) for r in rows) == [
        ("v5e:16x16", "none", 2.0),
        ("v5e:2x2", "full", 2.0),
        ("v5e:2x2", "none", 3.0),
    ]
    assert "operations" not in rows[0]
    assert rows[0]["commit"] == "0123abc"
    assert list(tmp_path.iterdir()) == [table]


def test_a_row_of_0_1_has_no_version_and_a_newer_one_is_refused(
    tmp_path: Path,
) -> None:
    old, table = row().to_json(), tmp_path / "table.jsonl"
    del old["format_version"]
    table.write_text(json.dumps(old) + "\n")
    assert read_table(table) == [row()]
    table.write_text(json.dumps(old | {"format_version": 2}) + "\n")
    with pytest.raises(UserError, match=r"^line 1 of table \S+ has format 2, newer than 1; update"):
        read_table(table)


def test_a_row_tells_the_command_that_makes_it() -> None:
    asked = "albert-jax estimate --model base-v2 --topology v5e:2x2 --batch-size 16"
    assert command(row()) == f"{asked} --predictions 77"
    assert (
        command(row(remat="full", unroll=1)) == f"{asked} --predictions 77 --remat full --unroll 1"
    )


def test_chip_hours_are_those_of_the_very_step() -> None:
    rows = [row("v5e:16x16", ms=1.0), row(ms=3.6), row(ms=3.0, batch_size=8, remat="full")]
    rows += [row("v5p:2x2x1", ms=0.9), row("v6e:2x2", ms=0.5, fits=False)]
    found = chip_hours(BASE, 1_000_000, rows)
    assert {kind: each["hours"] for kind, each in found.items()} == pytest.approx(
        {"TPU v5e": 1.0, "TPU v5p": 0.25}
    )
    assert [(kind, each["pays_below"]) for kind, each in found.items()] == [
        ("TPU v5p", pytest.approx(4.0)),
        ("TPU v5e", 1.0),
    ]
    assert found["TPU v5e"]["compiled_for"] == "v5e:2x2, 16 x 512 a chip, 77 predictions"
    assert found["TPU v5e"]["command"] == command(rows[1])
    assert found["TPU v5e"]["by"] == "libtpu 2.0, jax 1.0, 2026-11-23"


@pytest.mark.parametrize(
    "other",
    [
        {"model": model_config("base-v1")},  # whose dropout rules the kernel out
        {"compute": ComputeConfig(dtype="float32")},
        {"compute": ComputeConfig(dtype="bfloat16", remat="full")},
        {"compute": ComputeConfig(dtype="bfloat16", scan_unroll=1)},
        {"compute": ComputeConfig(dtype="bfloat16", attention="xla")},
        {"examples": ExamplesConfig(max_seq_length=128)},
        {"examples": ExamplesConfig(max_predictions_per_seq=78)},
    ],
)
def test_a_step_that_was_not_compiled_has_no_chip_hours(other) -> None:
    assert chip_hours(BASE, 1000, [row()])
    auto = dataclasses.replace(BASE, compute=ComputeConfig(dtype="auto"))  # bfloat16 on a TPU
    assert chip_hours(auto, 1000, [row()]) == chip_hours(BASE, 1000, [row()])
    assert chip_hours(dataclasses.replace(BASE, **other), 1000, [row()]) == {}


def test_info_tells_them_with_what_they_are_of(monkeypatch, tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    record(table, row(ms=3.6))
    monkeypatch.setattr(estimate_table, "ESTIMATES", table)
    described = with_plan(describe_path(f"{RECIPE}:model=base-v2,steps=1000,batch_size=1000"))
    told = described["plan"]["chip_hours_by_the_compilers_estimate"]
    assert told["TPU v5e"]["hours"] == pytest.approx(1.0)
    assert "chip hours by the compilers estimate" in description_table(described)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import runpy, dataclasses\n"
        f"made = runpy.run_path({str(RECIPE)!r})['get_config']\n"
        "def get_config(**schedule):\n"
        "    config = made(model='base-v2', steps=1000, batch_size=1000)\n"
        "    train = dataclasses.replace(config.train, **schedule)\n"
        "    return dataclasses.replace(config, train=train)\n"
    )
    for schedule, is_known in (("", True), (":length='128'", False), (":depth='3-12'", False)):
        plan = with_plan(describe_path(f"{recipe}{schedule}"))["plan"]
        assert ("chip_hours_by_the_compilers_estimate" in plan) is is_known
    other = with_plan(describe_path(f"{RECIPE}:model=base-v1"))["plan"]
    assert "chip_hours_by_the_compilers_estimate" not in other
    assert other["to_compile_this_step"].startswith("albert-jax estimate --model ")


@pytest.mark.parametrize(
    ("asked", "topology"),
    [
        ("model=base-v2,chips=8", "v5e:2x4"),
        ("model=xlarge-v2,chips=64", "v5e:8x8"),
        ("model=base-v2,chips=512", "v5e:16x16"),  # the largest
        ("model=base-v2", "v5e:16x16"),  # 4096 rows at a time
        ("model=base-v2,batch_size=512,accumulate=32", "v5e:1x1"),
        ("model=base-v2,batch_size=100", "v5e:2x2"),  # the batch divides over its chips
        ("model=base-v2,batch_size=4080,chips=48", "v5e:4x4"),
    ],
)
def test_the_command_of_a_plan_is_for_a_slice_that_may_fit(asked, topology) -> None:
    spec = f"{RECIPE}:{asked}"
    told = with_plan(describe_path(spec))["plan"]["to_compile_this_step"]
    assert told == f"albert-jax estimate --model {spec} --topology {topology}"


# -------------------------------------------------------------------------------- the shipped table


def test_the_shipped_table_has_a_row_and_its_figures_agree() -> None:
    """Of each row the time, the batch, the FLOPs that flops.py counts and the chip's peak."""
    rows = read_table(estimate_table.ESTIMATES)
    assert rows
    for each in rows:
        where = parse_slice(each["topology"])
        assert each["chips"] == where.chips
        assert each["global_batch_size"] == where.chips * each["batch_size"]
        if not each["fits"]:
            continue
        assert each["hbm_bytes"] <= each["hbm_capacity_bytes"] == where.chip.hbm_bytes
        seconds = each["ms_per_sequence_per_chip"] / 1000
        assert each["step_ms"] == pytest.approx(1000 * seconds * each["batch_size"], rel=1e-3)
        assert each["step_ms"] == pytest.approx(sum(each["ms_of"].values()), rel=1e-3)
        flops = train_flops_per_sequence(
            model_config(each["model"]), each["sequence"], each["predictions"]
        )
        assert each["mfu"] == pytest.approx(flops / seconds / where.chip.peak_flops, rel=1e-3)


# ------------------------------------------------------------------------------------------ scaling


def test_scaling_compares_one_step_over_slices(tmp_path: Path) -> None:
    rows = [
        row("v5e:16x16", ms=2.5, collective=10.0),
        row("v5e:2x2", ms=2.0, collective=1.6),
        row("v5e:4x4", ms=2.2),
        row("v5e:8x8", batch_size=8),
        row("v5e:4x8", fits=False),
        row("v5p:2x2x1", ms=1.0),
    ]
    curves = scaling(rows, rows[0])
    assert [(p.chips, p.collectives, p.efficiency) for p in curves["v5e"]] == [
        (4, pytest.approx(0.05), 1.0),
        (16, pytest.approx(1 / 35.2), pytest.approx(1 / 1.1)),
        (256, pytest.approx(0.25), pytest.approx(0.8)),
    ]
    assert [p.chips for p in curves["v5p"]] == [4]
    draw_scaling(rows, rows[0], tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    with styled():
        figure = scaling_figure(rows, rows[0])
    assert faults(figure) == []
    assert legend_entries(figure) == {"v5e", "v5p"}
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "ms a sequence and chip",
        "collectives (% of the step)",
        "efficiency (% of the smallest slice)",
        "MFU (%)",
    ]
    assert {axis.get_xlabel() for axis in figure.axes} == {"chips"}
    with pytest.raises(UserError, match="does not fit v5e:4x8"):
        draw_scaling([rows[4]], rows[4], tmp_path / "none.png")
    with pytest.raises(UserError, match="cannot be written"):
        draw_scaling(rows, rows[0], tmp_path / "none" / "scaling.png")


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def compiled(monkeypatch):
    """Estimates that need no libtpu; the list grows by each slice that is asked for."""
    asked = []

    def made(config):
        asked.append(config.topology)
        return row(config.topology)

    monkeypatch.setattr(estimate, "estimate", made)
    monkeypatch.setattr(estimate_report, "estimate_lines", lambda figures: "")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return asked


def test_the_command_adds_to_a_table_and_draws_it(compiled, tmp_path: Path, capsys) -> None:
    table, picture = tmp_path / "table.jsonl", tmp_path / "scaling.png"
    for topology in ("v5e:2x2", "v5e:4x4"):
        flags = ["--json", "--table", str(table), "--plot", str(picture)]
        assert main(["estimate", "--topology", topology, *flags]) == 0
        assert json.loads(capsys.readouterr().out)["topology"] == topology
    assert [r["topology"] for r in read_table(table)] == ["v5e:2x2", "v5e:4x4"]
    assert picture.exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--plot", "x.png"], "--plot draws a table's estimates; give --table FILE"),
        (["--table", "x.jsonl", "--find-batch"], "give one of them"),
        (["--table", "damaged.jsonl"], "line 1 of table damaged.jsonl is no estimate"),
        (["--table", "other.jsonl"], "line 1 of table other.jsonl is no estimate"),
        (["--table", "."], "table . cannot be read"),
    ],
)
def test_a_table_that_cannot_be_is_told_before_compiling(
    flags, told, compiled, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.jsonl").write_text("{")
    Path("other.jsonl").write_text('{"model": "base-v2"}\n')
    assert main(["estimate", *flags]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert compiled == []
