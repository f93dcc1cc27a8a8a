"""Drawing helpers shared by the tasks: colours, shapes and text on a 112x112 canvas.

Only integer drawing and Pillow's built-in bitmap font are used, so that the pixels do not depend
on the fonts of the machine.
"""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw, ImageFont

SIZE = 112  # pixels, both sides of every image
Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels, x2 and y2 exclusive

COLOURS: dict[str, Colour] = {
    "red": (215, 35, 35),
    "green": (35, 150, 55),
    "blue": (45, 75, 215),
    "yellow": (235, 215, 45),
    "purple": (140, 55, 170),
    "orange": (240, 140, 35),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
}

_FONT = ImageFont.load_default_imagefont()
_CELL = (6, 11)  # pixels of one character of the bitmap font


def jitter(colour: Colour, rng: Random, amount: int = 12) -> Colour:
    """Return `colour` with each channel moved by at most `amount`."""
    red, green, blue = (max(0, min(255, v + rng.randint(-amount, amount))) for v in colour)
    return red, green, blue


def canvas(colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a new image filled with `colour` and a pen for it."""
    image = Image.new("RGB", (SIZE, SIZE), colour)
    return image, ImageDraw.Draw(image)


def text(image: Image.Image, at: tuple[int, int], words: str, scale: int, colour: Colour) -> None:
    """Write `words` with its upper left corner at `at`; a character is 6 x 11 pixels x `scale`."""
    width, height = _CELL[0] * len(words), _CELL[1]
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).text((0, 0), words, font=_FONT, fill=255)
    mask = mask.resize((width * scale, height * scale), Image.Resampling.NEAREST)
    image.paste(colour, at, mask)


def shape(pen: ImageDraw.ImageDraw, kind: str, box: Box, colour: Colour) -> None:
    """Fill `box` with a circle, square, triangle or cross that touches all four sides."""
    x1, y1, x2, y2 = box[0], box[1], box[2] - 1, box[3] - 1
    if kind == "circle":
        pen.ellipse((x1, y1, x2, y2), fill=colour)
    elif kind == "square":
        pen.rectangle((x1, y1, x2, y2), fill=colour)
    elif kind == "triangle":
        pen.polygon([((x1 + x2) // 2, y1), (x2, y2), (x1, y2)], fill=colour)
    elif kind == "cross":
        third_x, third_y = (x2 - x1) // 3, (y2 - y1) // 3
        pen.rectangle((x1 + third_x, y1, x2 - third_x, y2), fill=colour)
        pen.rectangle((x1, y1 + third_y, x2, y2 - third_y), fill=colour)
    else:
        raise ValueError(f"shape kind is {kind!r}, expected circle, square, triangle or cross")
