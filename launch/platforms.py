# SPDX-License-Identifier: Apache-2.0
"""What each action is on each platform: one table of bash scripts.

In a script `@name` stands for a value of the settings, quoted for bash; `@@` is an `@`. The dry run
prints the script, and a run without it hands the same text to bash.
"""

from __future__ import annotations

import json
import re
import shlex
import string
from pathlib import Path

from commands import parse
from settings import (
    Settings,
    chips_per_machine,
    extras,
    host_count,
    machine,
    runtime,
    tasks_per_node,
)

UV = "0.13.9"  # github.com/astral-sh/uv/releases
ACTIONS = ("create", "install", "run", "logs", "status", "stop", "resume", "delete")

# JobSet is what GKE starts the run with. github.com/kubernetes-sigs/jobset/releases
JOBSET = "https://github.com/kubernetes-sigs/jobset/releases/download/v0.12.0/manifests.yaml"

# ---------------------------------------------------------------- what every machine is asked to do

# uv brings its own Python: the TPU images have 3.10, and some have no pip. All else is hashed: the
# package's dependencies by the locks, so that it brings none itself.
_ENVIRONMENT = """\
export PATH="$HOME/.local/bin:$PATH"
command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/@uv/install.sh | sh
uv venv --allow-existing --python @python .venv
uv pip install --require-hashes@locks
uv pip install --no-deps --no-build-isolation --editable @package
"""

_WORKER = {
    "install": "set -eu\nmkdir -p albert_jax\n@{setup}"
    "tar -xzf albert_jax.tar.gz -C albert_jax\ncd albert_jax\n" + _ENVIRONMENT,
    "run": """\
set -eu
cd albert_jax
@start""",
    "logs": "tail -n 40 -F albert_jax/run.log",
    "stop": "set -eu\ncd albert_jax\n@interrupt",
}

# The file may be left from before a crash or a reboot, and its number be another program's. The
# loop that starts the run has run.stop among its words.
_RUNNING = '[ -f run.pid ] && ps -p "$(cat run.pid)" -o args= | grep -q run.stop'

# In the background, so that the run outlives the connection.
_START = """\
if [ -e run.stop ] && @running; then
  echo "$(hostname): waiting for the run that was stopped to save"
  while @running; do sleep 1; done
fi
if @running; then
  echo "$(hostname): already running"
  exit 0
fi
. .venv/bin/activate
rm -f run.stop
nohup bash -c @again >> run.log 2>&1 < /dev/null &
echo $! > run.pid
echo "$(hostname): started"
"""

# What is started again: 75, which is saved and to be gone on with, as after a lost peer (all hosts
# of a run end so, and wait for each other when they start); 143, SIGTERM before Python could take
# it. Killed by another signal, as for want of memory (137): three times in a row, not counting
# those that came far.
_AGAIN = """\
code=0
killed=0
while [ ! -e run.stop ]; do
  SECONDS=0
  code=0
  @run || code=$?
  if [ "$code" -eq 75 ] || [ "$code" -eq 143 ] || [ "$SECONDS" -ge 3600 ]; then
    killed=0
  else
    killed=$((killed + 1))
  fi
  if [ "$code" -ne 75 ] && [ "$code" -le 128 ]; then exit "$code"; fi
  if [ "$killed" -gt 3 ] || [ -e run.stop ]; then exit "$code"; fi
  echo "status $code: starting again"
  sleep 10
done
exit "$code\""""

# The run saves and ends with status 75. Between two attempts only the pause is there to be ended.
_INTERRUPT = """\
touch run.stop
if @running; then
  pkill -TERM -P "$(cat run.pid)" || true
else
  echo "$(hostname): not running"
fi
"""

# ----------------------------------------------------------------------------- machines of Google's

_ARCHIVE = """\
archive=$(mktemp -d)/albert_jax.tar.gz
git archive --format=tar.gz --output="$archive" HEAD
"""


def _machines(
    *, create: str, ready: str, state: str, delete: str, copy: str, each: str
) -> dict[str, str]:
    """The actions on machines that are reached one by one: `copy` takes "$archive" to all of them,
    `each` runs @script on all, `ready` is a bash condition."""
    actions = {name: each.replace("@script", f"@worker_{name}") for name in _WORKER}
    actions["install"] = _ARCHIVE + copy + actions["install"]
    resume = (
        f"if ! {ready}; then\n# Preempted machines do not come back: away with what is left.\n"
        f"(\n{delete}) || true\n{create}{actions['install']}fi\n{actions['run']}"
    )
    return {**actions, "create": create, "status": state, "resume": resume, "delete": delete}


