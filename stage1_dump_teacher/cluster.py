"""Stage one on many machines: workers of a Ray cluster are handed scan-views until none is left.

Each worker keeps its teacher. It gets about as much as it does in the same time as the others, so a slow one holds
nobody up, and what it held goes to others where it dies.
"""

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.base.cluster import NO_MACHINE, connected, machines, share_of, share_on
from common.base.errors import PolarDistillError
from common.base.signals import StopRequest
from common.scans.dataset import open_dataset
from common.targets.store import ScanView, TargetStore
from common.targets.store.skipped import skipped_scan_views
from common.targets.store.watch import StoreWatch
from stage1_dump_teacher.cluster_worker import DumpJob, DumpWorker
from stage1_dump_teacher.dump import announce
from stage1_dump_teacher.scan_writer import DumpReport
from stage1_dump_teacher.settings import DumpSettings

FIRST_CHUNK = 8
"""Scan-views that a worker is handed at most before it is known how fast it is."""

CHUNK_SECONDS = 10.0
"""Work that a worker is handed at most: so much is lost with it, and so long Ctrl-C waits."""

POLL_SECONDS = 1.0
PIECES = 8
"""Into so many is cut what a dead worker held."""

DEATHS = 3
"""How often workers end over one scan-view, or while they load the teacher, before it is no accident."""

CLOSE_SECONDS = 10.0
"""For workers to end what they started."""

SETTLE_SECONDS = 5.0
"""After a worker's end before others are started: until then its machine may seem to be there although it is lost."""


@dataclass(eq=False)
class Member:
    """A worker as the driver knows it.

    Attributes:
        actor: its handle in Ray.
        machine: that it is on, by its id in Ray.
        started: when; the same for all that were started together.
        held: what it was handed and has not reported on.
        since: when it was handed that.
        speed: scan-views a second; None before it has reported.
        report: what it did so far.
    """

    actor: Any
    machine: str
    started: float
    held: list[ScanView] = field(default_factory=list)
    since: float = 0.0
    speed: float | None = None
    report: DumpReport = field(default_factory=DumpReport)


