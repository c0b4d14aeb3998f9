"""The two inputs of the trainer: nothing is left to decide in a pod but what only a pod can see."""

from __future__ import annotations

from collections.abc import Mapping

from sft_trainer import config
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.api.v1alpha1.data import DataSource
from sftjob_operator.api.v1alpha1.model import ChatTemplate
from sftjob_operator.api.v1alpha1.training import LoRA
from sftjob_operator.desired.children import digest
from sftjob_operator.planning.intent import Intent, intent
from sftjob_operator.planning.plan import Plan

_SAMPLES = 3  # held-out prompts that the report shows answers to
_PERIOD_SECONDS = 900  # between checkpoints, where the spec names neither seconds nor steps


def prepare_config(job: SFTJob) -> config.PrepareConfig:
    """prepare.json."""
    model, data, prefixes = job.spec.model, job.spec.data, secret_prefixes(job)
    held_out = None
    if data.eval is not None:
        held_out = config.EvalSplit(
            split_percent=data.eval.split_percent,
            sources=[
                _source(index, source, prefixes) for index, source in enumerate(data.eval.sources or ())
            ],
        )
    return config.PrepareConfig(
        job=_identity(job),
        model=config.ModelSource(
            path=model.path,
            uri=model.uri,
            chat_template=_chat_template(model.chat_template),
            add_tokens=list(model.add_tokens or ()),
        ),
        data=config.DataConfig(
            train=[_source(index, source, prefixes) for index, source in enumerate(data.train)],
            eval=held_out,
            max_length=data.max_length,
            min_length=data.min_length,
            packing=data.packing,
            loss_on=data.loss_on,
            on_too_long=data.on_too_long,
            on_invalid_row=data.on_invalid_row,
            deduplicate=data.deduplicate,
        ),
        freezing=_freezing(job),
        seed=job.spec.training.seed,
    )


def train_config(job: SFTJob, chosen: Plan, facts: config.PrepareResult, number: int) -> config.TrainConfig:
    """train.json of attempt `number`."""
    spec, wanted = job.spec, intent(job.spec)
    checkpoint = spec.checkpoint
    period_seconds = checkpoint.period_seconds
    if period_seconds is None and checkpoint.period_steps is None:
        period_seconds = _PERIOD_SECONDS
    return config.TrainConfig(
        job=_identity(job),
        attempt=number,
        identity=identity(job, facts),
        model=config.TrainModel(
            directory=facts.model.directory,
            resolved=facts.model.resolved,
            attention=spec.model.attention,
            chat_template=_chat_template(spec.model.chat_template),
            added_tokens=facts.model.added_tokens,
        ),
        data=config.TrainData(
            cache=facts.data.cache, max_length=spec.data.max_length, packing=spec.data.packing
        ),
        training=_training(job, chosen, wanted),
        deepspeed=config.DeepSpeed(
            zero_stage=chosen.zero_stage,
            offload_optimizer=chosen.offload_optimizer,
            offload_parameters=chosen.offload_parameters,
            activation_checkpointing=chosen.activation_checkpointing,
            sequence_parallel_size=chosen.sequence_ranks,
            tensor_parallel_size=chosen.tensor_ranks,
            config=dict(wanted.raw),
        ),
        topology=config.Topology(
            nodes=wanted.nodes, processes_per_node=wanted.processes_per_node, accelerator=wanted.accelerator
        ),
        checkpoint=config.Checkpointing(
            period_steps=checkpoint.period_steps,
            period_seconds=period_seconds,
            keep_last=checkpoint.retain.last,
            keep_best=int(spec.exports_best) if checkpoint.retain.best is None else checkpoint.retain.best,
            on_existing=checkpoint.on_existing,
        ),
        evaluation=config.Evaluation(
            **spec.evaluation.model_dump(exclude={"samples"}), samples=_samples(job)
        ),
        export=config.Export(format=spec.export.format, checkpoint="Best" if spec.exports_best else "Last"),
        planned=config.Planned(
            memory_bytes=chosen.memory_bytes,
            available_bytes=chosen.available_bytes,
            decided=list(chosen.decided),
        ),
        keep_freed_memory=wanted.accelerator == "cpu" and chosen.has_room,
    )