_TPU_VM = {
    "ready": '[ "$(gcloud compute tpus tpu-vm describe @name --project=@project --zone=@zone '
    "--format='value(state)')\" = READY ]",
    "copy": 'gcloud compute tpus tpu-vm scp "$archive" @name: --project=@project --zone=@zone '
    "--worker=all\n",
    "each": "gcloud compute tpus tpu-vm ssh @name --project=@project --zone=@zone --worker=all "
    "--command=@script\n",
}

_WORKERS = (
    "gcloud compute instance-groups managed list-instances @name --project=@project --zone=@zone "
    "--format='value(name)'"
)

_JOBSET_RUN = "@kubectl apply --filename=- << 'JOBSET'\n@jobset\nJOBSET\n"

_SBATCH = """\
sbatch << 'SBATCH'
#!/bin/bash
#SBATCH --job-name=@name
#SBATCH --dependency=singleton
#SBATCH --nodes=@nodes
#SBATCH --ntasks-per-node=@tasks
#SBATCH --gpus-per-node=@gpus_per_node
#SBATCH --time=@time
#SBATCH --signal=TERM@@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=@name.log
@sbatch_flags. .venv/bin/activate
code=0
srun @run || code=$?
# 75: stopped by a signal, saved, to be gone on with. 143: SIGTERM before Python could take it.
# Killed by another signal, as for want of memory (137): not for ever.
again=0
if [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; then again=1; fi
if [ "$code" -gt 128 ] && [ "$SECONDS" -ge 3600 ]; then again=1; fi
if [ "$code" -gt 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then again=1; fi
if [ "$again" -eq 1 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
SBATCH
"""

