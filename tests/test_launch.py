# SPDX-License-Identifier: Apache-2.0
"""launch/: every script is run by bash against stand-ins for gcloud, kubectl, docker and SLURM that
write down what they were called with, and that is compared with the tools' documentation."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from tests.helpers.cloud_flags import DOCKER, GCLOUD, KUBECTL, SBATCH, SCANCEL, SQUEUE, Command
from tests.helpers.paths import REPOSITORY

LAUNCH = REPOSITORY / "launch"
EXAMPLES = sorted((LAUNCH / "examples").glob("*.toml"))

sys.path.insert(0, str(LAUNCH))  # as `python launch` has it

import commands  # noqa: E402
import platforms  # noqa: E402
import settings as settings_module  # noqa: E402
from commands import LaunchError  # noqa: E402
from settings import Settings  # noqa: E402

from albert_jax.cli.commands import COMMANDS  # noqa: E402

TOOLS = ("gcloud", "kubectl", "docker", "sbatch", "squeue", "scancel", "uv", "albert-jax")
_STAND_IN = """\
#!/usr/bin/env bash
# A file a call: several are made at once. EPOCHREALTIME has a comma in some locales.
call="$LAUNCH_LOG.calls/${EPOCHREALTIME/,/.}-$$"
{ printf '%s' "${0##*/}"; printf '\\037%s' "$@"; } > "$call.part" && mv "$call.part" "$call"
case "$*" in
  *queued-resources\\ describe*) echo "$QUEUE_STATE" ;;
  *tpu-vm\\ describe*) echo "$NODE_STATE" ;;
  *list-instances*instanceStatus*) printf '%s\\n' $GROUP_STATE ;;
  *list-instances*) printf 'vm-0\\nvm-1\\nvm-2\\nvm-3\\n' ;;
  *--filename=-*) cat > "$LAUNCH_LOG.manifest" ;;
  venv*) mkdir -p .venv/bin && : > .venv/bin/activate ;;
esac
if [ "${0##*/}" = sbatch ]; then cat > "$LAUNCH_LOG.sbatch"; fi
"""


def _example(name: str) -> Settings:
    """An example with what stands for the reader's own put in."""
    text = (LAUNCH / "examples" / f"{name}.toml").read_text(encoding="utf-8")
    return settings_module.loads(text.replace("your-", "our-"))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """`run(script, NODE_STATE=…)` gives the commands that bash called; the exit status must be
    0."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for tool in TOOLS:
        (stand_ins / tool).write_text(_STAND_IN)
        (stand_ins / tool).chmod(0o755)

    def calls(script: str, cwd: Path = REPOSITORY, **states: str) -> list[list[str]]:
        log = tmp_path / "log"
        shutil.rmtree(tmp_path / "log.calls", ignore_errors=True)
        (tmp_path / "log.calls").mkdir()
        environment = os.environ | {
            "PATH": f"{stand_ins}:{os.environ['PATH']}",
            "LAUNCH_LOG": str(log),
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "USER": "someone",
            "QUEUE_STATE": "ACTIVE",
            "NODE_STATE": "READY",
            "GROUP_STATE": "RUNNING RUNNING RUNNING RUNNING",
        }
        done = subprocess.run(
            ["bash", "-c", script],
            env=environment | states,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return _calls(tmp_path)

    return calls


def _calls(folder: Path) -> list[list[str]]:
    """What the stand-ins were called with since the last `run`, in order."""
    files = sorted(f for f in (folder / "log.calls").iterdir() if f.suffix != ".part")
    return [file.read_text().split("\037") for file in files]


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Words, and flags with their values ("" where there is none)."""
    words = [a for a in arguments if not a.startswith("-")]
    flags = dict(a.partition("=")[::2] for a in arguments if a.startswith("-"))
    return words, flags


def _check(name: str, words: list[str], flags: dict[str, str], command: Command) -> None:
    assert not (unknown := set(flags) - command.takes - command.needs), (name, unknown)
    assert not (missing := command.needs - set(flags)), (name, missing)
    assert len(words) in command.words, (name, words)
    for flag, choices in command.values.items():
        assert flags.get(flag) in {None, *choices}, (name, flag, flags[flag])


