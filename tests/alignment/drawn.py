"""Drawings that dlib's detector takes for faces (score about 2): they show no real person."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFilter

SKY = (70, 90, 110)
_SKIN, _SHADE, _DARK = (215, 175, 150), (196, 152, 128), (60, 40, 30)


def drawn_face(side: int = 400) -> Image.Image:
    """Draw a frontal face, level and nearly symmetric, on a plain ground: `side` × `side` RGB.

    The head is about half as wide as the image.
    """
    image = Image.new("RGB", (800, 800), SKY)
    draw = ImageDraw.Draw(image)
    draw.ellipse((180, 60, 620, 560), fill=(50, 35, 30))  # hair
    draw.rectangle((330, 600, 470, 800), fill=(190, 150, 125))  # neck
    draw.ellipse((210, 130, 590, 720), fill=_SKIN)
    for ear in (170, 580):
        draw.ellipse((ear, 380, ear + 50, 500), fill=_SHADE)
    for x in (310, 490):
        _draw_eye(draw, x)
    draw.polygon([(400, 380), (360, 505), (440, 505)], fill=(200, 158, 134))  # nose
    draw.ellipse((352, 485, 448, 535), fill=_SHADE)
    for nostril in (366, 408):
        draw.ellipse((nostril, 510, nostril + 26, 528), fill=(110, 70, 60))
    draw.ellipse((320, 575, 480, 640), fill=(175, 85, 85))  # mouth
    draw.line([(325, 606), (400, 612), (475, 606)], fill=(90, 35, 40), width=8)
    soft = image.filter(ImageFilter.GaussianBlur(5))
    return soft.resize((side, side), Image.Resampling.LANCZOS)


def _draw_eye(draw: ImageDraw.ImageDraw, x: int) -> None:
    draw.ellipse((x - 58, 335, x + 58, 435), fill=(185, 145, 122))
    draw.line([(x - 55, 330), (x, 312), (x + 55, 330)], fill=_DARK, width=16)  # brow
    draw.ellipse((x - 42, 362, x + 42, 412), fill=(240, 238, 235))
    draw.ellipse((x - 22, 364, x + 22, 410), fill=_DARK)
    draw.ellipse((x - 10, 376, x + 10, 398), fill=(10, 10, 10))
    draw.arc((x - 46, 354, x + 46, 420), 200, 340, fill=(40, 25, 20), width=7)


def scene(width: int, height: int, *faces: tuple[int, int, int]) -> Image.Image:
    """Draw faces, each at (left, top, side), on a plain ground."""
    image = Image.new("RGB", (width, height), SKY)
    for left, top, side in faces:
        image.paste(drawn_face(side), (left, top))
    return image
