"""Why a job is not running, or what it does: the reasons of every condition but the classes of failure."""

from __future__ import annotations

from collections.abc import Mapping

from sftjob_operator.cli.explain.advice import AGAIN, EDIT, Advice

_ACCEPTED = {
    "Valid": Advice("The spec is consistent."),
    "InvalidSpec": Advice(
        "The object cannot be read: it was written for a newer or an older CRD than the operator's.",
        "Repair the field that is named, and install CRD and operator of one release.",
        ("doctor", EDIT),
    ),
    "InternalError": Advice(
        "The operator itself fails on this object; what runs goes on, and it tries again every minute.",
        "Report it with the traceback in the operator's log.",
        ("doctor",),
    ),
    "DeepSpeedConfigConflict": Advice(
        "A key of spec.deepspeed.config and a field of the spec say different things.",
        "Remove one of the two that are named, then apply again.",
    ),
    "DeepSpeedConfigUnsupported": Advice(
        "A key of spec.deepspeed.config is none of DeepSpeed's, would be ignored, or would break a promise.",
        "Take the key or the field that is named, or remove it.",
    ),
    "DeepSpeedConfigInvalid": Advice(
        "A value in spec.deepspeed.config has the wrong type or is out of range.",
        "Correct it and apply again.",
    ),
    "CombinationUnsupported": Advice(
        "Two choices of the spec exclude each other.", "Take the way out that is named, and apply again."
    ),
    "BatchNotDivisible": Advice(
        "The global batch cannot be shared out evenly over the ranks.",
        "Set spec.training.globalBatchSize to one of the values that are named.",
    ),
    "SequenceParallelNotDivisible": Advice(
        "The ranks do not come out even in groups that share sequences.",
        "Set spec.deepspeed.sequenceParallelSize to one of the sizes that are named, or another number of nodes.",
    ),
    "TensorParallelNotDivisible": Advice(
        "The ranks of a node do not come out even in groups that share layers.",
        "Set spec.deepspeed.tensorParallelSize to one of the sizes that are named.",
    ),
    "PodSecurity": Advice(
        "A podTemplate asks for more of its node than the platform allows (operator.podSecurity of the chart).",
        "Leave out what the message names, or ask the platform's people.",
    ),
    "NamespaceQuotaTooSmall": Advice(
        "The job asks for more than its namespace may have at all (quotas of the chart), so it is not even prepared.",
        "Ask for fewer nodes or GPUs in spec.workers and apply again, or ask the platform's people for another quota.",
        (EDIT,),
    ),
    "ReservedName": Advice(
        "A name in the spec is one the operator needs itself.", "Rename it and apply again."
    ),
    "ResourceConflict": Advice(
        "The number of GPUs stands in spec.workers.resources with another value.", "Remove it there."
    ),
    "InvalidQuantity": Advice("What should be a quantity is none.", "Write it like 500m, 64Gi or 8."),
    "InlineDataTooLarge": Advice(
        "The inline rows are more than a ConfigMap holds.",
        "Put them into a file in the workspace: data.train[].path.",
    ),
    "PodTemplateRejected": Advice(
        "The API server refuses the Job that the spec asks for, in the words above.",
        "Correct spec.workers.podTemplate, resources or env.",
        ("render FILE",),
    ),
    "ChildRejected": Advice(
        "The API server refuses an object that the job needs, in the words above.",
        "Do what they say, then apply again.",
    ),
}

_PHASES = {
    "NotStarted": Advice("Preparation waits for something else."),
    "DataReady": Advice("Model and data are there, valid and tokenised."),
    "NotPrepared": Advice("The plan needs what preparation finds out."),
    "Fits": Advice("A strategy was chosen; it is in status.plan."),
    "DoesNotFit": Advice(
        "No strategy fits the memory of the GPUs. None has been taken.",
        f"Take one of the ways that are named: a smaller batch or length, offload, LoRA, more GPUs. {AGAIN}",
        ("kubectl get sftjob {name} -o jsonpath='{{.status.plan}}'",),
    ),
}

_WORKING = {
    "Starting": Advice("All pods run; the ranks load the model.", "", ("logs {name} -f",)),
    "TrainingSteps": Advice("It trains.", "", ("watch {name}",)),
    "Evaluating": Advice("It measures the loss on the held-out rows.", "", ("watch {name}",)),
    "SavingCheckpoint": Advice("It commits a checkpoint.", "", ("checkpoints {name}",)),
    "Exporting": Advice("It writes the export, loads it again and checks it.", "", ("watch {name}",)),
    "Preparing": Advice(
        "A pod without GPUs fetches the model, checks every row and tokenises them once.",
        "",
        ("logs {name} -f",),
    ),
    "Finishing": Advice(
        "Pods have ended well, and the others are about to.",
        "Nothing, unless a container is named: a sidecar that does not end keeps its pod, and the GPUs.",
    ),
    "Stopping": Advice(
        "The attempt has ended and its last pods are stopping.",
        "Nothing, unless a container is named: a sidecar that does not end keeps its pod, and the GPUs.",
    ),
    "Restarting": Advice(
        "An attempt has failed; after a pause the next one goes on from the last verified checkpoint.",
        "Nothing, unless the same failure comes back: then see why it failed.",
        ("logs {name} --previous", "watch {name}"),
    ),
    "Suspending": Advice("It was told to stop; the ranks save a checkpoint first."),
    "Suspended": Advice("spec.suspend is true, so it waits for you.", "Resume it.", ("resume {name}",)),
    "SuspendedByUser": Advice("spec.suspend is true, so it waits for you.", "Resume it.", ("resume {name}",)),
    "NotSuspended": Advice("Nobody has stopped it."),
    "Resuming": Advice("The suspended job goes on; its pods are being made.", "", ("watch {name}",)),
    "Resizing": Advice(
        "spec.workers.nodes has changed: the ranks save a checkpoint and stop, and go on in the new size.",
        "",
        ("watch {name}",),
    ),
    "InProgress": Advice("It is not over."),
    "Finished": Advice("It is complete.", "", ("report {name}", "chat {name}")),
    "Trained": Advice(
        "Every rank ended, and the export was loaded again and checked.", "", ("report {name}", "chat {name}")
    ),
    "StoppedEarly": Advice(
        "The evaluation got no better, so training ended before the planned step; the export was checked.",
        "",
        ("report {name}", "chat {name}"),
    ),
}