def _check_documented(call: list[str]) -> str:
    """The command's name; fails where the documentation does not have it, or a flag of it."""
    tool, *arguments = call
    words, flags = _split(arguments)
    if tool in ("scancel", "squeue"):
        _check(tool, words, flags, SCANCEL if tool == "scancel" else SQUEUE)
        return tool
    table = {"gcloud": GCLOUD, "kubectl": KUBECTL, "docker": DOCKER}[tool]
    name = max((n for n in table if words[: len(n.split())] == n.split()), key=len, default="")
    assert name, f"{shlex.join(call)} is no documented command"
    _check(name, words[len(name.split()) :], flags, table[name])
    return name


SCRIPTS = [(path.stem, action) for path in EXAMPLES for action in platforms.ACTIONS]


@pytest.mark.parametrize(("platform", "action"), SCRIPTS)
def test_every_command_is_as_the_tools_documentation_has_it(
    platform: str, action: str, run: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    given = _example(platform)
    assert given.platform == platform
    text = platforms.script(given, action)
    if platform in ("local", "slurm") and action in ("install", "run", "logs", "resume", "stop"):
        text = "true"  # they act here; tested below, SLURM's script by itself
    states = {"NODE_STATE": "PREEMPTED", "GROUP_STATE": "STOPPED"} if action == "resume" else {}
    calls = run(text.replace("tail -n 40 -F", "tail -n 40"), **states)
    for call in calls:
        _check_documented(call)
    if platform not in ("local", "slurm"):
        assert calls


@pytest.mark.parametrize("machine", ["tpu7x-standard-4t", "ct6e-standard-4t", "ct5p-hightpu-4t"])
@pytest.mark.parametrize("platform", ["instance-group", "gke"])
@pytest.mark.parametrize("topology", ["2x2x1", "2x2x4"])
def test_slices_of_each_kind_are_asked_for_as_documented(
    platform: str, machine: str, topology: str, run: Callable[..., list[list[str]]]
) -> None:
    command = "albert-jax pretrain r.py" + (" --multihost" if topology == "2x2x4" else "")
    given = replace(_example(platform), machine_type=machine, topology=topology, run=command)
    settings_module.check(given)
    calls = [call for call in run(platforms.script(given, "create")) if call[0] == "gcloud"]
    named = {_check_documented(call): _split(call)[1] for call in calls}
    # docs.cloud.google.com/compute/docs/tpus/create-tpu-mig-multi-host-slice: a policy with the
    # topology makes machines a slice. On GKE it is for TPU7x only:
    # docs.cloud.google.com/kubernetes-engine/docs/concepts/tpu-ironwood.
    several, is_7x = topology == "2x2x4", machine.startswith("tpu7x")
    wants_policy = several and (platform == "instance-group" or is_7x)
    policy = named.get("compute resource-policies create workload-policy")
    assert (policy is not None) == wants_policy
    if platform == "instance-group":
        group = named["compute instance-groups managed create"]
        assert group["--size"] == ("4" if several else "1")
        assert ("--workload-policy" in group) == several
        family = named["compute instance-templates create"]["--image-family"]
        assert family.endswith("tpu7x" if is_7x else "v5e-v5p-v6e")
    else:
        pool = named["container node-pools create"]
        assert pool["--num-nodes"] == ("4" if several else "1")
        assert ("--tpu-topology" in pool) == (several and not is_7x)
        assert ("--placement-policy" in pool) == wants_policy


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ("compute tpus tpu-vm ssh a --zone=z --worker-all", "--worker-all"),
        ("compute tpus tpu-vm create a --zone=z", "--version"),
        ("compute tpus tpu-vm make a", "is no documented command"),
        (
            "compute instance-groups managed create a --size=1 --template=t "
            "--default-action-on-vm-failure=do-everything",
            "do-everything",
        ),
    ],
)
def test_what_gcloud_does_not_take_would_be_found(call: str, wrong: str) -> None:
    with pytest.raises(AssertionError, match=wrong):
        _check_documented(["gcloud", *call.split()])


def test_all_machines_of_a_group_are_reached(run: Callable[..., list[list[str]]]) -> None:
    given = _example("instance-group")
    for action in ("install", "run", "logs", "stop"):
        calls = run(platforms.script(given, action))
        assert sorted(c[3] for c in calls if c[1:3] == ["compute", "ssh"]) == [
            f"vm-{n}" for n in range(4)
        ]


