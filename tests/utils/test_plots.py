# SPDX-License-Identifier: Apache-2.0
"""Pictures can be read, whatever is drawn, and a damaged log still makes one."""

import itertools
import json
import math
import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from albert_jax.training.curves import curves_figure
from albert_jax.training.metrics import draw_curves, read_metrics
from albert_jax.utils.errors import UserError
from albert_jax.utils.plots import (
    MOST_POINTS,
    bytes_unit,
    category_axis,
    check_picture,
    from_zero,
    heat_maps,
    legend,
    new_figure,
    number_axis,
    reference_line,
    save_picture,
    save_plot,
    set_style,
    setting_axis,
    styled,
    thinned,
    whole_steps,
)
from tests.helpers.pictures import colour_bars, faults, legend_entries, styles

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def style():
    with styled():
        yield


# -------------------------------------------------------------------------------------- the style


def lines(count, label="line {}"):
    figure, [[axis]] = new_figure(f"{count} lines", height=3)
    for number in range(count):
        axis.plot([0, 1], [number, 1], label=label.format(number))
    axis.set(xlabel="step", ylabel="loss (nats)")
    legend(axis)
    return figure, axis


def test_thirty_lines_have_thirty_colours_and_line_styles():
    _, axis = lines(30)
    assert len({(colour, dashes) for colour, dashes, _ in styles(axis)}) == 30


def test_a_hundred_lines_are_told_apart_by_their_markers_too():
    _, axis = lines(100)
    assert len(set(styles(axis))) == 100


def test_neighbours_differ_where_there_is_no_colour():
    _, axis = lines(30)
    grey = [(dashes, marker) for _, dashes, marker in styles(axis)]
    assert all(one != other for one, other in itertools.pairwise(grey))


def test_the_callers_settings_stay_and_a_notebook_may_change_them():
    with matplotlib.rc_context():
        with matplotlib.rc_context():
            matplotlib.rcParams["font.size"] = 3.0
            with styled():
                assert matplotlib.rcParams["font.size"] == 9.0
            assert matplotlib.rcParams["font.size"] == 3.0
        matplotlib.rcdefaults()
        set_style()
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][0] == "#0072B2"


@pytest.mark.parametrize("count", [1, 2, 13, 30, 60])
@pytest.mark.parametrize("label", ["line {}", "a line with a name that is far too long for {}"])
def test_a_legend_explains_each_line_and_hides_none(count, label):
    figure, _ = lines(count, label)
    assert faults(figure) == []
    assert len(legend_entries(figure)) == count


def test_a_long_title_and_a_dollar_stand_as_they_are():
    title = "loss of /a/path/that/is/long/" + "model-" * 20 + " at $5 and $6"
    figure, [[axis]] = new_figure(title, height=2)
    axis.plot([1, 2], [3, 4])
    axis.set(xlabel="$a$ b", ylabel="x")
    assert faults(figure) == []
    assert "$6" in figure.get_suptitle().replace("\n", " ")
    assert not axis.xaxis.label.get_parse_math()


@pytest.mark.parametrize("vertical", [False, True])
def test_a_line_at_zero_stretches_no_panel_that_is_zero_throughout(vertical):
    figure, [[axis]] = new_figure("nothing learnt", height=3)
    axis.plot([0, 0], [0, 0])
    reference_line(axis, 0.0, "one answer to all", vertical=vertical)
    figure.draw_without_rendering()
    found = axis.get_xlim() if vertical else axis.get_ylim()
    assert found == pytest.approx((-0.055, 0.055))


def test_a_line_across_lies_within_its_panel():
    figure, [[axis]] = new_figure("far below", height=3)
    axis.plot([1, 2], [3.0, 4.0], label="model")
    reference_line(axis, -7.0, "chance")
    axis.set(xlabel="step", ylabel="score")
    legend(axis)
    assert axis.get_ylim()[0] < -7.0
    assert faults(figure) == []
    assert legend_entries(figure) == {"model", "chance"}


