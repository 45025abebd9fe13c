"""Writes data sets of a few small images in their published layouts: file names, list files, PNG modes, pickles.

Nothing of the project is used to write them; palette images are Pillow's, .mat files SciPy's, and the pickles have the
bytes that Python 2 wrote.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH = 48, 64


def blocks(generator: np.random.Generator, values: list[int], size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Blocks of 8 pixels, uint8, each of one of the values: several pixels wide also after halving the size."""
    height, width = size
    return generator.choice(np.array(values, np.uint8), (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)


def photo(generator: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """RGB of the label's size; the blue tells the value."""
    noise = generator.integers(0, 9, (*label.shape, 3))
    return (label[..., None] % 40 * np.array([2, 3, 5]) + noise).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def cityscapes(root: Path) -> Path:
    """train 4 (two cities), val 3, test 1 without labels; every labelId occurs."""
    generator = np.random.default_rng(1)
    for split, cities in {"train": ["aachen", "bochum"], "val": ["frankfurt"], "test": ["berlin"]}.items():
        for city in cities:
            for number in range({"train": 2, "val": 3, "test": 1}[split]):
                label = blocks(generator, list(range(34)))
                stem = f"{city}_{number:06d}_000019"
                save(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", photo(generator, label))
                if split != "test":
                    for kind, pixels in (("labelIds", label), ("instanceIds", label.astype(np.uint16) * 1000)):
                        save(root / f"gtFine/{split}/{city}/{stem}_gtFine_{kind}.png", pixels)
                    (root / f"gtFine/{split}/{city}/{stem}_gtFine_polygons.json").write_text("{}")
    return root


def ade20k(root: Path) -> Path:
    """train 4, val 3, of different sizes, in ADEChallengeData2016; labels 0..150."""
    generator = np.random.default_rng(2)
    number = 0
    for folder, name, count in (("training", "train", 4), ("validation", "val", 3)):
        for index in range(count):
            number += 1
            label = blocks(generator, list(range(151)), (48 + 8 * index, 64))
            place = root / "ADEChallengeData2016"
            save(place / f"images/{folder}/ADE_{name}_{number:08d}.jpg", photo(generator, label))
            save(place / f"annotations/{folder}/ADE_{name}_{number:08d}.png", label)
    (root / "ADEChallengeData2016/objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    return root


def voc_palette() -> list[int]:
    """The palette of VOC's PNG files, 256 colours, by the loop of its development kit."""
    palette = []
    for number in range(256):
        colour, rest = [0, 0, 0], number
        for shift in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= (rest >> channel & 1) << shift
            rest >>= 3
        palette += colour
    return palette


VOC_STEMS = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033", "2007_000042"]}
SBD_STEMS = {"train": ["2007_000032", "2008_000008"], "val": ["2007_000033", "2008_000015", "2008_000019"]}


def voc2012(root: Path, sbd: bool = True) -> Path:
    """VOCdevkit/VOC2012 with train 2 and val 2; benchmark_RELEASE beside it, which makes trainaug 5."""
    generator = np.random.default_rng(3)
    place, benchmark = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    lists = place / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for split, stems in VOC_STEMS.items():
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    for stem in sorted({stem for each in (VOC_STEMS, SBD_STEMS) for stems in each.values() for stem in stems}):
        size = (48, 64) if stem.startswith("2007") else (56, 40)
        label = blocks(generator, [*range(21), 255], size)
        save(place / f"JPEGImages/{stem}.jpg", photo(generator, label))
        if any(stem in stems for stems in VOC_STEMS.values()):
            save(place / f"SegmentationClass/{stem}.png", label, voc_palette())
        if sbd:
            (benchmark / "cls").mkdir(parents=True, exist_ok=True)
            segmentation = np.where(label == 255, 0, label)
            content = {"Segmentation": segmentation, "CategoriesPresent": np.unique(segmentation)[None]}
            savemat(benchmark / f"cls/{stem}.mat", {"GTcls": content}, do_compression=True)
    if sbd:
        for split, stems in SBD_STEMS.items():
            (benchmark / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


CAMVID32 = {  # some of the original's colours, and the number of the class that they are put into
    (128, 128, 128): 0, (0, 128, 64): 1, (192, 192, 128): 2, (192, 0, 64): 3, (0, 0, 192): 4, (192, 192, 0): 5,
    (0, 64, 64): 6, (64, 64, 128): 7, (192, 128, 192): 8, (64, 128, 64): 9, (192, 0, 192): 10, (0, 0, 0): 255,
}  # fmt: skip


def camvid32(root: Path) -> Path:
    """train 3, val 2, test 2: scenes at the edges of the splits, in two folders."""
    generator = np.random.default_rng(4)
    colours = np.array(list(CAMVID32), np.uint8)
    for stem in ("0001TP_008520", "0001TP_008550", "0006R0_f00930", "0016E5_07920", "0016E5_07959", "0016E5_08159",
                 "Seq05VD_f00000"):  # fmt: skip
        label = blocks(generator, list(range(len(colours))))
        save(root / f"701_StillsRaw_full/{stem}.png", photo(generator, label))
        save(root / f"LabeledApproved_full/{stem}_L.png", colours[label])
    return root


def cifar10(root: Path, binary: bool = False) -> Path:
    """5 batches of 4 images and a test batch of 3; `binary` for the other of the two versions."""
    generator = np.random.default_rng(5)
    folder = root / f"cifar-10-batches-{'bin' if binary else 'py'}"
    folder.mkdir(parents=True)
    for name, count in [*((f"data_batch_{number}", 4) for number in range(1, 6)), ("test_batch", 3)]:
        labels = generator.integers(0, 10, count).astype(np.uint8)
        images = np.repeat(labels[:, None] * np.uint8(20), 3072, 1) + generator.integers(0, 20, (count, 3072), np.uint8)
        if binary:
            (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], images], 1).tobytes())
        else:
            (folder / name).write_bytes(python2_pickle(labels.tolist(), images))
    if binary:
        (folder / "batches.meta.txt").write_text(
            "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n"
        )
    return root


def python2_pickle(labels: list[int], images: np.ndarray) -> bytes:
    """A batch as cPickle of Python 2 wrote it, protocol 2: texts are byte strings, the array's bytes one of them."""
    memo = iter(range(1, 1 << 20))

    def put() -> bytes:
        number = next(memo)
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode("latin-1") + put()

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    def name(value: str) -> bytes:
        return b"c" + value.replace(" ", "\n").encode() + b"\n" + put()

    def listed(items: list[bytes]) -> bytes:
        return b"]" + put() + b"(" + b"".join(items) + b"e"

    shape = number(images.shape[0]) + number(images.shape[1]) + b"\x86" + put()
    kind = name("numpy dtype") + text("u1") + number(0) + number(1) + b"\x87" + put() + b"R" + put()
    kind += b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + put() + b"b"
    array = name("numpy.core.multiarray _reconstruct") + name("numpy ndarray") + number(0) + b"\x85" + put()
    array += text("b") + b"\x87" + put() + b"R" + put() + b"(" + number(1) + shape + kind + b"\x89"
    array += b"T" + struct.pack("<I", images.size) + images.tobytes() + put() + b"t" + put() + b"b"
    items = text("batch_label") + text("training batch 1 of 5")
    items += text("labels") + listed([number(label) for label in labels])
    items += text("data") + array
    items += text("filenames") + listed([text(f"leptodactylus_{index:06d}.png") for index in range(len(labels))])
    return b"\x80\x02}" + put() + b"(" + items + b"u."


def folder(root: Path, text: str | None = None) -> Path:
    """train 4, val 2 with masks of numbers; returns the YAML file, whose text may be given."""
    generator = np.random.default_rng(6)
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            label = blocks(generator, [0, 1, 2, 255])
            save(root / f"images/{split}/street {number}.jpg", photo(generator, label))
            save(root / f"masks/{split}/street {number}.png", label)
    text = text or (
        "images: images/{split}\n"
        "masks: masks/{split}/{name}.png\n"
        "ignore: 255\n"
        "classes:\n"
        "  road: [128, 64, 128]\n"
        "  sky: [70, 130, 180]\n"
        "  car: [0, 0, 142]\n"
    )
    (root / "dataset.yaml").write_text(text)
    return root / "dataset.yaml"
