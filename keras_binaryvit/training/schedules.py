"""The paper's learning rate, scaled by the batch; Keras' `CosineDecay` and `LearningRateScheduler` lower it."""

from keras_binaryvit.layers.validation import positive_integer


def scaled_learning_rate(global_batch_size: int, base: float = 5e-4) -> float:
    """Returns the paper's initial learning rate, `base * global_batch_size / 512`.

    Args:
        global_batch_size: Images a step, over all devices and hosts; times the accumulated steps, if any.
        base: The learning rate for 512 images.

    Raises:
        ValueError: The batch size isn't a positive integer, or `base` isn't positive.

    Source: BinaryViT, arXiv 2306.16678, and the authors' code, where 512 images are 8 devices' 64.
    """
    if not base > 0:
        raise ValueError(f"The base learning rate must be positive. Received: base={base}")
    return base * positive_integer("global_batch_size", global_batch_size) / 512
