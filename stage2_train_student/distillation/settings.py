"""Which distillation terms an experiment uses, and how."""

from typing import Literal

from pydantic import Field

from common.base.config import Settings

LOGIT_SCALE = 0.1
LOGIT_THRESHOLD = 0.01


class DistillationSettings(Settings):
    """Weights of the distillation terms; 0 switches a term off.

    Attributes:
        logit: soft logits.
        vpd: voxel-to-pillar features.
        lwd: label-weighted features before the classifier.
        others: weights of terms of your own by name, such as `my_package.my_loss:MyTerm`.
        support: voxels of the logit term: `occupied`, or `dense` as published.
        logit_scale: factor on both logits before the softmax, the inverse of a temperature.
        logit_threshold: voxels whose divergence is not above it do not count; null counts all.
        confidence: weight what the terms compare by the probability of the teacher's likeliest class, see `weights`.
        trust_labels: leave out voxels with a label where the teacher's likeliest class is another one, see `weights`.
    """

    logit: float = Field(1.0, ge=0)
    vpd: float = Field(2.0, ge=0)
    lwd: float = Field(2.0, ge=0)
    others: dict[str, float] = {}
    support: Literal["occupied", "dense"] = "occupied"
    logit_scale: float = Field(LOGIT_SCALE, gt=0)
    logit_threshold: float | None = LOGIT_THRESHOLD
    confidence: bool = False
    trust_labels: bool = False

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in use, by name."""
        own = {"logit": self.logit, "vpd": self.vpd, "lwd": self.lwd}
        return {name: weight for name, weight in {**own, **self.others}.items() if weight}
