"""Texts reduced to what is spoken, in any script, so that spellings of the same words are equal."""

import re
import unicodedata

# All that people and keyboards write for an apostrophe. The acute accent, which NFKC would turn
# into a space with a mark, is one of them.
_APOSTROPHES = re.compile("[\u2018\u2019\u201b\u2032\u02bc\u00b4\u0060\uff07]")
# One letter that Python's lower() makes two of, and what separates words without being seen.
_ONE_BY_ONE = str.maketrans({"\u0130": "i", "\u200b": " "})
# Variation selectors and the grapheme joiner: marks that are not seen and belong to no word.
_UNSEEN_MARKS = re.compile("[\u034f\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def bare_words(text: str) -> str:
    """Unicode NFKC, lower case: letters with their marks, digits, and apostrophes inside words.

    Everything else becomes a space, of which there is one between words; signs that are not seen
    (soft hyphens, joiners, variation selectors) are left out. Doing it twice changes nothing.
    """
    text = unicodedata.normalize("NFKC", _APOSTROPHES.sub("'", text))
    # Capitals that only composing reveals (I with a dot), and marks that lower() puts in order.
    text = unicodedata.normalize("NFKC", text.translate(_ONE_BY_ONE).lower())
    kept: list[str] = []
    for character in _UNSEEN_MARKS.sub("", _APOSTROPHES.sub("'", text)):
        kind = unicodedata.category(character)
        if kind == "Cf":
            continue
        is_mark_of_word = kind in ("Mn", "Mc") and kept and kept[-1] != " "
        is_part = kind[0] in "LN" or character == "'" or is_mark_of_word
        kept.append(character if is_part else " ")
    words = re.sub("''+", " ", "".join(kept)).split()  # two are a quotation mark
    return " ".join(bare for word in words if (bare := word.strip("'")))
