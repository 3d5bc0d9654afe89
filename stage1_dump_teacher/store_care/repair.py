"""The command repair: delete what is wrong in a store, and dump it and whatever else is missing again."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from common.base.command_options import cache_option, data_option, device_option, teachers_option
from common.base.devices import select_device
from common.base.errors import StoreError
from common.base.signals import INTERRUPTED
from common.base.text import count_text
from common.scans.dataset import open_dataset
from common.scans.scan_files import ScanFiles
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.archive import ArchiveStorage
from common.targets.store.maintenance import absent, leftovers
from stage1_dump_teacher.command_options import settings_options, threads_option
from stage1_dump_teacher.dump import run, teacher_and_store
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.store_care.commands import inspected
from stage1_dump_teacher.store_care.reports import dump_lines, problem_lines

FEW_FILES, SHARE = 5, 0.05
"""Files, and share of the store, up to which repair deletes without asking; the larger of the two counts."""


class RepairPlan:
    """What a repair is about to do.

    Attributes:
        files: number of scan files in the store.
        problems: everything that is not as it should be.
        delete: those whose file is to go.
        dump: those that are to be dumped, again or for the first time.
        left: those that neither solves.
        half_written: files of crashed dumps.
    """

    def __init__(self, store: TargetStore, scans: Iterable[ScanId], files: ScanFiles, threads: int) -> None:
        """Inspect every file of a store that should hold some scans."""
        known, finished, views = set(scans), store.finished(), store.identity.views.count
        self.location, self.files, self.half_written = store.location, len(finished), leftovers(store)
        self.problems = absent(store, finished, known) + inspected(store, sorted(finished), files, threads)
        self.delete = [problem for problem in self.problems if problem.file_is_wrong]
        of_views = [problem for problem in self.problems if problem.view < views]
        of_scans = [problem for problem in of_views if problem.scan in known]
        self.dump = [problem for problem in of_scans if problem.kind == "missing" or problem.file_is_wrong]
        dumped = set(self.dump)
        self.left = [problem for problem in of_views if problem not in dumped]

    def check_readings(self) -> None:
        """Refuse to delete anything, with a StoreError, where some file was not read the same each time."""
        unsteady = [problem for problem in self.problems if problem.kind == "unsteady"]
        if unsteady:
            raise StoreError(
                f"{self.location}: {len(unsteady):,} of {count_text(self.files, 'file')} differed when read "
                f"again, the first is {unsteady[0].scan} view {unsteady[0].view}. Nothing was deleted, since files "
                "that look damaged may be whole. Check the network and the disk, then run the command again."
            )

    @property
    def too_many(self) -> str | None:
        """Why somebody should look before this is done; None where it is little."""
        if len(self.delete) <= max(FEW_FILES, SHARE * self.files):
            return None
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(p.kind for p in self.delete).items())
        return (
            f"{self.location}: {len(self.delete):,} of {count_text(self.files, 'file')} would be deleted ({kinds}). "
            "Where most are 'changed', --data is likely not the dataset that was dumped; check it. To delete "
            "them all and dump them again, add --delete-many."
        )

    def summary(self, verb: str) -> str:
        """What will (or would) be done, in one line."""
        return (
            f"{count_text(len(self.delete), 'wrong file')} and "
            f"{count_text(len(self.half_written), 'half-written file')} {verb} deleted, "
            f"{count_text(len(self.dump), 'scan-view')} {verb} dumped"
        )


@click.command()
@cache_option
@data_option
@teachers_option(required=True, help="Checkpoint that the store was dumped with; repeatable.")
@settings_options
@device_option
@threads_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--delete-many", is_flag=True, help="Go on where more than 5 % of the store (and 5 files) are wrong.")
def repair(
    cache: str,
    data: Path,
    teachers: tuple[Path, ...],
    settings: DumpSettings,
    device: str,
    threads: int,
    dry_run: bool,
    delete_many: bool,
) -> None:
    """Delete what is damaged, foreign or of a changed scan, and dump it, and whatever else is missing, again.

    Takes the settings of the dump, and refuses if they or the teacher are not those that the store was made with. A
    file counts as wrong only when several readings give the same bytes.

    \b
    Examples:
      polar-distill repair --data dataset --teacher teacher.pt --dry-run
      polar-distill repair --data dataset --teacher teacher.pt --set profile=train
    """
    chosen_device = select_device(device)
    dataset = open_dataset(data, settings.dataset)
    store = TargetStore.open(cache)
    if isinstance(store.storage, ArchiveStorage):
        raise StoreError(f"{store.location}: an archive is read only. Repair the folder it was made from.")
    # Refuses other settings than those of the store.
    teacher_and_store(settings, dataset, teachers, store.storage, chosen_device)
    plan = RepairPlan(store, dataset.select(settings.splits).scans, dataset.files, threads)
    click.echo("\n".join([*problem_lines(plan.problems), plan.summary("would be" if dry_run else "to be")]))
    plan.check_readings()
    if dry_run:
        click.echo(plan.too_many or "Nothing was changed.")
        return
    if plan.too_many and not delete_many:
        raise StoreError(plan.too_many)
    for problem in plan.delete:
        store.storage.delete(store.name(*problem.scan_view))
    for path in plan.half_written:
        path.unlink(missing_ok=True)
    if plan.dump:
        report = run(settings, data, teachers, cache, chosen_device)
        click.echo("\n".join(dump_lines(report)))
        if report.left:
            raise click.exceptions.Exit(INTERRUPTED)
        if report.skipped:
            raise click.exceptions.Exit(1)
    if plan.left:
        scan_views = count_text(len(plan.left), "scan-view")
        click.echo(f"{scan_views} could not be dumped: no scan of --data and --config, or not readable")
        click.echo("\n".join(problem_lines(plan.left)))
        raise click.exceptions.Exit(1)
    click.echo("The store is whole.")
