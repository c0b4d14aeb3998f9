"""Errors of a user's, word by word: never tried again, and each has a way out."""

from __future__ import annotations

from collections.abc import Mapping

from sftjob_operator.cli.explain.advice import LOGS, Advice

_RELEASES = "Operator and trainer image are not of one release, or the pod was not started by the operator."
_ONE_RELEASE = "Install both of one release; leave spec.workers.image out to have the operator's own."

_DATA = {
    "InvalidRow": Advice(
        "A row of the data cannot be read or has the wrong shape; file and line are named.",
        "Repair it, or set spec.data.onInvalidRow: Skip.",
        ("data inspect FILE --model FOLDER",),
    ),
    "NoAssistantTurn": Advice(
        "A row has no answer to learn from.", "Remove it, or set spec.data.onInvalidRow: Skip."
    ),
    "RowTooLong": Advice(
        "A row is longer than spec.data.maxLength, and onTooLong is Fail.",
        "Raise maxLength, shorten the row, or set spec.data.onTooLong: Truncate or Drop.",
        ("data inspect FILE --model FOLDER",),
    ),
    "EmptyData": Advice(
        "A source has no rows, or none is left.", "Look at the file and at what was skipped."
    ),
    "NoSupervisedTokens": Advice(
        "After the cut at maxLength nothing is left that carries loss.",
        "Raise spec.data.maxLength, or see spec.data.lossOn.",
    ),
    "DataNotFound": Advice(
        "A file or pattern of spec.data matches nothing in the workspace.",
        "Put the file there, or correct its path: it is relative to the volume (and to workspace.subPath).",
    ),
    "UnknownFormat": Advice(
        "The shape of the rows is not recognised.",
        "Set format or columns of the source in spec.data.",
        ("data inspect FILE --model FOLDER",),
    ),
    "MaxLengthTooLong": Advice("spec.data.maxLength is more than the model has positions.", "Set it lower."),
}

_MODEL = {
    "ModelNotFound": Advice(
        "spec.model leads to no model.", "Correct the path (relative to the volume) or the name at the hub."
    ),
    "InvalidModel": Advice("A file of the model cannot be read.", "Copy the model anew."),
    "InvalidModelUri": Advice(
        "spec.model.uri has the wrong form.", "Write hf://OWNER/NAME, with @REVISION if need be."
    ),
    "ModelNotLoadable": Advice(
        "transformers cannot load the model.",
        "Read its words in the log; an image with a newer transformers may.",
        (LOGS,),
    ),
    "UnsupportedModel": Advice(
        "It is no causal language model, or a quantised one.", "Take the model's plain weights."
    ),
    "WeightsMissing": Advice("Files of the weights are missing.", "Copy the model anew."),
    "WeightsDamaged": Advice("Files of the weights are cut or damaged.", "Copy the model anew."),
    "TokenizerMissing": Advice(
        "The folder has no readable tokenizer.", "Put the model's tokenizer files beside the weights."
    ),
    "TokenizerMismatch": Advice(
        "The tokenizer belongs to another model.", "Put the model's own tokenizer there."
    ),
    "NoChatTemplate": Advice(
        "The tokenizer has no chat template.", "Set spec.model.chatTemplate, for example to {preset: ChatML}."
    ),
    "ChatTemplateNotFound": Advice("spec.model.chatTemplate.path does not exist.", "Correct the path."),
    "InvalidChatTemplate": Advice(
        "The chat template cannot be rendered.", "Correct what the message names in it."
    ),
    "HubUnavailable": Advice(
        "The pods do not reach the hub.", "Copy the model into the workspace and use spec.model.path."
    ),
    "HubAccessDenied": Advice(
        "The token may not read the model.",
        "Accept the model's terms, and see the Secret of spec.model.secretRef.",
    ),
    "InvalidUri": Advice("A uri has the wrong form.", "Write it as the message says."),
    "SourceNotFound": Advice("What a uri names is not in the store.", "Correct the uri, or put it there."),
    "SourceAccessDenied": Advice(
        "The store refuses the keys, or there are none.", "Correct the Secret of the field's secretRef."
    ),
    "SourceRefused": Advice(
        "The store or server does not serve it so.", "Do what the message says, or copy it to the volume."
    ),
    "SourceTooLarge": Advice("A uri names too many files.", "Name a folder further down."),
    "UnsafeName": Advice("An object's name cannot be a file's.", "Rename it in the store."),
    "PrecisionUnsupported": Advice("The GPU has no bf16.", "Set spec.training.precision: fp16."),
    "UnknownParameters": Advice(
        "A pattern of training.parameterGroups decides for no parameter.",
        "Take one of the names in the message.",
    ),
    "AddedTokensUnsupported": Advice(
        "This tokenizer, or these files of weights, cannot be extended by spec.model.addTokens.",
        "Do what the message says, or remove addTokens.",
    ),
    "SequenceParallelUnsupported": Advice(
        "The sequences of this model cannot be split over so many ranks, or not at all.",
        "Set spec.deepspeed.sequenceParallelSize to 1, or to a size that is named, in a job created anew.",
    ),
    "TensorParallelChanged": Advice(
        "The checkpoint is of ranks which had other shares of the layers.",
        "Set spec.deepspeed.tensorParallelSize back, or use another metadata.name.",
    ),
    "AttentionUnsupported": Advice(
        "spec.model.attention names what this model, this image or this GPU does not have.",
        "Set it to what the message says, or remove it to have it chosen.",
    ),
    "QLoRAUnavailable": Advice(
        "bitsandbytes does not load in the trainer's image.",
        "Use the image of the operator's release, or set spec.training.method: LoRA.",
    ),
    "OperationNotPrebuilt": Advice(
        "A feature of DeepSpeed needs a kernel that the trainer's image does not hold.",
        "Use an image that was built with it (DEEPSPEED_OPS), or leave out what the message names.",
    ),
    "UnknownTargetModules": Advice(
        "A name in spec.training.lora.targetModules is of no layer.",
        "Take names from the list in the message.",
    ),
    "TiedTargetModules": Advice(
        "LoRA is to train a head that shares its weights with the embedding.",
        "Leave it out of targetModules.",
    ),
    "NothingToTrain": Advice(
        "training.parameterGroups freezes everything.", "Leave a group that is trained."
    ),
}

