"""The command `sftjob render`: what the operator would create for a job, and the same gang by hand, without a cluster."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from sft_trainer import config
from sftjob_operator.api import names
from sftjob_operator.api.v1alpha1 import SFTJob, Spec
from sftjob_operator.api.v1alpha1.pods import Resources
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.load import load, load_json, parse
from sftjob_operator.cluster.base import Manifest, Rejected
from sftjob_operator.cluster.local import admission
from sftjob_operator.desired.claim import claim, may_be_shared
from sftjob_operator.desired.job import attempt_config_map, attempt_job
from sftjob_operator.desired.podspec import CONFIG, RUN, WORKSPACE
from sftjob_operator.desired.prepare import prepare_children
from sftjob_operator.desired.service import service
from sftjob_operator.planning.advice import no_fit_message
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.planning.plan import NoFit, plan
from sftjob_operator.policy.accept import objection
from sftjob_operator.settings import Settings

_UID = "00000000-0000-0000-0000-000000000000"
_ATTEMPT = 1


def render(file: Path, facts_file: Path | None, namespace: str | None, settings: Settings) -> str:
    """YAML documents of preparation and of attempt 1, and the equivalent `deepspeed` command in comments."""
    job = _job(file, namespace, settings)
    facts = placeholder_facts() if facts_file is None else _facts(facts_file)
    # Whether a model that nobody has seen fits into the stated memory is not ours to say.
    chosen = plan(job.spec if facts_file else _without_memory(job.spec), facts.model, Hardware())
    if isinstance(chosen, NoFit):
        raise CliError(f"{file}: {no_fit_message(job.spec, facts.model, Hardware(), chosen)}", 1)
    parts = [_heading(job, facts_file)]
    shared = job.spec.workspace.claim_template is None or may_be_shared(claim(job))
    parts += [_yaml(manifest) for manifest in prepare_children(job, settings, 1, shared=shared)]
    parts += [
        _yaml(manifest)
        for manifest in (
            attempt_config_map(job, chosen, facts, _ATTEMPT),
            service(job),
            attempt_job(job, settings, _ATTEMPT),
        )
    ]
    return "---\n".join(parts) + "".join(f"# {line}\n" for line in command(job))


def command(job: SFTJob) -> Iterator[str]:
    """The same gang without the operator: DeepSpeed's own launcher with the hostfile of the ConfigMap."""
    name = names.attempt(job.name, _ATTEMPT)
    head = f"{names.host(job.name, _ATTEMPT, 0)}"
    yield f"The same gang by hand, on every node with its index, train.json and hostfile of {name} in {CONFIG}:"
    for variable, value in (
        (config.ENV_WORKSPACE, WORKSPACE),
        (config.ENV_CONFIG, CONFIG),
        (config.ENV_RUN, RUN),
    ):
        yield f"  export {variable}={value}"
    yield (
        f"  deepspeed --hostfile {CONFIG}/{config.HOSTFILE} --no_ssh --node_rank $JOB_COMPLETION_INDEX "
        f"--master_addr {head} --master_port {config.MASTER_PORT} --no_local_rank --module sft_trainer train"
    )


def _without_memory(spec: Spec) -> Spec:
    workers = spec.workers.model_copy(update={"resources": Resources()})
    return spec.model_copy(update={"workers": workers})


def placeholder_facts() -> config.PrepareResult:
    """Facts that only preparation can find out: those of a Llama of 1.2 billion parameters, and some data."""
    model = config.ModelFacts(
        directory=".sftjob/cache/models/UNKNOWN",
        resolved="unknown",
        architecture="LlamaForCausalLM",
        parameters=1_235_814_400,
        embedding_parameters=262_668_288,
        lora_parameters_per_rank=704_512,
        hidden_size=2048,
        intermediate_size=8192,
        layers=16,
        heads=32,
        vocabulary_size=128_256,
        max_positions=131_072,
        tied_embeddings=True,
    )
    data = config.DataFacts(
        cache=".sftjob/cache/data/UNKNOWN",
        hash="unknown",
        rows=1000,
        eval_rows=0,
        tokens=1_000_000,
        supervised_tokens=500_000,
        truncated_rows=0,
        dropped_rows=0,
        skipped_rows=0,
        longest_row=1000,
        packs=500,
        fill_percent=95,
    )
    return config.PrepareResult(model=model, data=data)


def _job(file: Path, namespace: str | None, settings: Settings) -> SFTJob:
    manifest = load(file, namespace)
    try:
        admitted = admission.admit(manifest, None)
    except Rejected as error:
        raise CliError(f"{file}: {error.message}") from None
    job = parse(file, {**admitted, "metadata": {**admitted["metadata"], "uid": _UID}})
    wrong = objection(job, settings)
    if wrong is not None:
        raise CliError(f"{file}: {wrong.reason}: {wrong.message}")
    return job


def _facts(file: Path) -> config.PrepareResult:
    try:
        return config.PrepareResult.model_validate(load_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CliError(
            f"{file}: {where}: {first['msg']} (status.prepared.facts of a job has the form)"
        ) from None


def _heading(job: SFTJob, facts_file: Path | None) -> str:
    lines = [f"SFTJob {job.name}: what the operator creates for its preparation and for attempt 1."]
    if facts_file is None:
        lines += [
            "Plan, model and data of attempt 1 rest on placeholder facts (a model of 1.2 billion parameters),",
            "because only preparation finds out the real ones; --facts FILE takes status.prepared.facts of a job.",
        ]
    return "".join(f"# {line}\n" for line in lines)


def _yaml(manifest: Manifest) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    stream = io.StringIO()
    yaml.dump(_readable(_without_owner(manifest)), stream)
    return stream.getvalue()


def _without_owner(manifest: Manifest) -> Manifest:
    """A cluster would collect at once what belongs to an SFTJob that is not in it."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "ownerReferences"}
    return {**manifest, "metadata": metadata}


def _readable(value: Any) -> Any:
    """Files inside ConfigMaps as blocks."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value
