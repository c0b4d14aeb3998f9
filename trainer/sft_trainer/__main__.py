"""`python -m sft_trainer COMMAND`: the entry point of every container of a job.

Each command is the `main() -> int` of a module which is imported only when asked for: the launcher starts
without torch, and its ranks without the launcher.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import NoReturn

from sft_trainer.errors import classify

COMMANDS = {
    "prepare": "sft_trainer.prepare",  # fetch, validate, tokenise and pack; before any GPU is taken
    "launch": "sft_trainer.launch",  # PID 1 of a training pod
    "train": "sft_trainer.train",  # one rank, started by the launcher
    "chat": "sft_trainer.chat",  # ask a finished model
    "samples": "sft_trainer.samples",  # questions to the base and to the result, for the report
    "report": "sft_trainer.report.command",  # one page about a training
    "inspect": "sft_trainer.inspection",  # look at data
    "volume": "sft_trainer.volume",  # answer a person's terminal about the workspace
}


def main(arguments: list[str]) -> int:
    """Run the command named first; the rest of the arguments is its own."""
    if not arguments or arguments[0] not in COMMANDS:
        sys.stderr.write(f"usage: python -m sft_trainer {{{','.join(COMMANDS)}}}\n")
        return 2
    command = arguments[0]
    sys.argv = [f"sft_trainer {command}", *arguments[1:]]
    try:
        return int(importlib.import_module(COMMANDS[command]).main())
    except Exception as error:
        logging.getLogger("sft_trainer").exception("%s failed", command)
        return int(classify(error).exit_code)


def leave(code: int) -> NoReturn:
    """End this process at once, past the tear-down of torch and its communication libraries.

    A rank has said its last word by now. Tearing down takes seconds of every restart (4.3 s to stop a small
    job, 0.9 s without), and may hang or crash in the destructors of a group whose peers have gone.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        leave(main(sys.argv[1:]))
    sys.exit(main(sys.argv[1:]))
