"""What the student is trained on: scans in a view, with the teacher's targets for that very cloud."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from common.base.devices import use_device
from common.base.errors import SettingsError, StoreError
from common.base.overlap import started_ahead
from common.base.records import tensors_in
from common.base.shards import Shard
from common.scans.dataset import Dataset, LabelledScan, voxelise_view
from common.scans.polar_grid import PolarGrid, VoxelisedScan
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, AnchoredView, View, anchor_view, draw_anchored_view, draw_view, rotated_by_bins
from common.targets.composition import Anchor, anchored_targets
from common.targets.mixing import MixedTargets, Mixing, draw_mixing, mixed_scan
from common.targets.store import EncodedTargets, TargetStore, ViewSet
from common.targets.store.scan_file import encoded_as_is
from common.targets.teacher_targets import TeacherTargets, batch_targets
from stage2_train_student.distillation.terms import teacher_layers, voxel_terms
from stage2_train_student.settings import ExperimentSettings

StoredTargets = EncodedTargets | MixedTargets


@dataclass(frozen=True)
class StudentBatch:
    """One training step's worth of data.

    Attributes:
        scans: which scans; none where the batch has fewer scans than there are processes, and this one has no share.
        batch: their voxels and points; those of a stand-in where there are no scans.
        targets: the teacher's for each scan as stored, where they come from a cache; the stand-in's likewise.
        shared: scans of the batch in all processes together.
        decoded: the targets of all scans, where they are decoded already.
        arrival: on a GPU, after which all of this is there.
    """

    scans: list[ScanId]
    batch: ScanBatch
    targets: list[StoredTargets]
    shared: int
    decoded: TeacherTargets | None = None
    arrival: torch.cuda.Event | None = None

    @property
    def has_targets(self) -> bool:
        """Whether it brings a teacher's targets."""
        return bool(self.targets) or self.decoded is not None

    def decoded_targets(self, device: torch.device) -> TeacherTargets:
        """The targets, decoded on the device that uses them."""
        if self.decoded is not None:
            return self.decoded
        return batch_targets([targets.to(device).decode() for targets in self.targets])

    def sent(self, stream: torch.cuda.Stream) -> "StudentBatch":
        """The batch on its way to the stream's GPU, to be decoded there beside what the training loop computes."""
        # A thread of its own would go back to the first GPU afterwards, and take memory there for it.
        use_device(stream.device)
        with torch.cuda.stream(stream):
            decoded = self.decoded_targets(stream.device) if self.targets else None
            batch = self.batch.to(stream.device)
            return replace(self, batch=batch, targets=[], decoded=decoded, arrival=stream.record_event())

    def arrived(self) -> "StudentBatch":
        """The same batch, once the calling thread's stream waits for what `sent` has queued."""
        if self.arrival is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.arrival)
            for tensor in tensors_in((self.batch, self.decoded)):
                # Its memory belongs to the other stream, which must not use it again before this one has read it.
                tensor.record_stream(stream)
        return self


