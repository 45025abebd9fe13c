"""CIFAR-10: the python version's pickles read without running them, the binary version, and labels of whole images."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import miniatures
import numpy as np
import pytest

from secateur.data import Augment, make_loader, open_dataset
from secateur.data.pickled import read_pickled
from secateur.errors import DataError


def test_both_versions_give_the_same_images(tmp_path: Path) -> None:
    for binary in (False, True):
        miniatures.cifar10(tmp_path / str(binary), binary)
    for split, count in (("train", 20), ("test", 3)):
        one, other = (open_dataset("cifar10", tmp_path / name, split, size=(32, 32)) for name in ("False", "True"))
        assert len(one) == len(other) == count and one.classes[3] == "cat" and one.task == "classification"
        for index in range(count):
            a, b = one.read(index), other.read(index)
            assert (a.image == b.image).all() and a.image.shape == (32, 32, 3) and a.name == f"{split} image {index}"
            assert a.label.shape == (1, 1) and a.label.dtype == np.uint8 and a.label == b.label
            assert a.image.mean() == pytest.approx(20 * a.label.item() + 9.5, abs=3)  # as the miniature is made


def test_pixels_are_ordered_by_colour_row_and_column(tmp_path: Path) -> None:
    miniatures.cifar10(tmp_path)
    image = np.arange(3072, dtype=np.uint32).astype(np.uint8).reshape(1, 3072)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(miniatures.python2_pickle([7], image))
    sample = open_dataset("cifar10", tmp_path / "cifar-10-batches-py", "test", size=None).read(0)
    assert sample.image[1, 2].tolist() == [(colour * 1024 + 32 + 2) % 256 for colour in range(3)]
    assert sample.label.item() == 7


def test_the_miniatures_bytes_are_what_python_reads() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, on files this old
        content = pickle.loads(miniatures.python2_pickle([1, 2, 3], images), encoding="bytes")
    assert content[b"labels"] == [1, 2, 3] and (content[b"data"] == images).all()
    assert len(content[b"filenames"]) == 3


def test_columns_first_is_understood(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
    data = miniatures.python2_pickle([1, 2, 3], images)
    raw = images.tobytes()
    (tmp_path / "batch").write_bytes(data.replace(b"\x89T", b"\x88T").replace(raw, images.tobytes(order="F")))
    assert (read_pickled(tmp_path / "batch")["data"] == images).all()


class Bomb:
    """Pickles as a call that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_programs_in_a_pickle_are_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made by the pickle"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps({"labels": [1], "data": Bomb(target)}, protocol))
    with pytest.raises(DataError, match=r"test_batch (names|holds the instruction) .*pickled files may run programs"):
        open_dataset("cifar10", tmp_path, "test")
    assert not target.exists()


def test_names_of_numpy_that_are_not_needed_are_refused(tmp_path: Path) -> None:
    data = miniatures.python2_pickle([1], np.zeros((1, 3072), np.uint8))
    (tmp_path / "batch").write_bytes(data.replace(b"cnumpy\ndtype\n", b"cnumpy\nfromfile\n"))
    with pytest.raises(DataError, match=r"batch names numpy\.fromfile"):
        read_pickled(tmp_path / "batch")


def test_every_damage_of_a_batch_ends_in_a_message(tmp_path: Path) -> None:
    good = miniatures.python2_pickle([1, 2], np.ones((2, 3072), np.uint8))
    generator = np.random.default_rng(0)
    path, wrong = tmp_path / "batch", 0
    for _ in range(400):
        data = bytearray(good)
        for place in generator.integers(0, len(data), 2):
            at = int(place) if generator.random() < 0.3 else int(place) % 400  # the instructions, rather than pixels
            data[at] = int(generator.integers(0, 256))
        path.write_bytes(bytes(data[: int(generator.integers(1, len(data)))] if generator.random() < 0.3 else data))
        try:
            read_pickled(path)
        except DataError as error:
            assert str(path) in str(error)
            wrong += 1
    assert wrong > 100


def test_wrong_batches_are_named(tmp_path: Path) -> None:
    folder = miniatures.cifar10(tmp_path) / "cifar-10-batches-py"
    images = np.zeros((2, 3072), np.uint8)
    for labels, pixels, message in (
        ([1], images, "does not hold one label for each of its 2 images"),
        ([1, 10], images, "holds the label 10; expected 0..9"),
        ([1, 2], images[:, :3000], "no data of 3072 bytes an image"),
    ):
        (folder / "test_batch").write_bytes(miniatures.python2_pickle(labels, pixels))
        with pytest.raises(DataError, match=f"test_batch.*{message}"):
            open_dataset("cifar10", tmp_path, "test")
    (folder / "test_batch").write_bytes(pickle.dumps([], 2))
    with pytest.raises(DataError, match="holds no dictionary"):
        open_dataset("cifar10", tmp_path, "test")
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"there is no file .*data_batch_3; expected 5 batches"):
        open_dataset("cifar10", tmp_path)
    with pytest.raises(DataError, match="no split 'val'; known: test, train"):
        open_dataset("cifar10", tmp_path, "val")
    with pytest.raises(DataError, match=r"neither data_batch_1 nor data_batch_1\.bin in"):
        open_dataset("cifar10", tmp_path.parent)


def test_a_binary_batch_cut_short_is_named(tmp_path: Path) -> None:
    path = miniatures.cifar10(tmp_path, binary=True) / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin has 12291 bytes, which is not a number of images of 3073"):
        open_dataset("cifar10", tmp_path)


def test_a_process_that_is_sent_the_data_set_reads_for_itself(tmp_path: Path) -> None:
    dataset = open_dataset("cifar10", miniatures.cifar10(tmp_path), size=None)
    stored = pickle.dumps(dataset)
    assert len(stored) < 5000 and (pickle.loads(stored).read(7).image == dataset.read(7).image).all()


def test_batches_have_one_label_an_image(tmp_path: Path) -> None:
    dataset = open_dataset("cifar10", miniatures.cifar10(tmp_path), size=(32, 32))
    for augment in (None, Augment()):
        images, labels = next(make_loader(dataset, 6, training=False, augment=augment).epoch(0))
        assert images.shape == (6, 3, 32, 32) and labels.shape == (6, 1, 1)
        assert labels.flatten().tolist() == [dataset.read(index).label.item() for index in range(6)]
    assert dataset.check().sum() == 20
