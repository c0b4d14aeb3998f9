"""Curves for the tools that people have open anyway: TensorBoard always, others where the environment asks."""