PLATFORMS: dict[str, dict[str, str]] = {
    # cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm
    "tpu-vm": _machines(
        create="gcloud compute tpus tpu-vm create @name --project=@project --zone=@zone "
        "--accelerator-type=@accelerator --version=@runtime@spot@create_flags\n",
        state="gcloud compute tpus tpu-vm describe @name --project=@project --zone=@zone "
        "--format='value(state)'\n",
        delete="gcloud compute tpus tpu-vm delete @name --project=@project --zone=@zone --quiet\n",
        **_TPU_VM,
    ),
    # cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources
    "queued-resource": _machines(
        create="""\
describe() {
  gcloud compute tpus queued-resources describe @name --project=@project --zone=@zone \
--format='value(state.state)'
}
if ! describe > /dev/null 2>&1; then
  gcloud compute tpus queued-resources create @name --project=@project --zone=@zone \
--node-id=@name --accelerator-type=@accelerator --runtime-version=@runtime@spot@create_flags
fi
# The queue keeps the request while nobody waits here.
failed=0
while true; do
  if ! state=$(describe); then
    failed=$((failed + 1))
    if [ "$failed" -ge 10 ]; then exit 1; fi
    sleep 60
    continue
  fi
  failed=0
  if [ "$state" = ACTIVE ]; then break; fi
  echo "@name: $state"
  case "$state" in FAILED | SUSPENDED) exit 1 ;; esac
  sleep 60
done
""",
        state="gcloud compute tpus queued-resources describe @name --project=@project "
        "--zone=@zone --format='value(state.state)'\n",
        delete="gcloud compute tpus queued-resources delete @name --project=@project "
        "--zone=@zone --force --quiet\n",
        **_TPU_VM,
    ),
    # docs.cloud.google.com/compute/docs/tpus/create-tpu-mig-multi-host-slice
    "instance-group": _machines(
        create="""\
@{workload_policy}\
gcloud compute instance-templates create @name --project=@project \
--instance-template-region=@region --machine-type=@machine_type \
--image-project=ubuntu-os-accelerator-images --image-family=@image_family \
--boot-disk-size=200GB@disk --maintenance-policy=TERMINATE \
--scopes=cloud-platform@spot_template@create_flags
gcloud compute instance-groups managed create @name --project=@project --zone=@zone \
--size=@hosts --template=projects/@project/regions/@region/instanceTemplates/@name \
--default-action-on-vm-failure=do-nothing@slice
gcloud compute instance-groups managed wait-until @name --project=@project --zone=@zone --stable
""",
        ready=f'[ "$({_WORKERS.replace("value(name)", "value(instanceStatus)")} '
        '| grep -c RUNNING)" = @hosts ]',
        state="gcloud compute instance-groups managed list-instances @name --project=@project "
        "--zone=@zone\n",
        delete="""\
failed=0
gcloud compute instance-groups managed delete @name --project=@project --zone=@zone --quiet \
|| failed=1
gcloud compute instance-templates delete @name --project=@project --region=@region --quiet \
|| failed=1
@{drop_policy}\
exit "$failed"
""",
        copy=_WORKERS + " | xargs -P 16 -I %worker% "
        'gcloud compute scp "$archive" %worker%: --project=@project --zone=@zone\n',
        each=_WORKERS + " | xargs -P 256 -I %worker% "
        "gcloud compute ssh %worker% --project=@project --zone=@zone --command=@script\n",
    ),
    # cloud.google.com/kubernetes-engine/docs/how-to/tpus; jobset.yaml is what xpk 1.16 makes
    "gke": {
        "create": """\
@{workload_policy}\
gcloud container node-pools create @name --cluster=@cluster --project=@project \
--location=@location --node-locations=@zone --machine-type=@machine_type \
--num-nodes=@hosts@pool_topology@spot@create_flags
gcloud container clusters get-credentials @cluster --project=@project --location=@location
@kubectl apply --server-side --filename=@jobset_manifests
""",
        "install": """\
docker build --platform=linux/amd64 --file=launch/Dockerfile --build-arg=EXTRAS=@extras \
--build-arg=PYTHON=@python --tag=@image .
docker push @image
""",
        "run": _JOBSET_RUN,
        "logs": "@kubectl logs --selector=jobset.sigs.k8s.io/jobset-name=@name --follow --prefix "
        "--tail=40 --max-log-requests=@hosts\n",
        "status": "@kubectl get jobsets.jobset.x-k8s.io @name\n"
        "@kubectl get pods --selector=jobset.sigs.k8s.io/jobset-name=@name\n",
        "stop": "@kubectl delete jobsets.jobset.x-k8s.io @name\n",
        "resume": "# After a preemption the JobSet starts the run again by itself.\n"
        "@kubectl delete jobsets.jobset.x-k8s.io @name --ignore-not-found\n" + _JOBSET_RUN,
        "delete": """\
failed=0
@kubectl delete jobsets.jobset.x-k8s.io @name --ignore-not-found || failed=1
gcloud container node-pools delete @name --cluster=@cluster --project=@project \
--location=@location --quiet || failed=1
@{drop_policy}\
exit "$failed"
""",
    },
    # slurm.schedmd.com/sbatch.html; one task a GPU, as jax.distributed takes it from SLURM, or a
    # single one
    "slurm": {
        "create": 'echo "slurm hands out machines when the job runs: nothing to create"\n',
        "install": "@{setup}" + _ENVIRONMENT,
        "run": _SBATCH,
        "logs": "tail -n 40 -F @name.log\n",
        "status": 'squeue --name=@name --user="$USER"\n',
        "stop": 'scancel --name=@name --user="$USER"\n',
        "resume": _SBATCH,
        "delete": 'scancel --name=@name --user="$USER"\n',
    },
    "local": {
        "create": 'echo "the machine is here: nothing to create"\n',
        "install": "@{setup}" + _ENVIRONMENT,
        "run": "@start",
        "logs": "tail -n 40 -F run.log\n",
        "status": "if @running; then\n  echo running\nelse\n  echo ended\nfi\n",
        "stop": "@interrupt",
        "resume": "@start",
        "delete": 'echo "the machine is yours: nothing to delete"\n',
    },
}

# What scripts call here; what they call on the machines is there, or is installed.
PROGRAMS = ("gcloud", "kubectl", "docker", "git", "sbatch", "squeue", "scancel")


def programs(script: str) -> list[str]:
    """Those of PROGRAMS that a script calls itself."""
    calls = re.findall(rf"(?m)(?:^|[(|&;])\s*({'|'.join(PROGRAMS)})\s", script)
    return [name for name in PROGRAMS if name in calls]


class _Script(string.Template):
    delimiter = "@"


