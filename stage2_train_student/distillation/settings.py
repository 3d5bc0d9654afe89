"""Which distillation terms an experiment uses, and how."""

from typing import Literal

from pydantic import Field, PositiveInt, field_validator

from common.base.config import Settings

LOGIT_SCALE = 0.1
LOGIT_THRESHOLD = 0.01

VPD_PAIRS = {"down1c": "x2", "down3c": "x4", "up4e": "x_up5", "up2e": "x_up3"}
"""Teacher layer to student layer, as published."""

LWD_PAIR = ("up0e", "x_up2")
"""Teacher and student layer, the last ones before the classifiers."""


class LayerPair(Settings):
    """A teacher layer and the student layer that learns from it.

    Attributes:
        term: the distillation term that compares them, by the name of its value.
        teacher: layer of the teacher; a term reads each of them once.
        student: layer of the student. Where one of two maps is finer along both axes, by whole factors, it is pooled to
            the other's size: of the teacher's pillars each channel's maximum, of a student's map the mean.
        weight: of the pair within its term.
    """

    term: str = "vpd"
    teacher: str
    student: str
    weight: float = Field(1.0, gt=0)


PUBLISHED_PAIRS = [
    *(LayerPair(term="vpd", teacher=teacher, student=student) for teacher, student in VPD_PAIRS.items()),
    LayerPair(term="lwd", teacher=LWD_PAIR[0], student=LWD_PAIR[1]),
    LayerPair(term="point_affinity", teacher="vox", student="vox"),
    LayerPair(term="voxel_affinity", teacher="up1e", student="up1e"),
]
"""The last two between networks of one kind, see the docstrings of the terms."""


class SupervoxelSettings(Settings):
    """Blocks of voxels in which the affinity terms of PVKD compare points and voxels, see `supervoxels.py`.

    Attributes:
        size: of a block along rho, phi and z, in bins.
        count: blocks drawn of each scan.
        points: of each block, at most so many points are compared with each other.
        voxels: likewise.
    """

    size: tuple[PositiveInt, PositiveInt, PositiveInt] = (120, 60, 8)
    count: int = Field(4, ge=1)
    points: int = Field(1024, ge=1)
    voxels: int = Field(512, ge=1)


class DistillationSettings(Settings):
    """Weights of the distillation terms; 0 switches a term off.

    Attributes:
        logit: soft logits.
        vpd: voxel-to-pillar features.
        lwd: label-weighted features before the classifier.
        others: weights of further terms by name: `point_output`, `voxel_output`, `point_affinity` and `voxel_affinity`
            are PVKD's, and a term of your own is `my_package.my_loss:MyTerm`.
        pairs: which teacher layer teaches which student layer; terms that are not named here keep the published ones.
        supervoxels: of the affinity terms.
        support: voxels of the logit term: `occupied`, or `dense` as published.
        logit_scale: factor on both logits before the softmax, the inverse of a temperature.
        logit_threshold: voxels whose divergence is not above it do not count; null counts all.
        logit_class_weights: weigh the voxels of the logit term by the loss weights of the classes that the teacher sees
            in them, as the cross entropy weighs labels. Not published.
        confidence: weight what the terms compare by the probability of the teacher's likeliest class, see `weights`;
            all terms but PVKD's affinities, which compare pairs.
        trust_labels: leave out voxels with a label where the teacher's likeliest class is another one, see `weights`.
    """

    logit: float = Field(1.0, ge=0)
    vpd: float = Field(2.0, ge=0)
    lwd: float = Field(2.0, ge=0)
    others: dict[str, float] = {}
    pairs: list[LayerPair] = PUBLISHED_PAIRS
    supervoxels: SupervoxelSettings = SupervoxelSettings()
    support: Literal["occupied", "dense"] = "occupied"
    logit_scale: float = Field(LOGIT_SCALE, gt=0)
    logit_threshold: float | None = LOGIT_THRESHOLD
    logit_class_weights: bool = False
    confidence: bool = False
    trust_labels: bool = False

    @field_validator("pairs")
    @classmethod
    def _each_once(cls, pairs: list[LayerPair]) -> list[LayerPair]:
        seen = [(pair.term, pair.teacher) for pair in pairs]
        twice = [pair for pair in seen if seen.count(pair) > 1]
        if twice:
            raise ValueError(f"the term {twice[0][0]} has two pairs with the teacher's layer {twice[0][1]}; leave one")
        return pairs

    def pairs_of(self, term: str) -> list[LayerPair]:
        """Pairs of layers of a term, by the name of its value; the published ones where the setting has none of it."""
        own = [pair for pair in self.pairs if pair.term == term]
        return own or [pair for pair in PUBLISHED_PAIRS if pair.term == term]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in use, by name."""
        own = {"logit": self.logit, "vpd": self.vpd, "lwd": self.lwd}
        return {name: weight for name, weight in {**own, **self.others}.items() if weight}
