"""FITS header cards of an image: lookup of values, padding, and structural keywords."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from astropy.io import fits

from fcnpipe.core.records import ImageInfo
from fcnpipe.images.errors import silence_warnings

_STRUCTURAL_KEYWORDS = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|GROUPS|[PG]COUNT|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM"
    r"|TFIELDS|T(TYPE|FORM|DIM|NULL|UNIT)\d+|END|"
    r"Z(IMAGE|SIMPLE|TENSION|BITPIX|NAXIS\d*|EXTEND|[PG]COUNT|TILE\d+|CMPTYPE|NAME\d+|VAL\d+|QUANTIZ"
    r"|DITHER0|BLANK|SCALE|ZERO|HECKSUM|DATASUM|BLOCKED|MASKCMP)"
)


def header_value(info: ImageInfo, key: str, default: Any = None) -> Any:
    """Return the value of a header card, or ``default`` if the card is missing or undefined.

    Examples
    --------
    >>> info = ImageInfo((1, 9, 9), "int16", (str(fits.Card("GAIN", 2.5)),))
    >>> header_value(info, "gain"), header_value(info, "SATURATE")
    (2.5, None)
    """
    value = _parse_cards(info.cards).get(key.upper(), default)
    return default if isinstance(value, fits.card.Undefined) else value


def header_number(info: ImageInfo, keys: Sequence[str]) -> float | None:
    """Return the value of the first of these cards that holds a finite number, or None."""
    for key in keys:
        value = header_value(info, key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


@lru_cache(maxsize=16)
def _parse_cards(cards: tuple[str, ...]) -> dict[str, Any]:
    with silence_warnings():
        header = fits.Header.fromstring("".join(pad_card(card) for card in cards))
        return {card.keyword: _card_value(card) for card in header.cards}


def _card_value(card: fits.Card) -> Any:
    try:
        return card.value
    except fits.VerifyError:
        return None


def pad_card(card: str) -> str:
    """Return a card padded with blanks to a multiple of 80 characters."""
    return card.ljust(-(-len(card) // 80) * 80)


def is_structural(card: fits.Card) -> bool:
    """Return whether a card describes the storage of the pixels, which no longer holds once they are read."""
    return bool(_STRUCTURAL_KEYWORDS.fullmatch(card.keyword))
