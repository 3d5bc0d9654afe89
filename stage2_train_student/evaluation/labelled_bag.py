"""A copy of a ROS bag with one topic more: the clouds of a topic, each point with its label and its class's colour."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from common.base.errors import DataError
from common.base.files import temporary_beside
from common.scans.readers import Bag
from common.scans.readers.extras import unreadable

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

LABELLED = "/labelled"
"""Follows the name of the topic whose clouds are labelled."""

LABEL, COLOUR = "label", "rgb"
"""Names of the fields: a raw label id, uint32, and a colour as RViz reads it: blue, green, red in a float32's bytes."""

UINT32, FLOAT32 = 6, 7
"""Constants of sensor_msgs/PointField."""


def write_labelled_bag(
    bag: Path, topic: str | None, labels: Iterator[np.ndarray], colours: np.ndarray, to: Path
) -> int:
    """Copy a bag, and after each cloud of the topic put the same cloud with labels; returns the number of clouds.

    Args:
        bag: of ROS 1 or ROS 2.
        topic: of the clouds, None for the only PointCloud2 topic.
        labels: uint32 [N] raw ids of the points of each cloud, in the order of time.
        colours: uint8 [65536, 3] by raw id.
        to: a file for a bag of ROS 1, a folder for one of ROS 2. It appears when it is complete.

    Raises:
        DataError: the bag cannot be read, or there is something at `to`.
    """
    check_absent(to)
    temporary = temporary_beside(to)
    temporary.mkdir(parents=True)
    try:
        # In a folder, under its own name: a bag of ROS 2 names its files as it is called.
        with Bag(bag, topic) as source:
            clouds = copied(source, labels, colours, temporary / to.name)
        (temporary / to.name).replace(to)
    finally:
        shutil.rmtree(temporary)
    return clouds


def check_absent(to: Path) -> None:
    """Refuse a place for a bag where there is something.

    Raises:
        DataError: there is.
    """
    if to.exists():
        raise DataError(f"{to}: is there already. Remove it, or choose another folder with --out.")


def copied(source: Bag, labels: Iterator[np.ndarray], colours: np.ndarray, to: Path) -> int:
    """Copy all messages of an open bag, with the labelled clouds between them; returns the number of clouds."""
    reader, first, clouds = source.reader, source.connections[0], 0
    serialise = reader.typestore.serialize_cdr if reader.is2 else reader.typestore.serialize_ros1
    topic = f"{first.topic}{LABELLED}"
    with new_bag(source, to) as writer:
        # What an earlier prediction wrote is replaced.
        twins = twins_of([one for one in reader.connections if one.topic != topic], writer, reader.typestore)
        labelled = writer.add_connection(topic, first.msgtype, typestore=reader.typestore)
        for connection, time, data, message in messages(source):
            if connection.id in twins:
                writer.write(twins[connection.id], time, data)
            if message is not None:
                more = labelled_message(message, next(labels), colours, reader.typestore)
                writer.write(labelled, time, serialise(more, labelled.msgtype))
                clouds += 1
    return clouds


def messages(source: Bag) -> "Iterator[tuple[Connection, int, bytes, Any]]":
    """Connection, time and bytes of each message, and itself where it is a cloud of the topic, in the order of time."""
    of_topic = {connection.id for connection in source.connections}
    with unreadable(source.path):
        for connection, time, data in source.reader.messages():
            cloud = source.reader.deserialize(data, connection.msgtype) if connection.id in of_topic else None
            yield connection, time, data, cloud


def twins_of(connections: "list[Connection]", writer: Any, store: Any) -> "dict[int, Connection]":
    """The same connections in another bag, by the number that each has in its own; like ones become one."""
    made: dict[tuple[str, str, str], Connection | None] = {}
    twins = {}
    for connection in connections:
        kind = connection.topic, connection.msgtype, str(connection.ext)
        if kind not in made:
            made[kind] = add_connection(writer, connection, store)
        twin = made[kind]
        if twin is not None:
            twins[connection.id] = twin
    return twins


def new_bag(source: Bag, to: Path) -> Any:
    """A writer of a bag of the same kind: of ROS 1, or of ROS 2 in the same storage."""
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import StoragePlugin
    from rosbags.rosbag2 import Writer as Writer2

    if not source.reader.is2:
        return Writer1(to)
    mcap = source.path.suffix == ".mcap" or (source.path.is_dir() and any(source.path.glob("*.mcap*")))
    # Version 8 is what ROS 2 from Humble on reads.
    return Writer2(to, version=8, storage_plugin=StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3)


def add_connection(writer: Any, connection: "Connection", store: Any) -> "Connection | None":
    """The same connection in another bag; None, with a note, where nothing says what its messages look like."""
    ext: Any = connection.ext
    definition = connection.msgdef.data
    if hasattr(ext, "callerid"):
        more = {"callerid": ext.callerid, "latching": ext.latching}
        names = {"msgdef": definition, "md5sum": connection.digest}
    else:
        more = {"serialization_format": ext.serialization_format, "offered_qos_profiles": ext.offered_qos_profiles}
        known = definition and connection.digest
        names = {"msgdef": definition, "rihs01": connection.digest} if known else {"typestore": store}
        if not known and connection.msgtype not in store.fielddefs:
            click.echo(
                f"note: {connection.topic} left out: the bag does not say what a {connection.msgtype} looks like",
                err=True,
            )
            return None
    made: Connection = writer.add_connection(connection.topic, connection.msgtype, **names, **more)
    return made


def labelled_message(message: Any, labels: np.ndarray, colours: np.ndarray, store: Any) -> Any:
    """A PointCloud2 with a label, uint32 [N], and the label's colour in each point; its own fields stay."""
    order = ">" if message.is_bigendian else "<"
    shape, strides = (message.height, message.width, message.point_step), (message.row_step, message.point_step, 1)
    bytes_of: np.ndarray = np.ndarray(shape, np.uint8, np.asarray(message.data).data, strides=strides)
    points = bytes_of.reshape(len(labels), message.point_step)
    red, green, blue = (colours[labels & 0xFFFF, channel].astype(np.uint32) for channel in range(3))
    added = np.stack((labels, red << 16 | green << 8 | blue), axis=1).astype(f"{order}u4")
    data = np.concatenate((points, np.ascontiguousarray(added).view(np.uint8)), axis=1)
    field = store.types["sensor_msgs/msg/PointField"]
    fields = [one for one in message.fields if one.name not in (LABEL, COLOUR)]
    fields += [
        field(name=name, offset=message.point_step + 4 * place, datatype=datatype, count=1)
        for place, (name, datatype) in enumerate(((LABEL, UINT32), (COLOUR, FLOAT32)))
    ]
    step = data.shape[1]
    return dataclasses.replace(
        message, fields=fields, point_step=step, row_step=step * message.width, data=data.reshape(-1)
    )
