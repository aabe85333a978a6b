"""SVG icons as small square pictures, and the names of their colours."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

MIN_DRAWN = 256  # resvg clips filter regions at whole pixels: draw large, then reduce

# Upper end of the hue (degrees) that a colour name covers; red closes the circle.
HUES = (
    (14, "red"),
    (42, "orange"),
    (66, "yellow"),
    (168, "green"),
    (255, "blue"),
    (300, "purple"),
    (345, "pink"),
    (361, "red"),
)


def svg_document(icon: Mapping[str, Any], pixels: int, ink: str | None) -> str:
    """A square SVG document of an iconify icon, padded so that nothing is stretched; `ink` replaces currentColor."""
    left, top, width, height = icon.get("left", 0), icon.get("top", 0), icon.get("width", 16), icon.get("height", 16)
    side = max(width, height)
    body = str(icon["body"])
    turns: list[str] = []
    if icon.get("rotate"):
        turns.append(f"rotate({90 * icon['rotate']} {width / 2} {height / 2})")
    if icon.get("hFlip"):
        turns.append(f"translate({width} 0) scale(-1 1)")
    if icon.get("vFlip"):
        turns.append(f"translate(0 {height}) scale(1 -1)")
    if turns:
        body = f'<g transform="{" ".join(turns)}">{body}</g>'
    if ink:
        body = body.replace("currentColor", ink)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {space} width="{pixels}" height="{pixels}" viewBox="{box}">{body}</svg>'


def rasterised(document: Callable[[int], str], size: int) -> Image.Image:
    """The document drawn at twice the size or more and reduced to `size` x `size` RGBA.

    Raises: ValueError if resvg refuses the document.
    """
    import resvg_py

    pixels = max(2 * size, MIN_DRAWN)
    png = resvg_py.svg_to_bytes(svg_string=document(pixels), width=pixels, height=pixels, skip_system_fonts=True)
    return thumbnail(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), size)


def thumbnail(picture: Image.Image, size: int) -> Image.Image:
    """The picture at `size` x `size`: block means where the factor is whole, Lanczos otherwise."""
    if picture.size == (size, size):
        return picture
    is_whole = picture.width == picture.height and picture.width % size == 0
    kernel = Image.Resampling.BOX if is_whole else Image.Resampling.LANCZOS
    return picture.resize((size, size), kernel)


def encoded(picture: Image.Image) -> bytes:
    """The picture as lossless WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=60, method=3)
    return buffer.getvalue()


def measured_colors(picture: Image.Image) -> list[str]:
    """Names of the main colours of the drawn pixels, strongest first, at most 3, each at least 18 % of them."""
    pixels = np.asarray(picture.resize((48, 48), Image.Resampling.BOX), dtype=np.float32).reshape(-1, 4) / 255
    weight, rgb = pixels[:, 3], pixels[:, :3]
    value, low = rgb.max(1), rgb.min(1)
    saturation = (value - low) / np.maximum(value, 1e-6)
    hsv = np.asarray(Image.fromarray((rgb[None] * 255).astype(np.uint8)).convert("HSV"))[0]
    hue = hsv[:, 0].astype(np.float32) * (360 / 256)
    names = np.array([name for _, name in HUES])[np.searchsorted([end for end, _ in HUES], hue, side="right")]
    names = names.astype("<U8")
    names[(hue < 42) & (value < 0.62) & (saturation > 0.25)] = "brown"
    names[((hue < 14) | (hue >= 330)) & (saturation < 0.55) & (value > 0.75)] = "pink"
    names[saturation < 0.18] = "gray"
    names[(saturation < 0.18) & (value > 0.88)] = "white"
    names[value < 0.24] = "black"
    total = float(weight.sum())
    shares = {str(name): float(weight[names == name].sum()) / max(total, 1e-6) for name in np.unique(names)}
    return [name for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share >= 0.18][:3]
