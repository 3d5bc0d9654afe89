"""What the student learns from the teacher: voxel-to-pillar features (VPD), label-weighted features (LWD), soft logits.

The terms are those of Jiang et al. (knowledge distillation from Cylinder3D to PolarNet) and of the code published
with it; where the two cannot both be followed, the docstrings say what is done here.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from common.errors import SettingsError
from common.processes import ALONE, Processes
from common.scan_batch import ScanBatch
from common.teacher_targets import TeacherTargets
from stage2_train_student.birds_eye_unet import STUDENT_LAYERS
from stage2_train_student.polarnet import StudentOutputs, map_layout, pillar_rows, pillars_last

VPD_PAIRS = {"down1c": "x2", "down3c": "x4", "up4e": "x_up5", "up2e": "x_up3"}
"""Teacher layer to student layer of the voxel-to-pillar term."""

LWD_PAIR = ("up0e", "x_up2")
"""Teacher and student layer of the label-weight term, the last ones before the classifiers."""

DEFAULT_WEIGHTS = {"logit": 1.0, "vpd": 2.0, "lwd": 2.0}
"""Factor of each term in the total loss."""

LOGIT_SCALE = 0.1
LOGIT_THRESHOLD = 0.01
LOGIT_EPSILON = 1e-6
LABEL_WEIGHT_DIVISOR = 50.0
SUPPORTS = ("occupied", "dense")
CHUNK_PILLARS = 8192

PillarLogits = Callable[[torch.Tensor], torch.Tensor]


class Adapter(nn.Module):
    """Maps a teacher layer to a student layer's channels: batch norm, 3x3 convolution, ReLU, batch norm.

    Keys and shapes are those of the published `trans_list.<i>.trans_dim`.
    """

    def __init__(self, teacher_channels: int, student_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.BatchNorm2d(teacher_channels),
            nn.Conv2d(teacher_channels, student_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(student_channels),
        )

    def forward(self, teacher_map: torch.Tensor) -> torch.Tensor:
        """float [B, teacher channels, R, P] to [B, student channels, R, P]."""
        return self.conv(teacher_map.contiguous(memory_format=map_layout(teacher_map.device)))


class Distillation(nn.Module):
    """The distillation terms in use, with their trainable adapters.

    The adapters belong to training: they are saved with its state and not needed for inference.

    Args:
        teacher_channels: channels of each teacher layer, by name, as found in the targets.
        weights: factor of each term, see `DEFAULT_WEIGHTS`; a term with factor 0 or left out is neither built nor
            computed.
        class_weights: float [classes], for the label-weight term; only needed with it.
        support: voxels of the logit term, `occupied` or `dense`.
        logit_scale: factor on both logits before the softmax.
        logit_threshold: voxels whose divergence is not above it do not count; None counts all.
        student_channels: channels of each student layer, by name.

    Raises:
        SettingsError: a term or support is unknown, or the teacher's targets lack a layer that a term needs.
    """

    class_weights: torch.Tensor

    def __init__(
        self,
        teacher_channels: Mapping[str, int],
        weights: Mapping[str, float] = DEFAULT_WEIGHTS,
        class_weights: torch.Tensor | None = None,
        support: str = "occupied",
        logit_scale: float = LOGIT_SCALE,
        logit_threshold: float | None = LOGIT_THRESHOLD,
        student_channels: Mapping[str, int] = STUDENT_LAYERS,
    ) -> None:
        super().__init__()
        refuse_unknown(weights, DEFAULT_WEIGHTS, "distillation term")
        refuse_unknown([support], SUPPORTS, "support of the logit term")
        self.terms = [term for term in DEFAULT_WEIGHTS if weights.get(term, 0.0) != 0.0]
        pairs = dict(VPD_PAIRS) if "vpd" in self.terms else {}
        if "lwd" in self.terms:
            pairs |= [LWD_PAIR]
            if class_weights is None:
                raise SettingsError("the lwd term needs class_weights; pass those of the dataset's label map")
        missing = sorted(set(pairs) - set(teacher_channels))
        if missing:
            raise SettingsError(
                f"the targets hold no teacher layer {', '.join(missing)} (they hold: "
                f"{', '.join(teacher_channels) or 'none'}); dump these layers, or set the weight of the term to 0"
            )
        self.adapters = nn.ModuleDict(
            {name: Adapter(teacher_channels[name], student_channels[student]) for name, student in pairs.items()}
        )
        self.weights = {term: float(weights[term]) for term in self.terms}
        self.support, self.logit_scale, self.logit_threshold = support, logit_scale, logit_threshold
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> dict[str, torch.Tensor]:
        """Unweighted terms by name: `logit`, `vpd` (the sum of `vpd.down1c`, ...), `lwd`; those in use only.

        Where several processes hold a part of the batch each, the terms are those of the whole.
        """
        terms = {}
        if "logit" in self.terms:
            terms["logit"] = self.logit_term(outputs, targets, batch, processes)
        if "vpd" in self.terms:
            for teacher, student in VPD_PAIRS.items():
                adapted = self.adapted(teacher, targets, batch)
                error = voxel_to_pillar_loss(adapted, outputs.layers[student])
                terms[f"vpd.{teacher}"] = processes.mean(error, batch.scans)
            terms["vpd"] = torch.stack([terms[f"vpd.{teacher}"] for teacher in VPD_PAIRS]).sum()
        if "lwd" in self.terms:
            teacher, student = LWD_PAIR
            adapted = self.adapted(teacher, targets, batch)
            terms["lwd"] = label_weight_loss(adapted, outputs.layers[student], batch, self.class_weights, processes)
        return terms

    def total(self, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Weighted sum of the terms that `forward` returned, a scalar; 0 without a term in use."""
        return sum((weight * terms[term] for term, weight in self.weights.items()), start=torch.zeros(()))

    def adapted(self, teacher: str, targets: TeacherTargets, batch: ScanBatch) -> torch.Tensor:
        """A teacher layer as a map through its adapter, [B, student channels, R, P]."""
        teacher_map = targets.layers[teacher].dense(batch.scans).float()
        adapted: torch.Tensor = self.adapters[teacher](teacher_map)
        return adapted

    def logit_term(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> torch.Tensor:
        """The logit term on the chosen support, a scalar."""
        student, teacher = outputs.voxel_logits, targets.logits.float()
        scale, threshold = self.logit_scale, self.logit_threshold
        if self.support == "occupied":
            return logit_distillation_loss(student, teacher, scale, threshold, processes)
        features, classifier = outputs.classifier_input, outputs.pillar_logits
        return dense_logit_distillation_loss(student, teacher, features, classifier, batch, scale, threshold, processes)


def refuse_unknown(given: Collection[str], known: Collection[str], what: str) -> None:
    """Raise SettingsError for a name that is not known, naming those that are."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise SettingsError(f"unknown {what} '{unknown[0]}'; choose from {', '.join(known)}")


def voxel_to_pillar_loss(adapted: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Mean squared error between two maps [B, C, R, P], over all scans, channels and bins (VPD)."""
    if adapted.shape != student.shape:
        raise SettingsError(
            f"the teacher's layer is {list(adapted.shape)} and the student's {list(student.shape)} (scans, channels, "
            "radial and azimuth bins); distillation needs a grid whose radial and azimuth sizes divide by 8"
        )
    return functional.mse_loss(student, adapted)


def label_weight_loss(
    adapted: torch.Tensor,
    student: torch.Tensor,
    batch: ScanBatch,
    class_weights: torch.Tensor,
    processes: Processes = ALONE,
) -> torch.Tensor:
    """Label-weight distillation: sqrt( sum over bins of W * sum_c (adapted - student)^2 / (B R P) ).

    W of a pillar is the sum of class_weight / 50 over its labelled voxels, so bins without any weigh nothing and only
    occupied pillars are read. The published script pairs a 240x180 layer with a 480x360 weight and cannot run; the
    layer here is the one before the classifier, where the paper's figure 1 draws it.

    Args:
        adapted: float [B, C, R, P], the teacher's layer through its adapter, at the grid's resolution.
        student: float [B, C, R, P].
        batch: the batch, for its pillars and voxel labels.
        class_weights: float [classes].
        processes: that hold a part of the batch each.

    Returns:
        a scalar; 0 with a zero gradient where nothing is labelled or the maps agree.
    """
    rows = pillar_rows(batch)
    squared = (pillars_last(adapted).index_select(0, rows) - pillars_last(student).index_select(0, rows)).square()
    weight = pillar_label_weights(batch, class_weights.to(squared.dtype))
    scans, _, radial, azimuth = student.shape
    mean = (weight * squared.sum(dim=1)).sum() / max(scans * radial * azimuth, 1)
    return safe_sqrt(processes.mean(mean, scans))


def pillar_label_weights(batch: ScanBatch, class_weights: torch.Tensor) -> torch.Tensor:
    """Sum of class_weight / 50 over the labelled voxels of each occupied pillar, float [pillars]."""
    of_voxel = class_weights[batch.voxel_labels] / LABEL_WEIGHT_DIVISOR * (batch.voxel_labels != 0)
    return of_voxel.new_zeros(len(batch.pillars)).index_add_(0, batch.voxel_pillar, of_voxel)


def safe_sqrt(value: torch.Tensor) -> torch.Tensor:
    """Square root whose gradient at 0 is 0, where the derivative itself is infinite."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, torch.ones_like(value)).sqrt(), 0.0 * value)


def divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, scale: float) -> torch.Tensor:
    """Softened divergence of each voxel: mean over classes of p_t log((p_t + 1e-6) / (p_s + 1e-6)).

    Args:
        student_logits: float [..., classes].
        teacher_logits: the same shape, or one that broadcasts to it.
        scale: factor on both before the softmax, the inverse of a temperature.

    Returns:
        float [...].
    """
    student = (student_logits * scale).softmax(dim=-1)
    teacher = (teacher_logits * scale).softmax(dim=-1)
    return (teacher * ((teacher + LOGIT_EPSILON).log() - (student + LOGIT_EPSILON).log())).mean(dim=-1)


def sum_and_count(entries: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Sum and number of the entries above the threshold, float [2]."""
    kept = entries if threshold is None else entries[entries > threshold]
    return torch.stack((kept.sum(), kept.new_tensor(float(kept.numel()))))


def logit_distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    scale: float = LOGIT_SCALE,
    threshold: float | None = LOGIT_THRESHOLD,
    processes: Processes = ALONE,
) -> torch.Tensor:
    """Mean of `divergence` over the occupied voxels whose divergence is above `threshold`.

    Args:
        student_logits: float [V, classes].
        teacher_logits: float [V, classes].
        scale: factor on both logits before the softmax.
        threshold: None counts every voxel.
        processes: that hold a part of the batch each.

    Returns:
        a scalar; 0 where no voxel is left (published: NaN).
    """
    return mean_of(sum_and_count(divergence(student_logits, teacher_logits, scale), threshold), processes)


