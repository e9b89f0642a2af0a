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
PACKAGES = (FLUENT_3D, FLUENT_FLAT, EMOJIBASE)


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


class Drawings:
    """The two Fluent sets, by style and code point sequence."""

    def __init__(self, raw_dir: Path) -> None:
        """Fetch both sets if needed and read their indexes."""
        self._assets_3d = fetch(FLUENT_3D, raw_dir) / "assets"
        flat = fetch(FLUENT_FLAT, raw_dir)
        icons = json.loads((flat / "icons.json").read_text())
        self._flat_chars: dict[str, str] = json.loads((flat / "chars.json").read_text())
        self._flat_bodies = {name: icon["body"] for name, icon in icons["icons"].items()}
        for alias, entry in icons.get("aliases", {}).items():
            self._flat_bodies.setdefault(alias, self._flat_bodies[entry["parent"]])
        self._flat_size = int(icons["width"])

    def rgba(self, style: str, hexcode: str, size: int) -> np.ndarray:
        """Straight-alpha RGBA, uint8 [size, size, 4]. KeyError when the set lacks the drawing."""
        picture = self._open_3d(hexcode) if style == "3d" else self._open_flat(hexcode, size)
        return resize_premultiplied(picture, size)

    def _open_3d(self, hexcode: str) -> Image.Image:
        for spelling in _spellings(hexcode):
            path = self._assets_3d / f"{spelling}.webp"
            if path.exists():
                return Image.open(path).convert("RGBA")
        raise KeyError(f"3d: no drawing for {hexcode}")

    def _open_flat(self, hexcode: str, size: int) -> Image.Image:
        for spelling in _spellings(hexcode):
            if spelling in self._flat_chars:
                body = self._flat_bodies[self._flat_chars[spelling]]
                return rasterise(body, self._flat_size, size * 2)
        raise KeyError(f"flat: no drawing for {hexcode}")


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
