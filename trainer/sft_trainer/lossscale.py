"""Dynamic loss scaling of fp16: small gradients would vanish in it, large ones become infinite.

Losses are multiplied by a scale (https://arxiv.org/abs/1710.03740, section 3.2) that halves when gradients
overflow and doubles after `loss_scale_window` steps in which they did not.
"""

from __future__ import annotations

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from sft_trainer.errors import UserError


class LossScaler(DynamicLossScaler):  # type: ignore[misc]
    """DeepSpeed's scaler, part of its checkpoints, with a larger scale only from the next step on.

    DeepSpeed asks for the scale of the next step before it divides this step's gradients by it: where the scale
    doubles they, and the norm that clips them, would be half of what they are.
    """

    cur_scale: float
    min_scale: float
    grown: float | None = None  # the scale of the next step, where it is another

    @classmethod
    def like(cls, other: DynamicLossScaler) -> LossScaler:
        """A scaler in the state of `other`."""
        scaler = cls.__new__(cls)
        scaler.__dict__.update(other.__dict__)
        return scaler

    def update_scale(self, overflow: bool) -> None:
        """What DeepSpeed calls within a step.

        Raises:
            UserError: gradients overflow with the smallest scale, so that no scale helps.
        """
        if overflow and self.cur_scale <= self.min_scale:
            raise UserError(
                "Diverged",
                f"gradients overflow fp16 even with the smallest loss scale, {self.cur_scale:g}: training diverged, "
                "or the model's numbers are too large for fp16; set training.precision to bf16 or fp32, or lower "
                "training.learningRate",
            )
        present = self.cur_scale
        super().update_scale(overflow)
        if not overflow:
            self.grown, self.cur_scale = self.cur_scale, present

    def grow(self) -> None:
        """To be called between steps."""
        if self.grown is not None:
            self.cur_scale, self.grown = self.grown, None
