"""What is in a drawn street: sky, ground, walls and trees along the road, things and people in front of them."""

from __future__ import annotations

import cv2
import numpy as np

from secateur.data.dataset import IGNORE
from secateur.data.streetscene import (
    BICYCLIST,
    BUILDING,
    CAR,
    FAR,
    FENCE,
    NEAR,
    PAVEMENT,
    PEDESTRIAN,
    POLE,
    ROAD,
    SIGN,
    SKY,
    TREE,
    Colour,
    Point,
    Scene,
)


def sky(scene: Scene) -> None:
    """A gradient from the haze up, with clouds, and a far skyline."""
    top = np.array(scene.haze) * scene.between(0.55, 1.05) + scene.random.uniform(-15, 25) * np.array([-0.6, 0, 1.0])
    ramp = np.linspace(0, 1, scene.height)[:, None, None]
    scene.image[:] = np.clip(top * (1 - ramp) + np.array(scene.haze) * ramp, 0, 255)
    scene.label[:] = SKY
    for _ in range(int(scene.random.integers(0, 6))):
        x, y = scene.random.uniform((0, 0), (scene.width, scene.horizon)).astype(int).tolist()
        axes = (int(scene.width * scene.between(0.05, 0.2)), int(scene.height * scene.between(0.015, 0.05)))
        level = scene.between(150, 245)
        cv2.ellipse(scene.image, (x, y), axes, 0, 0, 360, (level, level, level + 4), -1)
    for x in range(-60, 60, 12):
        kind = TREE if scene.chance(0.5) else BUILDING
        colour = leaf(scene) if kind == TREE else scene.colour()
        scene.world(scene.upright(x, -1, FAR + 10, 13, scene.between(3, 13)), colour, kind)


def ground(scene: Scene) -> None:
    """Pavement from wall to wall, the road on it, markings, kerbs, shadows and patches."""
    stone, asphalt, kerb, paint = scene.grey(85, 190), scene.grey(55, 150), scene.grey(100, 210), scene.grey(170, 240)
    (left, right), far, middle = scene.road, FAR + 10, sum(scene.road) / 2
    shadows = []
    for _ in range(int(scene.random.integers(0, 5))):
        (x, z, w, h), dark = scene.random.uniform((-9, 4, 2, 0.5), (3, 30, 9, 5)).tolist(), scene.between(0.5, 0.9)
        shadows.append((scene.flat(x, x + w, z, z + h, scene.between(-3, 3)), dark))
    scene.world(scene.flat(-30, 30, NEAR, far), stone, PAVEMENT)
    for corners, dark in shadows:
        scene.world(corners, stone, None, dark)
    for x in scene.road:
        scene.world(scene.flat(x - 0.12, x + 0.12, NEAR, far), kerb, PAVEMENT)
    scene.world(scene.flat(left, right, NEAR, far), asphalt, ROAD)
    for corners, dark in shadows:
        corners[:, 0] = corners[:, 0].clip(left, right)
        scene.world(corners, asphalt, None, dark)
    if scene.chance(0.8):
        starts = np.arange(NEAR + scene.between(0, 4), FAR, scene.between(4, 9))[:, None, None] * (0, 0, 1)
        scene.world(starts + scene.flat(middle - 0.08, middle + 0.08, 0, scene.between(1.5, 4)), paint, None)
    if scene.chance(0.5):
        colour = paint if scene.chance(0.5) else (200.0, 170.0, 60.0)
        for x in (left + 0.5, right - 0.5):
            scene.world(scene.flat(x - 0.06, x + 0.06, NEAR, far), colour, None)


def roadside(scene: Scene) -> None:
    """Buildings along both sides, with gaps where trees and fences stand."""
    for side in (0, 1):
        sign, wall = (-1, 1)[side], scene.wall[side]
        z = NEAR + scene.between(0, 3)
        town = scene.between(0.45, 0.9)  # share of the side that is built on
        storeys = scene.between(2, 5)
        while z < FAR:
            length = scene.between(5, 16)
            end = min(z + length, FAR + 5)
            if scene.chance(town):
                height = max(3.0, 2.9 * (storeys + scene.between(-1.2, 1.2)))
                scene.later(z, building, sign, wall + sign * scene.between(0, 1.5), z, end, height)
            else:
                for at in np.arange(z + 1, end, scene.between(3, 6) + z / 10):
                    scene.later(float(at), tree, wall + sign * scene.between(0.5, 4), float(at), scene.between(4, 10))
                scene.later(end, hedge, sign, wall + sign * 5, z, end)
                if scene.chance(0.6):
                    scene.later(z + 0.1, fence, wall - sign * 0.1, z, end)
            z = end
    scene.paint()


