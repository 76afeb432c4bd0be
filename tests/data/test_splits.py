"""load of parts of splits, and of the parts that each of several hosts reads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data_sets import arrays, denormalize, pixels

from keras_binaryvit import data

tfds = pytest.importorskip("tensorflow_datasets")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("sklearn")


TRAIN, TEST = np.arange(1442), 1442 + np.arange(355)


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train", TRAIN),
        ("train[:100]", TRAIN[:100]),
        ("train[10%:20%]", TRAIN[144:288]),
        ("train[-33%:]", TRAIN[-476:]),
        ("test[3:5]", TEST[3:5]),
        ("test[:-350]", TEST[:5]),
        ("train[5:6]+test", np.concatenate([TRAIN[5:6], TEST])),
        ("all", np.concatenate([TRAIN, TEST])),
    ],
)
def test_slices(split, expected):
    everything = np.concatenate([arrays(data.load(split=name, shuffle=False))[0] for name in ("train", "test")])
    np.testing.assert_array_equal(arrays(data.load(split=split, shuffle=False))[0], everything[expected])


def test_sliced_tfds(data_dir):
    everything = pixels("fixed", data_dir)
    np.testing.assert_array_equal(pixels("fixed", data_dir, split="train[5:8]"), everything[5:8])
    np.testing.assert_array_equal(pixels("fixed", data_dir, split="train[-10%:]"), everything[-2:])


@pytest.mark.parametrize(
    "split, message",
    [
        ("validation", r"'digits' has the splits \{'train': 1442, 'test': 355\}.*Unknown split 'validation'"),
        ("train+valid", "'valid'"),
        ("train[:x]", r"train\[:x\]"),
        ("", "Received: split=''. Unrecognized"),
        ("train[:2000]", r"incompatible with 1442 examples"),
        ("train[5:5]", "empty"),
        ("test+train[7:5]", "empty"),
        ("all[:5]", "does not support slice"),
        ("train[3%:55]", "must be percentages, or neither"),  # TFDS takes this 55 for a percentage
        ("test+train[3:55%]", "must be percentages, or neither"),
    ],
)
def test_bad_split(split, message):
    with pytest.raises(ValueError, match=message):
        data.load(split=split)


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(hosts=st.integers(1, 5), batch=st.integers(1, 4), parts=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_hosts_read_consecutive_parts(hosts, batch, parts):
    split = "+".join(f"train[{40 * i}:{40 * i + length}]" for i, length in enumerate(parts))
    sizes = [length // hosts for length in parts]
    uneven = any(length % hosts for length in parts)
    arguments = {"split": split, "shuffle": False, "batch_size": batch * hosts, "drop_remainder": uneven}
    if not any(sizes):
        with pytest.raises(ValueError, match=f"{hosts} hosts can't share"):
            data.load(shard=(0, hosts), **arguments)
        return
    everything, _ = arrays(data.load(split="train", shuffle=False))
    steps = set()
    for host in range(hosts):
        dataset = data.load(shard=(host, hosts), **arguments)
        images = [images for images, _ in dataset.as_numpy_iterator()]
        assert all(len(part) == batch for part in images[:-1])
        steps.add(len(images))
        starts = [40 * i + host * size for i, size in enumerate(sizes)]
        share = np.concatenate([everything[start : start + size] for start, size in zip(starts, sizes, strict=True)])
        expected = share[: len(share) // batch * batch] if uneven else share
        np.testing.assert_array_equal(np.concatenate([expected[:0], *images]), expected)
    assert len(steps) == 1


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_all_files(data_dir, hosts, cache):
    everything = sorted(image.tobytes() for image in pixels("fixed", data_dir))
    for shuffle in (True, False):
        shares = []
        for host in range(hosts):
            arguments = {"shard": (host, hosts), "batch_size": 8, "shuffle": shuffle, "cache": cache}
            images = arrays(data.load("fixed", data_dir=data_dir, **arguments))[0]
            shares.append([image.tobytes() for image in denormalize(images, "fixed")])
        assert {len(share) for share in shares} == {20 // hosts}
        assert sorted(sum(shares, [])) == everything


def test_hosts_augment_differently(data_dir):
    def epochs(host):  # of images that are all the same
        dataset = data.load("cifar10", data_dir=data_dir, augment=True, batch_size=4, shard=(host, 2))
        return np.stack([arrays(dataset)[0] for _ in range(3)])

    assert epochs(0).shape == epochs(1).shape == (3, 2, 16, 16, 3)
    assert not np.array_equal(epochs(0), epochs(1))
    np.testing.assert_array_equal(epochs(1), epochs(1))


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0,), (0, 1, 2), (0.0, 2), None, 2])
def test_bad_shard(shard):
    with pytest.raises(ValueError, match=r"shard must be \(host, hosts\), the host from 0 to hosts - 1. Received"):
        data.load(shard=shard)


def test_shards_are_equal():
    with pytest.raises(
        ValueError, match=r"2 hosts can't share split='test' evenly: choose .* a multiple of 2, or leave"
    ):
        data.load(split="test", shard=(0, 2))
    assert len(data.load(split="test[:-1]", shard=(1, 2), batch_size=100)) == 4
    assert len(data.load(split="test", shard=(1, 2), batch_size=100, drop_remainder=True)) == 3
    with pytest.raises(
        ValueError, match=r"batch_size must be a multiple of the 3 hosts of shard=\(0, 3\). Received: 128"
    ):
        data.load(split="train[:3]", shard=(0, 3))
