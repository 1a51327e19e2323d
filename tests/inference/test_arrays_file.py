# SPDX-License-Identifier: Apache-2.0
"""Arrays in a file: nothing half written, nothing replaced that is read."""

import os
from pathlib import Path

import numpy as np
import pytest

from albert_jax.inference import arrays_file
from albert_jax.inference.arrays_file import check_arrays_file, write_arrays
from albert_jax.utils.errors import UserError

ARRAYS = {"mask": np.arange(6).reshape(2, 3), "pooled": np.ones((2, 4), np.float32)}


def test_arrays_appear_whole_and_a_link_stays_one(tmp_path: Path) -> None:
    dest = tmp_path / "deep" / "out.npz"
    write_arrays(str(dest), ARRAYS)
    link = tmp_path / "link.npz"
    link.symlink_to(dest)
    write_arrays(str(link), {"mask": np.zeros(1)})
    assert link.is_symlink()
    with np.load(dest) as found:
        assert [*found] == ["mask"]
    assert [path.name for path in dest.parent.iterdir()] == ["out.npz"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "out.npz"
    write_arrays(str(dest), ARRAYS)
    before = dest.read_bytes()

    def full(stream, **arrays) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays_file.np, "savez", full)
    with pytest.raises(UserError, match=r"out\.npz NOT written: No space left on device"):
        write_arrays(str(dest), ARRAYS)
    assert dest.read_bytes() == before
    assert [*tmp_path.iterdir()] == [dest]


def test_a_device_that_is_full_is_told(tmp_path: Path) -> None:
    (tmp_path / "full.npz").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"full\.npz NOT written: No space left"):
        write_arrays(str(tmp_path / "full.npz"), ARRAYS)


def test_a_place_that_arrays_must_not_go_to_is_refused_before_the_work(tmp_path: Path) -> None:
    source, folder = tmp_path / "texts.npz", tmp_path / "folder.npz"
    source.write_text("text")
    folder.mkdir()
    (tmp_path / "link.npz").symlink_to(source)
    os.link(source, tmp_path / "hard.npz")
    for other in ("texts.npz", "link.npz", "hard.npz", "folder.npz/../texts.npz"):
        with pytest.raises(UserError, match="is the input itself; name another place for output"):
            check_arrays_file(str(tmp_path / other), [str(source)])
    with pytest.raises(UserError, match="is a folder; name a file"):
        check_arrays_file(str(folder), [str(source)])
    with pytest.raises(UserError, match=r"output vectors must end in \.npz"):
        check_arrays_file("vectors", [])
    check_arrays_file(str(tmp_path / "new.npz"), [str(source)])
