"""Names that people gave (labels, specs, notes) as they may stand on a terminal, in a picture, a page, a folder."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# Characters that change the direction of what stands around them: a name could hide behind them.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LONGEST = 120
"""Bytes of a name of a folder: file systems take 255, and files beside it have longer names."""


def shown(text: str) -> str:
    """Text as one line that does to a terminal or a page nothing but stand there: line ends are spaces, control
    characters, halves of characters and marks of direction their codes."""
    return "".join(_visible(letter) for letter in re.sub(r"[\r\n\t\x0b\x0c\x85\u2028\u2029]+", " ", text))


def markdown(text: str, *, brackets: bool = False) -> str:
    """The same within a line of Markdown, where no character of a name is markup; in the text of a picture `brackets`
    are none either."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", shown(text).strip())
    text = re.sub(r"[\\`*$~<|\[\]]" if brackets else r"[\\`*$~<|]", r"\\\g<0>", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is itself
    return text if brackets else re.sub(r"\](?=[(:\[])", r"\\]", text)  # a link


def paragraph(text: str) -> str:
    """A line of Markdown that is one: no heading, list, quote or rule."""
    text = re.sub(r"^(\d{1,9})(?=[.)](\s|$))", r"\1\\", markdown(text))
    return re.sub(r"^(>|#(?=[#\s]|$)|[+-](?=[\s-]|$)|=)|#(?=#*$)", r"\\\g<0>", text)


def folder_name(text: str) -> str:
    """Text as the name of a folder; a short hash keeps names apart that differ in what cannot stand there."""
    plain = re.sub(r"[^\w.=-]+", "-", text).strip("-")
    short = plain.encode()[:_LONGEST].decode(errors="ignore")
    if short == text and short.strip("."):
        return short
    return f"{short}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:6]}"


def _visible(letter: str) -> str:
    if letter in _TURNING or unicodedata.category(letter) in ("Cc", "Cs"):
        return letter.encode("unicode_escape").decode()
    return letter
