"""The Kubernetes half of SFTJob: a level-triggered operator around a pure core."""
