"""What a run's student sees while it trains, kept in the run's folder: for a fair comparison it must be the same."""

import json
from pathlib import Path
from typing import Literal

from common.base.checked_json import with_checksum, without_checksum
from common.base.config import Settings
from common.base.errors import CheckpointError, DataError
from common.base.files import write_json
from common.base.untrusted_json import parse_json
from common.scans.dataset import open_dataset
from common.scans.scan_id import ScanId
from common.scans.view import AnchorSet
from common.targets.store import ViewSet
from stage2_train_student.evaluation.evaluation_file import scans_hash
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.scans import scans_that_teach

SEEN_FILE = "seen.json"


class SeenViews(Settings):
    """How scans are moved before the student sees them.

    Attributes:
        kind: `fixed`: in each epoch one of a set; `fresh`: drawn anew in every epoch; `turned`: flips in every aligned
            rotation, composed from anchors.
        views: the set; of fresh views its policy counts, of turned ones the anchors' flips.
    """

    kind: Literal["fixed", "fresh", "turned"]
    views: ViewSet

    def describe(self) -> str:
        """The views in words."""
        if self.kind == "turned" and self.views.anchors is not None:
            return f"flips {', '.join(self.views.anchors.flips)} in every aligned rotation"
        if self.kind == "fresh":
            return f"a fresh view in every epoch ({self.views.policy.describe()})"
        return "the scan as it is" if self.views.count == 1 else self.views.describe()

    def as_augmentation(self) -> str | None:
        """The setting that shows them without a store, as it is typed; None where there is none."""
        if self.views.anchors is not None:
            return None
        count = "null" if self.kind == "fresh" else str(self.views.count)
        return f"augmentation={{count: {count}, policy: {json.dumps(self.views.policy.model_dump())}}}"


class SeenData(Settings):
    """What a run's student sees.

    Attributes:
        views: of every training scan.
        scans: number of training scans.
        scans_sha256: of their names.
        targets_hash: of what made the targets; null without targets.
        left_out: how many of the scans have no targets, since the dump skipped them.
        labelled: number of scans whose labels are used, where not all are (settings `labels`, `label_every`).
        labelled_sha256: of their names.
    """

    views: SeenViews
    scans: int
    scans_sha256: str
    targets_hash: str | None = None
    left_out: int = 0
    labelled: int | None = None
    labelled_sha256: str | None = None

    @property
    def labelled_in_words(self) -> str | None:
        """The scans whose labels are used, equal where they are the same; None where that was not noted."""
        return None if self.labelled_sha256 is None else f"{self.labelled:,} scans ({self.labelled_sha256[:12]})"

    @property
    def scans_in_words(self) -> str:
        """The training scans, equal where they are the same."""
        left_out = f" without {self.left_out:,} that the dump skipped" if self.left_out else ""
        return f"{self.scans:,} scans ({self.scans_sha256[:12]}){left_out}"


def seen_views(settings: ExperimentSettings, stored: ViewSet | None) -> SeenViews | None:
    """The views of an experiment; equal ones compare equal. None where they are `stored` ones that are not known."""
    if settings.targets != "cache":
        augmentation = settings.augmentation
        if augmentation is None:
            return SeenViews(kind="fixed", views=ViewSet())
        if augmentation.count is None:
            return SeenViews(kind="fresh", views=ViewSet(policy=augmentation.policy))
        return fixed(ViewSet(count=augmentation.count, policy=augmentation.policy))
    if stored is None:
        return None
    if settings.views == "anchors" and stored.anchors is not None:
        # How many rotations were dumped decides how good targets are, not which views are seen.
        return SeenViews(kind="turned", views=ViewSet(anchors=AnchorSet(flips=stored.anchors.flips, rotations=1)))
    return fixed(stored)


def fixed(views: ViewSet) -> SeenViews:
    """A set of views; the first is the scan as it is, so a set of one has no policy."""
    return SeenViews(kind="fixed", views=ViewSet() if views.count == 1 else views)


def write_seen(
    folder: Path,
    settings: ExperimentSettings,
    stored: ViewSet | None,
    scans: list[ScanId],
    targets_hash: str | None,
    left_out: int = 0,
    labelled: list[ScanId] | None = None,
) -> None:
    """Keep what a run sees in its folder, see `SeenData`; nothing where its views are not known.

    Args:
        folder: of the run.
        settings: of the experiment.
        stored: the views of its target store.
        scans: that it trains on, with those that the dump skipped.
        targets_hash: of what made the targets.
        left_out: how many the dump skipped.
        labelled: scans whose labels are used; None for all that have some.
    """
    views = seen_views(settings, stored)
    if views is None:
        return
    seen = SeenData(
        views=views,
        scans=len(scans),
        scans_sha256=scans_hash(scans),
        targets_hash=targets_hash,
        left_out=left_out,
        labelled=None if labelled is None else len(labelled),
        labelled_sha256=None if labelled is None else scans_hash(labelled),
    )
    write_json(folder / SEEN_FILE, with_checksum(seen.model_dump(mode="json")))


def read_seen(folder: Path) -> SeenData | None:
    """What a run sees, None for a run of an older version.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / SEEN_FILE
    if not path.is_file():
        return None
    try:
        return SeenData.model_validate(without_checksum(parse_json(path.read_bytes())))
    except (AttributeError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not what a training run writes there ({error}). Remove it to compare without."
        ) from error


class ScansOfNow:
    """The training scans that a dataset has now, to hold finished runs against them; listed once for each choice."""

    def __init__(self, data: Path) -> None:
        """Take the folder of the scans."""
        self._data = data
        self._hashes: dict[str, str] = {}

    def check(self, folder: Path, settings: ExperimentSettings) -> None:
        """Refuse a run that trained on other scans. What a run of an older version saw is not known.

        Raises:
            CheckpointError: it did.
            DataError: the scans cannot be listed, or the run's note of them is damaged.
        """
        seen = read_seen(folder)
        if seen is None:
            return
        chosen = f"{settings.dataset} {settings.train} {settings.label_every} {settings.targets == 'none'}"
        if chosen not in self._hashes:
            dataset = open_dataset(self._data, settings.dataset)
            scans, _ = scans_that_teach(settings, dataset, dataset.select(settings.train).scans)
            self._hashes[chosen] = scans_hash(scans)
        if seen.scans_sha256 != self._hashes[chosen]:
            raise CheckpointError(
                f"{folder}: trained on {seen.scans_in_words}, {self._data} has others now. Use the --data that it was "
                "trained on with all its scans and labels, or another folder."
            )
