"""The operator of `make bench-scale`: the product's own process, told that it is in the cluster.

In a cluster it asks pods for /progress by their IP; with a kubeconfig it would go through the API server's pod proxy,
which refuses the loopback addresses of pods that are not there.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from sftjob_operator import logs
from sftjob_operator.__main__ import Operator
from sftjob_operator.cluster.connection import connect
from sftjob_operator.settings import Settings


async def main() -> int:
    settings = Settings.from_environment()
    logs.configure(settings.log_format, settings.log_level)
    return await Operator(settings, replace(await connect(), in_cluster=True)).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
