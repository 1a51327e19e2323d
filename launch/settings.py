# SPDX-License-Identifier: Apache-2.0
"""One run's settings, read from a TOML file and checked before anything is asked for.

Standard library only: the launcher runs where neither the package nor JAX is installed.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from commands import Command, LaunchError, parse


@dataclass(frozen=True)
class Settings:
    """What a file says; README.md explains each. None: not given."""

    platform: str
    name: str  # of the machines, the group or the job
    run: str  # the command, as it would be typed in the clone's folder
    python: str = "3.12"
    extras: str | None = None  # of the package; by platform unless given
    setup: tuple[str, ...] = ()  # shell lines, first thing `install` runs on every machine
    create_flags: tuple[str, ...] = ()  # more flags for the command that asks for the machines
    project: str | None = None
    zone: str | None = None
    spot: bool = False
    accelerator: str | None = None  # of the Cloud TPU API: v5litepod-16
    machine_type: str | None = None  # of Compute Engine: ct6e-standard-4t
    topology: str | None = None  # chips along each side: 4x4
    cluster: str | None = None
    location: str | None = None  # of the cluster: its zone or region
    image: str | None = None
    volume_claim: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    time: str | None = None


# What each platform needs, and what it takes besides COMMON.
COMMON = ("platform", "name", "run", "python", "extras")
NEEDS: dict[str, tuple[str, ...]] = {
    "tpu-vm": ("project", "zone", "accelerator"),
    "queued-resource": ("project", "zone", "accelerator"),
    "instance-group": ("project", "zone", "machine_type", "topology"),
    "gke": ("project", "zone", "cluster", "location", "machine_type", "topology", "image"),
    "slurm": ("nodes", "gpus_per_node", "time"),
    "local": (),
}
TAKES: dict[str, tuple[str, ...]] = {
    "tpu-vm": ("spot", "setup", "create_flags"),
    "queued-resource": ("spot", "setup", "create_flags"),
    "instance-group": ("spot", "setup", "create_flags"),
    "gke": ("spot", "create_flags", "volume_claim"),
    "slurm": ("setup", "create_flags"),
    "local": ("setup",),
}
EXTRAS = {"slurm": "cuda", "local": ""}  # the package's; elsewhere a TPU's
LOCKED = ("tpu", "gcs", "cuda", "cuda13")  # extras with a lock, requirements-EXTRA.lock
PYTHONS = ("3.11", "3.12", "3.13")  # that the locks are for

# Cloud TPU API: accelerator -> software version. cloud.google.com/tpu/docs/runtimes
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


@dataclass(frozen=True)
class Machine:
    """A Compute Engine machine family with TPUs: GKE's label; image family, None where Compute
    Engine has no groups of it."""

    label: str
    image_family: str | None
    disk: str = ""


# Labels: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus. Images:
# docs.cloud.google.com/tpu/docs/tpu-os-images; always the family, as images themselves are replaced
# weekly.
_V5P_V6E = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
MACHINES = {
    "ct4p-hightpu": Machine("tpu-v4-podslice", None),
    "ct5lp-hightpu": Machine("tpu-v5-lite-podslice", None),
    "ct5p-hightpu": Machine("tpu-v5p-slice", _V5P_V6E),
    "ct6e-standard": Machine("tpu-v6e-slice", _V5P_V6E),
    "tpu7x-standard": Machine(
        "tpu7x", "ubuntu-accel-2404-amd64-tpu-tpu7x", "--boot-disk-type=hyperdisk-balanced"
    ),
}


def read(path: Path) -> Settings:
    """The settings of a file. Raises LaunchError for the first thing that is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LaunchError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise LaunchError(
            f"{path} cannot be read ({error.strerror}); copy one of launch/examples"
        ) from None
    try:
        return loads(text)
    except LaunchError as error:
        raise LaunchError(f"{path}: {error}") from None


def loads(text: str) -> Settings:
    """The settings in a file's text. Raises LaunchError as `read`."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise LaunchError(f"this is not TOML: {error}") from None
    settings = _typed(values)
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Raises LaunchError where values are not what they can be, or do not fit each other."""
    _check_placeholders(settings)
    if not re.fullmatch(r"[a-z][-a-z0-9]{0,38}[a-z0-9]", settings.name):
        raise LaunchError(
            f"name {settings.name!r} must be 2 to 40 lower-case letters, digits and hyphens, "
            "beginning with a letter"
        )
    for key, (pattern, words) in FORMS.items():
        value = getattr(settings, key)
        if value is not None and not re.fullmatch(pattern, value):
            raise LaunchError(f"{key} {value!r} must be {words}")
    if unlocked := [extra for extra in extras(settings) if extra not in LOCKED]:
        raise LaunchError(
            f"extras has {unlocked[0]!r}, which has no lock; known: {', '.join(LOCKED)}. Install "
            "what else you need by pip in .venv on the machines"
        )
    for flag in settings.create_flags:
        if not flag.startswith("-"):
            raise LaunchError(f"create_flags has {flag!r}, no flag: give --flag=value in one word")
    _check_setup(settings)
    command = parse(settings.run)
    _check_processes(settings, command)
    _check_folders(settings, command)