@dataclass(frozen=True)
class StudentData:
    """Loads training scans as an experiment asks for them; holds no open files and no random state.

    Attributes:
        settings: of the experiment.
        dataset: the scans.
        store: cached targets, or None.
        labelled: scans whose labels are used; None for all.
        partners: scans that may be mixed into others.
        stream: on which batches are sent to a GPU; None leaves them on the CPU.
    """

    settings: ExperimentSettings
    dataset: Dataset
    store: TargetStore | None = None
    labelled: frozenset[ScanId] | None = None
    partners: Sequence[ScanId] = ()
    stream: torch.cuda.Stream | None = None

    def __post_init__(self) -> None:
        if self.store is not None and self.settings.views == "anchors" and self.store.identity.views.anchors is None:
            raise StoreError(
                f"{self.store.location}: holds drawn views, views: anchors needs an anchor set. Set views=replay, or "
                "dump a store with views.anchors.rotations=4."
            )
        if self.settings.mix is not None and len(self.partners) < 2:
            raise SettingsError("mix: there is no second training scan to mix with; set mix=null")

    @cached_property
    def grid(self) -> PolarGrid:
        """The grid that scans are voxelised on."""
        return self.settings.grid.grid()

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Teacher layers to read from the store."""
        return tuple(teacher_layers(self.settings.distillation))

    @cached_property
    def voxel_features(self) -> bool:
        """Whether to read their voxel features too."""
        return bool(voxel_terms(self.settings.distillation))

    def load(self, scan: ScanId, epoch: int) -> tuple[VoxelisedScan, StoredTargets | None]:
        """One scan in the view of this epoch, mixed with another one in its view, and its cached targets.

        Raises:
            DataError: a scan cannot be used.
            StoreError: its targets cannot, or are not those of this cloud.
        """
        own, targets = self.load_unmixed(scan, epoch)
        mixing = self.mixing(scan, epoch)
        if mixing is None:
            return own, targets
        other, others = self.load_unmixed(mixing.partner, epoch)
        taken = mixing.taken(self.grid.shape[1])
        mixed = mixed_scan(own, other, taken)
        if not len(mixed.voxels):
            # Both scans look elsewhere: a part of a circle each.
            return own, targets
        return mixed, MixedTargets(targets, others, taken) if targets and others else None

    def load_unmixed(self, scan: ScanId, epoch: int) -> tuple[VoxelisedScan, EncodedTargets | None]:
        """One scan in the view of this epoch, and its cached targets; errors as of `load`."""
        source = self.dataset.read(scan)
        if self.labelled is not None and scan not in self.labelled:
            source = replace(source, labels=None)
        if self.store is None:
            return voxelise_view(source, self.drawn_view(scan, epoch), self.grid, self.dataset.label_map), None
        seen = self.anchored_view(scan, epoch)
        voxelised, targets, view = self.stored(scan, seen.anchor, source, self.store)
        if not seen.bins:
            return voxelised, targets
        shape = self.grid.shape
        turned = voxelise_view(source, rotated_by_bins(view, seen.bins, shape[1]), self.grid, self.dataset.label_map)
        nearest = Anchor(targets.decode(), batch_scans([voxelised], shape), seen.bins)
        other = None
        if seen.other is not None:
            voxelised, targets, _ = self.stored(scan, seen.other, source, self.store)
            other = Anchor(targets.decode(), batch_scans([voxelised], shape), seen.other_bins)
        return turned, encoded_as_is(anchored_targets(nearest, other, batch_scans([turned], shape)), shape)

    def stored(
        self, scan: ScanId, index: int, source: LabelledScan, store: TargetStore
    ) -> tuple[VoxelisedScan, EncodedTargets, View]:
        """One scan in a stored view, its targets and the view.

        Raises:
            StoreError: the targets cannot be read, or are not those of this cloud.
        """
        targets, view = store.read_encoded(scan, index, source.points, self.layers, self.voxel_features)
        voxelised = voxelise_view(source, view, self.grid, self.dataset.label_map)
        voxels = np.ravel_multi_index(tuple(voxelised.voxels.T), self.grid.shape)
        if not np.array_equal(targets.voxels.numpy(), voxels):
            raise StoreError(
                f"{store.location}/{store.name(scan, index)}: the occupied voxels are not those of scan {scan} in view "
                f"{index} on this machine. Dump this scan again."
            )
        anchors = store.identity.views.anchors if self.settings.views == "anchors" else None
        if anchors is not None and view != anchor_view(anchors, index, self.grid.shape[1]):
            raise StoreError(
                f"{store.location}/{store.name(scan, index)}: view {index} is not the expected anchor. "
                "Another version of the project dumped it: dump again, or set views=replay."
            )
        return voxelised, targets, view

    def load_batch(self, scans: Sequence[ScanId], epoch: int, shard: Shard = Shard()) -> StudentBatch:
        """Several scans as one batch, or this process's share of them."""
        share = shard.of(scans)
        loaded = [self.load(scan, epoch) for scan in share or scans[:1]]
        targets = [target for _, target in loaded if target is not None]
        batch = batch_scans([voxelised for voxelised, _ in loaded], self.grid.shape)
        return StudentBatch(share, batch, targets, len(scans))

    def mixing(self, scan: ScanId, epoch: int) -> Mixing | None:
        """What is mixed into a scan in an epoch."""
        settings = self.settings
        if settings.mix is None:
            return None
        return draw_mixing(settings.mix, self.grid.shape[1], settings.seed, scan, epoch, self.partners)

    def anchored_view(self, scan: ScanId, epoch: int) -> AnchoredView:
        """The stored views of a scan that are read in an epoch, and the azimuth bins to rotate them by."""
        stored, seed = self.store.identity.views if self.store else ViewSet(), self.settings.seed
        if self.settings.views == "anchors" and stored.anchors is not None:
            return draw_anchored_view(stored.anchors, self.grid.shape[1], seed, scan, epoch)
        return AnchoredView(choose_view(stored.count, seed, scan, epoch), 0)

    def drawn_view(self, scan: ScanId, epoch: int) -> View:
        """The view of a scan in an epoch where no store fixes it."""
        augmentation, seed = self.settings.augmentation, self.settings.seed
        if augmentation is None:
            return IDENTITY
        if augmentation.count is None:
            # Not view 0, which is the scan as it is.
            return draw_view(augmentation.policy, scan, 1 + epoch, seed)
        return draw_view(augmentation.policy, scan, choose_view(augmentation.count, seed, scan, epoch))

    def batches(
        self, groups: list[list[ScanId]], epoch: int, threads: int, shard: Shard = Shard()
    ) -> Iterator[StudentBatch]:
        """Batches of an epoch, or this process's share of each, loaded ahead by threads, always in the same order."""

        def load(group: list[ScanId]) -> StudentBatch:
            loaded = self.load_batch(group, epoch, shard)
            return loaded if self.stream is None else loaded.sent(self.stream)

        loading = started_ahead(load, groups, depth=2 * threads, threads=threads)
        for _, future in loading:
            yield future.result().arrived()


def choose_view(count: int, seed: int, scan: ScanId, epoch: int) -> int:
    """Which of `count` views of a scan is seen in an epoch; depends on nothing else."""
    if count == 1:
        return 0
    return int(np.random.default_rng([seed, zlib.crc32(str(scan).encode()), epoch]).integers(count))
