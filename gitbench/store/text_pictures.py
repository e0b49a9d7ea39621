"""The picture of a case of text: each victim's truth above what the attack made of it, hits marked."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

SHOWN = 16
_WIDTH, _LINE, _EDGE = 320, 16, 6  # of a cell, in pixels
_PLACED, _FOUND, _INK, _PAPER = (168, 230, 168), (250, 226, 150), (20, 20, 20), (255, 255, 255)


def text_picture(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> bytes:
    """PNG of the first 16 victims side by side; its text ``victims`` says how many.

    What is recovered in its place is green in both, and what is recovered elsewhere is yellow.

    Args:
        pairs: the pieces of each victim's truth, and of its reconstruction.
    """
    shown, font = pairs[:SHOWN], ImageFont.load_default(size=12)
    lines = max(len(_broken(one, font)) for pair in shown for one in pair)
    height = 2 * _EDGE + lines * _LINE
    image = Image.new("RGB", (_WIDTH * len(shown), 2 * height), _PAPER)
    draw = ImageDraw.Draw(image)
    for column, (truth, found) in enumerate(shown):
        for row, (mine, other) in enumerate(((truth, found), (found, truth))):
            _write(draw, (column * _WIDTH, row * height), mine, other, font)
        draw.rectangle((column * _WIDTH, 0, (column + 1) * _WIDTH - 1, 2 * height - 1), outline=(200, 200, 200))
    told = PngImagePlugin.PngInfo()
    told.add_text("victims", str(len(shown)))
    out = io.BytesIO()
    image.save(out, format="PNG", pnginfo=told)
    return out.getvalue()


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _width(piece: str, font: Font) -> float:
    return font.getlength(_printable(piece))


def _printable(piece: str) -> str:
    return "".join(char if char.isprintable() else "·" for char in piece) or "·"


def _broken(pieces: Sequence[str], font: Font) -> list[list[int]]:
    """The numbers of the pieces of each line."""
    lines: list[list[int]] = [[]]
    used = 0.0
    for number, piece in enumerate(pieces):
        width = _width(piece, font)
        if lines[-1] and used + width > _WIDTH - 2 * _EDGE:
            lines.append([])
            used = 0.0
        lines[-1].append(number)
        used += width
    return lines


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], mine: Sequence[str], other: Sequence[str], font: Font) -> None:
    left, top = corner
    for number, line in enumerate(_broken(mine, font)):
        x, y = left + _EDGE, float(top + _EDGE + number * _LINE)
        for place in line:
            width = _width(mine[place], font)
            mark = _PLACED if mine[place] == other[place] else _FOUND if mine[place] in other else None
            if mark is not None:
                draw.rectangle((x, y, x + width - 1, y + _LINE - 2), fill=mark)
            draw.text((x, y), _printable(mine[place]), font=font, fill=_INK)
            x = int(x + width)
