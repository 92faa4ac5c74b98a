"""Slices: queued resources and groups of instances."""

import shlex

import pytest
from tpu_cloud import EVERY

GROUP = {
    "API": "gce",
    "MACHINE": "ct6e-standard-4t",
    "TOPOLOGY": "4x4",
    "HOSTS": "2",
    "IMAGE_FAMILY": "family",
    "TYPE": "",
    "RUNTIME": "",
}


def test_create_requests_once_and_waits(cloud):
    states = ("NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done, calls = cloud("create.sh", states=states, SPOT="0")
    assert done.returncode == 0, done.stderr
    created = [call for call in calls if "resources create" in call]
    assert len(created) == 1
    assert "--accelerator-type=v5litepod-16" in created[0]
    assert "--spot" not in created[0]
    assert "PROVISIONING" in done.stderr


def test_create_leaves_an_active_slice_alone(cloud):
    done, calls = cloud("create.sh")
    assert done.returncode == 0
    assert not [call for call in calls if "resources create" in call]


def test_create_explains_a_failed_request(cloud):
    done, _ = cloud("create.sh", states=("FAILED",))
    assert done.returncode == 2
    assert "delete.sh" in done.stderr


def test_a_refused_request_ends_create_with_its_code(cloud):
    done, calls = cloud("create.sh", states=("NONE",), CREATED="9")
    assert done.returncode == 9
    assert len([call for call in calls if "describe" in call]) == 1


def test_create_asks_again_while_gcloud_fails(cloud):
    states = ("NONE", "ERROR", "ERROR", "PROVISIONING", "ERROR", "ACTIVE")
    done, calls = cloud("create.sh", states=states)
    assert done.returncode == 0, done.stderr
    assert len([call for call in calls if "resources create" in call]) == 1
    assert done.stderr.count("ERROR: Reauthentication failed") == 3
    assert "asking again" in done.stderr
    states = ("PROVISIONING", "ERROR")
    done, calls = cloud("create.sh", states=states, TRIES="3")
    assert done.returncode == 2
    assert "not known" in done.stderr.splitlines()[-1]
    assert len(calls) == 4


@pytest.mark.parametrize("name", ["create.sh", "delete.sh"])
def test_a_failed_question_is_not_an_absent_slice(cloud, name):
    flags = ("--yes",) if name == "delete.sh" else ()
    done, calls = cloud(name, *flags, states=("ERROR",))
    assert done.returncode == 2
    assert "ERROR: Reauthentication failed" in done.stderr
    assert "not known" in done.stderr
    assert "there is no request" not in done.stderr
    assert len(calls) == 1


def test_delete_needs_a_yes(cloud):
    done, calls = cloud("delete.sh")
    assert done.returncode == 2
    assert not [call for call in calls if "delete" in call]
    done, calls = cloud("delete.sh", "--yes")
    assert done.returncode == 0
    assert [call for call in calls if "queued-resources delete slice" in call]
    done, calls = cloud("delete.sh", states=("NONE",))
    assert done.returncode == 0
    assert not [call for call in calls if "delete" in call]


def test_an_unknown_api_is_refused(cloud):
    done, calls = cloud("create.sh", API="aws")
    assert (done.returncode, calls) == (2, [])
    assert "API 'aws': expected tpu-vm or gce" in done.stderr


WHERE = "--zone=z-1 --project=p"


MEMBERS = f"gcloud compute instance-groups managed list-instances slice {WHERE}"


GCE = {
    "create.sh": [
        "gcloud compute resource-policies create workload-policy slice --region=z "
        "--project=p --type=HIGH_THROUGHPUT --accelerator-topology=4x4",
        "gcloud compute instance-templates create slice --project=p "
        "--machine-type=ct6e-standard-4t --image-family=family "
        "--image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB "
        "--maintenance-policy=TERMINATE --scopes=cloud-platform "
        "--provisioning-model=SPOT --instance-termination-action=STOP",
        f"gcloud compute instance-groups managed create slice {WHERE} "
        "--template=slice --size=2 --target-size-policy-mode=bulk "
        "--default-action-on-vm-failure=do-nothing "
        "--workload-policy=projects/p/regions/z/resourcePolicies/slice",
        f"{MEMBERS} --format=value(instanceStatus)",
    ],
    "logs.sh": [
        f"{MEMBERS} --format=value(instance.basename())",
        f"gcloud compute ssh INSTANCE {WHERE} --command=tail -n 100  runs/name/log",
    ],
    "delete.sh": [
        f"gcloud compute instance-groups managed delete slice {WHERE} --quiet",
        "gcloud compute instance-templates delete slice --project=p --quiet",
        "gcloud compute resource-policies delete slice --region=z --project=p --quiet",
    ],
}


@pytest.mark.parametrize("name", sorted({*EVERY} - {"gke/submit.sh"}))
def test_a_group_of_instances_is_the_slice_with_gce(cloud, name):
    done, calls = cloud(name, "--dry-run", *EVERY[name], **GROUP)
    assert (done.returncode, calls) == (0, []), done.stderr
    lines = [" ".join(shlex.split(line)) for line in done.stdout.splitlines()]
    assert not [line for line in lines if "compute tpus" in line]
    assert lines == GCE.get(name, lines)


def test_create_waits_for_all_instances_of_a_group(cloud):
    states = ("NONE", "", "RUNNING|PROVISIONING", "RUNNING|RUNNING")
    done, calls = cloud("create.sh", states=states, **GROUP)
    assert done.returncode == 0, done.stderr
    assert len([call for call in calls if "managed create" in call]) == 1
    assert done.stderr.count("WAITING_FOR_RESOURCES") == 2
    done, calls = cloud("create.sh", states=("RUNNING|TERMINATED",), **GROUP)
    assert done.returncode == 2
    assert "SUSPENDED" in done.stderr


def test_create_uses_what_an_interrupted_request_has_left(cloud):
    settings = {**GROUP, "states": ("NONE", "RUNNING|RUNNING")}
    # The stand-in's error says that it already exists.
    done, calls = cloud("create.sh", **settings, fails=("workload-policy slice",))
    assert done.returncode == 0, done.stderr
    assert [call for call in calls if "managed create" in call]
    done, calls = cloud("delete.sh", "--yes", **settings, fails=("templates",))
    assert done.returncode != 0
    assert "already exists" in done.stderr


def test_a_command_runs_on_every_instance_of_a_group(cloud):
    done, calls = cloud("stop.sh", "name", **GROUP)
    assert done.returncode == 0, done.stderr
    assert sorted(call.split()[2] for call in calls if " ssh " in call) == ["w0", "w1"]
    done, calls = cloud("stop.sh", "name", **GROUP, fails=("ssh w0",))
    assert done.returncode == 1
    assert len([call for call in calls if " ssh " in call]) == 2
    done, calls = cloud("logs.sh", "--worker", "1", "name", **GROUP)
    assert [call.split()[2] for call in calls if " ssh " in call] == ["w1"]
    done, calls = cloud("logs.sh", "--worker", "2", "name", **GROUP)
    assert done.returncode == 1
    assert "slice has no worker 2" in done.stderr