# ------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize(
    "values", [[8], [8, 16], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 256, 300], [0.5, 1e6]]
)
def test_numbers_of_a_setting_do_not_touch(values):
    figure, axes = new_figure("a sweep", 1, 2, height=3)
    for axis in axes.flat:
        number_axis(axis, values)
        axis.plot(values, values)
        axis.set(xlabel="batch_size", ylabel="ms")
        from_zero(axis)
    assert faults(figure) == []
    assert axis.get_xscale() == "log"
    assert axis.get_ylim()[0] == 0
    assert axis.get_ylim()[1] > max(values)


@pytest.mark.parametrize(
    "names",
    [
        ["none", "dots", "full"],
        ["configs/pretrain.py:model=base-v2,chips=4", "/a/b/one/albert_config.json"],
        ["/a/long/way/to/the/folder/that/has/it/model.json"] * 6,
        [f"v5e:{number}x{number}" for number in range(12)],
    ],
)
def test_names_of_a_setting_do_not_touch(names):
    figure, axes = new_figure("a sweep", 1, 2, height=3.5)
    for axis in axes.flat:
        category_axis(axis, names)
        axis.bar(range(len(names)), 1.0)
        axis.set(xlabel="setting", ylabel="ms")
    assert faults(figure) == []


def test_a_settings_numbers_are_to_scale_and_its_names_are_not():
    _, axes = new_figure("a sweep", 1, 3, height=3)
    assert setting_axis(axes[0, 0], [8, 16, 8]) == ({8: 8.0, 16: 16.0}, True)
    assert setting_axis(axes[0, 1], ["b", "a"]) == ({"b": 0.0, "a": 1.0}, False)
    assert setting_axis(axes[0, 2], [0, 1, 3]) == ({0: 0.0, 1: 1.0, 3: 2.0}, False)


def test_steps_are_whole_numbers():
    figure, [[axis]] = new_figure("short", height=3)
    axis.plot([1, 2], [0.5, 0.7])
    whole_steps(axis)
    figure.draw_without_rendering()
    assert all(tick.get_text().isdigit() for tick in axis.get_xticklabels())


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "bytes"), (500, "bytes"), (900 << 10, "MiB"), (2 << 30, "GiB"), (9 << 40, "TiB")],
)
def test_bytes_have_a_unit_that_can_be_read(size, told):
    unit, one = bytes_unit(size)
    assert unit == told
    assert size / one < 1024


# -------------------------------------------------------------------------------------- heat maps


def maps(count, size, **options):
    pieces = [("[CLS]", "▁the", "$", "_x", "▁france", "ing")[i % 6] for i in range(size)]
    weights = np.random.default_rng(0).dirichlet(np.ones(size), (count, size))
    settings = {"names": [f"pass {n + 1}" for n in range(count)]} | options
    return heat_maps(
        "Attention",
        weights,
        rows=pieces,
        columns=pieces,
        row_name="attending piece",
        column_name="attended piece",
        value_name="attention weight",
        **settings,
    )


@pytest.mark.parametrize(
    ("count", "size"), [(1, 2), (1, 9), (1, 60), (3, 9), (5, 10), (12, 9), (4, 30)]
)
def test_heat_maps_have_a_colour_bar_names_and_labels(count, size):
    figure = maps(count, size)
    assert faults(figure) == []
    (bar,) = colour_bars(figure)
    assert bar.get_ylabel() == "attention weight"
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == count
    assert shown[0].get_ylabel() == "attending piece"
    assert shown[-1].get_xlabel() == "attended piece"
    assert {axis.images[0].norm.vmax for axis in shown} == {shown[0].images[0].norm.vmax}
    told = [label.get_text() for label in shown[-1].get_xticklabels()]
    assert told[0] == "[CLS]"
    assert len(told) == size or size >= 30  # labels that would touch are left out


def test_each_column_of_panels_is_labelled_where_the_last_row_is_not_full():
    figure = maps(5, 9)
    labelled = [bool(axis.get_xticklabels()) for axis in figure.axes if axis.images]
    assert labelled == [False, True, True, True, True]


