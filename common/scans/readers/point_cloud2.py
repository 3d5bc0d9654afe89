"""The message sensor_msgs/PointCloud2 of ROS 1 and ROS 2."""

from collections.abc import Mapping
from typing import Any

import numpy as np

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""Types of numbers by the constants of sensor_msgs/PointField."""


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
