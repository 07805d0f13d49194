"""The data are the published ones, damage is noticed, and nothing is fetched unasked."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from trustml_helpers import data

PUBLISHED_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.fixture
def copied_mnist(tmp_path, monkeypatch):
    """A private copy of data/mnist that a test may damage."""
    shutil.copytree(data.data_folder() / "mnist", tmp_path / "mnist")
    monkeypatch.setenv("TRUSTML_DATA", str(tmp_path))
    yield tmp_path / "mnist"
    data._mnist_bytes.cache_clear()


@pytest.mark.parametrize(("name", "md5"), PUBLISHED_MD5.items())
def test_files_are_the_published_ones(name, md5):
    raw = gzip.decompress((data.data_folder() / "mnist" / f"{name}.gz").read_bytes())
    assert hashlib.md5(raw).hexdigest() == md5


@pytest.mark.parametrize(("split", "n", "first"), [("train", 60_000, 5), ("test", 10_000, 7)])
def test_mnist_as_tensors(split, n, first):
    images, labels = data.load_mnist(split)
    assert images.shape == (n, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (images.min(), images.max()) == (0, 1)
    assert labels[0] == first
    assert labels.bincount(minlength=10).min() > 0.08 * n
    # Independent reading of one image: the header is 16 bytes, pixels row by row.
    stem = "train" if split == "train" else "t10k"
    raw = gzip.decompress((data.data_folder() / f"mnist/{stem}-images-idx3-ubyte.gz").read_bytes())
    third = np.frombuffer(raw[16 + 2 * 784 : 16 + 3 * 784], np.uint8).reshape(28, 28) / 255
    assert np.allclose(images[2, 0].numpy(), third, atol=1e-7)


def test_the_caller_may_change_what_it_gets():
    data.load_mnist("test")[0].zero_()
    assert data.load_mnist("test")[0].max() == 1


def test_missing_file_says_how_to_restore_it(copied_mnist):
    (copied_mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(data.DataError, match=r"missing.*git checkout -- t10k-labels"):
        data.load_mnist("test")


@pytest.mark.parametrize("damage", ["truncate", "flip", "other content"])
def test_damaged_file_says_how_to_restore_it(copied_mnist, damage):
    path = copied_mnist / "t10k-images-idx3-ubyte.gz"
    raw = bytearray(path.read_bytes())
    if damage == "truncate":
        raw = raw[: len(raw) // 2]
    elif damage == "flip":
        raw[len(raw) // 2] ^= 0xFF
    else:
        raw = bytearray(gzip.compress(b"\0" * 100))
    path.write_bytes(raw)
    with pytest.raises(data.DataError, match=r"damaged.*git checkout"):
        data.load_mnist("test")


def test_no_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TRUSTML_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match="TRUSTML_DATA"):
        data.data_folder()


def test_split_is_a_partition_and_depends_on_the_seed_alone():
    x, y = torch.arange(50.0).view(50, 1), torch.arange(50)
    state = torch.get_rng_state()
    (train_x, train_y), (held_x, held_y) = data.train_validation_split(x, y, 20, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(train_y.tolist() + held_y.tolist()) == list(range(50))
    assert torch.equal(train_x[:, 0].long(), train_y)
    assert torch.equal(held_x[:, 0].long(), held_y)
    assert len(held_y) == 20
    again = data.train_validation_split(x, y, 20, seed=1)[1][1]
    other = data.train_validation_split(x, y, 20, seed=2)[1][1]
    assert torch.equal(held_y, again)
    assert not torch.equal(held_y, other)


def test_photo():
    photo = data.load_photo(224)
    assert photo.shape == (1, 3, 224, 224)
    assert photo.dtype == torch.float32
    assert 0 <= photo.min() < 0.2 < 0.8 < photo.max() <= 1
    # A box filter keeps the mean: the small picture is the average of the large one.
    assert torch.allclose(data.load_photo(75).mean(), data.load_photo(300).mean(), atol=2e-3)


def test_missing_photo(monkeypatch, tmp_path):
    monkeypatch.setenv("TRUSTML_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match="git checkout"):
        data.load_photo()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_nothing_is_downloaded_unasked(name, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("network used"))
    with pytest.raises(data.DataError, match="download=True"):
        data.torchvision_dataset(name, root=tmp_path)


def test_a_failed_download_explains_itself(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(data.DataError, match="copy the folder"):
        data.torchvision_dataset("fashion_mnist", root=tmp_path, download=True)


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes: magic number, dimensions, content."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(d.to_bytes(4, "big") for d in array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_fashion_mnist_in_its_format(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(5 * 784).reshape(5, 28, 28) % 256
    for stem in ("train", "t10k"):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(idx(np.array([3, 1, 4, 1, 5])))
    found = data.torchvision_dataset("fashion_mnist", "train", root=tmp_path)
    images, labels = data.to_tensors(found)
    assert images.shape == (5, 1, 28, 28)
    assert labels.tolist() == [3, 1, 4, 1, 5]
    assert np.allclose(images[:, 0].numpy(), pixels / 255, atol=1e-7)
    assert data.to_tensors(found, [4, 0])[1].tolist() == [5, 3]


def test_cifar10_in_its_format(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    planes = np.arange(2 * 3072, dtype=np.uint32).reshape(2, 3072).astype(np.uint8)
    files = {
        "test_batch": {"data": planes, "labels": [6, 2]},
        "batches.meta": {"label_names": [str(k) for k in range(10)]},
    }
    sums = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setitem(CIFAR10.meta, "md5", sums["batches.meta"])
    images, labels = data.to_tensors(data.torchvision_dataset("cifar10", root=tmp_path))
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [6, 2]
    assert np.allclose(images.numpy(), planes.reshape(2, 3, 32, 32) / 255, atol=1e-7)


def test_imagenet_folder(tmp_path):
    for name, grey in (("cat", 40), ("dog", 200)):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (300, 400), (grey,) * 3).save(tmp_path / "val" / name / "1.png")
    images, labels = data.to_tensors(data.torchvision_dataset("imagenet", root=tmp_path))
    assert images.shape == (2, 3, 224, 224)
    assert labels.tolist() == [0, 1]
    assert torch.allclose(images.amax((1, 2, 3)) * 255, torch.tensor([40.0, 200.0]))
    with pytest.raises(data.DataError, match="sub-folder"):
        data.torchvision_dataset("imagenet", "train", root=tmp_path)
    with pytest.raises(ValueError, match="root=None"):
        data.torchvision_dataset("imagenet")


def test_no_indices():
    with pytest.raises(ValueError, match="indices is empty"):
        data.to_tensors([], [])  # type: ignore[arg-type]


def test_photos():
    images, labels, names = data.load_photos()
    assert images.shape == (12, 3, 224, 224)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.01 < 0.99 < images.max() <= 1
    assert len(names) == 1000
    assert [names[k] for k in labels[:3]] == ["tabby", "beagle", "otter"]
    listed = pd.read_csv(data.data_folder() / "images" / "photos.csv")
    assert len(list((data.data_folder() / "images" / "photos").iterdir())) == len(listed) == 12
    assert set(listed["licence"]) == {"CC0 1.0", "public domain"}
    assert listed.notna().all(axis=None)
    # The cat is the picture that load_photo crops and shrinks from the original.
    assert (images[:1] - data.load_photo(224)).abs().max() == 0


def test_groups_of_classes():
    groups, names = data.load_groups()
    assert len(groups) == 1000
    assert [names[groups[k]] for k in (281, 285, 33, 967, 0)] == [
        "cat", "cat", "sea turtle", "cup of coffee", "tench"
    ]  # fmt: skip
    assert sorted(set(groups)) == list(range(len(names)))


def test_a_photo_that_was_changed_is_refused(monkeypatch, tmp_path):
    shutil.copytree(data.data_folder() / "images", tmp_path / "images")
    monkeypatch.setenv("TRUSTML_DATA", str(tmp_path))
    with (tmp_path / "images/photos/otter.webp").open("ab") as file:
        file.write(b"x")
    with pytest.raises(data.DataError, match=r"otter.webp is missing or not .* `git checkout"):
        data.load_photos()
    (tmp_path / "images/groups.csv").unlink()
    with pytest.raises(data.DataError, match=r"groups.csv cannot be read .* `git checkout"):
        data.load_groups()