# Values that are names elsewhere: what they look like, and how to say it.
_NAME = (r"[a-z0-9][-.:a-z0-9]*", "lower-case letters, digits and hyphens")
FORMS = {
    "project": _NAME,
    "cluster": _NAME,
    "location": _NAME,
    "volume_claim": _NAME,
    "zone": (r"[a-z]+-[a-z]+\d+-[a-z]", "a zone, as us-east5-b"),
    "python": ("|".join(map(re.escape, PYTHONS)), f"one of {', '.join(PYTHONS)}"),
    # github.com/distribution/reference: the tag alone may have upper-case letters
    "image": (
        r"[a-z0-9]+([._/-]+[a-z0-9]+)*(:\d+/[a-z0-9]+([._/-]+[a-z0-9]+)*)?(:\w[\w.-]{0,127})?",
        "an image, as us-east5-docker.pkg.dev/PROJECT/REPOSITORY/albert-jax, in lower case",
    ),
    # slurm.schedmd.com/sbatch.html, --time
    "time": (
        r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}",
        "minutes, hours:minutes:seconds or days-hours, as 24:00:00",
    ),
}


def extras(settings: Settings) -> list[str]:
    """The package's extras that are installed."""
    given = settings.extras
    if given is None:
        given = EXTRAS.get(settings.platform, "tpu,gcs")
    return [extra.strip() for extra in given.split(",") if extra.strip()]


def chips_per_machine(settings: Settings) -> int:
    """TPU chips of one machine, by the end of `machine_type`: -4t has four."""
    machine(settings)
    return int(re.findall(r"-(\d+)t", str(settings.machine_type))[-1])


def machine(settings: Settings) -> Machine:
    """The family of `machine_type`."""
    name = str(settings.machine_type)
    found = re.fullmatch(r"(.*)-\d+t(-tpu)?", name)
    if found is None or found[1] not in MACHINES:
        known = ", ".join(f"{family}-4t" for family in MACHINES)
        raise LaunchError(f"machine_type {name!r} is unknown; known: {known}")
    family = MACHINES[found[1]]
    if settings.platform == "instance-group" and family.image_family is None:
        raise LaunchError(
            f"machine_type {name!r} is not to be had in Compute Engine groups; "
            "use platform queued-resource or gke"
        )
    return family


def runtime(settings: Settings) -> str:
    """The software version for `accelerator`."""
    version, _, count = str(settings.accelerator).partition("-")
    if version not in RUNTIMES or not count.isdecimal():
        known = ", ".join(f"{version}-8" for version in RUNTIMES)
        raise LaunchError(
            f"accelerator {settings.accelerator!r} is unknown; known kinds: {known}. TPU7x is an "
            "instance-group's or gke's"
        )
    return RUNTIMES[version]


def host_count(settings: Settings) -> int | None:
    """Machines that the run will have; None: several, the Cloud TPU API knows how many."""
    if settings.platform in ("tpu-vm", "queued-resource"):
        runtime(settings)
        # Up to 8 TensorCores (v2 to v4, v5p) or 8 chips (v5litepod, v6e) are one machine.
        return 1 if int(str(settings.accelerator).partition("-")[2]) <= 8 else None
    if settings.platform in ("instance-group", "gke"):
        topology = str(settings.topology)
        if not re.fullmatch(r"\d+x\d+(x\d+)?", topology):
            raise LaunchError(f"topology {topology!r} must be as 4x4 or 2x2x2")
        chips, each = math.prod(map(int, topology.split("x"))), chips_per_machine(settings)
        if not chips or chips % each:
            raise LaunchError(
                f"topology {topology} has {chips} chips, no multiple of the {each} of a "
                f"{settings.machine_type}"
            )
        return chips // each
    return settings.nodes or 1


def tasks_per_node(settings: Settings, command: Command) -> int:
    """Processes on each node of SLURM's: one for each GPU, but one alone for all of them where the
    command is a single process."""
    return (settings.gpus_per_node or 1) if command.multihost else 1


