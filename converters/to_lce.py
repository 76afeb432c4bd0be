"""Converts a .keras model to a .tflite file for the Larq Compute Engine, and checks it.

python converters/to_lce.py model.keras model.tflite --verify cifar10 --data-dir ~/tensorflow_datasets
"""

import argparse
import os
import sys

# A .keras file is the same for all backends, and conversion needs TensorFlow.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", help="the .keras file to read")
    parser.add_argument("output", help="the .tflite file to write")
    parser.add_argument("--ops", choices=["lce"], default="lce", help="lce: what an unmodified LCE runs")
    parser.add_argument("--verify", metavar="DATASET", help="verify with this data set's test images, not with noise")
    parser.add_argument("--data-dir", help="where TensorFlow Datasets has prepared it")
    parser.add_argument("--images", type=int, default=32, help="how many images to verify with")
    parser.add_argument("--no-verify", action="store_true", help="write the file unchecked")
    return parser.parse_args()


def main() -> None:
    """Converts, verifies and writes, in this order: a file that fails the check isn't written."""
    arguments = parse_arguments()
    if arguments.images < 1:
        raise ValueError(f"--images must be positive. Received: {arguments.images}")
    import keras
    import numpy as np

    import keras_binaryvit as kb
    from keras_binaryvit.deploy.files import check_output

    check_output(arguments.output)
    model = kb.deploy.load_model(arguments.model)
    print(f"Converting {model.name} ({model.count_params():,} parameters) ...", flush=True)
    flatbuffer = kb.deploy.convert(model, ops=arguments.ops)
    ops = kb.deploy.count_ops(flatbuffer)
    print(f"{len(flatbuffer) / 1e6:.2f} MB, {ops.total()} ops, of which {ops['LceBconv2d']} LceBconv2d")

    if not arguments.no_verify:
        if arguments.verify:
            split = f"test[:{arguments.images}]"
            batches = kb.data.load(
                arguments.verify, split, image_size=model.input_shape[1], data_dir=arguments.data_dir
            )
            images, labels = (np.concatenate(arrays) for arrays in zip(*batches.as_numpy_iterator(), strict=True))
        else:
            keras.utils.set_random_seed(0)
            images = np.random.standard_normal((arguments.images, *model.input_shape[1:])).astype("float32")
            labels = None
        result = kb.deploy.verify(model, flatbuffer, images, labels, progress=sys.stderr.isatty())
        print(
            f"Verified on {result.num_images} {arguments.verify or 'random'} images: "
            f"agreement {result.agreement:.2%}, largest difference {result.largest_difference:.1e}"
        )
    kb.deploy.write_file(arguments.output, flatbuffer)
    print(f"Wrote {arguments.output}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f"to_lce.py: {error}")
