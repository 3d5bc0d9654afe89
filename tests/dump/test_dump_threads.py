"""A dump with several readers and writers: the same store, the same errors, the same report."""

import threading
import time
from pathlib import Path

import pytest
import torch

from common.base.config import load_settings
from common.base.devices import Launch
from common.base.records import move_tensors, start_to_host, to_host
from common.base.worker_processes import WorkerError
from common.scans.formats.semantic_kitti import scan_path
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.encoding import DecodableFeatures
from common.targets.store.storage import FolderStorage
from stage1_dump_teacher.dump_workers import in_processes, threads_of, worker_processes
from stage1_dump_teacher.scan_reading import ScanSource
from stage1_dump_teacher.settings import DumpSettings
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import CONFIGS, DATASET, STREET_GRID, dump, fail, succeed
from tests.shared.small_stores import scan_files
from tests.targets.store import made_up_targets

WORDS = ("splits=[train]", "views.count=3")
THREADS = ("readers=3", "writers=3")
PROCESSES = ("readers=2", "writers=2", "processes=true")


@pytest.fixture(autouse=True)
def enough_shared_memory(monkeypatch):
    """Small scans need little of it, whatever this machine has."""
    monkeypatch.setattr("stage1_dump_teacher.dump_workers.shared_memory_free", lambda: 4e9)


@pytest.fixture
def data(tmp_path) -> Path:
    write_dataset(tmp_path / "dataset", {"00": 4}, points=600)
    return tmp_path / "dataset"


@pytest.mark.parametrize("many", [THREADS, PROCESSES], ids=["threads", "processes"])
def test_threads_and_processes_write_the_same_files(data, tmp_path, reduced_teacher, many):
    for name, threads in {"one": ("readers=1", "writers=0"), "many": many}.items():
        assert "12 scan-views written" in succeed(
            dump(data, reduced_teacher, tmp_path / name, STREET_GRID, *WORDS, *threads)
        )
    assert scan_files(tmp_path / "many") == scan_files(tmp_path / "one")


@pytest.mark.parametrize("many", [THREADS, PROCESSES], ids=["threads", "processes"])
def test_the_report_names_skipped_scans_in_order(data, tmp_path, reduced_teacher, many):
    for frame in ("000001", "000002"):
        scan_path(data, ScanId("00", frame)).write_bytes(b"")
    words = (*WORDS, *many, "on_bad_scan=skip")
    output = succeed(dump(data, reduced_teacher, tmp_path / "cache", STREET_GRID, *words))
    skipped = [line for line in output.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 6
    assert skipped == sorted(skipped)
    assert "6 scan-views written" in output


@pytest.mark.parametrize("many", [THREADS, PROCESSES], ids=["threads", "processes"])
def test_an_error_of_a_writer_ends_the_dump(data, tmp_path, reduced_teacher, many):
    (tmp_path / "cache" / "sequences").mkdir(parents=True)
    (tmp_path / "cache" / "sequences" / "00").write_text("in the way")
    message = fail(dump(data, reduced_teacher, tmp_path / "cache", STREET_GRID, *WORDS, *many))
    assert "cannot be written" in message


def test_processes_need_memory_that_they_can_share(data, tmp_path, reduced_teacher, monkeypatch):
    monkeypatch.setattr("stage1_dump_teacher.dump_workers.shared_memory_free", lambda: 64 * 2**20)
    message = fail(dump(data, reduced_teacher, tmp_path / "cache", STREET_GRID, *WORDS, *PROCESSES))
    assert "--shm-size" in message
    settings = load_settings(DumpSettings, CONFIGS / "teachers/cylinder3d.yaml", [f"dataset={DATASET}"])
    assert not in_processes(settings, torch.device("cuda", 0), local=True)


def test_no_process_is_started_for_nothing(data, tmp_path, reduced_teacher, monkeypatch):
    words = (data, reduced_teacher, tmp_path / "cache", STREET_GRID, *WORDS)
    succeed(dump(*words))
    monkeypatch.setattr("stage1_dump_teacher.dump_workers.WorkerProcesses", None)
    assert "12 were there before" in succeed(dump(*words, *PROCESSES))


def test_where_processes_do_not_start_threads_do_it_unless_they_are_asked_for(tmp_path, capsys):
    settings = load_settings(DumpSettings, CONFIGS / "teachers/cylinder3d.yaml", [f"dataset={DATASET}"])
    store, locked = TargetStore(FolderStorage(tmp_path), made_up_targets.identity()), threading.Lock()
    unpicklable = ScanSource(settings, locked)
    with worker_processes(unpicklable, store, torch.device("cuda", 0)) as workers:
        assert workers == (None, None)
    assert "cannot pickle" in capsys.readouterr().out
    asked = unpicklable._replace(settings=settings.model_copy(update={"processes": True}))
    with pytest.raises(WorkerError, match="cannot pickle"), worker_processes(asked, store, torch.device("cpu")):
        pass


def test_processes_by_default_for_a_gpu_and_a_folder():
    settings = load_settings(DumpSettings, CONFIGS / "teachers/cylinder3d.yaml", [f"dataset={DATASET}"])
    assert in_processes(settings, torch.device("cuda", 0), local=True)
    assert not in_processes(settings, torch.device("cuda", 0), local=False)
    assert not in_processes(settings, torch.device("cpu"), local=True)


def test_threads_by_default():
    settings = load_settings(DumpSettings, CONFIGS / "teachers/cylinder3d.yaml", [f"dataset={DATASET}"])
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert threads_of(settings, cpu, local=True) == (1, 0)
    assert threads_of(settings, cpu, local=False)[1] >= 1
    assert threads_of(settings, gpu, local=True)[0] == 2
    assert threads_of(settings.model_copy(update={"readers": 5, "writers": 0}), gpu, local=True) == (5, 0)


class Watched(torch.Tensor):
    """A tensor that notes which of its copies nobody waits for."""

    careless: list[str] = []

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function is torch.Tensor.to and (options or {}).get("non_blocking"):
            cls.careless.append(str(arguments[1]))
        return super().__torch_function__(function, types, arguments, options or {})


def test_copies_to_the_cpu_are_waited_for():
    features = DecodableFeatures(torch.zeros(3, 2).as_subclass(Watched))
    move_tensors(features, "cpu")
    move_tensors(features, torch.device("cpu"))
    assert Watched.careless == []


def test_on_a_cpu_launching_is_the_work_itself():
    with Launch(torch.device("cpu")) as launch:
        time.sleep(0.01)
    assert launch.wait() >= 0.01
    tensor = torch.ones(3)
    assert to_host([tensor])[0] is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_targets_that_another_thread_waits_for_are_whole():
    device, found = torch.device("cuda", 0), []
    for number in range(20):
        product = torch.ones(4096, 4096, device=device)
        for _ in range(20):
            product = product @ product / 4096
        waited_for = start_to_host([product * number])
        thread = threading.Thread(target=lambda waited_for=waited_for: found.extend(waited_for()))
        thread.start()
        thread.join()
    assert [copied.unique().tolist() for copied in found] == [[number] for number in range(20)]
