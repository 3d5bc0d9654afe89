"""The distillation terms of an experiment together: which there are, what they read, and their weighted sum."""

from collections.abc import Mapping
from itertools import chain

import torch
from torch import nn

from common.base.errors import SettingsError
from common.base.named import named_class
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.settings import PUBLISHED_PAIRS, DistillationSettings
from stage2_train_student.distillation.term import Term, TermContext
from stage2_train_student.students.student import StudentOutputs

ROOM = "stage2_train_student.distillation"


def term_class(name: str) -> type[Term]:
    """The class of a distillation term: a file of this folder, or `package.module:Class`.

    Raises:
        SettingsError: there is none.
    """
    return named_class(name, ROOM, Term, "distillation term")


def teacher_layers(settings: DistillationSettings) -> list[str]:
    """Teacher layers that the terms in use read, each once.

    Raises:
        SettingsError: a term, or one that has pairs of layers, is unknown.
    """
    terms = [term_class(name) for name in settings.weights]
    known = dict.fromkeys([*(term.name for term in terms), *(pair.term for pair in PUBLISHED_PAIRS)])
    unknown = [pair.term for pair in settings.pairs if pair.term not in known]
    if unknown:
        raise SettingsError(f"distillation.pairs: no term '{unknown[0]}' is in use; choose from {', '.join(known)}")
    layers = ([pair.teacher for pair in settings.pairs_of(term.name)] or term.teacher_layers for term in terms)
    return list(dict.fromkeys(chain.from_iterable(layers)))


def voxel_terms(settings: DistillationSettings) -> list[str]:
    """Names of the terms in use that read voxel features."""
    return [name for name in settings.weights if term_class(name).voxel_features]


class Distillation(nn.Module):
    """The distillation terms in use, with their trainable adapters.

    The adapters belong to training: they are saved with its state and not needed for inference. A term of weight 0 is
    neither built nor computed.

    Raises:
        SettingsError: a term is unknown, two have one name, or the teacher's targets or the student lack a layer that a
            term needs.
    """

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        twice = [name for name in context.settings.others if name in DistillationSettings.model_fields]
        if twice:
            raise SettingsError(f"distillation.others: {twice[0]} has a setting of its own, distillation.{twice[0]}")
        classes = {name: term_class(name) for name in context.settings.weights}
        names = [found.name for found in classes.values()]
        if len(set(names)) < len(names):
            raise SettingsError(f"two distillation terms have the same name: {', '.join(names)}; rename one")
        missing = sorted(set(teacher_layers(context.settings)) - set(context.teacher_channels))
        if missing:
            raise SettingsError(
                f"the targets hold no teacher layer {', '.join(missing)} (they hold: "
                f"{', '.join(context.teacher_channels) or 'none'}); dump these layers, or set the term's weight to 0"
            )
        self.terms = nn.ModuleDict({found.name: found(context) for found in classes.values()})
        self.weights = dict(zip(names, context.settings.weights.values(), strict=True))

    def forward(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> dict[str, torch.Tensor]:
        """Unweighted values by name, see `Term`: `logit`, `vpd` (the sum of `vpd.down1c`, ...), `lwd`.

        Where several processes hold a part of the batch each, the terms are those of the whole.
        """
        values: dict[str, torch.Tensor] = {}
        for term in self.terms.values():
            values |= term(outputs, targets, batch, processes)
        return values

    def total(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Weighted sum of the terms that `forward` returned, a scalar; 0 without a term in use."""
        return sum((weight * values[name] for name, weight in self.weights.items()), start=torch.zeros(()))