_BLOCKED = {
    "Pending": Advice(
        "The operator has decided nothing yet.",
        "Wait a moment; if it stays so, look at the operator.",
        ("doctor",),
    ),
    "NotAccepted": Advice("The spec cannot be worked on.", AGAIN, (EDIT,)),
    "VolumeMissing": Advice(
        "The volume of spec.workspace is not there, so no pod is made.",
        "Create that PersistentVolumeClaim in this namespace, ReadWriteMany; the job goes on by itself.",
        ("kubectl get pvc {claim}",),
    ),
    "VolumePending": Advice(
        "The claim has no volume yet, so no pod is started.",
        "See what its provisioner says; often the storage class is missing, or cannot make such a volume.",
        ("kubectl describe pvc {claim}",),
    ),
    "VolumeLost": Advice(
        "The volume under the claim is gone.",
        "Restore it, or delete claim and job and create them anew.",
        ("kubectl get pvc {claim}",),
    ),
    "VolumeNotShared": Advice(
        "Pods on several nodes need a volume that several nodes may mount, and the claim is not ReadWriteMany.",
        "Name a ReadWriteMany claim in spec.workspace.claimName, or set spec.workers.nodes: 1.",
        ("kubectl get pvc {claim}", "doctor"),
    ),
    "SecretMissing": Advice(
        "A Secret that the spec names is not there, so no pod is made.",
        "Create it in this namespace; the job goes on by itself.",
        ("kubectl get secrets",),
    ),
    "NameTaken": Advice(
        "An object under a name that the job needs belongs to someone else.",
        "Delete that object, or create the job under another name.",
    ),
    "Queued": Advice(
        "The queue (Kueue) holds it until there is room in its quota.",
        "Wait, or ask those who own the queue; the Workload says what it waits for.",
        ("kubectl get workloads.kueue.x-k8s.io", "kubectl describe job {job}"),
    ),
    "NamespaceQuota": Advice(
        "The namespace has in use what it may have (quotas of the chart). The job stands in line by its creation, and "
        "starts by itself when there is room beside those that run and those that wait before it.",
        "Wait, suspend or delete one of the jobs that are named, or ask the platform's people for a larger quota. "
        "Fewer nodes or GPUs may fit earlier; a job before this one that can wait is passed while it is suspended.",
        ("kubectl get sftjobs", EDIT),
    ),
    "QuotaExceeded": Advice(
        "The quota of the namespace does not allow the job now; it is tried again every minute.",
        "Free something, ask for less, or have the quota raised.",
        ("kubectl describe resourcequota",),
    ),
    "Forbidden": Advice(
        "The operator lacks a right that this needs.",
        "Give it the right that is named: the chart's roles are those of its own release.",
        ("doctor",),
    ),
    "KindUnnoticed": Advice(
        "SFTJob was installed a moment ago, and the API server's admission does not know it yet.",
        "Wait: it takes up to a minute and is tried again every five seconds.",
        ("kubectl get crd sftjobs.sftjob.dev",),
    ),
    "ContainerCreating": Advice(
        "The pods have nodes, and their containers are being created: the image is pulled, the volume mounted.",
        "Wait; a large image takes minutes. If it lasts, the Events of the pods say why.",
        ("kubectl describe pods -l sftjob.dev/job-name={name}",),
    ),
    "ImagePull": Advice(
        "The image cannot be pulled.",
        "Correct spec.workers.image or imagePullSecrets and apply again, or make the registry reachable.",
        ("kubectl describe pods -l sftjob.dev/job-name={name}", EDIT),
    ),
    "ContainerConfig": Advice(
        "The kubelet cannot create the container: often a securityContext that does not fit the image, or a "
        "ConfigMap or Secret that env names and that is not there.",
        "Do what its words say.",
        ("kubectl describe pods -l sftjob.dev/job-name={name}",),
    ),
    "Unschedulable": Advice(
        "No node has room for a pod of the job, or none is allowed to take it.",
        "Compare what the scheduler says with what the pods ask for: fewer GPUs, less memory, another nodeSelector or "
        "a toleration; or add nodes. The spec can be changed now, and the pods are made anew.",
        ("kubectl describe nodes", EDIT),
    ),
    "PodsNotCreated": Advice(
        "The Job is there and its pods are not: a quota or an admission webhook refuses them.",
        "The Events of the Job say which.",
        ("kubectl describe job {job}",),
    ),
    "NodeNotReady": Advice(
        "A node with a pod of this job does not answer.",
        "Nothing: if it stays away, the next attempt starts elsewhere.",
        ("kubectl get nodes",),
    ),
}

WAITING: Mapping[str, Advice] = _ACCEPTED | _PHASES | _WORKING | _BLOCKED
