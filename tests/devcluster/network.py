"""A bridge, two network namespaces and the routes between them: the machines' wires.

Nodes have no default route and two nftables chains keep the cluster inside the machine: nothing in it
reaches the outside, and nobody outside reaches it, whatever the machine's own forwarding is set to.
"""

from __future__ import annotations

from pathlib import Path

from devcluster import paths
from devcluster.processes import run, say, which

TABLE = "sftjob_devcluster"
RULES = f"""
table inet {TABLE} {{
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname "{paths.BRIDGE}" oifname != "{paths.BRIDGE}" drop
    iifname != "{paths.BRIDGE}" oifname "{paths.BRIDGE}" drop
  }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname != {{ "lo", "{paths.BRIDGE}" }} ip daddr {paths.BRIDGE_NETWORK} drop
  }}
}}
"""
# Where docker is installed, the FORWARD policy is often DROP, and bridged packets pass it too.
ALLOW = (
    "FORWARD",
    "-i",
    paths.BRIDGE,
    "-o",
    paths.BRIDGE,
    "-m",
    "comment",
    "--comment",
    TABLE,
    "-j",
    "ACCEPT",
)


def up() -> None:
    run("ip", "link", "add", paths.BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{paths.BRIDGE_ADDRESS}/24", "dev", paths.BRIDGE)
    run("ip", "link", "set", paths.BRIDGE, "up")
    run("nft", "-f", "-", stdin=RULES)
    if _forwarding_is_dropped():
        say(f"iptables drops forwarded packets here: allowing them inside {paths.BRIDGE}")
        run("iptables", "-I", *ALLOW)
    for node in paths.NODES:
        _attach(node)
    # Lets tests on the host call a ClusterIP: node-1 translates and masquerades, as any node would.
    run("ip", "route", "add", paths.SERVICE_NETWORK, "via", paths.NODES[0].address)


def down() -> None:
    """Remove what `up` makes, whatever part of it exists."""
    for node in paths.NODES:
        run("ip", "link", "delete", node.veth, check=False)
        if Path("/run/netns", node.namespace).exists():
            run("ip", "netns", "delete", node.namespace, check=False)
    run("ip", "link", "delete", paths.BRIDGE, check=False)
    run("nft", "delete", "table", "inet", TABLE, check=False)
    if which("iptables"):
        run("iptables", "-D", *ALLOW, check=False)


def inside(node: paths.Node) -> list[str]:
    """The words that run a command in the node's network.

    `nsenter`, not `ip netns exec`: the latter remounts /sys and hides the cgroups.
    """
    return ["nsenter", f"--net=/run/netns/{node.namespace}"]


def _attach(node: paths.Node) -> None:
    run("ip", "netns", "add", node.namespace)
    run("ip", "link", "add", node.veth, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
    run("ip", "link", "set", node.veth, "master", paths.BRIDGE, "up")
    commands = [
        "ip link set lo up",
        f"ip address add {node.address}/24 dev eth0",
        "ip link set eth0 up",
        f"ip route add {paths.SERVICE_NETWORK} via {paths.BRIDGE_ADDRESS}",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ]
    commands += [
        f"ip route add {other.pod_subnet} via {other.address}" for other in paths.NODES if other != node
    ]
    run(*inside(node), "sh", "-ec", "\n".join(commands))
    run("ip", "route", "add", node.pod_subnet, "via", node.address)


def _forwarding_is_dropped() -> bool:
    if not which("iptables"):
        return False
    return "-P FORWARD DROP" in run("iptables", "-S", "FORWARD", check=False)