_RUN = {
    "GPUUnsupported": Advice(
        "The GPU is older than those the trainer's torch has kernels for.",
        "Choose newer ones, by a nodeSelector in spec.workers.podTemplate.",
    ),
    "SharedMemoryFull": Advice("/dev/shm of a pod is full.", "Raise spec.workers.sharedMemory."),
    "PermissionDenied": Advice(
        "The pod's user may not write to the workspace, or not read from it.",
        "Set runAsUser and fsGroup in spec.workers.podTemplate.spec.securityContext (and in spec.prepare) to the owner's.",
    ),
    "OptimizerChanged": Advice(
        "The checkpoint to continue was written by another optimizer, or with other master weights.",
        "Set spec.training.optimizer and spec.training.masterWeights as they were, or take another metadata.name.",
    ),
    "CheckpointsOfAnotherJob": Advice(
        "The folder on the volume holds the checkpoints of another training under this name.",
        "Take another metadata.name, or spec.checkpoint.onExisting: StartFresh, which moves them aside.",
    ),
    "ZeROStageChanged": Advice(
        "The checkpoint was written at ZeRO stage 0 and this job has another, or the other way round.",
        "Set spec.deepspeed.zeroStage as it was, or start fresh.",
    ),
    "PrecisionChanged": Advice(
        "The checkpoint was trained in another precision.",
        "Set spec.training.precision as it was, or start fresh.",
    ),
    "BatchesChanged": Advice(
        "The steps of the checkpoint read other rows than this job's would.",
        "Set globalBatchSize, maxLength and packing as they were, or start fresh.",
    ),
    "CheckpointBeyondEnd": Advice(
        "The checkpoint lies beyond the last step of this job.",
        "Raise epochs, maxSteps or maxTokens, or start fresh.",
    ),
    "CheckpointTooNew": Advice("A newer trainer wrote the checkpoint.", "Take that trainer's image."),
    "BestCheckpointLost": Advice(
        "The checkpoint of the best evaluation, which was to be exported, is gone or damaged.",
        "Start it again with spec.export.checkpoint: Last.",
        ("checkpoints {name}",),
    ),
    "NoWholeCheckpoint": Advice(
        "There are checkpoints and none is whole: nothing starts over unasked.",
        "Set spec.checkpoint.onExisting: StartFresh, or bring a whole one back.",
        ("checkpoints {name} --verify",),
    ),
    "Diverged": Advice(
        "The loss or the norm of the gradient is no longer a number; the same steps would end the same way.",
        "Lower spec.training.learningRate, lengthen the warm-up, set maxGradNorm: 1.0, prefer bf16 to fp16.",
        (LOGS,),
    ),
    "ExportCheckFailed": Advice(
        "What was read back from the export is not what was trained.", "Report it with the log.", (LOGS,)
    ),
    "InvalidConfig": Advice(_RELEASES, _ONE_RELEASE, ("doctor",)),
    "InvalidTrainConfig": Advice(_RELEASES, _ONE_RELEASE, ("doctor",)),
    "InvalidHostfile": Advice(_RELEASES, _ONE_RELEASE, ("doctor",)),
    "InvalidEnvironment": Advice(_RELEASES, _ONE_RELEASE, ("doctor",)),
    "InvalidArguments": Advice(_RELEASES, _ONE_RELEASE, ("doctor",)),
}

USER_ERRORS: Mapping[str, Advice] = _DATA | _MODEL | _RUN
