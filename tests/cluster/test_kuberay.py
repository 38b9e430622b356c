from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest

from jobs.invert_dataset import parse_arguments
from pipeline.config import load_config
from pipeline.engine.capacity import Pools, reserved_cpus
from pipeline.engine.stages import Invert
from pipeline.engine.stages.read import MAX_PART_BYTES
from tests.cluster.configurations import FOLDER, MANIFESTS, load, ray_cluster
from tests.cluster.kuberay_schema import operator_problems, pod_problems, pod_templates

GUIDE = (FOLDER / "README.md").read_text()
UNITS = {"Mi": 2**20, "Gi": 2**30}


def container(group: dict[str, Any]) -> dict[str, Any]:
    return dict(group["template"]["spec"]["containers"][0])


def size(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


@pytest.fixture(scope="session")
def crds(shared: Path) -> Path:
    """The folder of KubeRay's own CustomResourceDefinitions."""
    folder = shared / "kuberay"
    if not folder.is_dir():
        pytest.skip("KubeRay's CustomResourceDefinitions are not here: no package brings them")
    return folder


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_hold_only_fields_of_kubernetes(name: str) -> None:
    assert pod_problems(load(name)) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_hold_only_fields_of_the_operator(name: str, crds: Path) -> None:
    assert operator_problems(load(name), crds) == []


def with_slip(path: tuple[str | int, ...], slip: str) -> dict[str, Any]:
    """Return the cluster's manifest with a field `slip` in the object at `path`."""
    manifest = copy.deepcopy(load("kuberay/cluster.yaml"))
    at: Any = manifest
    for step in path:
        at = at[step]
    at[slip] = {}
    return manifest


@pytest.mark.parametrize(
    ("path", "slip"),
    [
        (("spec", "workerGroupSpecs", 0, "template", "spec"), "nodeSelectors"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0), "resource"),
        (("spec", "headGroupSpec", "template", "spec", "volumes", 0, "emptyDir"), "size"),
    ],
)
def test_a_misspelled_pod_field_is_named(path: tuple[str | int, ...], slip: str) -> None:
    (problem,) = pod_problems(with_slip(path, slip))
    assert f"'{slip}' was unexpected" in problem


@pytest.mark.parametrize(
    ("path", "slip"),
    [
        (("spec", "headGroupSpec"), "rayStartParam"),
        (("spec", "autoscalerOptions"), "idleTimeout"),
        (("spec", "workerGroupSpecs", 1), "maxReplica"),
        (("metadata",), "label"),
    ],
)
def test_a_misspelled_operator_field_is_named(
    path: tuple[str | int, ...], slip: str, crds: Path
) -> None:
    (problem,) = operator_problems(with_slip(path, slip), crds)
    assert f"'{slip}' was unexpected" in problem


def test_a_value_of_another_type_is_named() -> None:
    manifest = copy.deepcopy(load("kuberay/cluster.yaml"))
    pod_templates(manifest)[0]["spec"]["securityContext"]["runAsUser"] = "ray"
    first, *_ = pod_problems(manifest)  # YAML's anchor gives the same to all pods
    assert first.startswith("$.template.spec.securityContext.runAsUser: 'ray' is not of type")


