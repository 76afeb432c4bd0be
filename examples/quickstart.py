"""Trains a BinaryViT on handwritten digits, converts it, and runs the .tflite over the test images.

python examples/quickstart.py            # continues where it stopped; the folder out/quickstart has what it writes
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import keras
import numpy as np

import keras_binaryvit as kb

EPOCHS, BATCH_SIZE = 20, 32
output = Path("out/quickstart")
keras.utils.set_random_seed(0)
kb.disable_malloc_trim()  # glibc returns freed memory to the system, which slows training

# 1,442 images of 8x8 pixels for training and 355 for testing, enlarged to what the network takes.
info = kb.data.info("digits")
preprocessor = kb.data.preprocessor("digits", image_size=32)
model = kb.BinaryViT.from_preset(
    "binaryvit_tiny_32", image_shape=(32, 32, 1), preprocessor=preprocessor, class_names=info.class_names
)

checkpoints = kb.training.TrainingCheckpoint(output / "checkpoints")
first_epoch = checkpoints.completed_epochs
training = kb.data.load(
    "digits",
    "train",
    preprocessor=preprocessor,
    batch_size=BATCH_SIZE,
    augment=True,
    drop_remainder=True,
    first_epoch=min(first_epoch, EPOCHS),
)
test = kb.data.load("digits", "test", preprocessor=preprocessor, batch_size=71)
steps = len(training)  # per epoch; the first one warms up
schedule = keras.optimizers.schedules.CosineDecay(0.0, (EPOCHS - 1) * steps, warmup_target=8e-3, warmup_steps=steps)
model.compile(
    kb.optimizers.AdamW(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
)
checkpoints.restore(model)
callbacks = [kb.training.ProgressBar(), checkpoints]
model.fit(
    training,
    epochs=EPOCHS,
    initial_epoch=first_epoch,
    validation_data=test,
    callbacks=callbacks,
    shuffle=False,
    verbose=0,
)
model.save(output / "model.keras")

flatbuffer = kb.deploy.convert(model)
kb.deploy.write_file(output / "model.tflite", flatbuffer)
images, labels = (np.concatenate(arrays) for arrays in zip(*test.as_numpy_iterator(), strict=True))
try:
    result = kb.deploy.verify(model, flatbuffer, images, labels)
    print(f"Accuracy: {result.model_accuracy:.2%} in Keras, {result.flatbuffer_accuracy:.2%} of the .tflite")
    print(f"They agree on {result.agreement:.2%} of {len(images)} images")
except ImportError as error:
    print(f"The .tflite wasn't run: {error}")
print(f"Weights as float32: {4 * model.count_params() / 1e6:.2f} MB, .tflite: {len(flatbuffer) / 1e6:.2f} MB")
kb.visualize.learning_curve(checkpoints.history).savefig(output / "curve.png")
print(f"Wrote model.keras, model.tflite and curve.png to {output}")
