"""`python -m sft_trainer launch`: PID 1 of a training pod.

Reads the gang from $SFTJOB_CONFIG, waits for rank 0's name, runs the local ranks to their end and leaves
with an exit code and a termination message, both described in docs/exit-codes.md.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sft_trainer import config, outcome, uses
from sft_trainer.config import FailureClass, Outcome, TrainConfig
from sft_trainer.errors import classify
from sft_trainer.launcher import cgroup, inputs, names, scrape, server
from sft_trainer.launcher.aftermath import Aftermath
from sft_trainer.launcher.environment import Gang, rank_environment
from sft_trainer.launcher.logs import BoundedFile, RankLog, pod_log
from sft_trainer.launcher.signals import Signals, adopt_orphans
from sft_trainer.launcher.supervisor import RankPlan, Settings, Supervisor
from sft_trainer.launcher.verdict import judge
from sft_trainer.layout import JobFolder
from sft_trainer.progress import read_progress
from sft_trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)

RANK_COMMAND = (sys.executable, "-u", "-m", "sft_trainer", "train")


class Launch:
    """One life of a launcher; `command` is what each rank runs."""

    def __init__(
        self, environment: Mapping[str, str], settings: Settings, command: Sequence[str], port: int
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._command = command
        self._port = port
        self._signals = Signals()
        self._heartbeat = server.Heartbeat()
        self._aftermath: Aftermath | None = None  # on the node of rank 0

    def run(self) -> Outcome:
        """From the configuration to the verdict; whatever goes wrong becomes an Outcome, too."""
        self._signals.install()
        adopt_orphans()
        try:
            return self._run()
        except Exception as error:
            logger.debug("the launcher failed", exc_info=True)
            return outcome.failed(classify(error))

    def conclude(self, verdict: Outcome) -> None:
        """What follows from an outcome that stands."""
        if self._aftermath is not None:
            self._aftermath.follow(verdict)

    def _run(self) -> Outcome:
        environment = self._environment
        folder = inputs.required(environment, config.ENV_CONFIG)
        workspace = inputs.required(environment, config.ENV_WORKSPACE)
        train = inputs.read_train_config(folder / config.TRAIN_FILE)
        hosts = inputs.read_hosts(folder / config.HOSTFILE, train.topology)
        node = inputs.node_index(environment, len(hosts))
        if node == 0:
            folder_of_job = JobFolder.of(workspace, train.job.name)
            self._aftermath = Aftermath(folder_of_job, train, environment, self._settings, self._pause)
        run = RunFolder(inputs.required(environment, config.ENV_RUN))
        _empty(run)
        supervisor = Supervisor(
            self._signals, self._settings, clock=time.monotonic, beat=self._heartbeat.beat
        )
        self._serve(run, train, node, supervisor)
        address = (node == 0 and self._own_address()) or self._find_master(hosts[0].name)
        gang = Gang(hosts, node, address, config.MASTER_PORT)
        logger.info("node %d of %d; rank 0 at %s port %d", node, len(hosts), address, gang.master_port)
        with uses.kept(workspace, [train.model.directory, train.data.cache] if node == 0 else []):
            return self._supervise(supervisor, self._plans(gang, train, run, workspace), run)

    def _serve(self, run: RunFolder, train: TrainConfig, node: int, supervisor: Supervisor) -> None:
        labels = {
            "sftjob": train.job.name,
            "attempt": str(train.attempt),
            "node": self._environment.get(config.ENV_NODE_NAME) or str(node),
        }
        pages = server.Pages(run, scrape.registry(run.metrics, labels, supervisor.up), self._heartbeat)
        server.serve(self._own_address() or "0.0.0.0", self._port, pages)

    def _own_address(self) -> str | None:
        """Of this pod; asking DNS for it could answer with that of the pod before."""
        return self._environment.get(config.ENV_POD_IP) or None

    def _find_master(self, name: str) -> str:
        hosts_file = self._environment.get(config.ENV_HOSTS)
        return names.wait_for(
            name,
            names.lookup(Path(hosts_file) if hosts_file else None),
            deadline_seconds=self._settings.name_deadline_seconds,
            clock=time.monotonic,
            pause=self._pause,
        )

    def _pause(self) -> bool:
        """One tick; False when told to stop."""
        self._heartbeat.beat()
        if not self._signals.stops:
            self._signals.wait(self._settings.tick_seconds)
        return not self._signals.stops

    def _plans(self, gang: Gang, train: TrainConfig, run: RunFolder, workspace: Path) -> list[RankPlan]:
        logs = JobFolder.of(workspace, train.job.name).logs(train.attempt)
        say = pod_log()
        cpus = inputs.cpus(self._environment) or cgroup.cpus()
        return [
            RankPlan(
                rank=rank,
                command=self._command,
                environment=rank_environment(
                    self._environment,
                    gang,
                    slot,
                    accelerator=train.topology.accelerator,
                    run=run,
                    cpus=cpus,
                    keep_freed_memory=train.keep_freed_memory,
                ),
                marker=run.marker(rank),
                log=RankLog(
                    rank, BoundedFile(logs / f"rank-{rank}.log", self._settings.log_limit_bytes), say
                ),
            )
            for slot, rank in enumerate(gang.local_ranks)
        ]

    def _supervise(self, supervisor: Supervisor, plans: Sequence[RankPlan], run: RunFolder) -> Outcome:
        before = cgroup.oom_kills()
        ends = supervisor.run(plans)
        after = cgroup.oom_kills()
        killed = after - before if before is not None and after is not None else None
        verdict = judge(
            ends, interrupted=supervisor.interrupted, oom_kills=killed, progress=read_progress(run.progress)
        )
        if verdict.failure_class is FailureClass.PEER_LOST:
            self._let_the_cause_fail_first()
        return verdict.model_copy(update={"time": outcome.now()})

    def _let_the_cause_fail_first(self) -> None:
        """The Job names the pod that failed first; being told to stop says that it has seen one."""
        delay = self._settings.peer_lost_delay_seconds
        logger.info("a peer was lost: leaving in %.0f s, after the pod that has the cause", delay)
        end = time.monotonic() + delay
        while (left := end - time.monotonic()) > 0 and not self._signals.stops:
            self._heartbeat.beat()
            self._signals.wait(min(left, self._settings.tick_seconds))


def _empty(run: RunFolder) -> None:
    """Forget an earlier life of this container: dead ranks' metrics would stay for ever."""
    run.progress.unlink(missing_ok=True)
    for folder in (run.metrics, run.ranks):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)


def launch(
    environment: Mapping[str, str] | None = None,
    *,
    settings: Settings | None = None,
    command: Sequence[str] = RANK_COMMAND,
    port: int = config.METRICS_PORT,
) -> int:
    """Run this pod's part of the gang; returns the exit code, after writing the termination message."""
    this = Launch(environment or os.environ, settings or Settings(), command, port)
    verdict = this.run()
    outcome.write_outcome(verdict)
    this.conclude(verdict)
    level = logging.INFO if verdict.outcome == "Succeeded" else logging.ERROR
    logger.log(level, "%s (exit code %d) %s", verdict.reason, verdict.exit_code, verdict.message)
    return verdict.exit_code


def main() -> int:
    """Entry of `python -m sft_trainer launch`."""
    logging.basicConfig(level=logging.INFO, format="[launcher] %(asctime)s %(levelname)s %(message)s")
    return launch()
