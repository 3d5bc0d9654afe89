"""The program `polar-distill`: the commands of both stages in the order of the work.

The only module that knows both stages. A command's module is imported when the command is named, so that help comes
at once, and every command starts where what only others need is not installed.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from common.targets.teacher import Teacher

COMMANDS = {
    "First steps": {
        "demo": ("stage2_train_student.demo:demo", "See it all work in minutes: no data, checkpoint or GPU."),
        "doctor": ("stage1_dump_teacher.doctor:doctor", "Check this machine and, if given, scans, teacher, store."),
        "simulate": ("common.simulate.__main__:main", "Write labelled scans of made-up streets."),
    },
    "Your data": {
        "new-dataset": (
            "stage1_dump_teacher.data_checks.new_dataset:new_dataset",
            "Look at your own files and describe them in YAML.",
        ),
        "class-frequencies": (
            "stage1_dump_teacher.data_checks.class_frequencies:class_frequencies",
            "Count the points of each label, for class weights.",
        ),
        "convert-paris-lille": (
            "common.scans.paris_lille:convert_paris_lille",
            "Cut the clouds of Paris-Lille-3D into scans.",
        ),
    },
    "Stage one, once": {
        "train-teacher": (
            "stage1_dump_teacher.teacher_training.command:train_teacher",
            "Train a Cylinder3D where no published one fits your data.",
        ),
        "dump": ("stage1_dump_teacher.dump_command:dump", "Cache the teacher's targets for every scan in a store."),
    },
    "The store": {
        "info": ("stage1_dump_teacher.store_care.commands:info", "What made it, what is in it, what is missing."),
        "verify": (
            "stage1_dump_teacher.store_care.commands:verify",
            "Check every checksum, and some scans by the teacher.",
        ),
        "repair": ("stage1_dump_teacher.store_care.repair:repair", "Delete what is damaged and dump it again."),
        "convert": ("stage1_dump_teacher.store_care.copies:convert", "Write a smaller store, without the teacher."),
        "merge": (
            "stage1_dump_teacher.store_care.copies:merge",
            "Put stores of several machines into one, or an archive.",
        ),
        "show-targets": (
            "stage1_dump_teacher.store_care.copies:show_targets",
            "One scan's targets as .npz, for a look.",
        ),
        "consistency": (
            "stage1_dump_teacher.consistency.command:consistency",
            "Measure how well cached targets fit augmented scans.",
        ),
    },
    "Stage two, often": {
        "train": ("stage2_train_student.train_command:train", "Train a student from a store."),
        "evaluate": ("stage2_train_student.evaluation.commands:evaluate", "IoU of every class, and mIoU."),
        "predict": ("stage2_train_student.evaluation.commands:predict", "Write a label for every point."),
        "render": ("stage2_train_student.evaluation.commands:render", "Draw scans: truth, student, teacher, errors."),
        "view": ("stage2_train_student.viewing.command:view", "Show scans in 3D, on a page for any browser."),
        "profile": ("stage2_train_student.training.profiling:profile", "Where the time of a training step goes."),
    },
    "Comparing": {
        "sweep": (
            "stage2_train_student.comparison.sweep_command:sweep",
            "Train several experiments with several seeds.",
        ),
        "compare": ("stage2_train_student.comparison.command:compare", "One page that compares training runs."),
    },
    "Shipping": {
        "export": ("stage2_train_student.shipping.commands:export", "A student as one ships it: ONNX, card, program."),
        "latency": ("stage2_train_student.shipping.commands:latency", "How long a scan takes on this CPU."),
    },
}
"""Where each command is, and its line in the list of commands."""

HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


class Program(click.Group):
    """Commands that are imported when they are named, listed in groups.

    Attributes:
        package: only the commands of this package; empty for all.
    """

    def __init__(self, package: str, help: str) -> None:
        super().__init__(callback=offer_teacher, help=help, context_settings=HELP_SETTINGS)
        self.package = package

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of the commands in the order of the work."""
        return [name for _, listed in self.groups() for name in listed]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of that name, None where there is none."""
        for _, listed in self.groups():
            if name in listed:
                module, _, attribute = listed[name][0].partition(":")
                command: click.Command = getattr(import_module(module), attribute)
                return command
        return None

    def invoke(self, context: click.Context) -> Any:
        """Run the command that is named."""
        from common.base.commands import disk_errors_reported

        with disk_errors_reported():
            return super().invoke(context)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands in groups."""
        width = max(map(len, self.list_commands(context)))
        for title, listed in self.groups():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, (_, line) in listed.items()])

    def groups(self) -> list[tuple[str, dict[str, tuple[str, str]]]]:
        """Titles of groups and their commands; groups without any are left out."""
        chosen = [
            (title, {name: entry for name, entry in listed.items() if entry[0].startswith(self.package)})
            for title, listed in COMMANDS.items()
        ]
        return [(title, listed) for title, listed in chosen if listed]


def load_teacher(name: str, checkpoint: Path, device: "torch.device") -> "Teacher":
    """The teacher of a checkpoint, for commands of stage two.

    Raises:
        SettingsError: no teacher has that name.
        CheckpointError: it does not load completely.
    """
    from stage1_dump_teacher.teachers.loading import load_named_teacher

    return load_named_teacher(name, checkpoint, device)


@click.pass_context
def offer_teacher(context: click.Context) -> None:
    """Before any command: hand it the loader of teachers."""
    context.obj = load_teacher


program = Program(
    "", "Distil a 3D voxel teacher into a bird's-eye-view student for LiDAR segmentation, from cached targets."
)
stage_one = Program(
    "stage1_dump_teacher.", "Run a frozen Cylinder3D once over every scan and cache what a student can learn from."
)
stage_two = Program(
    "stage2_train_student.", "Train PolarNet students from cached teacher targets, evaluate them and write predictions."
)


def main(commands: Program = program, name: str = "polar-distill") -> None:
    """Run the command that the command line names.

    Args:
        commands: to choose from.
        name: of the program, for its help.
    """
    from common.base.memory import keep_freed_memory

    keep_freed_memory()
    # As `python -m` does: settings may name classes of one's own in the working folder.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    commands(prog_name=name)


if __name__ == "__main__":
    main()
