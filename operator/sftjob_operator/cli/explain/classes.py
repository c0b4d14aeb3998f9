"""Why an attempt or a job died: the classes of failure."""

from __future__ import annotations

from collections.abc import Mapping

from sftjob_operator.cli.explain.advice import LOGS, Advice

CLASSES: Mapping[str, Advice] = {
    "Failed": Advice("It is over, without a result.", "", (LOGS,)),
    "DeadlineExceeded": Advice(
        "spec.activeDeadlineSeconds have passed, so its pods were stopped; they saved a checkpoint first.",
        "For more time delete it and start it again with a later deadline: it goes on from the checkpoint.",
        ("checkpoints {name}",),
    ),
    "UserError": Advice(
        "The data or the configuration is wrong, and every further attempt would end the same way.",
        "Correct what the message names; then a new job, or the same one after deletion.",
        (LOGS,),
    ),
    "VolumeFull": Advice(
        "There is no space left on the volume of the workspace.",
        "Free space (checkpoints of old jobs, .sftjob/cache) or enlarge the claim, then start it again: it goes on "
        "from its last verified checkpoint.",
        ("kubectl get pvc {claim}", "checkpoints {name}"),
    ),
    "GPUOutOfMemory": Advice(
        "A GPU ran out of memory in a step. What the spec leaves open is made smaller for the next attempt: the "
        "micro-batch, at the same global batch, and then activation checkpointing. That is not charged.",
        "Nothing while it is tried again. Where it has failed: delete it and apply it again under the same name with a "
        "smaller spec.deepspeed.microBatchSize or activationCheckpointing: Full; it goes on from its checkpoints.",
        ("kubectl get sftjob {name} -o jsonpath='{{.status.plan}}'", LOGS),
    ),
    "HostOutOfMemory": Advice(
        "A pod was killed, almost always by its own memory limit.",
        "Raise spec.workers.resources.limits.memory (spec.prepare.resources for preparation), or take less offload.",
        ("kubectl get pods -l sftjob.dev/job-name={name}", LOGS),
    ),
    "Fenced": Advice(
        "A newer run of this job owns the folder on the volume, and an old one was kept from writing to it.",
        "Look for a second cluster or a second `sftjob run` with the same job on the same volume.",
    ),
    "Unprepared": Advice(
        "The model or the token cache was no longer on the volume, so it is prepared again.",
        "Nothing; while jobs are open let `sftjob clean` remove caches, which knows what they need.",
        ("watch {name}",),
    ),
    "Network": Advice(
        "A download failed, or a name could not be resolved.",
        "Nothing if it passes. Else copy model and data into the workspace and use path instead of uri.",
        (LOGS,),
    ),
    "Crash": Advice(
        "A rank ended in a way that nobody foresaw, or without leaving its result.",
        "Read the end of its log; the words of the rank that failed first count.",
        (LOGS,),
    ),
    "PeerLost": Advice(
        "A pod lost the others, and none of them said why.",
        "If it comes back: look at the nodes and the network between them (NCCL_DEBUG=INFO in spec.workers.env).",
        ("kubectl get nodes", LOGS),
    ),
    "Disrupted": Advice(
        "The cluster took a pod: eviction, drain, preemption, or someone deleted the Job. It is not charged.",
        "Nothing: it goes on from the last verified checkpoint.",
        ("kubectl get events",),
    ),
    "Interrupted": Advice(
        "A pod was asked to stop and did. It is not charged.",
        "Nothing: the next attempt goes on.",
        ("watch {name}",),
    ),
    "NodeLost": Advice(
        "A node died with a pod of the job on it. It is not charged.",
        "Nothing: the next attempt starts on other nodes.",
        ("kubectl get nodes",),
    ),
    "Incomplete": Advice(
        "Some of its pods ran and others did not come in time, so those that ran gave their GPUs back. It is not charged.",
        "Nothing: it is tried again, at growing intervals, until there is room. If one pod never comes, look why.",
        ("kubectl get pods -l sftjob.dev/job-name={name}", "kubectl get nodes"),
    ),
    "Resized": Advice("spec.workers.nodes was changed while it ran; the next attempt has the new size.", ""),
    "SpecChanged": Advice(
        "The spec was changed before the pods ran; the next attempt is made of the new one.", ""
    ),
}
