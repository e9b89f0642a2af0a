"""The model's card: `card.md` with the figures of the evaluation filled in.

Called by the command line after `evaluate`. How the model was trained, what the figures mean, what
an observer saw and what the model cannot do is written by hand in `card.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from models.recipe.drawing import read_defaults
from models.recipe.export import weights_digest

TEMPLATE = Path(__file__).with_name("card.md")
_COLUMNS = ("top1", "top1_of_concepts", "top5", "none")


def write_card(folder: Path) -> None:
    """Write the card of the model in `folder`.

    Raises ValueError when its evaluation is of other weights.
    """
    report = json.loads((folder / "evaluation.json").read_text())
    if report["weights_sha256"] != weights_digest(folder):
        raise ValueError(f"{folder / 'evaluation.json'} is of other weights: evaluate again")
    figures = figures_of(report) | {"guidance": f"{read_defaults(folder).guidance_scale:g}"}
    (folder / "README.md").write_text(Template(TEMPLATE.read_text()).substitute(figures))


def figures_of(report: Mapping[str, Any]) -> dict[str, str]:
    """What the template names, from an evaluation's report."""
    seeds, again = report["diversity"], report["repeatability"]
    backgrounds, distance = report["backgrounds"], report["distance"]
    colours = next(v for name, v in report["pictures"].items() if name.startswith("colour"))
    return {
        "judge_rows": "\n".join(
            _row(f"originals: {name}", values) for name, values in report["judge"].items()
        ),
        "picture_rows": "\n".join(
            _row(f"**drawn: {name}** ({values['count']})", values)
            for name, values in report["pictures"].items()
        ),
        "styles_right": ", ".join(
            f"{name} {_percent(values['style'])}"
            for name, values in report["pictures"].items()
            if name.startswith("trained")
        ),
        "sampler_table": _sampler_table(report["samplers"]),
        "named_and_colour": _percent(colours["named_and_colour"]),
        "rms_mean": f"{seeds['rms_mean']:.0f}",
        "rms_least": f"{seeds['rms_least']:.0f}",
        "least_diverse": seeds["least_diverse"],
        "repeated": "bit for bit" if again["same_seed_identical"] else "NOT bit for bit",
        "batch_difference": str(again["alone_or_in_a_batch_max_difference"]),
        "background_count": str(backgrounds["prompt_count"]),
        "background_share": _percent(backgrounds["right_share"]),
        "background_error": f"{backgrounds['mean_error_8bit']:.0f}",
        "distance": f"{distance['drawn']:.1f}",
        "least_distance": f"{distance['originals through the autoencoder']:.1f}",
    }


def _row(name: str, values: Mapping[str, float]) -> str:
    return f"| {name} | " + " | ".join(_percent(values[column]) for column in _COLUMNS) + " |"


def _sampler_table(samplers: Mapping[str, Mapping[str, float]]) -> str:
    step_counts = list(next(iter(samplers.values())))
    lines = [f"| | {' | '.join(step_counts)} |", "|---" * (len(step_counts) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(_percent(share) for share in shares.values())} |"
        for name, shares in samplers.items()
    ]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
