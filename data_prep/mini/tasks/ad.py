"""AD: a driving scene from a small traffic simulator, seen from above, with its exact state.

Cars follow the Intelligent Driver Model (Treiber, Hennecke and Helbing, Physical Review E 62, 2000,
equations 2 and 3) on a ring road of three lanes. The simulator is written here with plain
arithmetic, so that every machine computes the same positions to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import ImageDraw

from data_prep.mini.draw import COLOURS, SIZE, Colour, canvas, jitter
from data_prep.mini.tasks.base import SHORT, Question, Scene, Task

LANES = ("left", "middle", "right")
WAYS = dict(zip(LANES, ("west", "centre", "east"), strict=True))  # words of the descriptions
MOVES = {  # action -> word of the descriptions
    "keep going": "hold",
    "change to the left lane": "veer west",
    "change to the right lane": "veer east",
    "brake": "halt",
}
ROAD = 150.0  # metres of the ring
CAR = 5.0  # metres
BEHIND, AHEAD = 5.2, 17.2  # metres that the picture shows from the ego car's front
BESIDE = 2.0  # metres: a car whose front is at most that far behind the ego car's is beside it
CLOSE = 12.0  # metres from the ego car's front to the rear of a car that takes its lane
STEP, STEPS = 0.25, 24  # seconds, number
PIXELS = 5  # a metre
EGO_TOP = 86  # row of the ego car's front
LANE_WIDTH, LANE_LEFT = 32, 8  # pixels
GLASS = (20, 30, 40)
ROAD_COLOUR, PAINTS = (95, 95, 100), ("blue", "red", "white")


@dataclass
class Car:
    """One car: its lane (0 left .. 2 right), front bumper in metres, speed and wish in m/s."""

    lane: int
    front: float
    speed: float
    wish: float


def gap(behind: Car, ahead: Car) -> float:
    """Return the metres from the front of one car to the rear of another, along the ring."""
    return (ahead.front - behind.front) % ROAD - CAR


def acceleration(car: Car, leader: Car) -> float:
    """Return the Intelligent Driver Model's acceleration in m/s^2.

    Headway 1 s and 2 m, comfortable acceleration 1.5 and braking 2 m/s^2.
    """
    wanted = 2.0 + car.speed + car.speed * (car.speed - leader.speed) / (2 * math.sqrt(1.5 * 2.0))
    room = max(gap(car, leader), 0.5)
    speed, near = car.speed / car.wish, max(wanted, 0.0) / room
    return 1.5 * (1 - speed * speed * speed * speed - near * near)  # no pow: it is not exact


def simulate(rng: Random) -> list[Car]:
    """Return the cars of a road after STEPS steps; every lane has at least two."""
    lanes: list[list[Car]] = []
    for lane in range(len(LANES)):
        count = rng.randint(2, 7)
        # Every 8 m at most one car, so that none begins inside another (CAR).
        starts = sorted(rng.sample(range(0, int(ROAD), 8), count))
        lanes.append([Car(lane, float(s), 8.0, rng.uniform(6.0, 18.0)) for s in starts])
    for _ in range(STEPS):
        for cars in lanes:
            leaders = cars[1:] + cars[:1]
            pushes = [acceleration(*pair) for pair in zip(cars, leaders, strict=True)]
            for car, push in zip(cars, pushes, strict=True):
                car.speed = max(0.0, car.speed + push * STEP)
                car.front = (car.front + car.speed * STEP) % ROAD
    return [car for cars in lanes for car in cars]


def offset(ego: Car, other: Car) -> float:
    """Return how far `other` is ahead of `ego` in metres, negative when behind."""
    return (other.front - ego.front + ROAD / 2) % ROAD - ROAD / 2


def state(ego: Car, cars: list[Car]) -> dict[str, bool] | None:
    """Return lane -> whether it is free for `ego`; None when a car that is shown leaves it open.

    A lane is taken when a car in it is beside the ego car or close ahead, and free when the picture
    shows no car in it.
    """
    free = {}
    for lane, name in enumerate(LANES):
        fronts = [offset(ego, car) for car in cars if car.lane == lane and car is not ego]
        shown = [front for front in fronts if front > -BEHIND and front - CAR < AHEAD]
        free[name] = not shown
        if shown and not any(-BESIDE <= front <= CLOSE + CAR for front in shown):
            return None
    return free


def action(lane: str, free: dict[str, bool]) -> str:
    """Return what to do: go on if the lane is free, else change lanes (left first), else brake."""
    number = LANES.index(lane)
    if free[lane]:
        return "keep going"
    if number > 0 and free[LANES[number - 1]]:
        return "change to the left lane"
    if number < 2 and free[LANES[number + 1]]:
        return "change to the right lane"
    return "brake"


def _car(pen: ImageDraw.ImageDraw, lane: int, top: int, colour: Colour) -> None:
    """Draw a car of 24 x 25 pixels with a windscreen, its front upwards."""
    x = LANE_LEFT + lane * LANE_WIDTH + 4
    pen.rectangle((x, top, x + 23, top + PIXELS * int(CAR) - 1), fill=colour)
    pen.rectangle((x + 3, top + 5, x + 20, top + 9), fill=GLASS)


class AD(Task):
    """Decide for the ego car, name its lane, say whether a lane is free; actions are balanced."""

    name = "AD"
    scorer = "choice"
    head = "traffic"

    def draw(self, split: str, rng: Random) -> Scene:
        wanted = rng.choice(list(MOVES))
        while True:
            cars = simulate(rng)
            for ego in rng.sample(cars, len(cars)):
                free = state(ego, cars)
                if free is not None and action(LANES[ego.lane], free) == wanted:
                    return self._scene(split, rng, ego, cars, free)

    def _scene(
        self, split: str, rng: Random, ego: Car, cars: list[Car], free: dict[str, bool]
    ) -> Scene:
        image, pen = canvas(jitter((90, 150, 70), rng))
        right = LANE_LEFT + 3 * LANE_WIDTH
        pen.rectangle((LANE_LEFT, 0, right - 1, SIZE), fill=jitter(ROAD_COLOUR, rng, 8))
        for x in (LANE_LEFT + LANE_WIDTH, LANE_LEFT + 2 * LANE_WIDTH):
            for y in range(rng.randint(-8, 0), SIZE, 16):
                pen.rectangle((x - 1, y, x, y + 8), fill=(240, 240, 240))
        for car in cars:
            top = EGO_TOP - int(offset(ego, car) * PIXELS)
            if car is not ego and -PIXELS * CAR < top < SIZE:
                _car(pen, car.lane, top, jitter(COLOURS[rng.choice(PAINTS)], rng))
        _car(pen, ego.lane, EGO_TOP, COLOURS["yellow"])
        facts: dict[str, Any] = {"lane": LANES[ego.lane], "free": free}
        facts["action"] = action(facts["lane"], free)
        return Scene(image, facts, f"drive/{split}/{rng.getrandbits(48):012x}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        facts = scene.facts
        kind = rng.random()
        if kind < 0.5:
            return Question("What should the yellow ego vehicle do?" + SHORT, facts["action"])
        if kind < 0.75:
            return Question("Which lane is the yellow ego vehicle in?" + SHORT, facts["lane"])
        lane = rng.choice([name for name in LANES if name != facts["lane"]])
        prompt = f"Is the {lane} lane free for the yellow ego vehicle?" + SHORT
        return Question(prompt, "yes" if facts["free"][lane] else "no")

    def choose_question(self, scene: Scene, rng: Random) -> Question:
        return Question("What should the yellow ego vehicle do?", scene.facts["action"])

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        facts = scene.facts
        tracks = [
            (f"track {WAYS[lane]}", "vacant" if facts["free"][lane] else "taken") for lane in LANES
        ]
        return [("own track", WAYS[facts["lane"]]), *tracks, ("move", MOVES[facts["action"]])]