def test_numbers_stand_in_the_cells_where_they_fit_and_can_be_read():
    texts = ["The cat sat on the mat.", "The central bank raised interest rates."]
    figure = heat_maps(
        "Cosines",
        [[[1.0, 0.25], [0.75, 1.0]]],
        rows=texts,
        columns=texts,
        row_name="text",
        column_name="text",
        value_name="cosine",
        limits=(0.25, 0.75),
        cells=".2f",
    )
    assert faults(figure) == []
    panel, bar = figure.axes
    assert [text.get_text() for text in panel.texts] == ["1.00", "0.25", "0.75", "1.00"]
    assert [text.get_color() for text in panel.texts] == ["black", "white", "black", "black"]
    labels = [" ".join(label.get_text().split()) for label in panel.get_xticklabels()]
    assert labels == texts
    assert figure.axes[0].images[0].colorbar.extend == "max"  # 1.00 is beyond it
    assert bar.get_ylabel() == "cosine"
    assert not maps(1, 40, cells=".2f").axes[0].texts


@pytest.mark.parametrize("value", [0.0, math.nan, 0.5])
def test_a_heat_map_of_one_value_or_none_is_drawn(value, tmp_path):
    figure = heat_maps(
        "all alike",
        [np.full((2, 2), value)],
        rows="ab",
        columns="ab",
        row_name="row",
        column_name="column",
        value_name="value",
    )
    save_picture(figure, tmp_path / "x.png")
    assert faults(figure) == []


# --------------------------------------------------------------------------------------- the curves

BASELINES = {
    "loss:unigram entropy": 5.9,
    "masked_lm_accuracy:most frequent token": 0.05,
    "sentence_order_accuracy:more frequent label": 0.57,
}


def entry(step, kind="train", **changes):
    values = {
        "masked_lm_loss": 2 + 6 * math.exp(-step / 300),
        "masked_lm_accuracy": 0.6 - 0.5 * math.exp(-step / 300),
        "sentence_order_accuracy": 0.8,
    }
    return {"kind": kind, "step": step, **values, **changes}


def curves(entries, baselines=BASELINES):
    return curves_figure(entries, baselines=baselines, title="12 M parameters")


def run_of(steps):
    for step in range(10, steps + 1, 10):
        yield entry(step)
        if step % 100 == 0:
            yield entry(step, "eval")


def test_curves_name_their_axes_lines_and_baselines():
    figure = curves(run_of(500))
    assert faults(figure) == []
    assert figure.get_suptitle() == "Pretraining: 12 M parameters"
    told = [(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes]
    assert told == [
        ("step", "masked-LM loss (nats)"),
        ("step", "masked-LM accuracy"),
        ("step", "sentence-order accuracy"),
    ]
    last = {"unigram entropy", "most frequent token", "more frequent label"}
    assert legend_entries(figure) == {"training", "held out"} | last
    assert [len(set(styles(axis))) for axis in figure.axes] == [3, 3, 3]


def test_twenty_thousand_entries_are_thinned_and_a_spike_stays():
    entries = [entry(step) for step in range(1, 20_001)]
    entries[7000]["masked_lm_loss"] = 19.0
    loss = curves(entries).axes[0].lines[0]
    assert len(loss.get_xdata()) <= MOST_POINTS
    assert loss.get_ydata().max() == 19.0
    assert loss.get_xdata()[-1] > 19_900
    assert np.all(np.diff(loss.get_xdata()) > 0)


def test_thinning_keeps_the_extremes_of_each_stretch():
    ys = np.sin(np.arange(10_000) / 7)
    kept = thinned(np.arange(10_000), ys, 100)
    assert len(kept) <= 100
    for start in range(0, 10_000, 200):
        part = kept[(kept >= start) & (kept < start + 200)]
        assert ys[part].min() == ys[start : start + 200].min()
        assert ys[part].max() == ys[start : start + 200].max()
    assert thinned(np.arange(5), ys[:5], 100).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "damage",
    [
        [],
        [7, "text", None, [], True],
        [{}, {"kind": "train"}, {"step": 5}, {"kind": ["train"], "step": 1}],
        [{"kind": "event", "step": 5, "message": "rolled back"}],
        [entry(5) | {"step": step} for step in ("5", None, True, math.nan, 10**400)],
        [entry(5, masked_lm_loss=math.nan), entry(6, masked_lm_loss=math.inf)],
        [entry(5, masked_lm_loss=None), entry(6, masked_lm_loss="NaN")],
        [entry(5, masked_lm_loss={"a": 1}), entry(6, masked_lm_loss=10**400)],
    ],
)
def test_what_is_damaged_in_a_log_is_left_out(damage):
    whole = curves([entry(1), *damage, entry(9)]).axes[0].lines[0]
    assert whole.get_xdata().tolist() == [1, 9]
    assert np.isfinite(whole.get_ydata()).all()
    assert faults(curves(damage)) == []


