# SPDX-License-Identifier: Apache-2.0
"""What the tools that launch/ drives accept, copied from their documentation (read 2026-11-23).

gcloud: https://cloud.google.com/sdk/gcloud/reference/ + the command with slashes; of each command
the flags that matter here, required ones apart. Where a flag's values are listed there, they are
here. kubectl: https://kubernetes.io/docs/reference/kubectl/generated/. docker:
https://docs.docker.com/reference/cli/docker/. sbatch: https://slurm.schedmd.com/sbatch.html.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Command:
    """How many positional arguments; flags that must, and flags that may be given; values."""

    words: tuple[int, ...]
    needs: frozenset[str]
    takes: frozenset[str]
    values: dict[str, set[str]] = field(default_factory=dict)


def _command(words: int | tuple[int, ...], needs: str, takes: str, **values: set[str]) -> Command:
    named = {f"--{key.replace('_', '-')}": choices for key, choices in values.items()}
    counts = words if isinstance(words, tuple) else (words,)
    return Command(counts, frozenset(needs.split()), frozenset(takes.split()), named)


_WIDE = "--project --quiet --format --verbosity"  # cloud.google.com/sdk/gcloud/reference
_SSH = "--ssh-flag --ssh-key-file --internal-ip --plain --force-key-file-overwrite"

GCLOUD = {
    "compute tpus tpu-vm create": _command(
        1,
        "--zone --version",
        "--accelerator-type --spot --reserved --network --subnetwork --service-account --scopes "
        "--data-disk --internal-ips --labels --metadata --tags --description --topology --type",
    ),
    "compute tpus tpu-vm describe": _command(1, "--zone", ""),
    "compute tpus tpu-vm delete": _command(1, "--zone", "--async"),
    "compute tpus tpu-vm ssh": _command(
        1, "--zone", f"{_SSH} --command --worker --output-directory"
    ),
    "compute tpus tpu-vm scp": _command(2, "--zone", f"{_SSH} --worker --recurse --compress"),
    "compute tpus queued-resources create": _command(
        1,
        "--zone --runtime-version",
        "--accelerator-type --node-id --node-count --node-prefix --spot --guaranteed --reserved "
        "--network --subnetwork --service-account --scopes --data-disk --internal-ips --labels "
        "--metadata --tags --description --valid-until-duration --valid-after-duration",
    ),
    "compute tpus queued-resources describe": _command(1, "--zone", ""),
    "compute tpus queued-resources delete": _command(1, "--zone", "--async --force"),
    "compute resource-policies create workload-policy": _command(
        1,
        "--type",
        "--region --accelerator-topology --accelerator-topology-mode --max-topology-distance "
        "--description",
        type={"HIGH_AVAILABILITY", "HIGH_THROUGHPUT"},
    ),
    "compute resource-policies delete": _command(1, "", "--region"),
    "compute instance-templates create": _command(
        1,
        "",
        "--instance-template-region --machine-type --image-project --image-family --image "
        "--boot-disk-size --boot-disk-type --maintenance-policy --scopes --service-account "
        "--provisioning-model --instance-termination-action --network --subnet --no-address "
        "--network-interface --reservation --reservation-affinity --labels --metadata --tags",
        maintenance_policy={"MIGRATE", "TERMINATE"},
        provisioning_model={"FLEX_START", "RESERVATION_BOUND", "SPOT", "STANDARD"},
        instance_termination_action={"DELETE", "STOP"},
    ),
    "compute instance-templates delete": _command(1, "", "--region"),
    "compute instance-groups managed create": _command(
        1,
        "--size --template",
        "--zone --region --target-size-policy-mode --default-action-on-vm-failure "
        "--workload-policy --base-instance-name --description",
        target_size_policy_mode={"bulk", "individual"},
        default_action_on_vm_failure={"do-nothing", "repair"},
    ),
    "compute instance-groups managed wait-until": _command(
        1, "--stable", "--zone --region --timeout"
    ),
    "compute instance-groups managed list-instances": _command(1, "", "--zone --region --filter"),
    "compute instance-groups managed delete": _command(1, "", "--zone --region"),
    "compute ssh": _command(1, "", f"{_SSH} --zone --command --tunnel-through-iap"),
    "compute scp": _command(2, "", f"{_SSH} --zone --recurse --compress --tunnel-through-iap"),
    "container node-pools create": _command(
        1,
        "--cluster",
        "--location --node-locations --machine-type --num-nodes --tpu-topology "
        "--placement-policy --spot --reservation --reservation-affinity --disk-size --disk-type "
        "--service-account --scopes --node-labels --node-taints --enable-gvnic",
    ),
    "container node-pools delete": _command(1, "--cluster", "--location"),
    "container clusters get-credentials": _command(1, "", "--location --internal-ip"),
}
GCLOUD = {
    name: Command(c.words, c.needs, c.takes | set(_WIDE.split()), c.values)
    for name, c in GCLOUD.items()
}

_KUBE = "--context --namespace"
KUBECTL = {
    "apply": _command(0, "--filename", f"{_KUBE} --server-side"),
    "delete": _command(2, "", f"{_KUBE} --ignore-not-found"),
    "get": _command((1, 2), "", f"{_KUBE} --selector --output"),
    "logs": _command(
        0, "", f"{_KUBE} --selector --follow --prefix --tail --max-log-requests --container"
    ),
}
DOCKER = {
    "build": _command(1, "", "--platform --file --build-arg --tag"),
    "push": _command(1, "", ""),
}
SCANCEL = _command(0, "", "--name --user")
SQUEUE = SCANCEL
SBATCH = _command(
    0,
    "",
    "--job-name --dependency --nodes --ntasks-per-node --gpus-per-node --time --signal --requeue "
    "--open-mode --output --partition --account --qos --mem --cpus-per-task --constraint",
    open_mode={"append", "truncate"},
)
