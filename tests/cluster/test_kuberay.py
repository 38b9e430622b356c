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
    """Return the folder of KubeRay's CustomResourceDefinitions; skips if it is missing."""
    folder = shared / "kuberay"
    if not folder.is_dir():
        pytest.skip("KubeRay's CustomResourceDefinitions are missing: no package contains them")
    return folder


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_use_only_kubernetes_fields(name: str) -> None:
    assert pod_problems(load(name)) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_use_only_operator_fields(name: str, crds: Path) -> None:
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
def test_misspelled_pod_fields_are_found(path: tuple[str | int, ...], slip: str) -> None:
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
def test_misspelled_operator_fields_are_found(
    path: tuple[str | int, ...], slip: str, crds: Path
) -> None:
    (problem,) = operator_problems(with_slip(path, slip), crds)
    assert f"'{slip}' was unexpected" in problem


def test_values_of_the_wrong_type_are_found() -> None:
    manifest = copy.deepcopy(load("kuberay/cluster.yaml"))
    pod_templates(manifest)[0]["spec"]["securityContext"]["runAsUser"] = "ray"
    first, *_ = pod_problems(manifest)  # a YAML anchor shares it with all pods
    assert first.startswith("$.template.spec.securityContext.runAsUser: 'ray' is not of type")


def test_head_avoids_spot_nodes_and_eviction() -> None:
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


def test_workers_tolerate_taints_of_spot_nodes() -> None:
    _, *workers = pod_templates(load("kuberay/cluster.yaml"))
    for worker in workers:
        keys = {entry["key"] for entry in worker["spec"]["tolerations"]}
        assert keys >= {
            "karpenter.sh/capacity-type",
            "cloud.google.com/gke-spot",
            "kubernetes.azure.com/scalesetpriority",
        }


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_may_pull_from_a_private_registry(name: str) -> None:
    ((secret,),) = {
        tuple(entry["name"] for entry in template["spec"]["imagePullSecrets"])
        for template in pod_templates(load(name))
    }
    assert f"kubectl create secret docker-registry {secret}" in GUIDE


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_no_privileges(name: str) -> None:
    for template in pod_templates(load(name)):
        pod = template["spec"]
        assert pod["serviceAccountName"] != "default"
        who = pod["securityContext"]
        assert who["runAsNonRoot"] is True
        assert min(who["runAsUser"], who["runAsGroup"], who["fsGroup"]) > 0
        assert who["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in pod["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_job_and_cluster_files_have_the_same_spec() -> None:
    assert ray_cluster("kuberay/job.yaml") == ray_cluster("kuberay/cluster.yaml")


def test_entrypoint_of_the_job_has_valid_flags() -> None:
    python, script, *flags = shlex.split(load("kuberay/job.yaml")["spec"]["entrypoint"])
    assert (python, script) == ("python", "/app/jobs/invert_dataset.py")
    arguments = vars(parse_arguments(flags))
    assert arguments.pop("attempts") > 1
    given = {k: v for k, v in arguments.items() if k not in ("config", "dry_run")}
    assert load_config(None, given).device == "cuda", "a GPU node may not exist yet at the start"


def test_operator_never_retries_a_wrong_request() -> None:
    assert load("kuberay/job.yaml")["spec"]["backoffLimit"] == 0, "it cannot tell code 2 from 1"


def test_ray_version_equals_the_pinned_one() -> None:
    pins = (FOLDER.parent / ".constraints.txt").read_text().splitlines()
    assert f"ray=={ray_cluster('kuberay/cluster.yaml')['rayVersion']}" in pins


def test_actor_pools_fit_on_the_pods() -> None:
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


def test_only_gpu_pods_offer_gpus() -> None:
    """A container may see all GPUs (NVIDIA's default runtime), and Ray would count them."""
    spec = ray_cluster("kuberay/cluster.yaml")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        has_gpu = "nvidia.com/gpu" in container(group)["resources"]["limits"]
        assert (group["rayStartParams"].get("num-gpus") == "0") != has_gpu


def test_object_store_fits_into_shared_memory() -> None:
    for group in ray_cluster("kuberay/cluster.yaml")["workerGroupSpecs"]:
        store = int(group["rayStartParams"]["object-store-memory"])
        (volume,) = group["template"]["spec"]["volumes"]
        shared = size(volume["emptyDir"]["sizeLimit"])
        memory = size(container(group)["resources"]["limits"]["memory"])
        assert 8 * MAX_PART_BYTES <= store < shared < 0.5 * memory
        (mount,) = container(group)["volumeMounts"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], "/dev/shm")


def test_all_pods_use_one_image() -> None:
    spec = ray_cluster("kuberay/cluster.yaml")
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert len({container(group)["image"] for group in groups}) == 1


def test_guide_submits_to_the_permanent_cluster() -> None:
    name = load("kuberay/cluster.yaml")["metadata"]["name"]
    for step in (
        f"kubectl port-forward svc/{name}-head-svc 8265",
        "RAY_AUTH_MODE=token",
        f"RAY_AUTH_TOKEN=$(kubectl get secret {name} ",
    ):
        assert step in GUIDE, "KubeRay derives the names of service and secret from the cluster"


def test_guide_deletes_a_job_before_applying_it_again() -> None:
    name = load("kuberay/job.yaml")["metadata"]["name"]
    assert f"kubectl delete rayjob {name}" in GUIDE, "apply does not run a finished RayJob again"
    assert f"kubectl logs job/{name}" in GUIDE


def test_guide_names_the_node_labels() -> None:
    needed = GUIDE.split("**Kubernetes.**")[1].split("```")[0]
    for group in ray_cluster("kuberay/cluster.yaml")["workerGroupSpecs"]:
        ((label, value),) = group["template"]["spec"]["nodeSelector"].items()
        assert f"`{label}: {value}`" in needed
