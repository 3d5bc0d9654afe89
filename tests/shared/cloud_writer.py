"""The same cloud in every kind of file that is read, written by the libraries of each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Columns = Mapping[str, np.ndarray]


def structured(columns: Columns) -> np.ndarray:
    """Columns as an array with named fields, [N]."""
    array = np.empty(
        len(next(iter(columns.values()), ())), [(name, column.dtype.str) for name, column in columns.items()]
    )
    for name, column in columns.items():
        array[name] = column
    return array


def write_bin(path: Path, columns: Columns) -> None:
    np.stack(list(columns.values()), axis=1).astype("<f4").tofile(path)


def write_npy(path: Path, columns: Columns) -> None:
    np.save(path, np.stack(list(columns.values()), axis=1))


def write_named_npy(path: Path, columns: Columns) -> None:
    np.save(path, structured(columns))


def write_pcd(path: Path, columns: Columns, encoding: str = "binary_compressed") -> None:
    from pypcd4 import Encoding, PointCloud

    values = list(columns.values())
    cloud = PointCloud.from_points(values, tuple(columns), tuple(column.dtype for column in values))
    cloud.save(path, encoding=Encoding(encoding))


def write_ply(path: Path, columns: Columns, text: bool = False, byte_order: str = "<") -> None:
    from plyfile import PlyData, PlyElement

    PlyData([PlyElement.describe(structured(columns), "vertex")], text=text, byte_order=byte_order).write(str(path))


def cloud_message(store: Any, columns: Columns, rows: int = 1, padding: int = 0) -> Any:
    """A PointCloud2 of so many rows, each with bytes of padding at its end."""
    types = store.types
    points = structured(columns)
    width = len(points) // rows
    numbers = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}
    places = points.dtype.fields or {}
    fields = [
        types["sensor_msgs/msg/PointField"](
            name=name, offset=places[name][1], datatype=numbers[columns[name].dtype.str[1:]], count=1
        )
        for name in columns
    ]
    data = np.zeros((rows, width * points.itemsize + padding), np.uint8)
    data[:, : width * points.itemsize] = np.frombuffer(points.tobytes(), np.uint8).reshape(rows, -1)
    stamp = types["builtin_interfaces/msg/Time"](sec=0, nanosec=0)
    extra = {"seq": 0} if "seq" in types["std_msgs/msg/Header"].__annotations__ else {}
    header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="lidar", **extra)
    return types["sensor_msgs/msg/PointCloud2"](
        header=header,
        height=rows,
        width=width,
        fields=fields,
        is_bigendian=False,
        point_step=points.itemsize,
        row_step=data.shape[1],
        data=data.reshape(-1),
        is_dense=False,
    )


def write_bag(path: Path, topics: Mapping[str, Sequence[Columns]], interval: int = 1, **shape: int) -> None:
    """A bag of any kind: `.bag` of ROS 1, `.mcap` in a folder of its own, or a folder with `.db3` of ROS 2.

    Args:
        path: `x.bag`, or the folder of a ROS 2 bag, whose name ends in `mcap` where that storage is wanted.
        topics: clouds by topic; the first of all topics come at the same time, and so on.
        interval: nanoseconds between two of a topic.
        shape: `rows` and `padding` of each message.
    """
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import StoragePlugin
    from rosbags.rosbag2 import Writer as Writer2
    from rosbags.typesys import Stores, get_typestore

    first = path.suffix == ".bag"
    store = get_typestore(Stores.ROS1_NOETIC if first else Stores.ROS2_HUMBLE)
    plugin = StoragePlugin.MCAP if path.name.endswith("mcap") else StoragePlugin.SQLITE3
    with Writer1(path) if first else Writer2(path, version=9, storage_plugin=plugin) as writer:
        for topic, clouds in topics.items():
            connection = writer.add_connection(topic, "sensor_msgs/msg/PointCloud2", typestore=store)
            serialise = store.serialize_ros1 if first else store.serialize_cdr
            for index, columns in enumerate(clouds):
                message = cloud_message(store, columns, **shape)
                writer.write(connection, 1_000 + index * interval, serialise(message, connection.msgtype))


WRITERS: dict[str, Callable[[Path, Columns], None]] = {
    ".bin": write_bin,
    ".npy": write_npy,
    ".pcd": write_pcd,
    ".ply": write_ply,
}
"""One cloud a file, by suffix."""
