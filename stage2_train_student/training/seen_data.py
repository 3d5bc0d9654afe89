"""What a run's student sees while it trains, kept in the run's folder: for a fair comparison it must be the same."""

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from common.base.config import Settings
from common.base.errors import DataError
from common.base.files import write_atomically
from common.scans.scan_id import ScanId
from common.scans.view import AnchorSet
from common.targets.store import ViewSet
from stage2_train_student.evaluation.evaluation_file import scans_hash
from stage2_train_student.settings import ExperimentSettings

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
            policy = ", ".join(f"{name} {value}" for name, value in self.views.policy.model_dump().items())
            return f"a fresh view in every epoch ({policy})"
        return "the scan as it is" if self.views.count == 1 else self.views.describe()


class SeenData(Settings):
    """What a run's student sees.

    Attributes:
        views: of every training scan.
        scans: number of training scans.
        scans_sha256: of their names.
        targets_hash: of what made the targets; null without targets.
    """

    views: SeenViews
    scans: int
    scans_sha256: str
    targets_hash: str | None = None


def seen_views(settings: ExperimentSettings, stored: ViewSet | None) -> SeenViews | None:
    """The views of an experiment; equal ones compare equal.

    Args:
        settings: of the experiment.
        stored: the views of its target store; None where it is not known, or there is none.

    Returns:
        None where they are those of a store that is not known.
    """
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
) -> None:
    """Keep what a run sees in its folder; nothing where its views are not known."""
    views = seen_views(settings, stored)
    if views is None:
        return
    seen = SeenData(views=views, scans=len(scans), scans_sha256=scans_hash(scans), targets_hash=targets_hash)
    write_atomically(folder / SEEN_FILE, (seen.model_dump_json(indent=1) + "\n").encode())


def read_seen(folder: Path) -> SeenData | None:
    """What a run sees, None for a run of an older version.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / SEEN_FILE
    if not path.is_file():
        return None
    try:
        return SeenData.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        raise DataError(
            f"{path}: not what a training run writes there ({error}). Remove it to compare without."
        ) from error