def test_a_run_without_entries_says_so_and_one_point_is_seen(tmp_path):
    figure = curves([])
    assert faults(figure) == []
    assert [text.get_text() for text in figure.axes[0].texts] == ["no step is logged yet"]
    (line,) = (line for line in curves([entry(5)], {}).axes[0].lines)
    assert line.get_marker() not in ("", "None")
    draw_curves(tmp_path / "none.jsonl", tmp_path / "loss.png", baselines={}, title="t")
    assert (tmp_path / "loss.png").read_bytes()[:8] == PNG


def test_a_loss_that_diverges_has_a_logarithmic_axis():
    def scale(worst):
        return curves([entry(1), entry(2, masked_lm_loss=worst)], {}).axes[0].get_yscale()

    assert (scale(9.0), scale(1e9)) == ("linear", "log")
    assert faults(curves([entry(1), entry(2, masked_lm_loss=1e9)])) == []


def test_baselines_that_are_not_finite_or_of_no_panel_are_left_out():
    figure = curves([entry(1)], {"loss:chance": math.nan, "other:chance": 1.0})
    assert legend_entries(figure) == {"training"}


DAMAGE = [b'{"kind": "tra', b"7", b"null", b"", b"\xff\xfe\x00", b"\0" * 4096, b"[" * 100_000]
DAMAGE += [
    b'{"kind": "train", "step": 3}',
    b'{"kind": "train", "step": ' + b"9" * 5000 + b"}",
    b"{",
]


def test_curves_are_drawn_from_a_damaged_file(tmp_path):
    log = tmp_path / "metrics.jsonl"
    whole = [json.dumps(entry(step, grad_norm=math.nan)).encode() for step in (1, 2)]
    log.write_bytes(b"\n".join([whole[0], *DAMAGE, whole[1]]))
    assert [each["step"] for each in read_metrics(log)] == [1, 3, 2]
    draw_curves(log, tmp_path / "loss.png", baselines=BASELINES, title="t")
    assert (tmp_path / "loss.png").read_bytes()[:8] == PNG
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


# ------------------------------------------------------------------------------------------ files


def picture():
    figure, [[axis]] = new_figure("a line", height=2)
    axis.plot([1, 2], [3, 4])
    return figure


def test_a_picture_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    target = tmp_path / "loss.png"
    save_picture(picture(), target)
    before = target.read_bytes()

    def full(figure, path, **options):
        Path(path).write_bytes(PNG)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space"):
        save_picture(picture(), target)
    with pytest.raises(UserError, match=r"plot .*loss.png cannot be written: No space left"):
        save_plot(picture(), target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "start"),
    [("x.png", PNG), ("x", PNG), ("x.PNG", PNG), ("x.pdf", b"%PDF"), ("x.svg", b"<?xml")],
)
def test_a_pictures_name_says_what_it_is(name, start, tmp_path):
    save_plot(picture(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    save_picture(picture(), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes()[:8] == PNG
    (tmp_path / "null").symlink_to(os.devnull)
    save_picture(picture(), tmp_path / "null")
    assert (tmp_path / "null").is_symlink()
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x.jpg", r"x\.jpg must end in \.png, \.pdf or \.svg"),
        (".", "is a folder; name a file in it"),
        ("none/x.png", r"cannot be written: there is no folder .*none"),
    ],
)
def test_a_picture_that_cannot_be_is_told_beforehand(name, told, tmp_path):
    with pytest.raises(UserError, match=told):
        check_picture(tmp_path / name)
    check_picture(tmp_path / "x.png")