def traffic(scene: Scene) -> None:
    """What stands and moves on the road and the pavements."""
    count = scene.random.poisson
    for side in (0, 1):
        sign, kerb, wall = (-1, 1)[side], scene.road[side], scene.wall[side]
        for z in scene.random.uniform(5, 40, count(1.7)):
            scene.later(z, pole, kerb + sign * scene.between(0.2, 0.8), z, -sign)
        for z in scene.random.uniform(5, 22, count(1.2)):
            scene.later(z, sign_post, kerb + sign * scene.between(0.3, 0.9), z)
        for z in scene.random.uniform(6, 28, count(1.5)):
            scene.later(z, pedestrian, scene.between(kerb, wall), z)
        if scene.chance(0.3):
            z = scene.between(5, 20)
            scene.later(z, fence, kerb + sign * 0.3, z, z + scene.between(4, 14))
        if scene.chance(0.4):
            z = scene.between(6, 30)
            scene.later(z, tree, kerb + sign * scene.between(0.8, 1.5), z, scene.between(4, 8))
        if scene.chance(0.4):
            z = scene.between(5, 20)
            scene.later(z, bin_or_box, scene.between(kerb, wall), z)
        if scene.chance(0.65):  # a row of parked cars
            z = scene.between(5, 22)
            for _ in range(int(scene.random.integers(1, 5))):
                scene.later(z, car, kerb - sign * 1.1, z)
                z += scene.between(5, 8)
    left, right = scene.road
    for z in scene.random.uniform(8, 45, count(1.5)):
        scene.later(z, car, scene.between(left + 1.2, right - 1.2), z)
    for z in scene.random.uniform(7, 22, 1 + count(0.4)) if scene.chance(0.85) else ():
        scene.later(z, bicyclist, scene.between(left + 0.6, right - 0.6), z)
    if scene.chance(0.25):
        z = scene.between(8, 20)
        scene.later(z, pedestrian, scene.between(left, right), z)
    scene.paint()


def leaf(scene: Scene) -> Colour:
    """Green mostly; some trees are brown or bare."""
    light = scene.between(0.5, 1.3)
    if scene.chance(0.25):
        return (light * 110, light * 85, light * 55)
    return (light * scene.between(50, 95), light * scene.between(75, 110), light * scene.between(35, 70))


def building(scene: Scene, sign: int, wall: float, near: float, far: float, height: float) -> None:
    """A box along the street: its wall on the street, its side towards the camera, windows, a ground floor, eaves."""
    colour, light = scene.colour(), scene.between(0.75, 1.1)
    gable = scene.upright(min(wall, wall + sign * 12), 0, near, 12, height)
    scene.world(gable, colour, BUILDING, light * scene.between(0.7, 0.95))
    scene.world(scene.along(wall, near, far, 0, height), colour, BUILDING, light)
    storeys, bays = max(1, int(height / 2.9)), max(1, int((far - near) / scene.between(2, 3.5)))
    storey, bay = height / storeys, (far - near) / bays
    corners = np.zeros((bays, storeys, 4, 3)) + scene.along(wall, near, near + 0.45 * bay, 0, 0.5 * storey)
    corners[..., 1] += (np.arange(storeys)[:, None] + 0.3) * storey
    corners[..., 2] += (np.arange(bays)[:, None, None] + 0.28) * bay
    scene.world(corners.reshape(-1, 4, 3), scene.grey(25, 90) if scene.chance(0.7) else scene.grey(150, 230), None)
    if scene.chance(0.5):  # a shop: a painted band, and a board that looks like a sign
        low, high = (2.4, 3.1) if scene.chance(0.6) else (0.0, 2.6)
        scene.world(scene.along(wall, near, far, low, high), scene.colour(), None)
        at, wide = scene.between(near, far - 2), scene.between(0.7, 2)
        scene.world(scene.along(wall, at, at + wide, 1.2, 1.2 + scene.between(0.7, 1.4)), scene.strong(), None)
    if scene.chance(0.5):
        scene.world(scene.along(wall, near, far, height - 0.4, height), scene.colour(), None)


