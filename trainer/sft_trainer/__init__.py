"""The in-pod half of SFTJob: data preparation, the launcher and the DeepSpeed trainer."""
