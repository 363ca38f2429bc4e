"""A zip of images: pixels as uint8, classes from the folders. PIL loads on first use."""

import io
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from qlab.errors import BadUpload
from qlab.readers.common import Limits, checked_bytes, listed, parsing
from qlab.readers.zips import IMAGE_SUFFIXES, LITTER, entry_bytes, open_zip


def read_images(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    """uint8 [N, 3, H, W], or [N, 1, H, W] if all are grey; y and class_names from the folders, if there are any."""
    archive, files = open_zip(data, label, limits)
    names = sorted(name for name in files if not LITTER.search(name))
    paths = [PurePosixPath(name) for name in names]
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise BadUpload(
                f"{label} holds {str(path)!r} among the images. Leave it out; PNG, JPEG, BMP, WebP are read."
            )
    folders = _class_folders(paths, label)
    arrays: dict[str, np.ndarray] = {}
    with archive:
        sizes: list[tuple[int, int]] = []
        grey = True
        for name in names:
            image = _open_image(entry_bytes(archive, files[name], label), f"{label}, image {name!r}", limits)
            sizes.append(image.size)
            grey = grey and image.mode in ("1", "L", "LA")
        if len(set(sizes)) > 1:
            found = ", ".join(f"{w} x {h} ({n} images)" for (w, h), n in Counter(sizes).most_common(5))
            more = f" and {len(set(sizes)) - 5} more" if len(set(sizes)) > 5 else ""
            raise BadUpload(f"{label} holds images of several sizes: {found}{more}. Resize them to the model's size.")
        width, height = sizes[0]
        shape = (len(names), 1 if grey else 3, height, width)
        checked_bytes(shape, 1, label, limits)
        x = np.empty(shape, np.uint8)
        for i, name in enumerate(names):
            where = f"{label}, image {name!r}"
            x[i] = _pixels(_open_image(entry_bytes(archive, files[name], label), where, limits), where, grey)
    arrays["x"] = x
    if folders is not None:
        classes = sorted(set(folders))
        arrays["y"] = np.array([classes.index(folder) for folder in folders], np.int64)
        arrays["class_names"] = np.array(classes, dtype=np.str_)
    return arrays


def _class_folders(paths: list[PurePosixPath], label: str) -> list[str] | None:
    """The class folder of each image; None if all lie in one folder. Folders around all of them do not count."""
    parents = [path.parts[:-1] for path in paths]
    around = 0
    while all(len(parts) > around and parts[around] == parents[0][around] for parts in parents):
        around += 1
    depths = {len(parts) - around for parts in parents}
    if depths == {0}:
        return None
    if depths == {1}:
        return [parts[-1] for parts in parents]
    raise BadUpload(
        f"{label} has images {listed(sorted({str(path.parent) for path in paths}))}, at different depths. "
        "Put each image into the folder of its class, and the class folders side by side."
    )


def _open_image(data: bytes, where: str, limits: Limits) -> Any:
    from PIL import Image

    with parsing(where, "an image"):
        # Opening reads the header alone; the size is checked before a pixel is decoded.
        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "WEBP"))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadUpload(f"{where} has too many pixels: {error} Resize it.") from error
        animated = getattr(image, "is_animated", False)
    width, height = image.size
    if width * height > limits.max_image_pixels or width * height == 0:
        raise BadUpload(f"{where} has {width} x {height} pixels; the limit is {limits.max_image_pixels:,}. Resize it.")
    if animated:
        raise BadUpload(f"{where} is an animation. Save one frame of it.")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise BadUpload(
            f"{where} has pixels of kind {image.mode}, which is not 8 bits a channel. Save it as 8-bit RGB."
        )
    return image


def _pixels(image: Any, where: str, grey: bool) -> np.ndarray:
    """[C, H, W] uint8."""
    with parsing(where, "an image"):
        if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            if image.getextrema()[3][0] < 255:
                raise BadUpload(f"{where} has transparent parts. Put it on a background and save it as RGB.")
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[None] if grey else pixels.transpose(2, 0, 1)
