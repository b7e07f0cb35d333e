"""Glyphs of the fonts that matplotlib bundles, as an atlas to be drawn from."""

import functools
import logging
from pathlib import Path

import numpy as np

from neulig_ray.tasks.drawing.raster import Floats

TEXELS = 16.0  # atlas pixels of half a capital's height: one unit of a frame
_SIDE = 60

# Fonts with well-known capitals and digits: cmsy10 is calligraphic, the STIX symbol fonts have none.
WEB_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
)
TASK_FONTS = (
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmb10",
    "cmti10",
    "cmtt10",
)


@functools.cache
def glyphs(fonts: tuple[str, ...], characters: str) -> Floats:
    """Coverage 0..1, (fonts * characters, 60, 60), every glyph centred by its box: font-major order."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no word on caches where there is no home
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    atlas = np.zeros((len(fonts), len(characters), _SIDE, _SIDE), np.float32)
    for i, name in enumerate(fonts):
        path = str(folder / f"{name}.ttf")
        probe = ImageFont.truetype(path, 100, layout_engine=ImageFont.Layout.BASIC)
        top, bottom = probe.getbbox("H", anchor="ls")[1::2]
        size = round(100 * 2 * TEXELS / (bottom - top))
        font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        for j, character in enumerate(characters):
            left, top, right, bottom = font.getbbox(character, anchor="ls")
            image = Image.new("L", (_SIDE, _SIDE))
            origin = ((_SIDE - left - right) / 2, (_SIDE - top - bottom) / 2)
            ImageDraw.Draw(image).text(origin, character, fill=255, font=font, anchor="ls")
            atlas[i, j] = np.asarray(image, np.float32) / 255
    atlas.setflags(write=False)
    return atlas.reshape(-1, _SIDE, _SIDE)
