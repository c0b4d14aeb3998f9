"""A real Kubernetes on this machine, without docker: `python tests/devcluster up`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:
    # Run as a folder: make the folder importable by its name, as the tests import it.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from devcluster import binaries, cluster, doctor, images, paths, volumes
from devcluster.processes import CommandError, say

Command = Callable[[argparse.Namespace], int | None]


def main() -> int:
    arguments = _parser().parse_args()
    run: Command = arguments.run
    try:
        code = run(arguments) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `... | head` is no error
        return 0
    except (CommandError, ValueError) as error:
        say(str(error))
        return 1
    return code


def up(_: argparse.Namespace) -> None:
    print(cluster.up())


def down(_: argparse.Namespace) -> None:
    cluster.down()


def status(_: argparse.Namespace) -> int:
    for name, text in cluster.status().items():
        print(f"{name:25} {text}")
    return 0 if cluster.is_healthy() else 1


def examine(_: argparse.Namespace) -> int:
    complete = doctor.report()
    return 1 if not complete and os.environ.get("CI") == "true" else 0


def environment(_: argparse.Namespace) -> None:
    print(f"export KUBECONFIG='{paths.kubeconfig()}'")
    print(f"export PATH='{binaries.tools()}':\"$PATH\"")
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        print(f'export NO_PROXY="{paths.BRIDGE_ADDRESS},${{NO_PROXY:-}}"')


def load_image(arguments: argparse.Namespace) -> None:
    print("\n".join(images.load(arguments.archive)))


def volume(arguments: argparse.Namespace) -> None:
    directory = volumes.workspace(arguments.path)
    _print_list(volumes.volume(arguments.name, directory, arguments.namespace))


def thin(arguments: argparse.Namespace) -> None:
    if arguments.claims:
        _print_list(volumes.thin_claims(arguments.namespace))
    else:
        mounted, mounts = volumes.thin_volumes()
        print(json.dumps({"volumes": mounted, "volumeMounts": mounts}, indent=1))


def node_stop(arguments: argparse.Namespace) -> None:
    cluster.node_stop(arguments.name)


def node_start(arguments: argparse.Namespace) -> None:
    cluster.node_start(arguments.name)


def _print_list(items: list[volumes.Manifest]) -> None:
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/devcluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    command("up", up, "start it (build it first, the first time); prints the kubeconfig's path")
    command("down", down, "end it and remove every trace but logs and built programs")
    command("status", status, "each part and its pid; exit 1 unless all is well")
    command("doctor", examine, "what this machine lacks; exit 1 for it when CI=true")
    command("env", environment, "shell lines that set KUBECONFIG, and PATH for kubectl and helm")
    command("load-image", load_image, "import an image archive into both nodes").add_argument("archive")
    shared = command("volume", volume, "print a ReadWriteMany volume and claim on a shared directory")
    shared.add_argument("name")
    shared.add_argument("path")
    tree = command("thin", thin, "print the thin image's volumes and volumeMounts")
    tree.add_argument("--claims", action="store_true", help="print volumes and claims to mount by instead")
    for namespaced in (shared, tree):
        namespaced.add_argument("--namespace", "-n", default="default")
    for name, run, text in (
        ("node-stop", node_stop, "kill a node's kubelet; its containers run on"),
        ("node-start", node_start, "start a node's kubelet again"),
    ):
        command(name, run, text).add_argument("name", choices=[node.name for node in paths.NODES])
    return parser


if __name__ == "__main__":
    sys.exit(main())
