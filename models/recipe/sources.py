"""Fetches the openly licensed drawings and decodes them to RGBA.

Called by `dataset`. Packages come through `npm pack`, pinned by version and by digest. Does not
choose concepts or captions: see `concepts.txt` and `captions`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from models.recipe.pack import Artist


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """One pinned npm package; `sha512` is the digest of its tarball in base64."""

    name: str
    version: str
    sha512: str

    @property
    def stem(self) -> str:
        """The name that `npm pack` gives the tarball, without extension."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}"


FLUENT_3D = Package(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha512="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)
FLUENT_FLAT = Package(
    name="@iconify-json/fluent-emoji-flat",
    version="1.2.6",
    sha512="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
)
EMOJIBASE = Package(
    name="emojibase-data",
    version="17.0.0",
    sha512="Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
FLUENT_LINE = Package(
    name="@iconify-json/fluent-emoji-high-contrast",
    version="1.2.6",
    sha512="esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
)
EMOJILIB = Package(
    name="emojilib",
    version="4.0.3",
    sha512="KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
)
PACKAGES = (FLUENT_3D, FLUENT_FLAT, FLUENT_LINE, EMOJIBASE)


def fetch(package: Package, raw_dir: Path) -> Path:
    """Download, verify and unpack `package` once; returns the folder with its `package.json`.

    Raises ValueError when the tarball is not the pinned one.
    """
    target = raw_dir / package.stem
    if (target / "package" / "package.json").exists():
        return target / "package"
    raw_dir.mkdir(parents=True, exist_ok=True)
    tarball = raw_dir / f"{package.stem}.tgz"
    if not tarball.exists():
        subprocess.run(
            ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
            cwd=raw_dir,
            check=True,
        )
    unpack(tarball, package, target)
    return target / "package"


def unpack(tarball: Path, package: Package, target: Path) -> None:
    """Unpack a tarball after checking its digest; ValueError when it is not the pinned one."""
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise ValueError(f"{tarball} is not {package.name} {package.version}: remove it")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(tarball) as archive:
        archive.extractall(partial, filter="data")
    partial.replace(target)


def hexcodes_by_label(emojibase: Path) -> dict[str, str]:
    """Map every emojibase label to its lower-case code point sequence."""
    entries = json.loads((emojibase / "en" / "data.json").read_text())
    return {entry["label"]: entry["hexcode"].lower() for entry in entries}


def _spellings(hexcode: str) -> tuple[str, ...]:
    return hexcode, hexcode.replace("-fe0f", ""), f"{hexcode}-fe0f"


class SvgSet:
    """One package of SVG drawings in Iconify's format, by code point sequence."""

    def __init__(self, folder: Path) -> None:
        """Read the indexes of an unpacked package."""
        icons = json.loads((folder / "icons.json").read_text())
        self._size = int(icons["width"])
        self._names: dict[str, str] = json.loads((folder / "chars.json").read_text())
        self._bodies = {name: icon["body"] for name, icon in icons["icons"].items()}
        for alias, entry in icons.get("aliases", {}).items():
            self._bodies.setdefault(alias, self._bodies[entry["parent"]])

    def body(self, hexcode: str) -> str | None:
        """SVG source of a drawing, or None when the set lacks it."""
        found = (self._names[s] for s in _spellings(hexcode) if s in self._names)
        return self._bodies.get(next(found, ""))

    def open(self, hexcode: str, size: int) -> Image.Image | None:
        """Straight-alpha RGBA of `size` pixels, or None."""
        body = self.body(hexcode)
        return None if body is None else rasterise(body, self._size, size)


class Drawings:
    """The three Fluent sets, by style and code point sequence."""

    def __init__(self, raw_dir: Path) -> None:
        """Fetch all sets if needed and read their indexes."""
        self._assets_3d = fetch(FLUENT_3D, raw_dir) / "assets"
        self._svg = {
            "flat": SvgSet(fetch(FLUENT_FLAT, raw_dir)),
            "line": SvgSet(fetch(FLUENT_LINE, raw_dir)),
        }

    def has(self, style: str, hexcode: str) -> bool:
        """Whether the set of `style` holds this drawing."""
        if style == "3d":
            return self._path_3d(hexcode) is not None
        return self._svg[style].body(hexcode) is not None

    def rgba(self, style: str, hexcode: str, size: int) -> np.ndarray:
        """Straight-alpha RGBA, uint8 [size, size, 4]. KeyError when the set lacks the drawing."""
        if style == "3d":
            path = self._path_3d(hexcode)
            picture = None if path is None else Image.open(path).convert("RGBA")
        else:
            picture = self._svg[style].open(hexcode, size * 2)
        if picture is None:
            raise KeyError(f"{style}: no drawing for {hexcode}")
        return resize_premultiplied(picture, size)

    def _path_3d(self, hexcode: str) -> Path | None:
        paths = (self._assets_3d / f"{spelling}.webp" for spelling in _spellings(hexcode))
        return next((path for path in paths if path.exists()), None)


def fetched(raw_dir: Path) -> Artist:
    """Draws from the packages, fetching them if need be; KeyError for what they lack."""
    hexcodes = hexcodes_by_label(fetch(EMOJIBASE, raw_dir))
    art = Drawings(raw_dir)
    return lambda style, label, side: art.rgba(style, hexcodes[label], side)


def rasterise(svg_body: str, view_size: int, size: int) -> Image.Image:
    """Render an SVG body with a square view box to straight-alpha RGBA of `size` pixels."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {view_size} {view_size}" width="{size}" height="{size}">{svg_body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def resize_premultiplied(picture: Image.Image, size: int) -> np.ndarray:
    """Resize without dark or bright fringes: colours are weighted by their alpha.

    Returns straight-alpha RGBA, uint8 [size, size, 4].
    """
    small = picture.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small.convert("RGBA"))
