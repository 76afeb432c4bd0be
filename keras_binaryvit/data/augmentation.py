"""Random crops and flips of images, in TensorFlow operations with explicit seeds."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def random_boxes(
    seed: "tf.Tensor", count: int, height: "int | tf.Tensor", width: "int | tf.Tensor"
) -> "tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]":
    """Draws crops of 8 to 100 % of the area and aspect 3/4 to 4/3: top, left, height and width, float32 `(count,)`.

    As in torchvision, the first of ten draws that fits counts; the area is limited where none does.
    """
    import tensorflow as tf

    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    draws = tf.random.stateless_uniform((count, 10, 4), seed)
    area = (0.08 + 0.92 * draws[..., 0]) * height * width
    aspect = tf.exp((2 * draws[..., 1] - 1) * math.log(4 / 3))
    largest = tf.minimum(width**2 / aspect, height**2 * aspect)
    first = tf.argmax(area <= largest, axis=1)
    area, aspect = (tf.gather(values, first, batch_dims=1) for values in (tf.minimum(area, largest), aspect))
    box_height, box_width = tf.sqrt(area / aspect), tf.sqrt(area * aspect)
    y, x = draws[:, 0, 2], draws[:, 0, 3]
    return y * (height - box_height), x * (width - box_width), box_height, box_width


def random_window(seed: "tf.Tensor", shape: "tf.Tensor") -> "tf.Tensor":
    """Draws one of `random_boxes` of an image of `shape` in whole pixels: int32 top, left, height and width."""
    import tensorflow as tf

    top, left, height, width = (value[0] for value in random_boxes(seed, 1, shape[0], shape[1]))
    top, left, bottom, right = tf.unstack(tf.cast([top, left, top + height, left + width], tf.int32))
    return tf.stack([top, left, tf.maximum(bottom - top, 1), tf.maximum(right - left, 1)])


def augment_batch(images: "tf.Tensor", augment: str | None, flip: bool, seed: "tf.Tensor") -> "tf.Tensor":
    """Crops float32 `(batch, height, width, channels)` to the same size and flips half of it, in one sampling."""
    import tensorflow as tf

    count = tf.shape(images)[0]
    height, width = images.shape[1:3]
    ones, zeros = tf.ones([count]), tf.zeros([count])
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    if augment == "random_resized_crop":
        top, left, box_height, box_width = random_boxes(crop_seed, count, height, width)
    else:
        reach = tf.constant([[height // 8], [width // 8]] if augment == "pad_crop" else [[0], [0]])
        draws = tf.random.stateless_uniform((2, count), crop_seed, minval=None, maxval=None, dtype=tf.int32)
        offsets = tf.cast(draws % (2 * reach + 1) - reach, tf.float32)
        (top, left), box_height, box_width = tf.unstack(offsets), height * ones, width * ones

    # Output pixel i covers [i, i + 1) steps of the box, so its center lies at top + (i + 0.5) * step - 0.5.
    step_y, step_x = box_height / height, box_width / width
    top, left = top + 0.5 * step_y - 0.5, left + 0.5 * step_x - 0.5
    if flip:
        flipped = tf.random.stateless_uniform([count], flip_seed) < 0.5
        left = tf.where(flipped, left + (width - 1) * step_x, left)
        step_x = tf.where(flipped, -step_x, step_x)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([step_x, zeros, left, zeros, step_y, top, zeros, zeros], axis=1),
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT" if augment == "pad_crop" else "NEAREST",
    )