def hedge(scene: Scene, sign: int, x: float, near: float, far: float) -> None:
    """Bushes behind a gap between the buildings, so that no ground shows up to the horizon."""
    height = scene.between(1.5, 5)
    scene.world(scene.upright(min(x, x + sign * 20), 0, far, 20, height), leaf(scene), TREE)
    scene.world(scene.along(x, near, far, 0, height), leaf(scene), TREE)


def tree(scene: Scene, x: float, z: float, height: float) -> None:
    """A trunk and a crown of several blobs, lighter at the top."""
    colour, spread = leaf(scene), height * scene.between(0.2, 0.35)
    scene.line(Point(x, 0, z), Point(x, height * 0.7, z), scene.between(0.15, 0.4), (60, 48, 38), TREE)
    scene.disc(Point(x, 0.68 * height, z), (0.6 * spread, 0.55 * spread), colour, TREE)
    blobs = int(scene.random.integers(4, 9)) if z < 30 else 3
    for dx, dy, wide, tall, light in scene.random.uniform(
        (-0.9, -0.8, 0.35, 0.3, 0.85), (0.9, 0.8, 0.7, 0.6, 1.15), (blobs, 5)
    ).tolist():
        light += 0.25 * dy
        blob = (colour[0] * light, colour[1] * light, colour[2] * light)
        centre = Point(x + dx * spread, max(height * 0.68 + dy * spread, 0.25 * height), z)
        scene.disc(centre, (spread * wide, spread * tall), blob, TREE)


def fence(scene: Scene, x: float, near: float, far: float) -> None:
    """Posts and a rail along the street, or boards; labelled as a whole."""
    height, colour = scene.between(0.8, 1.4), scene.colour()
    scene.world(scene.along(x, near, far, 0, height), scene.colour(), FENCE)
    starts = np.arange(near, far, scene.between(0.25, 1.2))[:, None, None] * (0, 0, 1)
    scene.world(starts + scene.along(x, 0, 0.12, 0, height), colour, None)
    scene.world(scene.along(x, near, far, height - 0.12, height), colour, None)


def pole(scene: Scene, x: float, z: float, towards: int) -> None:
    """A lamp post or a mast."""
    height, colour = scene.between(4, 9), scene.grey(30, 190)
    thick = scene.between(0.08, 0.16)
    scene.line(Point(x, 0, z), Point(x, height, z), thick, colour, POLE)
    if scene.chance(0.6):
        scene.line(
            Point(x, height, z), Point(x + towards * scene.between(0.5, 1.8), height, z), thick * 0.7, colour, POLE
        )


def sign_post(scene: Scene, x: float, z: float) -> None:
    """A round, triangular or square sign on a thin post, or a traffic light."""
    height, size = scene.between(2.1, 3.2), scene.between(0.3, 0.48)
    scene.line(Point(x, 0, z), Point(x, height, z), 0.08, scene.grey(60, 170), POLE)
    shape, edge, face = int(scene.random.integers(4)), scene.strong(), scene.strong()
    if shape == 0:
        scene.disc(Point(x, height, z), (size, size), edge, SIGN)
        scene.disc(Point(x, height, z), (size * 0.6, size * 0.6), face, None)
    elif shape == 1:
        scene.world(
            [Point(x - size, height - size, z), Point(x + size, height - size, z), Point(x, height + size, z)],
            edge,
            SIGN,
        )
    elif shape == 2:
        scene.world(scene.upright(x - size, height - size, z, 2 * size, 2 * size * scene.between(0.6, 1.5)), edge, SIGN)
        scene.world(scene.upright(x - size * 0.5, height - size * 0.6, z, size, size * 0.8), face, None)
    else:
        scene.world(scene.upright(x - 0.2, height - 0.5, z, 0.4, 1.1), (35, 38, 36), SIGN)
        for number, lamp in enumerate(((60.0, 160.0, 80.0), (90.0, 80.0, 40.0), (200.0, 50.0, 40.0))):
            scene.disc(Point(x, height - 0.3 + 0.35 * number, z), (0.11, 0.11), lamp, None)


def bin_or_box(scene: Scene, x: float, z: float) -> None:
    """Something that is in no class: void, as in CamVid."""
    scene.world(scene.upright(x, 0, z, scene.between(0.4, 1.1), scene.between(0.7, 1.5)), scene.colour(), IGNORE)