def mean_of(sum_count: torch.Tensor, processes: Processes) -> torch.Tensor:
    """The mean from what `sum_and_count` returned, over all processes; 0 without an entry."""
    total, count = sum_count
    return processes.mean(total / count.detach().clamp(min=1.0), count)


def dense_logit_distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    classifier_input: torch.Tensor,
    pillar_logits: PillarLogits,
    batch: ScanBatch,
    scale: float = LOGIT_SCALE,
    threshold: float | None = LOGIT_THRESHOLD,
    processes: Processes = ALONE,
    chunk: int = CHUNK_PILLARS,
) -> torch.Tensor:
    """`logit_distillation_loss` over the whole grid, as published: the teacher's logits of empty voxels are 0.

    The student's logits of empty voxels are computed for `chunk` pillars at a time, and again in the backward pass,
    so that the dense grid never exists.

    Args:
        student_logits: float [V, classes], of occupied voxels.
        teacher_logits: float [V, classes].
        classifier_input: float [B, C, R, P].
        pillar_logits: [K, C] pillars of `classifier_input` to [K, height bins, classes].
        batch: the batch, for its voxels.
        scale: factor on both logits before the softmax.
        threshold: None counts every voxel.
        processes: that hold a part of the batch each.
        chunk: pillars at a time.
    """
    result = sum_and_count(divergence(student_logits, teacher_logits, scale), threshold)
    uniform = teacher_logits.new_zeros(teacher_logits.shape[1])

    def of_empty(features: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
        return sum_and_count(divergence(pillar_logits(features)[empty], uniform, scale), threshold)

    for features, empty in zip(
        pillars_last(classifier_input).split(chunk), empty_voxels(batch).split(chunk), strict=True
    ):
        result = result + checkpoint(of_empty, features, empty, use_reentrant=False)
    return mean_of(result, processes)


def empty_voxels(batch: ScanBatch) -> torch.Tensor:
    """Which voxels of the grid hold no point, bool [B * R * P, height bins]."""
    radial, azimuth, heights = batch.grid_shape
    empty = torch.ones(batch.scans * radial * azimuth, heights, dtype=torch.bool, device=batch.voxels.device)
    empty[pillar_rows(batch)[batch.voxel_pillar], batch.voxels[:, 3]] = False
    return empty
