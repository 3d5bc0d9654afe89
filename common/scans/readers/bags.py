"""ROS 1 and ROS 2 bags: the PointCloud2 messages of a topic, by their number."""

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from common.base.errors import DataError
from common.scans.readers.cloud import Cloud
from common.scans.readers.extras import unreadable

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

BAG_SUFFIXES = (".bag", ".db3", ".mcap")
"""Of bags in one file; a ROS 2 bag may also be a folder with a `metadata.yaml`."""

POINT_CLOUD = "sensor_msgs/msg/PointCloud2"
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""Types of numbers by the constants of sensor_msgs/PointField."""


def is_bag(path: Path) -> bool:
    """Whether a path names a bag."""
    return path.suffix.lower() in BAG_SUFFIXES or (path / "metadata.yaml").is_file()


class Bag:
    """The clouds of one topic of a bag, numbered in the order of time. Use as a context manager, or `close` it.

    Reading them in order goes through the bag once. Another order first goes through the bag up to the message, since
    not every kind of bag can say when its messages are; after that it is found by its time. Threads take turns.

    Attributes:
        path: of the bag.
        reader: the open bag as the library rosbags reads it.
        connections: those of the topic, as rosbags calls them.

    Raises:
        DataError: the bag cannot be read, or does not have such a topic; lists those that it has.
    """

    def __init__(self, path: Path, topic: str | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        with unreadable(path):
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore

            # Bags of ROS 2 before Iron do not say what their messages look like; PointCloud2 never changed.
            self.reader: AnyReader = AnyReader([path], default_typestore=get_typestore(Stores.LATEST))
            self.reader.open()
        try:
            self.connections = self._of_topic(topic)
        except DataError:
            self.close()
            raise
        self._times: list[int] = []
        """Of the messages that were passed, sorted; nanoseconds."""
        self._going_on: Iterator[tuple[Connection, int, bytes]] = self.reader.messages(self.connections)
        self._next = 0
        """Number of the message that comes next in `_going_on`."""

    def __len__(self) -> int:
        return sum(connection.msgcount for connection in self.connections)

    def read(self, index: int) -> Cloud:
        """The cloud of a message.

        Raises:
            DataError: it is not there, or damaged.
        """
        with self._lock, unreadable(self.path):
            connection, data = self._message(index)
            message = self.reader.deserialize(data, connection.msgtype)
            return Cloud(f"{self.path}, message {index} of {connection.topic}", message_columns(message))

    def close(self) -> None:
        """Close the files."""
        with suppress(Exception):
            self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _of_topic(self, topic: str | None) -> "list[Connection]":
        clouds = [found for found in self.reader.connections if found.msgtype == POINT_CLOUD]
        topics = sorted({found.topic for found in clouds})
        if topic is None and len(topics) > 1:
            raise DataError(f"{self.path}: several PointCloud2 topics ({', '.join(topics)}); say which: options.topic")
        chosen = [found for found in clouds if topic is None or found.topic == topic]
        if not chosen:
            raise DataError(
                f"{self.path}: no PointCloud2 topic{f' {topic}' if topic else ''} here; PointCloud2 topics: "
                f"{', '.join(topics) or 'none'}. See options.topic."
            )
        return chosen

    def _message(self, index: int) -> "tuple[Connection, bytes]":
        if index >= len(self):
            raise DataError(f"{self.path}: no message {index}; there are {len(self)}.")
        known = len(self._times)
        if not (index == self._next or self._next == known <= index):
            start = self._times[min(index, known - 1)]
            self._next = bisect_left(self._times, start)
            # Only one pass at a time: the passes of some bags share their place in the file.
            self._going_on = self.reader.messages(self.connections, start=start)
        for connection, time, data in self._going_on:
            self._times += [time] if self._next == len(self._times) else []
            self._next += 1
            if self._next > index:
                return connection, data
        raise DataError(f"{self.path}: {self._next} messages where {len(self)} were promised; it is truncated.")


def message_columns(message: Any) -> Mapping[str, np.ndarray]:
    """Fields of a message, [height * width] each, row after row. Fields of several numbers are left out.

    Raises:
        ValueError: the message contradicts itself.
    """
    order = ">" if message.is_bigendian else "<"
    fields = [field for field in message.fields if field.count == 1]
    point = np.dtype(
        {
            "names": [field.name for field in fields],
            "formats": [order + NUMBERS[field.datatype] for field in fields],
            "offsets": [field.offset for field in fields],
            "itemsize": message.point_step,
        }
    )
    if not fields and message.height * message.width:
        raise ValueError("its points have no field")
    shape, strides = (message.height, message.width), (message.row_step, message.point_step)
    # Rows may be padded at their end. NumPy refuses a shape that the buffer does not hold.
    cloud: np.ndarray = np.ndarray(shape, point, np.asarray(message.data).data, strides=strides)
    return {name: cloud[name].reshape(-1) for name in point.names or ()}
