"""Draws one street scene: a small world in metres, projected and painted from far to near.

x points to the right of the camera, y up from the road, z ahead. A point appears at column `cx + f * x / z` and row
`horizon + f * (eye - y) / z`. Everything is painted twice with the same outline: its colour into the image, its class
into the label.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from secateur.data.camvid import COLOURS

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(len(COLOURS))
NEAR = 2.0  # metres; nothing is drawn closer to the camera
FAR = 60.0  # metres; where the street ends
SHIFT = 4  # fractional bits of the coordinates that OpenCV gets
# Strength of the texture on each class, in grey levels; leaves are rough, the sky is smooth.
TEXTURE = np.full(256, 9.0, np.float32)
TEXTURE[[SKY, TREE, ROAD, PAVEMENT]] = 2, 26, 5, 7

Colour = tuple[float, float, float]
STRONG = ((190, 40, 40), (40, 70, 160), (210, 180, 50), (225, 225, 225), (40, 110, 60))


class Point(NamedTuple):
    """A point of the world, in metres."""

    x: float
    y: float
    z: float


class Scene:
    """One street: its light and proportions, and the image and label that are painted."""

    def __init__(self, generator: np.random.Generator, height: int, width: int) -> None:
        self.random = generator
        self.height, self.width = height, width
        self.image = np.empty((height, width, 3), np.uint8)
        self.label = np.empty((height, width), np.uint8)
        self.f = width * generator.uniform(0.85, 1.1)
        self.eye = generator.uniform(1.4, 1.9)
        self.horizon = height * generator.uniform(0.45, 0.57)
        self.cx = width * generator.uniform(0.36, 0.64)
        lane = generator.uniform(2.7, 4.4)
        off = generator.uniform(-0.35, 0.35) * lane
        self.road = (-lane - off, lane - off)  # x of the kerbs
        self.wall = (self.road[0] - generator.uniform(1.8, 4.0), self.road[1] + generator.uniform(1.8, 4.0))
        grey = generator.uniform(110, 235)
        self.haze: Colour = (grey, grey + generator.uniform(-8, 10), grey + generator.uniform(-10, 25))
        self.thickness = generator.uniform(80, 250)  # metres over which the haze takes over
        self.tasks: list[tuple[float, Callable[[], None]]] = []  # (distance, painter)

    # -- randomness ---------------------------------------------------------------------------------------------------

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def colour(self) -> Colour:
        """Any colour that walls, cars and clothes have: greys mostly, some tinted, some as strong as a sign's."""
        if self.chance(0.15):
            return self.strong()
        r = self.random.random(5).tolist()
        grey, tint = 25 + 205 * r[0], (70 if r[1] < 0.35 else 18)
        return (grey + tint * (r[2] - 0.4), grey + tint * (r[3] - 0.5), grey + tint * (r[4] - 0.6))

    def strong(self) -> Colour:
        """The colours of signs, and of boards on walls."""
        r, g, b = STRONG[int(self.random.integers(len(STRONG)))]
        fade = self.between(0, 0.5)
        grey = 60 + 100 * fade
        return (r + fade * (grey - r), g + fade * (grey - g), b + fade * (grey - b))

    def grey(self, low: float, high: float) -> Colour:
        level = self.between(low, high)
        return (level + self.between(-6, 8), level + self.between(-4, 4), level + self.between(-8, 8))

    # -- painting -----------------------------------------------------------------------------------------------------

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) in metres -> columns and rows (..., 2) in pixels."""
        pixels = np.empty((*points.shape[:-1], 2))
        scale = self.f / points[..., 2]
        pixels[..., 0] = self.cx + points[..., 0] * scale
        pixels[..., 1] = self.horizon + (self.eye - points[..., 1]) * scale
        return pixels

    def pixel(self, point: Point) -> tuple[int, int]:
        """Column and row of one point, rounded."""
        scale = self.f / point.z
        return round(self.cx + point.x * scale), round(self.horizon + (self.eye - point.y) * scale)

    def shade(self, colour: Colour, z: float, light: float = 1.0) -> Colour:
        """The colour as it looks in the distance, under `light`."""
        clear = math.exp(-z / self.thickness)
        own, fog = clear * light, 1 - clear
        (r, g, b), (hr, hg, hb) = colour, self.haze
        return own * r + fog * hr, own * g + fog * hg, own * b + fog * hb

    def fill(self, outlines: np.ndarray, colour: Colour, kind: int | None) -> None:
        """Fills polygons (n, corners, 2) in pixels; `kind` None paints colour only (a window belongs to its wall)."""
        fixed = (outlines * 2**SHIFT).astype(np.int32)
        polygons = list(fixed) if fixed.ndim == 3 else [fixed]
        cv2.fillPoly(self.image, polygons, colour, shift=SHIFT)
        if kind is not None:
            cv2.fillPoly(self.label, polygons, kind, shift=SHIFT)

    def world(self, corners: np.ndarray | list[Point], colour: Colour, kind: int | None, light: float = 1.0) -> None:
        """Fills a polygon (corners, 3), or several (n, corners, 3), given in metres."""
        points = np.asarray(corners, float)
        distance = 3 * float(points[..., 2].sum()) / points.size
        self.fill(self.project(points), self.shade(colour, distance, light), kind)

    def line(self, start: Point, end: Point, metres: float, colour: Colour, kind: int | None) -> None:
        """A stroke as thick as it looks at its distance, at least one pixel."""
        a, b = self.pixel(start), self.pixel(end)
        thick = max(1, round(metres * self.f / start.z))
        cv2.line(self.image, a, b, self.shade(colour, start.z), thick)
        if kind is not None:
            cv2.line(self.label, a, b, kind, thick)

    def disc(self, centre: Point, half: tuple[float, float], colour: Colour, kind: int | None, thick: int = -1) -> None:
        """An ellipse with half-axes in metres: filled, or its outline so many pixels thick."""
        x, y = self.pixel(centre)
        axes = (max(1, round(half[0] * self.f / centre.z)), max(1, round(half[1] * self.f / centre.z)))
        cv2.ellipse(self.image, (x, y), axes, 0, 0, 360, self.shade(colour, centre.z), thick)
        if kind is not None:
            cv2.ellipse(self.label, (x, y), axes, 0, 0, 360, kind, thick)

    def upright(self, x: float, y: float, z: float, w: float, h: float) -> np.ndarray:
        """A rectangle that faces the camera, with its lower left corner at (x, y, z): corners (4, 3)."""
        return np.array([(x, y, z), (x + w, y, z), (x + w, y + h, z), (x, y + h, z)])

    def along(self, x: float, near: float, far: float, low: float, high: float) -> np.ndarray:
        """An upright rectangle along the street, seen from the side: corners (4, 3)."""
        return np.array([(x, low, near), (x, low, far), (x, high, far), (x, high, near)])

    def flat(self, left: float, right: float, near: float, far: float, slant: float = 0.0) -> np.ndarray:
        """A quadrangle on the ground, its far side shifted by `slant`: corners (4, 3)."""
        return np.array([(left, 0, near), (right, 0, near), (right + slant, 0, far), (left + slant, 0, far)])

    def later(self, z: float, paint: Callable[..., None], *arguments: object) -> None:
        """Notes something to paint at distance z."""
        self.tasks.append((z, functools.partial(paint, self, *arguments)))

    def paint(self) -> None:
        """Paints what was noted, from far to near."""
        for _, task in sorted(self.tasks, key=lambda task: -task[0]):
            task()
        self.tasks.clear()


def photograph(scene: Scene) -> np.ndarray:
    """Texture, uneven light, a colour cast, blur and sensor noise over the painted image."""
    height, width = scene.label.shape
    top, left = scene.random.integers(0, 256, 2)
    coarse, fine = (_grain(k, height, width)[top : top + height, left : left + width] for k in (0, 1))
    image: np.ndarray = scene.image.astype(np.float32)
    image += (coarse * TEXTURE[scene.label])[..., None]
    if scene.chance(0.5):
        image = cv2.GaussianBlur(image, (3, 3), scene.between(0.3, 0.8))
    rows = np.linspace(scene.between(0.8, 1.1), scene.between(0.8, 1.1), height, dtype=np.float32)
    columns = np.linspace(scene.between(0.8, 1.1), scene.between(0.8, 1.1), width, dtype=np.float32)
    cast = scene.between(0.7, 1.2) * scene.random.uniform(0.92, 1.08, 3).astype(np.float32)
    image *= (rows[:, None] * columns)[..., None]
    image *= cast
    image += (fine * np.float32(scene.between(1.5, 5.5)))[..., None]
    return cv2.convertScaleAbs(np.maximum(image, 0, out=image))  # rounds and stops at 255


@functools.cache
def _grain(octave: int, height: int, width: int) -> np.ndarray:
    """Noise of unit deviation to cut a window from: 0 = leaves and plaster, 1 = a pixel's own."""
    noise = np.random.default_rng(octave).standard_normal((height + 256, width + 256)).astype(np.float32)
    if octave == 0:
        size = noise.shape[::-1]
        soft = cv2.GaussianBlur(noise, (0, 0), max(1.0, height / 150))
        softer = cv2.resize(cv2.GaussianBlur(noise, (0, 0), 1.0)[::6, ::6], size)
        noise = soft / soft.std() + 0.7 * softer / softer.std()
    return noise / noise.std()