def test_the_head_stays_off_spot_nodes_and_is_not_moved() -> None:
    head, *_ = pod_templates(load("kuberay/cluster.yaml"))
    moved = head["metadata"]["annotations"]
    assert moved["karpenter.sh/do-not-disrupt"] == "true"
    assert moved["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    affinity = head["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    refused = {rule["key"]: rule["operator"] for rule in term["matchExpressions"]}
    assert set(refused.values()) <= {"NotIn", "DoesNotExist"}
    for group in ray_cluster("kuberay/cluster.yaml")["workerGroupSpecs"]:
        assert group["template"]["spec"]["nodeSelector"].keys() <= refused.keys()


def test_workers_stand_the_taints_of_spot_nodes() -> None:
    _, *workers = pod_templates(load("kuberay/cluster.yaml"))
    for worker in workers:
        keys = {one["key"] for one in worker["spec"]["tolerations"]}
        assert keys >= {
            "karpenter.sh/capacity-type",
            "cloud.google.com/gke-spot",
            "kubernetes.azure.com/scalesetpriority",
        }


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_may_pull_from_a_private_registry(name: str) -> None:
    ((secret,),) = {
        tuple(one["name"] for one in template["spec"]["imagePullSecrets"])
        for template in pod_templates(load(name))
    }
    assert f"kubectl create secret docker-registry {secret}" in GUIDE


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_are_nobody_of_note_and_may_not_become_more(name: str) -> None:
    for template in pod_templates(load(name)):
        pod = template["spec"]
        assert pod["serviceAccountName"] != "default"
        who = pod["securityContext"]
        assert who["runAsNonRoot"] is True
        assert min(who["runAsUser"], who["runAsGroup"], who["fsGroup"]) > 0
        assert who["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in pod["containers"]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_job_brings_the_cluster_that_stands_in_the_other_file() -> None:
    assert ray_cluster("kuberay/job.yaml") == ray_cluster("kuberay/cluster.yaml")


def test_the_job_is_one_that_our_own_flags_allow() -> None:
    python, script, *flags = shlex.split(load("kuberay/job.yaml")["spec"]["entrypoint"])
    assert (python, script) == ("python", "/app/jobs/invert_dataset.py")
    arguments = vars(parse_arguments(flags))
    assert arguments.pop("attempts") > 1
    given = {k: v for k, v in arguments.items() if k not in ("config", "dry_run")}
    assert load_config(None, given).device == "cuda", "a GPU may not be there at the start"


def test_the_operator_repeats_no_wrong_request() -> None:
    assert load("kuberay/job.yaml")["spec"]["backoffLimit"] == 0, "it cannot tell code 2 from 1"


def test_ray_is_the_one_that_the_engine_is_built_on() -> None:
    pins = (FOLDER.parent / ".constraints.txt").read_text().splitlines()
    assert f"ray=={ray_cluster('kuberay/cluster.yaml')['rayVersion']}" in pins


def test_the_pools_fit_on_the_pods() -> None:
    spec = ray_cluster("kuberay/cluster.yaml")
    cpu, gpu = spec["workerGroupSpecs"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert (cpu["minReplicas"], gpu["minReplicas"]) == (0, 0)
    offered = container(cpu)["resources"]["limits"]
    assert int(offered["cpu"]) >= sum(reserved_cpus(on_gpu=True).values())
    assert "nvidia.com/gpu" not in offered
    needs = Pools({}, reserved_cpus(on_gpu=True), on_gpu=True).needs(Invert)
    assert int(container(gpu)["resources"]["limits"]["nvidia.com/gpu"]) >= needs["num_gpus"]
    assert float(gpu["rayStartParams"]["num-cpus"]) == needs["num_cpus"] == 0


def test_only_pods_that_ask_for_a_gpu_offer_one() -> None:
    """Where NVIDIA's runtime is a node's default the image shows all GPUs, and Ray counts them."""
    spec = ray_cluster("kuberay/cluster.yaml")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        asks = "nvidia.com/gpu" in container(group)["resources"]["limits"]
        assert (group["rayStartParams"].get("num-gpus") == "0") != asks


def test_the_object_store_fits_into_shared_memory_and_that_into_the_pod() -> None:
    for group in ray_cluster("kuberay/cluster.yaml")["workerGroupSpecs"]:
        store = int(group["rayStartParams"]["object-store-memory"])
        (volume,) = group["template"]["spec"]["volumes"]
        shared = size(volume["emptyDir"]["sizeLimit"])
        memory = size(container(group)["resources"]["limits"]["memory"])
        assert 8 * MAX_PART_BYTES <= store < shared < 0.5 * memory
        (mount,) = container(group)["volumeMounts"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], "/dev/shm")


def test_all_pods_run_one_image() -> None:
    spec = ray_cluster("kuberay/cluster.yaml")
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert len({container(group)["image"] for group in groups}) == 1


def test_the_guide_sends_a_job_to_the_cluster_that_stays() -> None:
    name = load("kuberay/cluster.yaml")["metadata"]["name"]
    for step in (
        f"kubectl port-forward svc/{name}-head-svc 8265",
        "RAY_AUTH_MODE=token",
        f"RAY_AUTH_TOKEN=$(kubectl get secret {name} ",
    ):
        assert step in GUIDE, "KubeRay names service and secret after the cluster"


def test_the_guide_ends_a_job_before_it_is_applied_again() -> None:
    name = load("kuberay/job.yaml")["metadata"]["name"]
    assert f"kubectl delete rayjob {name}" in GUIDE, "a finished RayJob is not run again by apply"
    assert f"kubectl logs job/{name}" in GUIDE


def test_the_guide_says_who_labels_the_nodes() -> None:
    needed = GUIDE.split("**Kubernetes.**")[1].split("```")[0]
    for group in ray_cluster("kuberay/cluster.yaml")["workerGroupSpecs"]:
        ((label, value),) = group["template"]["spec"]["nodeSelector"].items()
        assert f"`{label}: {value}`" in needed
