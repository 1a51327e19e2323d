# SPDX-License-Identifier: Apache-2.0
"""Prints what the core install takes on disk, and what each extra adds to it, by the files of the
packages that are installed here: `python -m benchmarks.install_size [EXTRA…]`.

An extra's packages are those that it asks for, and what these ask for, less the core's. Where one
of them is not installed, the extra has no size.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def closure(asked: Iterable[str]) -> tuple[dict[str, Distribution], set[str]]:
    """Return the installed packages that requirements lead to, by name, and what is missing."""
    found: dict[str, Distribution] = {}
    missing: set[str] = set()
    waiting = [(Requirement(each), "") for each in asked]
    seen = set()
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        for of in ("", *sorted(wanted.extras)):
            if (name, of) in seen:
                continue
            seen.add((name, of))
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                missing.add(name)
                continue
            waiting += [(Requirement(each), of) for each in found[name].requires or ()]
    return found, missing


def megabytes(packages: Iterable[Distribution]) -> float:
    """Return the size of packages' files, compiled bytecode included, in MB."""
    paths = (Path(str(file.locate())) for each in packages for file in each.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    project: Mapping[str, Any] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    core, _ = closure(project["dependencies"])
    print(f"core: {megabytes(core.values()):.0f} MB, {len(core)} packages")
    for extra in sys.argv[1:] or extras:
        found, missing = closure(extras[extra])
        added = {name: each for name, each in found.items() if name not in core}
        if missing:
            print(f"{extra}: not installed here: {', '.join(sorted(missing))}")
        else:
            names = sorted(added, key=lambda name: -megabytes([added[name]]))[:4]
            size = megabytes(added.values())
            print(f"{extra}: {size:.0f} MB, {len(added)} packages ({', '.join(names)})")


if __name__ == "__main__":
    main()