class Team:
    """The workers of a dump, at any time as many as the cluster has room for, and what they have still to do.

    Attributes:
        teacher: in words; empty before a worker has loaded it.
        waiting: scan-views that no worker was handed yet.
        present: number of scan-views that were in the store before.
        done: scan-views that workers reported on.
        members: all workers that there ever were.
    """

    def __init__(self, job: DumpJob, device: str) -> None:
        import ray

        self.teacher = ""
        self.waiting: deque[ScanView] = deque()
        self.present = 0
        self.done: set[ScanView] = set()
        self.members: list[Member] = []
        self._job, self._device = job, device
        self._actor = ray.remote(DumpWorker)
        # Calls that Ray has not answered yet, and workers that wait for one.
        self._calls: dict[Any, Member] = {}
        self._idle: list[Member] = []
        # What workers held that ended; of each scan-view how many ended over it alone.
        self._again: deque[list[ScanView]] = deque()
        self._deaths: Counter[ScanView] = Counter()
        self._failed_starts: set[float] = set()
        self._next_start = 0.0
        self._alone = False

    @property
    def alive(self) -> int:
        """Workers that have loaded the teacher."""
        return len(self._idle) + self.busy

    @property
    def busy(self) -> int:
        """Workers that hold scan-views."""
        return sum(bool(member.held) for member in self._calls.values())

    @property
    def unfinished(self) -> bool:
        """Whether scan-views are to be handed out."""
        return bool(self.waiting or self._again)

    def grow(self, most: int) -> None:
        """Start workers, up to so many in all, where the cluster has room: machines may be new, workers have ended."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        now = time.monotonic()
        if now < self._next_start:
            return
        team = [*self._idle, *self._calls.values()]
        there = Counter(member.machine for member in team)
        for machine, resources in machines().items():
            share = share_on(resources, self._device)
            places = share.places(resources)
            for _ in range(min(places - there[machine], most - len(team))):
                # Each on the machine that its share is of: Ray might use up a larger one with smaller shares.
                there_alone = NodeAffinitySchedulingStrategy(machine, soft=False)
                options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "scheduling_strategy": there_alone}
                member = Member(self._actor.options(**options).remote(), machine, now)
                team.append(member)
                self.members.append(member)
                self._calls[member.actor.load.remote(self._job, share, places)] = member
        if not team and most and not self._alone:
            tqdm.write(f"note: {NO_MACHINE.format('a GPU' if self._device == 'cuda' else 'cores')}")
        self._alone = not team

    def hand_out(self) -> None:
        """Give every worker that has nothing to do its next scan-views."""
        while self._idle and self.unfinished:
            member = self._idle.pop()
            # What a dead worker held comes last: it may be what ended it.
            member.held = self._next_for(member) if self.waiting else self._again.popleft()
            member.since = time.monotonic()
            present = self.present + sum(one.report.written for one in self.members)
            self._calls[member.actor.dump.remote(member.held, present, len(self.waiting))] = member

    def _next_for(self, member: Member) -> list[ScanView]:
        """What a worker does in half the time that all of them need for the rest, so that they end together."""
        team = [member, *self._idle, *self._calls.values()]
        if member.speed is None:
            # A small part of its share: it may be slow.
            size = min(FIRST_CHUNK, len(self.waiting) // (4 * len(team)))
        else:
            speeds = [one.speed for one in team if one.speed is not None]
            of_all = sum(speeds) / len(speeds) * len(team)
            size = int(member.speed * min(CHUNK_SECONDS, len(self.waiting) / of_all / 2))
        return [self.waiting.popleft() for _ in range(min(max(size, 1), len(self.waiting)))]

    def collect(self) -> int:
        """Wait a moment for workers to report; returns how many scan-views were done.

        Raises:
            PolarDistillError: as `dump.run` does; or workers end again and again, over one scan-view or from the start.
        """
        import ray
        from ray.exceptions import ActorUnschedulableError, RayActorError, RayTaskError

        if not self._calls:
            time.sleep(POLL_SECONDS)
            return 0
        before = len(self.done)
        for call in ray.wait(list(self._calls), timeout=POLL_SECONDS)[0]:
            member = self._calls.pop(call)
            try:
                self._note(member, ray.get(call))
            except RayTaskError as error:
                if isinstance(error.cause, PolarDistillError | OSError):
                    raise error.cause from None
                raise
            except ActorUnschedulableError:
                # Its machine was lost before it was there.
                self._next_start = time.monotonic() + SETTLE_SECONDS
            except RayActorError as error:
                ray.kill(member.actor)
                self._pass_on(member, reason_of(error))
        return len(self.done) - before

    def close(self) -> None:
        """Let workers end what they started. Ray, which ends them, would do it so hard that semaphores were left."""
        import ray

        calls = [member.actor.close.remote() for member in self._idle]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=CLOSE_SECONDS)

    def _note(self, member: Member, result: Any) -> None:
        """Note what `DumpWorker.load` or `dump` returned."""
        import ray

        if isinstance(result, str):
            self.teacher = result
            self._failed_starts.clear()
            self._idle.append(member)
            return
        member.report, left = result
        self.done.update(set(member.held).difference(left))
        member.speed = len(member.held) / (time.monotonic() - member.since)
        member.held = []
        if left:
            # Ray asks workers to end before their machine goes.
            self._again.append(left)
            ray.kill(member.actor)
        else:
            self._idle.append(member)

    def _pass_on(self, member: Member, reason: str) -> None:
        """Hand out again what a dead worker held, in pieces, so that a scan that ends workers is found at last.

        Raises PolarDistillError where it is found, or where no worker loads the teacher.
        """
        self._next_start = time.monotonic() + SETTLE_SECONDS
        held = member.held
        tqdm.write(f"note: a worker has ended; others do the {len(held)} scan-views that it held. {reason}")
        if not held:
            self._failed_starts.add(member.started)
            refuse_deaths(len(self._failed_starts), "loaded the teacher", reason)
            return
        if len(held) == 1:
            self._deaths[held[0]] += 1
            refuse_deaths(self._deaths[held[0]], f"did scan {held[0][0]} view {held[0][1]}", reason)
        size = ceil(len(held) / PIECES)
        self._again.extend(held[start : start + size] for start in range(0, len(held), size))


def refuse_deaths(count: int, doing: str, reason: str) -> None:
    """Raise PolarDistillError where workers end again and again."""
    if count >= DEATHS:
        raise PolarDistillError(
            f"{count} times workers ended while they {doing}: {reason} Is their memory too small? The logs of Ray "
            "(/tmp/ray/session_latest/logs on each machine) may say more. What is written stays usable."
        )


def reason_of(error: Exception) -> str:
    """Why a worker has ended, in the line of Ray's message that says it."""
    lines = str(error).strip().splitlines()
    return lines[-1 if "creation task" in lines[0] else 0]


def run_on_cluster(
    settings: DumpSettings, data: Path, checkpoints: Sequence[Path], cache: str, device: str, address: str
) -> DumpReport:
    """As `dump.run`, by all machines of a Ray cluster.

    Raises:
        PolarDistillError: as `dump.run`; or no cluster answers, it lacks the device, or workers end again and again.
    """
    selection = open_dataset(data, settings.dataset).select(settings.splits)
    work = [(scan, view) for scan in selection.scans for view in range(settings.views.count)]
    with connected(address), StopRequest() as stop:
        share = share_of(device)
        team = Team(DumpJob(settings, data, checkpoints, cache, Path.cwd()), share.device)
        while not (team.teacher or stop):
            team.grow(len(work))
            team.collect()
        if not team.teacher:
            return DumpReport(left=len(work))
        # A worker has made the store: what makes it, such as the teacher's precision, may depend on the device.
        store = TargetStore.open(cache)
        watch, finished = StoreWatch(store), store.finished()
        team.waiting.extend(item for item in work if item not in finished)
        missing, team.present = len(team.waiting), len(work) - len(team.waiting)
        announce(team.teacher, store, selection, missing, f"workers with {share} each")
        with tqdm(total=missing, unit="scan", desc="dump-teacher", disable=not missing) as progress:
            while team.busy or (team.unfinished and not stop):
                if not stop:
                    team.grow(missing - len(team.done))
                    team.hand_out()
                progress.set_postfix_str(f"{team.alive} workers", refresh=False)
                progress.update(team.collect())
        team.close()
    watch.check_holds(finished.intersection(work) | (team.done - skipped_scan_views(store)))
    reports = [member.report for member in team.members]
    return DumpReport(
        written=sum(report.written for report in reports),
        present=team.present,
        size=sum(report.size for report in reports),
        skipped=[reason for report in reports for reason in report.skipped],
        left=missing - len(team.done),
    )