def _check_processes(settings: Settings, command: Command) -> None:
    """One process, or several of `pretrain --multihost`."""
    hosts = host_count(settings)
    several = hosts != 1 or tasks_per_node(settings, command) > 1
    where = f"{settings.platform} starts it on {hosts or 'several'} machines"
    if command.name != "pretrain" and (several or command.multihost):
        raise LaunchError(
            f"{command.name} is a single process, and {where}; take one machine: only pretrain can "
            "be several processes, with --multihost"
            if several
            else f"{command.name} has no --multihost: only pretrain can be several processes"
        )
    if several and not command.multihost:
        raise LaunchError(f"several processes need --multihost at the end of run: {where}")
    if command.multihost and not several:
        raise LaunchError("run has --multihost, but there is one process only; leave it out")
    for flag in ("--process-id", "--num-processes", "--coordinator"):
        if several and command.option(flag) is not None:
            raise LaunchError(
                f"run has {flag}, the same for every process; leave it out: {settings.platform} "
                "tells each its own"
            )


def _check_folders(settings: Settings, command: Command) -> None:
    """What a run writes must outlive its machine, and be one folder for all of its processes."""
    if settings.spot:
        loss = "would be lost with a spot machine"
    elif settings.platform == "gke":
        loss = "would be lost with its container"
    elif settings.platform != "slurm" and command.multihost:
        loss = "would be another folder on every machine"
    else:
        return
    for flag in ("--workdir", "--output"):
        folder = command.option(flag)
        if folder is not None and not folder.startswith("/") and "://" not in folder:
            raise LaunchError(
                f"{flag} {folder} {loss}; put it in a folder that outlives the machine and that "
                "all see, mounted by setup or volume_claim (launch/README.md, Storage)"
            )


# What the examples have where a value is the reader's own to put.
_PLACEHOLDER = re.compile(r"\byour[-_][\w-]+|<[a-z][\w -]*>", re.IGNORECASE)
# A name that says that it is none; a path may be called so.
_EXAMPLE = re.compile(r"(?<![^-._/:])example(?![^-._/:])", re.IGNORECASE)
_NAMES = ("project", "cluster", "volume_claim", "image")


def _check_placeholders(settings: Settings) -> None:
    for key, value in vars(settings).items():
        for text in value if isinstance(value, tuple) else [value]:
            if not isinstance(text, str):
                continue
            found = _PLACEHOLDER.search(text) or (key in _NAMES and _EXAMPLE.search(text))
            if found:
                raise LaunchError(
                    f"{key} still has {found[0]!r} from the example; put in your own value"
                )


def _check_setup(settings: Settings) -> None:
    """A fresh machine knows no packages before the first update."""
    lines = "\n".join(settings.setup)
    install = re.search(r"\bapt(-get)?\b[^;&|\n]*\binstall\b", lines)
    update = re.search(r"\bapt(-get)?\b[^;&|\n]*\bupdate\b", lines)
    if install and (not update or update.start() > install.start()):
        raise LaunchError(
            f"setup has {install[0]!r} without apt-get update before it, which a fresh machine "
            "needs; put it in"
        )


def _typed(values: Mapping[str, Any]) -> Settings:
    """Settings out of a file's values: known names, right types, all that the platform needs."""
    platform = values.get("platform")
    if not isinstance(platform, str) or platform not in NEEDS:
        raise LaunchError(f"platform {platform!r} is unknown; known: {', '.join(NEEDS)}")
    accepted = (*COMMON, *NEEDS[platform], *TAKES[platform])
    for key in values:
        if key not in accepted:
            near = difflib.get_close_matches(key, accepted, n=1)
            hint = f", perhaps {near[0]}" if near else ""
            raise LaunchError(f"{platform} takes no {key!r}{hint}; known: {', '.join(accepted)}")
    missing = [key for key in ("name", "run", *NEEDS[platform]) if key not in values]
    if missing:
        raise LaunchError(f"{platform} needs {', '.join(missing)}")
    kinds = {f.name: str(f.type).removesuffix(" | None") for f in fields(Settings)}
    return Settings(**{key: _value(key, value, kinds[key]) for key, value in values.items()})


def _value(key: str, value: Any, kind: str) -> Any:
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise LaunchError(f"{key} {value!r} must be a list of strings")
        if key != "setup" and not all(item.isprintable() for item in value):
            raise LaunchError(f"{key} {value!r} must be one line each")
        return tuple(value)
    wanted = {
        "str": (str, "a string"),
        "int": (int, "a whole number"),
        "bool": (bool, "true or false"),
    }
    of, words = wanted[kind]
    if type(value) is not of:  # True is an int to Python
        raise LaunchError(f"{key} {value!r} must be {words}")
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise LaunchError(f"{key} {value} must be at least 1")
    if isinstance(value, str) and not value.isprintable():
        raise LaunchError(f"{key} {value!r} must be one line")
    return value
