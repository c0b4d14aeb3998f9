"""PID 1 of a training pod: starts the ranks of this node, watches them, and says how it ended.

Nothing in here imports torch, deepspeed or transformers: the launcher is up in a fraction of a second, and a
broken accelerator stack is the ranks' failure to report, not the launcher's.
"""
