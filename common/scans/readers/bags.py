"""ROS 1 and ROS 2 bags: the PointCloud2 messages of a topic, by their number."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from common.base.errors import DataError
from common.scans.readers.cloud import Cloud
from common.scans.readers.extras import unreadable
from common.scans.readers.point_cloud2 import message_columns

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

BAG_SUFFIXES = (".bag", ".db3", ".mcap")
"""Of bags in one file; a ROS 2 bag may also be a folder with a `metadata.yaml`."""

POINT_CLOUD = "sensor_msgs/msg/PointCloud2"


def is_bag(path: Path) -> bool:
    """Whether a path names a bag."""
    return path.suffix.lower() in BAG_SUFFIXES or (path / "metadata.yaml").is_file()


class Bag:
    """The clouds of one topic of a bag, numbered in the order of time. Use as a context manager, or `close` it.

    Reading them in order goes through the bag once. Another order first goes through the bag up to the message, since
    not every kind of bag can say when its messages are; after that it is found by its time. Threads take turns.

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
            self._reader = AnyReader([path], default_typestore=get_typestore(Stores.LATEST))
            self._reader.open()
        try:
            self._connections = self._of_topic(topic)
        except DataError:
            self.close()
            raise
        self._times: list[int] = []
        self._going_on: Iterator[tuple[Connection, int, bytes]] | None = None

    def __len__(self) -> int:
        return sum(connection.msgcount for connection in self._connections)

    def read(self, index: int) -> Cloud:
        """The cloud of a message.

        Raises:
            DataError: it is not there, or damaged.
        """
        with self._lock, unreadable(self.path):
            connection, data = self._message(index)
            message = self._reader.deserialize(data, connection.msgtype)
            return Cloud(f"{self.path}, message {index} of {connection.topic}", message_columns(message))

    def close(self) -> None:
        """Close the files."""
        with suppress(Exception):
            self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _of_topic(self, topic: str | None) -> "list[Connection]":
        clouds = [found for found in self._reader.connections if found.msgtype == POINT_CLOUD]
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
        if index < len(self._times):
            time = self._times[index]
            equal = self._reader.messages(self._connections, start=time, stop=time + 1)
            for _ in range(index - self._times.index(time)):
                next(equal)
            connection, _, data = next(equal)
            return connection, data
        if self._going_on is None:
            self._going_on = self._reader.messages(self._connections)
        for connection, time, data in self._going_on:
            self._times.append(time)
            if len(self._times) > index:
                return connection, data
        raise DataError(f"{self.path}: {len(self._times)} messages where {len(self)} were promised; it is truncated.")
