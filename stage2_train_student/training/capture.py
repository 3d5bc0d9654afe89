"""Replaying the networks of a training run from CUDA graphs."""

from common.training.processes import Processes
from stage2_train_student.distillation.adapter import Adapter
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.precision import autocast
from stage2_train_student.training.state import StudentNetworks


def replays(settings: ExperimentSettings, processes: Processes) -> bool:
    """Whether networks are replayed: on one GPU, with one batch a step, where they are not compiled."""
    alone = processes.count == 1 and settings.optimiser.accumulate == 1
    return settings.cuda_graphs and processes.device.type == "cuda" and alone and not settings.compile


def capture(networks: StudentNetworks, settings: ExperimentSettings) -> None:
    """Prepare the networks to be replayed. Nothing else may use the GPU meanwhile."""
    student, distillation = networks.student.train(), networks.distillation.train()
    # A graph keeps its own conversions of the weights: those kept by autocast would be gone after the capture.
    with autocast(settings.precision, next(student.parameters()).device, cached=False):
        sizes = student.capture(settings.batch_size, settings.grid.shape)
        for module in distillation.modules():
            if isinstance(module, Adapter) and module.student_layer in sizes:
                module.capture(sizes[module.student_layer])