def car(scene: Scene, x: float, z: float) -> None:
    """A car or van along the street, seen from its end: body, cabin, the visible flank, windows, wheels, lights."""
    w, length = scene.between(0.8, 0.95), scene.between(3.6, 4.6)
    tall = scene.between(1.35, 1.6) if scene.chance(0.8) else scene.between(1.9, 2.5)
    colour, glass = scene.colour(), scene.grey(25, 80)
    belt, far = tall * 0.6, z + length
    side = x - w if x > 0 else x + w  # the flank that faces the camera's axis
    flank = [
        (side, 0.25, z),
        (side, 0.25, far),
        (side, belt, far),
        (side, tall, far - 0.9),
        (side, tall, z + 0.5),
        (side, belt, z),
    ]
    scene.world([Point(*p) for p in flank], colour, CAR, 0.8)
    pane = [(side, belt, z + 0.4), (side, belt, far - 0.6), (side, tall - 0.1, far - 1.0), (side, tall - 0.1, z + 0.7)]
    scene.world([Point(*p) for p in pane], glass, None)
    for at in (z + 0.8, far - 0.8):
        scene.disc(Point(side, 0.3, at), (0.16, 0.3), (22, 22, 24), CAR)
    scene.world(scene.upright(x - w, 0.22, z, 2 * w, belt - 0.22), colour, CAR)
    cabin = [
        Point(x - w, belt, z),
        Point(x + w, belt, z),
        Point(x + w * 0.8, tall, z + 0.4),
        Point(x - w * 0.8, tall, z + 0.4),
    ]
    scene.world(cabin, colour, CAR, 1.1)
    screen = [
        (x - w * 0.8, belt, z),
        (x + w * 0.8, belt, z),
        (x + w * 0.7, tall - 0.12, z),
        (x - w * 0.7, tall - 0.12, z),
    ]
    scene.world([Point(*p) for p in screen], glass, None)
    lights = (190.0, 40.0, 35.0) if x > 0 or scene.chance(0.5) else (235.0, 230.0, 200.0)
    scene.world(scene.upright(x - w * 0.5, 0.45, z, w, 0.13), scene.grey(150, 230), None)  # number plate
    for at in (x - w * 0.95, x + w * 0.65):
        scene.world(scene.upright(at, belt - 0.3, z, w * 0.3, 0.18), lights, None)
        scene.world(scene.upright(at, 0.0, z, w * 0.3, 0.3), (22, 22, 24), CAR)


def body(scene: Scene, x: float, foot: float, z: float, kind: int) -> None:
    """Legs, trunk, arms and head of somebody about 1.7 m tall, standing at height `foot`."""
    s = scene.between(0.85, 1.08)
    top, legs, skin = scene.colour(), scene.colour(), (scene.between(90, 215),) * 3
    stride = scene.between(0.02, 0.22)
    for dx in (-stride, stride):
        scene.line(Point(x, foot + 0.9 * s, z), Point(x + dx, foot, z), 0.16, legs, kind)
    scene.world(scene.upright(x - 0.23 * s, foot + 0.8 * s, z, 0.46 * s, 0.68 * s), top, kind)
    for dx in (-0.3, 0.3):
        scene.line(Point(x + dx * 0.8, foot + 1.42 * s, z), Point(x + dx, foot + 0.9 * s, z), 0.11, top, kind)
    scene.disc(Point(x, foot + 1.6 * s, z), (0.11 * s, 0.14 * s), (skin[0], skin[1] * 0.8, skin[2] * 0.7), kind)


def pedestrian(scene: Scene, x: float, z: float) -> None:
    """Somebody on foot."""
    body(scene, x, 0.0, z, PEDESTRIAN)


def bicyclist(scene: Scene, x: float, z: float) -> None:
    """Somebody on a bicycle, seen from behind or at an angle; the bicycle belongs to the class."""
    reach, colour = scene.between(0.1, 0.55), scene.colour()
    for dx in (-reach, reach):
        scene.disc(
            Point(x + dx, 0.34, z),
            (0.06 + 0.5 * reach, 0.34),
            (25, 25, 28),
            BICYCLIST,
            thick=max(1, round(0.05 * scene.f / z)),
        )
    scene.line(Point(x - reach, 0.34, z), Point(x + reach, 0.8, z), 0.09, colour, BICYCLIST)
    scene.line(Point(x, 0.3, z), Point(x, 0.9, z), 0.12, colour, BICYCLIST)
    scene.line(Point(x - 0.3, 1.0, z), Point(x + 0.3, 1.0, z), 0.06, (40, 40, 42), BICYCLIST)
    body(scene, x, 0.25, z, BICYCLIST)