def _samples(job: SFTJob) -> int:
    if job.spec.data.eval is None:
        return 0
    return _SAMPLES if job.spec.evaluation.samples is None else job.spec.evaluation.samples


def identity(job: SFTJob, facts: config.PrepareResult) -> str:
    """Digest of what must not change under a checkpoint: model, data, seed, which weights are trained."""
    training = job.spec.training
    adapters = _lora(job).model_dump(exclude_defaults=True) if training.method != "Full" else None
    groups = (
        [[group.model_dump() for group in training.parameter_groups]] if training.parameter_groups else []
    )
    return digest(
        [facts.model.resolved, facts.data.hash, training.seed, training.method, adapters, *groups], 16
    )


def _training(job: SFTJob, chosen: Plan, wanted: Intent) -> config.Training:
    spec = job.spec.training
    beta1, beta2 = spec.optimizer.betas
    return config.Training(
        method=spec.method,
        lora=_lora(job) if spec.method != "Full" else None,
        epochs=1 if (spec.epochs, spec.max_steps, spec.max_tokens) == (None, None, None) else spec.epochs,
        max_steps=spec.max_steps,
        max_tokens=spec.max_tokens,
        global_batch_size=wanted.global_batch_size,
        micro_batch_size=chosen.micro_batch_size,
        gradient_accumulation_steps=chosen.gradient_accumulation_steps,
        learning_rate=spec.learning_rate,
        scheduler=config.Scheduler(
            type=spec.scheduler.type,
            warmup_steps=spec.scheduler.warmup_steps,
            decay_steps=spec.scheduler.decay_steps,
            min_learning_rate=spec.scheduler.min_learning_rate,
        ),
        optimizer=config.Optimizer(
            type=spec.optimizer.type,
            betas=(beta1, beta2),
            eps=spec.optimizer.eps,
            weight_decay=spec.optimizer.weight_decay,
            momentum=spec.optimizer.momentum,
        ),
        loss=config.Loss(**spec.loss.model_dump()) if spec.loss else None,
        neftune_alpha=spec.neftune_alpha,
        max_grad_norm=wanted.max_grad_norm,
        parameter_groups=[config.ParameterGroup(**group.model_dump()) for group in spec.parameter_groups],
        early_stopping=config.EarlyStopping(**spec.early_stopping.model_dump())
        if spec.early_stopping
        else None,
        precision=wanted.precision or "Auto",
        master_weights=spec.master_weights,
        seed=spec.seed,
    )


def _freezing(job: SFTJob) -> list[config.ParameterGroup]:
    """The patterns that decide what is frozen, where all weights would be trained; rates are not preparation's."""
    training = job.spec.training
    if training.method != "Full" or not any(group.freeze for group in training.parameter_groups):
        return []
    return [
        config.ParameterGroup(pattern=group.pattern, freeze=group.freeze)
        for group in training.parameter_groups
    ]


def _lora(job: SFTJob) -> config.LoRA:
    lora = job.spec.training.lora or LoRA()
    return config.LoRA(
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        variant=lora.variant,
    )


def _identity(job: SFTJob) -> config.JobIdentity:
    return config.JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid)


def secret_prefixes(job: SFTJob) -> dict[str, str]:
    """What stands before the keys of each source's Secret in the environment: two stores, two sets of keys.

    The model's Secret has its keys as they are.
    """
    model = job.spec.model.secret_ref
    refs = [source.secret_ref for source in job.spec.data_sources.values() if source.secret_ref is not None]
    others = dict.fromkeys(ref.name for ref in refs if model is None or ref.name != model.name)
    return {name: f"SFTJOB_DATA_{number}_" for number, name in enumerate(others)}


def _source(index: int, source: DataSource, prefixes: Mapping[str, str]) -> config.DataSource:
    return config.DataSource(
        name=source.name or str(index),
        path=source.path,
        uri=source.uri,
        secret_prefix=None if source.secret_ref is None else prefixes.get(source.secret_ref.name),
        inline=source.inline,
        format=source.format,
        columns=dict(source.columns),
        weight=source.weight,
        max_rows=source.max_rows,
    )


def _chat_template(template: ChatTemplate | None) -> config.ChatTemplate | None:
    return None if template is None else config.ChatTemplate(path=template.path, preset=template.preset)
