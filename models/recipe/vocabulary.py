"""Proposes lines of `concepts.txt` for drawings that it lacks; people edit what comes out.

Run by hand, `python -m models.recipe.vocabulary RAW_DIR`, when the vocabulary grows. Phrases come
from emojibase's labels. A keyword becomes another name only if emojibase and emojilib both give it
to this drawing, and to no other. Does not touch `concepts.txt`.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TypedDict

from models.recipe.captions import STYLES, article_for, load_concepts, strip_article
from models.recipe.sources import EMOJIBASE, EMOJILIB, Drawings, fetch

PEOPLE, SYMBOLS, FLAGS = 1, 8, 9
_SYMBOLS = """
    warning; radioactive; biohazard; peace symbol; yin yang; recycling symbol; infinity; no entry;
    check mark; cross mark; red question mark; red exclamation mark; plus; no smoking; prohibited;
    atom symbol; wheelchair symbol; fleur-de-lis; trident emblem; medical symbol; star of David;
    latin cross; star and crescent; wheel of dharma; menorah; hollow red circle; eight-pointed star;
    red circle; orange circle; yellow circle; green circle; blue circle; purple circle;
    brown circle; black circle; red square; orange square; yellow square; green square;
    blue square; purple square; brown square; chequered flag; triangular flag; crossed flags;
    pirate flag; rainbow flag; white flag
"""
_UNWANTED = """
    middle finger; speaker low volume; speaker medium volume; magnifying glass tilted right;
    closed mailbox with lowered flag; open mailbox with lowered flag; rightwards pushing hand;
    leftwards pushing hand; Japanese post office; love hotel; ID button; bust in silhouette;
    busts in silhouette; oncoming police car; oncoming taxi; oncoming bus; face in clouds;
    left speech bubble; right anger bubble; Mx Claus; currency exchange; full moon face; hole;
    chart increasing with yen; person with skullcap; ZZZ; dotted line face; dim button
"""
_WITHOUT_ARTICLE = """
    bacon bread broccoli butter cheese coral fire fog garlic ginger herb ice milk popcorn rice salt
    sake soap spaghetti sushi wood rock brick dna mate money clothes people twins jeans rain snow
    fuji claus vomiting exhaling foggy camping lacrosse badminton bowling
"""
WANTED_SYMBOLS = frozenset(" ".join(_SYMBOLS.split()).split("; "))
UNWANTED = frozenset(" ".join(_UNWANTED.split()).split("; "))
"""Near-doubles of another drawing, or nothing that one would ask for."""
REWORDED = {
    "person: beard": "person with a beard",
    "person: blond hair": "blond person",
    "person: red hair": "person with red hair",
    "person: curly hair": "person with curly hair",
    "person: white hair": "person with white hair",
    "person: bald": "bald person",
    "person gesturing NO": "person saying no",
    "person gesturing OK": "person saying ok",
    "sign of the horns": "rock hand",
    "pool 8 ball": "eight ball",
    "T-Rex": "t-rex",
    "Santa Claus": "santa claus",
    "1st place medal": "gold medal",
    "2nd place medal": "silver medal",
    "3rd place medal": "bronze medal",
}
WITHOUT_ARTICLE = frozenset(_WITHOUT_ARTICLE.split())
MOST_KEYWORDS = 2


class Entry(TypedDict):
    """The part of emojibase's `data.json` that is read."""

    label: str
    hexcode: str
    emoji: str
    tags: list[str]
    group: int


def is_wanted(entry: Entry) -> bool:
    """Everyday things; no clock faces, buttons, arrows, and of people only those of no gender."""
    label, group = entry["label"], entry.get("group", FLAGS)
    if label in UNWANTED or re.search(r"o’clock|-thirty$", label):
        return False
    if group in (SYMBOLS, FLAGS):
        return label in WANTED_SYMBOLS
    return not (group == PEOPLE and re.match(r"(wo)?m[ae]n[ :]", label))


def phrase_for(label: str) -> str:
    """'soft ice cream' -> 'a soft ice cream'; plurals and stuff get no article."""
    bare = REWORDED.get(label, label.replace("’", "'").lower())
    last = bare.split()[-1]
    head = bare.split(" with ")[0].split(" of ")[0].split()[-1]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    if plural or last in WITHOUT_ARTICLE or head in WITHOUT_ARTICLE:
        return bare
    return f"{article_for(bare)} {bare}"


def propose(raw_dir: Path) -> list[str]:
    """New lines, in emojibase's order."""
    entries: list[Entry] = json.loads((fetch(EMOJIBASE, raw_dir) / "en" / "data.json").read_text())
    emojilib = json.loads((fetch(EMOJILIB, raw_dir) / "dist" / "emoji-en-US.json").read_text())
    art = Drawings(raw_dir)
    drawn = [
        entry
        for entry in entries
        if is_wanted(entry) and all(art.has(style, entry["hexcode"].lower()) for style in STYLES)
    ]
    tags = {entry["label"]: set(entry.get("tags", ())) for entry in drawn}
    others = {entry["label"]: set(emojilib.get(entry["emoji"], ())) for entry in drawn}
    uses = Counter(word for label in tags for word in tags[label] | others[label])
    known = load_concepts()
    taken = {strip_article(name) for concept in known for name in concept.names}
    taken |= {strip_article(phrase_for(entry["label"])) for entry in drawn}
    lines = []
    for entry in drawn:
        label = entry["label"]
        if label in {concept.label for concept in known}:
            continue
        words = sorted(
            word
            for word in tags[label] & others[label]
            if uses[word] == 1 and re.fullmatch(r"[a-z]{3,}", word) and word not in taken
        )
        lines.append(" | ".join([label, phrase_for(label), ", ".join(words[:MOST_KEYWORDS])]))
    return [line.removesuffix(" | ") for line in lines]


if __name__ == "__main__":
    print("\n".join(propose(Path(sys.argv[1]))))
