"""Work started ahead on threads: in order, bounded, and with errors where they belong."""

import threading
import time

import pytest

from common.base.overlap import BackgroundWriter, StageClock, started_ahead


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_results_come_in_the_order_of_the_items(count, depth, threads):
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    done = [(item, future.result()) for item, future in started_ahead(work, range(count), depth, threads)]
    assert done == [(item, item * item) for item in range(count)]


def test_no_more_than_depth_items_are_taken_ahead_of_the_consumer():
    taken = []

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    for item, future in started_ahead(lambda item: item, items(), depth=3, threads=2):
        future.result()
        assert len(taken) <= item + 1 + 3


def test_the_next_items_are_under_way_while_the_consumer_works():
    started = {item: threading.Event() for item in range(3)}
    waiting = started_ahead(lambda item: started[item].set(), range(3), depth=1)
    next(waiting)
    assert started[1].wait(10)


def test_an_error_appears_at_its_own_item_and_the_others_go_on():
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    results = []
    for item, future in started_ahead(work, range(5)):
        if item == 2:
            with pytest.raises(ValueError, match="item 2"):
                future.result()
        else:
            results.append(future.result())
    assert results == [0, 1, 3, 4]


def test_leaving_early_starts_nothing_more():
    calls = []
    waiting = started_ahead(calls.append, range(1000), depth=2)
    next(waiting)
    waiting.close()
    seen = len(calls)
    assert seen <= 3
    time.sleep(0.02)
    assert len(calls) == seen


def test_the_writer_finishes_everything_in_order_before_it_is_left():
    written = []

    def write(item: int) -> None:
        time.sleep(0.003)
        written.append(item)

    with BackgroundWriter(depth=2) as writer:
        for item in range(6):
            writer.submit(write, item)
    assert written == list(range(6))


def test_the_writer_holds_the_caller_back_when_depth_calls_are_under_way():
    gate = threading.Event()
    running = []

    def write(item: int) -> None:
        running.append(item)
        gate.wait(10)

    def submit_all(writer: BackgroundWriter) -> None:
        for item in range(4):
            writer.submit(write, item)
            submitted.append(item)

    submitted: list[int] = []
    with BackgroundWriter(depth=2) as writer:
        caller = threading.Thread(target=submit_all, args=(writer,))
        caller.start()
        time.sleep(0.05)
        assert submitted == [0, 1]
        gate.set()
        caller.join(10)
    assert running == [0, 1, 2, 3]


def fail_to_write() -> None:
    raise OSError("disk full")


def test_an_error_of_the_last_call_surfaces_when_the_writer_is_left():
    with pytest.raises(OSError, match="disk full"), BackgroundWriter() as writer:
        writer.submit(fail_to_write)


def test_an_error_of_an_earlier_call_surfaces_at_a_later_one():
    reached = []

    def submit_both() -> None:
        with BackgroundWriter(depth=1) as writer:
            writer.submit(fail_to_write)
            writer.submit(reached.append, 1)

    with pytest.raises(OSError, match="disk full"):
        submit_both()
    assert reached == []


def test_the_callers_own_error_is_not_replaced_by_the_writers():
    def submit_and_fail() -> None:
        with BackgroundWriter() as writer:
            writer.submit(fail_to_write)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        submit_and_fail()


def test_a_writer_without_depth_runs_calls_in_the_caller():
    threads = []
    with BackgroundWriter(depth=0) as writer:
        writer.submit(lambda: threads.append(threading.get_ident()))
        assert threads == [threading.get_ident()]


def test_several_threads_write_at_once_and_an_error_still_surfaces():
    together = threading.Barrier(3, timeout=10)
    with BackgroundWriter(depth=3, threads=3) as writer:
        for _ in range(3):
            writer.submit(together.wait)

    def submit_all() -> None:
        with BackgroundWriter(depth=4, threads=2) as writer:
            for call in (lambda: time.sleep(0.001), fail_to_write, lambda: None):
                writer.submit(call)

    with pytest.raises(OSError, match="disk full"):
        submit_all()


def test_the_slowest_stage_is_the_one_that_holds_up_the_others():
    clock = StageClock({"reading": 1, "writing": 4})
    for _ in range(3):
        clock.add("reading", 0.02)
        clock.add("writing", 0.04)
    assert clock.seconds == pytest.approx({"reading": 0.02, "writing": 0.01})
    assert clock.slowest == "reading 20 ms"
    with clock.measure("writing"):
        time.sleep(0.4)
    assert clock.slowest.startswith("writing")
