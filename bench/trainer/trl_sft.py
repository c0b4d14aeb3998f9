"""TRL's SFTTrainer on the rows that ours has prepared; one rank, started by torchrun in an environment of its own.

Everything is TRL's default but what makes the work the same: rows and labels, batch, optimizer, rate, two CPU
ranks; and gradient checkpointing, which TRL turns on by default and which would cost it a third more time.
"""

from __future__ import annotations

import json
import os
import sys

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Counting(SFTTrainer):
    """Counts what a step computes; says nothing to anybody."""

    tokens = supervised = 0

    def training_step(self, model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        self.tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        self.supervised += int((inputs["labels"][:, 1:] != -100).sum())
        return super().training_step(model, inputs, *args, **kwargs)


class Says(TrainerCallback):
    """One line per step: the counts of this rank, and the loss."""

    def __init__(self) -> None:
        self.trainer: Counting | None = None

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if self.trainer is None or "loss" not in (logs or {}):
            return
        said = {"rank": int(os.environ["RANK"]), "step": state.global_step, "loss": float(logs["loss"])}
        counts = {"tokens": self.trainer.tokens, "supervised": self.trainer.supervised}
        self.trainer.tokens = self.trainer.supervised = 0
        sys.stdout.write(json.dumps({**said, **counts}) + "\n")  # at once: both ranks share the pipe
        sys.stdout.flush()


def main() -> None:
    settings = json.loads(sys.argv[1])
    with open(settings["rows"]) as file:
        rows = json.load(file)
    labels = [
        [token if bit else -100 for token, bit in zip(row["ids"], row["supervised"], strict=True)]
        for row in rows
    ]
    data = Dataset.from_dict({"input_ids": [row["ids"] for row in rows], "labels": labels})
    says = Says()
    trainer = Counting(
        model=settings["model"],
        args=SFTConfig(
            output_dir=settings["output"],
            use_cpu=True,
            bf16=settings["precision"] == "bf16",
            gradient_checkpointing=False,
            packing=settings["packing"],
            max_length=settings["max_length"],
            per_device_train_batch_size=1 if settings["packing"] else settings["rows_per_rank"],
            gradient_accumulation_steps=1,
            max_steps=settings["steps"],
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            weight_decay=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=settings["seed"],
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        callbacks=[says],
    )
    says.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
