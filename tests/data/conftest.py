"""The data sets that the tests of this folder share."""

import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    from small_data_sets import SIZES, encode, smooth_image, write

    folder = tmp_path_factory.mktemp("tfds")
    label = tfds.features.ClassLabel(names=["cat", "dog", "owl"])
    fixed = [{"image": smooth_image(16, 16, i), "label": i % 3, "id": str(i)} for i in range(20)]
    image = tfds.features.Image(shape=(16, 16, 3), encoding_format="png")
    write(folder, "fixed", {"image": image, "label": label, "id": tfds.features.Text()}, fixed, file_count=4)
    images = [smooth_image(*size, i) for i, size in enumerate(SIZES)]
    varying = [{"image": encode(image), "label": i % 3} for i, image in enumerate(images)]
    write(folder, "varying", {"image": tfds.features.Image(encoding_format="jpeg"), "label": label}, varying)
    write(
        folder,
        "varying_png",
        {"image": tfds.features.Image(encoding_format="png"), "label": label},
        [{"image": image, "label": i % 3} for i, image in enumerate(images)],
    )
    grayscale = [{"image": smooth_image(8, 12, i, 1), "label": i % 3} for i in range(4)]
    write(folder, "grayscale", {"image": tfds.features.Image(shape=(8, 12, 1)), "label": label}, grayscale)
    write(folder, "cifar10", {"image": image, "label": label}, [{"image": fixed[0]["image"], "label": 0}] * 4)
    write(folder, "unlabeled", {"image": image}, [{"image": smooth_image(16, 16, 0)}])
    return folder