def script(settings: Settings, action: str) -> str:
    """The bash script that does `action`."""
    values = _values(settings)
    body = _Script(PLATFORMS[settings.platform][action]).substitute(values)
    return f"set -euo pipefail\n{body}"


def _values(settings: Settings) -> dict[str, str]:
    """What may stand in a script, by name, quoted."""
    command, chosen = parse(settings.run), ",".join(extras(settings))
    locks = ["requirements.lock", *(f"requirements-{extra}.lock" for extra in extras(settings))]
    values = {
        key: shlex.quote(str(value))
        for key, value in vars(settings).items()
        if isinstance(value, (str, int))
    }
    values |= {
        "run": shlex.join(command.words),
        "tasks": str(tasks_per_node(settings, command)),
        "uv": UV,
        "locks": "".join(f" --requirement {lock}" for lock in locks),
        "setup": "".join(f"{line}\n" for line in settings.setup),
        "create_flags": "".join(f" {shlex.quote(flag)}" for flag in settings.create_flags),
        "sbatch_flags": "".join(f"#SBATCH {flag}\n" for flag in settings.create_flags),
        "spot": " --spot" if settings.spot else "",
        "extras": shlex.quote(chosen),
        "package": shlex.quote(f".[{chosen}]" if chosen else "."),
    }
    if settings.zone:
        values["region"] = settings.zone.rpartition("-")[0]
    if settings.accelerator:
        values["runtime"] = runtime(settings)
    if settings.machine_type:
        values |= _slice(settings)
    if settings.cluster:
        context = f"gke_{settings.project}_{settings.location}_{settings.cluster}"
        values |= {"kubectl": f"kubectl --context={context}", "jobset_manifests": JOBSET}
        values["jobset"] = jobset(settings).rstrip()
    values["again"] = shlex.quote(_fill(_AGAIN, values))
    values["running"] = _RUNNING
    values |= {"start": _fill(_START, values), "interrupt": _fill(_INTERRUPT, values)}
    return values | {
        f"worker_{name}": shlex.quote(_fill(text, values)) for name, text in _WORKER.items()
    }


def _fill(text: str, values: dict[str, str]) -> str:
    return _Script(text).substitute(values)


def _slice(settings: Settings) -> dict[str, str]:
    """What a slice of several machines needs besides: a policy that wires them together."""
    family, hosts = machine(settings), host_count(settings)
    is_gke, several = settings.platform == "gke", (hosts or 1) > 1
    # GKE wires slices by --tpu-topology itself, but TPU7x's by such a policy too.
    by_policy = several and (not is_gke or family.label == "tpu7x")
    region = str(settings.zone).rpartition("-")[0]
    policy = f"projects/{settings.project}/regions/{region}/resourcePolicies/{settings.name}"
    make = (
        f"gcloud compute resource-policies create workload-policy {settings.name} "
        f"--project={settings.project} --region={region} --type=HIGH_THROUGHPUT "
        f"--accelerator-topology={settings.topology}\n"
    )
    drop = (
        f"gcloud compute resource-policies delete {settings.name} --project={settings.project} "
        f"--region={region} --quiet || failed=1\n"
    )
    by_topology = f" --tpu-topology={settings.topology}" if several else ""
    return {
        "hosts": str(hosts),
        "image_family": str(family.image_family),
        "disk": f" {family.disk}" if family.disk else "",
        "workload_policy": make if by_policy else "",
        "drop_policy": drop if by_policy else "",
        "slice": f" --target-size-policy-mode=bulk --workload-policy={policy}" if several else "",
        "pool_topology": f" --placement-policy={settings.name}" if by_policy else by_topology,
        "spot_template": " --provisioning-model=SPOT --instance-termination-action=STOP"
        if settings.spot
        else "",
    }


def jobset(settings: Settings) -> str:
    """The JobSet manifest, YAML: jobset.yaml filled in. JSON values are YAML."""
    claim = settings.volume_claim
    volumes: list[dict[str, object]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108
    if claim:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "shared", "mountPath": "/mnt/shared"})
    values = {
        "name": settings.name,
        "hosts": host_count(settings),
        "label": machine(settings).label,
        "topology": settings.topology,
        "chips": chips_per_machine(settings),
        "image": settings.image,
        "command": parse(settings.run).words,
        "volumes": volumes,
        "mounts": mounts,
    }
    text = (Path(__file__).parent / "jobset.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    return _fill(text, {key: json.dumps(value) for key, value in values.items()})