@pytest.mark.parametrize("platform", ["tpu-vm", "queued-resource", "instance-group"])
def test_resume_makes_machines_anew_only_where_they_are_gone(
    platform: str, run: Callable[..., list[list[str]]]
) -> None:
    script = platforms.script(_example(platform), "resume")
    there = [" ".join(call) for call in run(script)]
    gone = [" ".join(c) for c in run(script, NODE_STATE="PREEMPTED", GROUP_STATE="STOPPED")]
    assert not any(" create " in call or " delete " in call for call in there)
    assert any(" delete " in call for call in gone)
    started = run(platforms.script(_example(platform), "run"))
    again = run(script)
    assert all(call in again for call in started)


def test_a_request_in_the_queue_is_not_made_twice(run: Callable[..., list[list[str]]]) -> None:
    calls = run(platforms.script(_example("queued-resource"), "create"))
    assert {call[4] for call in calls} == {"describe"}


# ------------------------------------------------------------------------------------- the scripts


def _worker_scripts(text: str) -> list[str]:
    """The scripts that machines are given, as bash would hand them on."""
    words = shlex.split(text, comments=True)
    return [w.partition("=")[2] for w in words if w.startswith("--command=")]


def test_every_script_passes_shellcheck(tmp_path: Path) -> None:
    files = []
    for path in EXAMPLES:
        for action in platforms.ACTIONS:
            text = platforms.script(_example(path.stem), action)
            for number, script in enumerate([text, *_worker_scripts(text)]):
                files.append(tmp_path / f"{path.stem}-{action}-{number}.sh")
                files[-1].write_text(script)
    # SC2016: what machines shall expand is meant to be in single quotes. SC1091: their .venv.
    checker = Path(sys.executable).parent / "shellcheck"
    command = [str(checker), "--shell=bash", "--exclude=SC2016,SC1091", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for file in files:
        subprocess.run(["bash", "-n", file], check=True)


def test_the_dry_run_is_what_bash_is_given(tmp_path: Path) -> None:
    fake = tmp_path / "bash"
    fake.write_text(f'#!{sys.executable}\nimport sys\nprint(sys.argv[2], end="")\n')
    fake.chmod(0o755)
    command = [sys.executable, str(LAUNCH), "run", str(LAUNCH / "examples" / "local.toml")]
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    real = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert dry.stdout == real.stdout
    assert "  albert-jax pretrain configs/one_gpu_day.py" in dry.stdout


def test_a_machine_gets_the_clone_and_runs_the_command_once(
    run: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    """What is sent to a machine, carried out in a folder that plays its home."""
    given = replace(_example("tpu-vm"), run="albert-jax pretrain 'my recipe.py:model=base-v2'")
    scripts = {
        name: _worker_scripts(platforms.script(given, name))[0] for name in ("install", "run")
    }
    subprocess.run(
        ["git", "archive", "--format=tar.gz", f"--output={tmp_path}/albert_jax.tar.gz", "HEAD"],
        cwd=REPOSITORY,
        check=True,
    )
    calls = run(scripts["install"], cwd=tmp_path)
    assert [call[:3] for call in calls if call[0] == "uv"] == [
        ["uv", "venv", "--allow-existing"],
        ["uv", "pip", "install"],
        ["uv", "pip", "install"],
    ]
    assert calls[-1][-1] == ".[tpu,gcs]"
    assert "--no-deps" in calls[-1]  # it has all that it needs by the locks, which are hashed
    assert "--require-hashes" in calls[-2]
    locks = [word for word in calls[-2] if word.endswith(".lock")]
    assert locks == ["requirements.lock", "requirements-tpu.lock", "requirements-gcs.lock"]
    # The launcher's own commit may be older than the locks in the working tree.
    assert (tmp_path / "albert_jax" / "requirements.lock").is_file()
    # It ends with 75 the first time, which starts it again, and then stays.
    stays = tmp_path / "bin" / "albert-jax"
    stays.write_text(f"{stays.read_text()}[ -e once ] || {{ touch once; exit 75; }}\nsleep 200\n")
    run(scripts["run"].replace("sleep 10", "sleep 0"), cwd=tmp_path)
    process = int((tmp_path / "albert_jax" / "run.pid").read_text())
    call = ["albert-jax", "pretrain", "my recipe.py:model=base-v2"]
    _until(lambda: _calls(tmp_path) == [call, call])
    assert run(scripts["run"], cwd=tmp_path) == []  # it is running already
    assert int((tmp_path / "albert_jax" / "run.pid").read_text()) == process
    stop = _worker_scripts(platforms.script(given, "stop"))[0]
    run(stop, cwd=tmp_path)
    run(scripts["run"], cwd=tmp_path)  # waits for the first to save, and then starts another
    _until(lambda: not _lives(process))  # it is gone, and only to be reaped
    second = int((tmp_path / "albert_jax" / "run.pid").read_text())
    _until(lambda: _calls(tmp_path) == [call])
    run(stop, cwd=tmp_path)
    _until(lambda: not _lives(second))


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# ---------------------------------------------------------------------------------- SLURM, JobSet


def test_the_slurm_script_has_documented_options_and_goes_on_after_75(
    run: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    run(platforms.script(_example("slurm"), "run"))
    job = (tmp_path / "log.sbatch").read_text()
    options = re.findall(r"^#SBATCH (--[\w-]+)(?:=(.*))?$", job, re.MULTILINE)
    assert len(options) == job.count("#SBATCH")
    flags = dict(options)
    _check("sbatch", [], flags, SBATCH)
    assert flags["--ntasks-per-node"] == flags["--gpus-per-node"]  # JAX takes a GPU a task
    for tool, text in {
        "srun": 'echo "srun $*" >> calls; exit "$CODE"',
        "scontrol": 'echo "scontrol $*" >> calls',
    }.items():
        (tmp_path / "bin" / tool).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / tool).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    for code, restarts, requeued in (
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
        (75, 900, 1),
        (143, 900, 1),  # SIGTERM in the first moments of Python
        (137, 2, 1),  # killed, as for want of memory: not for ever
        (137, 3, 0),
        (139, 0, 1),
    ):
        (tmp_path / "calls").write_text("")
        given = environment | {"CODE": str(code), "SLURM_RESTART_COUNT": str(restarts)}
        done = subprocess.run(["bash", "-c", job], env=given, cwd=tmp_path)
        assert done.returncode == code
        assert (tmp_path / "calls").read_text().count("scontrol requeue 7") == requeued


@pytest.mark.parametrize(
    ("run", "gpus", "tasks"),
    [
        ("albert-jax pretrain r.py --multihost", 8, 8),
        ("albert-jax pretrain r.py", 8, 1),  # one process drives all GPUs of its node
        ("albert-jax finetune r.py", 8, 1),
        ("env A=1 python -m albert_jax evaluate", 1, 1),
    ],
)
def test_slurm_starts_a_single_process_once(run: str, gpus: int, tasks: int) -> None:
    given = replace(_example("slurm"), run=run, nodes=1, gpus_per_node=gpus)
    settings_module.check(given)
    text = platforms.script(given, "run")
    assert f"#SBATCH --ntasks-per-node={tasks}\n" in text
    assert f"#SBATCH --gpus-per-node={gpus}\n" in text


@pytest.mark.parametrize("claim", [None, "shared"])
def test_the_manifest_is_a_jobset_by_its_schema(claim: str | None) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    given = replace(_example("gke"), volume_claim=claim)
    manifest = yaml.safe_load(platforms.jobset(given))
    parsed = models.JobsetV1alpha2JobSet.from_dict(manifest)
    assert parsed.to_dict() == manifest  # a field that the schema does not have would be lost
    template = manifest["spec"]["replicatedJobs"][0]["template"]
    pod = template["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert template["spec"]["parallelism"] == template["spec"]["completions"] == 4
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == shlex.split(given.run)
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    rule = template["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == container["name"]
    assert rule["values"] == [1, 2, 126, 127]  # all else is started again, a hundred times at most
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 100


def test_a_misspelt_field_of_the_manifest_would_be_found() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    manifest = yaml.safe_load(platforms.jobset(_example("gke")))
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    assert models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() != manifest


# ------------------------------------------------------------------------------------ the settings


GOOD = {
    "platform": '"gke"',
    "name": '"a-b"',
    "run": '"albert-jax pretrain r.py --store s --workdir /w --multihost"',
    "project": '"p"',
    "zone": '"us-east5-b"',
    "cluster": '"c"',
    "location": '"us-east5"',
    "machine_type": '"ct6e-standard-4t"',
    "topology": '"4x4"',
    "image": '"i"',
}
# What GOOD has and the platform local does not take, left out.
OF_LOCAL = dict.fromkeys(GOOD) | {"platform": '"local"', "name": '"a-b"', "run": GOOD["run"]}
BAD = [
    ({"platform": '"azure"'}, "platform 'azure' is unknown"),
    ({"zonne": '"z"'}, "takes no 'zonne', perhaps zone"),
    ({"accelerator": '"v4-8"'}, "gke takes no 'accelerator'"),
    ({"zone": None}, "gke needs zone"),
    ({"spot": '"yes"'}, "spot 'yes' must be true or false"),
    ({"setup": '["mount a"]'}, "gke takes no 'setup'; known"),
    (OF_LOCAL | {"create_flags": '["--x"]'}, "local takes no 'create_flags'; known"),
    (OF_LOCAL | {"setup": '"mount"'}, "setup 'mount' must be a list of strings"),
    ({"name": '"A B"'}, "name 'A B' must be"),
    ({"zone": '"us-east5"'}, "zone 'us-east5' must be a zone"),
    ({"project": '"p; rm -rf /"'}, "project 'p; rm -rf /' must be"),
    ({"run": '"albert-jax \'x"'}, "is no command"),
    ({"run": '" "'}, "run is empty"),
    ({"run": '"albert-jax pretrain r.py"'}, "need --multihost"),
    ({"run": '"env A=1 albert-jax pretrain r.py"'}, "need --multihost"),
    ({"run": '"python -m albert_jax pretrain r.py --multihost --no-multihost"'}, "need --multi"),
    ({"run": '"albert-jax finetune r.py"'}, "finetune is a single process, and gke starts it on 4"),
    ({"run": '"nice -n 5 .venv/bin/albert-jax predict"'}, "predict is a single process"),
    ({"run": '"python3.12 -u -m albert_jax evaluate"'}, "evaluate is a single process"),
    ({"topology": '"2x2"', "run": '"albert-jax finetune --multihost"'}, "finetune has no --multi"),
    (
        {"run": '"albert-jax pretrain r.py --multihost --process-id=0"'},
        "run has --process-id, the same for every process",
    ),
    ({"run": '"albert-jax pretrian r.py"'}, "run has 'pretrian', no command of albert-jax"),
    ({"run": '"albert-jax"'}, "names no command"),
    ({"run": '"A=1 albert-jax pretrain"'}, "'A=1', which only a shell would set; write env"),
    ({"run": "\"bash -c 'albert-jax pretrain --multihost'\""}, "what a shell starts cannot be"),
    ({"run": '"env bash run.sh albert-jax pretrain --multihost"'}, "something else than albert"),
    ({"run": '"srun albert-jax pretrain --multihost"'}, "starts something else than albert-jax"),
    ({"run": '"time albert-jax pretrain --multihost"'}, "starts something else than albert-jax"),
    ({"run": '"python train.py"'}, "starts something else than albert-jax"),
    ({"run": '"albert-jax info x; albert-jax info y"'}, "run has ';', which is for a shell"),
    ({"run": '"albert-jax info x && rm y"'}, "run has '&&', which is for a shell"),
    ({"run": '"albert-jax info x | tee y"'}, "run has '|', which is for a shell"),
    ({"run": '"albert-jax info x>y"'}, "run has '>', which is for a shell"),
    ({"run": '"albert-jax info $HOME/x"'}, "run has '$HOME', which is for a shell"),
    ({"run": "'albert-jax info \"${X}\"'"}, "run has '${', which is for a shell"),
    ({"run": '"albert-jax info `pwd`"'}, "run has '`', which is for a shell"),
    ({"run": '"albert-jax info ~/x"'}, "run has '~/x', which is for a shell"),
    ({"run": '"albert-jax pretrain --workdir=~/x"'}, "run has '~/x', which is for a shell"),
    ({"run": '"albert-jax info {a,b}.txt"'}, "run has '{a,b}', which is for a shell"),
    ({"topology": '"2x2"'}, "one process only"),
    ({"topology": '"4,4"'}, "topology '4,4' must be as 4x4"),
    ({"topology": '"0x4"'}, "topology 0x4 has 0 chips"),
    ({"topology": '"2x3"'}, "has 6 chips, no multiple of the 4"),
    ({"machine_type": '"n2-standard-4"'}, "machine_type 'n2-standard-4' is unknown"),
    (
        {"spot": "true", "run": '"albert-jax pretrain r.py --workdir runs/x --multihost"'},
        "runs/x would be lost with a spot machine",
    ),
    (
        {"spot": "true", "run": '"albert-jax pretrain r.py --multihost --workdir=runs/x"'},
        "runs/x would be lost with a spot machine",
    ),
    (
        {"run": '"albert-jax pretrain r.py --multihost --workdir runs/x"'},
        "runs/x would be lost with its container",
    ),
    ({"project": '"your-project"'}, "still has 'your-project' from the example; put in your"),
    ({"project": '"YOUR_PROJECT"'}, "project still has 'YOUR_PROJECT'"),
    ({"project": '"<project>"'}, "project still has '<project>'"),
    ({"cluster": '"example-cluster"'}, "cluster still has 'example'"),
    ({"image": '"us-docker.pkg.dev/your-project/x/y"'}, "image still has 'your-project'"),
    (
        OF_LOCAL | {"setup": '["mount your-filestore-ip:/x /y"]'},
        "setup still has 'your-filestore-ip'",
    ),
    ({"create_flags": '["--network=<network name>"]'}, "create_flags still has '<network name>'"),
    ({"run": '"albert-jax pretrain --store gs://your-bucket/x"'}, "run still has 'your-bucket'"),
    (
        OF_LOCAL | {"setup": '["sudo apt-get install --yes nfs-common"]'},
        "without apt-get update before it",
    ),
    (OF_LOCAL | {"setup": '["apt install x && apt update"]'}, "without apt-get update before it"),
    ({"python": '"3.10"'}, "python '3.10' must be one of 3.11, 3.12, 3.13"),
    ({"extras": '"tpu,beam"'}, "extras has 'beam', which has no lock; known: tpu, gcs, cuda"),
    ({"image": '"Us-docker.pkg.dev/p/x"'}, "image 'Us-docker.pkg.dev/p/x' must be an image"),
    ({"image": '"a b"'}, "image 'a b' must be an image"),
    ({"create_flags": '["a\\nb"]'}, "must be one line each"),
    ({"create_flags": '["network", "x"]'}, "create_flags has 'network', no flag"),
    ({"platform": '["gke"]'}, "platform ['gke'] is unknown"),
    ({"machine": "{ a = 1 }"}, "gke takes no 'machine', perhaps machine_type"),
    ({"project": "1979-05-27"}, "project datetime.date(1979, 5, 27) must be a string"),
    ({"project": "[" * 5000}, "is not TOML"),
    ({"name": '"a\\nb"'}, "must be"),
    ({"image": '"a\\nb"'}, "must be one line"),
    ({"platform": "[1"}, "is not TOML"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_settings_are_refused_in_one_line(
    changes: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    values = {key: value for key, value in (GOOD | changes).items() if value is not None}
    file.write_text("".join(f"{key} = {value}\n" for key, value in values.items()))
    with pytest.raises(LaunchError) as error:
        settings_module.read(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "v9-8"}, "accelerator 'v9-8' is unknown"),
        ({"accelerator": "v6e"}, "accelerator 'v6e' is unknown"),
        ({"accelerator": "v4-16"}, "need --multihost"),
        (
            {"accelerator": "v4-16", "run": "albert-jax pretrain --workdir runs/x --multihost"},
            "runs/x would be another folder on every machine",
        ),
    ],
)
def test_bad_accelerators_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        settings_module.check(replace(_example("tpu-vm"), **changes))


def test_v5e_has_no_instance_group() -> None:
    given = replace(_example("instance-group"), machine_type="ct5lp-hightpu-4t")
    with pytest.raises(LaunchError, match="not to be had in Compute Engine groups"):
        settings_module.check(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch-it", "nothing.toml"], "action 'launch-it' is unknown"),
        (["run", "nothing.toml"], "nothing.toml cannot be read"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(arguments: list[str], message: str) -> None:
    command = [sys.executable, str(LAUNCH), *arguments, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"nodes": 2, "run": "albert-jax finetune r.py"},
            "finetune is a single process, and slurm",
        ),
        ({"nodes": 2, "run": "env A=1 albert-jax pretrain r.py"}, "need --multihost"),
        ({"nodes": 1, "gpus_per_node": 1}, "one process only"),
        ({"time": "tomorrow"}, "time 'tomorrow' must be minutes"),
    ],
)
def test_slurm_never_starts_a_single_process_on_every_task(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        settings_module.check(replace(_example("slurm"), **changes))


@pytest.mark.parametrize(
    "run",
    [
        "albert-jax pretrain configs/pretrain.py:model=base-v2,chips=4 --store s",
        "albert-jax prepare 'corpus/*.txt' 'a;b' --vocab \"v's\" --output o",
        "env -u X A='$1' albert-jax info x",  # in single quotes a shell leaves it alone too
        "/opt/my\\ env/bin/albert-jax info x",
        "env A=1 nice -n 5 numactl -N 0 python3 -X dev -m albert_jax info x",
        ".venv/bin/python -m albert_jax info x",
    ],
)
def test_what_is_a_command_is_taken(run: str) -> None:
    given = replace(_example("local"), run=run)
    settings_module.check(given)
    assert list(commands.parse(run).words) == shlex.split(run)


def test_the_launcher_knows_the_commands_of_albert_jax() -> None:
    assert set(commands.COMMANDS) == set(COMMANDS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_an_example_leaves_to_its_reader_must_be_put_in(path: Path) -> None:
    if "your-" not in path.read_text():
        settings_module.read(path)
        return
    with pytest.raises(LaunchError, match="still has 'your-"):
        settings_module.read(path)


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'platform = "\xe9"')
    (tmp_path / "folder").mkdir()
    for name, message in {
        "missing": "cannot be read (No such file or directory)",
        "folder": "cannot be read (Is a directory)",
        "latin": "is not TOML",
    }.items():
        with pytest.raises(LaunchError, match=re.escape(message)) as error:
            settings_module.read(tmp_path / name)
        assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------- starting, ending


def _again(tmp_path: Path, statuses: list[int]) -> tuple[int, int]:
    """(exit status, attempts) of the loop that a machine runs, where attempts end so."""
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    given = replace(_example("local"), run="albert-jax info x")
    text = platforms._fill(platforms._AGAIN, platforms._values(given)).replace("sleep 10", "true")
    stand_in = tmp_path / "albert-jax"
    stand_in.write_text(
        "#!/bin/bash\necho >> attempts\n"
        'status=$(head -n 1 statuses)\nsed -i 1d statuses\nexit "$status"\n'
    )
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{text}"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    return done.returncode, (tmp_path / "attempts").read_text().count("\n")


@pytest.mark.parametrize(
    ("statuses", "status", "attempts"),
    [
        ([0], 0, 1),
        ([1], 1, 1),
        ([2], 2, 1),
        ([127], 127, 1),
        ([75, 75, 75, 75, 75, 0], 0, 6),
        ([143, 143, 143, 143, 143, 0], 0, 6),  # SIGTERM in the first moments of Python
        ([137, 137, 137, 0], 0, 4),
        ([137, 137, 137, 137, 0], 137, 4),  # too little memory does not become more
        ([139, 134, 137, 135, 0], 135, 4),
        ([137, 137, 75, 137, 137, 137, 0], 0, 7),
    ],
)
def test_what_ended_for_no_fault_of_its_own_is_started_again(
    statuses: list[int], status: int, attempts: int, tmp_path: Path
) -> None:
    assert _again(tmp_path, statuses) == (status, attempts)


def test_a_run_that_is_stopped_between_two_attempts_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "run.stop").touch()
    (tmp_path / "attempts").touch()
    assert _again(tmp_path, [75, 75, 0]) == (0, 0)


def _launch(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(LAUNCH), *arguments],
        env=os.environ | ({"PATH": path} if path is not None else {}),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("platform", "action", "program"),
    [
        ("tpu-vm", "create", "gcloud"),
        ("tpu-vm", "install", "gcloud"),
        ("gke", "run", "kubectl"),
        ("gke", "install", "docker"),
        ("slurm", "run", "sbatch"),
        ("slurm", "status", "squeue"),
        ("slurm", "stop", "scancel"),
    ],
)
def test_programs_that_are_missing_are_named(
    platform: str, action: str, program: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    text = (LAUNCH / "examples" / f"{platform}.toml").read_text(encoding="utf-8")
    file.write_text(text.replace("your-", "our-"))
    (tmp_path / "bash").symlink_to(shutil.which("bash") or "")
    done = _launch(action, str(file), path=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"python launch: {program} is not installed; launch/README.md, Before you begin\n"
    )


def test_no_other_programs_are_asked_for() -> None:
    needed = {
        (path.stem, action): platforms.programs(platforms.script(_example(path.stem), action))
        for path in EXAMPLES
        for action in platforms.ACTIONS
    }
    assert needed["tpu-vm", "install"] == ["gcloud", "git"]
    assert needed["queued-resource", "create"] == ["gcloud"]
    assert needed["instance-group", "logs"] == ["gcloud"]
    assert needed["gke", "install"] == ["docker"]
    assert needed["gke", "status"] == ["kubectl"]
    assert needed["gke", "delete"] == ["gcloud", "kubectl"]
    assert {*needed["local", "install"], *needed["local", "run"]} == set()


def test_ctrl_c_ends_following_the_log_and_nothing_else(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(LAUNCH, clone / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "run.log").write_text("step 1\n")
    file = clone / "launch" / "examples" / "local.toml"
    process = subprocess.Popen(
        [sys.executable, str(clone / "launch"), "logs", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,  # it acts in the clone, wherever it is called
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "step 1\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGINT  # 130, as a shell says it


# ---------------------------------------------------------------------------------------- the image


def _sent_to_docker(files: list[str]) -> list[str]:
    """Those that .dockerignore leaves, by docker's rules: the last pattern that matches a path, or
    a folder above it, decides. docs.docker.com/build/concepts/context/#dockerignore-files"""
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    left = []
    for file in files:
        ignored = False
        parts = file.split("/")
        above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        for rule in rules:
            pattern = re.escape(rule.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?")
            pattern = pattern.replace(r"\*", "[^/]*")
            if any(re.fullmatch(pattern, path) for path in above):
                ignored = not rule.startswith("!")
        if not ignored:
            left.append(file)
    return left


def test_the_image_gets_what_it_needs_and_nothing_else() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    strewn = [
        ".git/config",
        ".venv/bin/python",
        ".jax_cache/x",
        ".env",
        "runs/base/checkpoints/1/state",
        "store/tokens.bin",
        "my-run.toml",
        "albert_jax/__pycache__/x.pyc",
        "albert_jax/data/__pycache__/x.pyc",
        "configs/.ipynb_checkpoints/x",
        "albert_jax/.secret",
        "key.json",
    ]
    sent = _sent_to_docker(listed + strewn)
    wanted = [
        file
        for file in listed
        if file.startswith(("albert_jax/", "configs/"))
        or file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE")
        or (re.fullmatch(r"requirements.*\.lock", file) and "dev" not in file)
    ]
    assert sorted(sent) == sorted(wanted)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"]} <= set(sent)  # the build reads them
    assert {f"requirements-{extra}.lock" for extra in settings_module.LOCKED} <= set(sent)


def test_the_image_installs_by_hashes_alone() -> None:
    text = (LAUNCH / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip install ([^;&\n]*)", text)
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[1]
    (loop,) = re.findall(r"for extra in .*?done", text)
    shell = f'EXTRAS=tpu,gcs; {loop}; echo "$@"'
    done = subprocess.run(["sh", "-euc", shell], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "--requirement",
        "requirements-tpu.lock",
        "--requirement",
        "requirements-gcs.lock",
    ]


def test_nothing_is_installed_without_a_version() -> None:
    """No script, example or image takes whatever is newest of what runs as root or in the run."""
    text = "".join(platforms.script(_example(p.stem), "install") for p in EXAMPLES)
    assert re.findall(r"astral\.sh/uv/([^/]*)/install\.sh", text) == [platforms.UV] * 5
    assert text.count("uv pip install") == 2 * text.count("--require-hashes")


def test_the_readme_has_every_action_platform_and_setting() -> None:
    readme = (LAUNCH / "README.md").read_text(encoding="utf-8")
    named = [*platforms.ACTIONS, *settings_module.NEEDS, *(f.name for f in fields(Settings))]
    assert [name for name in named if f"`{name}" not in readme] == []
    assert {path.stem for path in EXAMPLES} == set(settings_module.NEEDS)
