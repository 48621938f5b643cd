"""Keys by which texts are found that are equal but for case, punctuation and white space."""

import hashlib
import re
from collections.abc import Iterable

import numpy as np

TEXTS = "texts.safetensors"
"""The file of a fetched task with the keys of its texts, (rows, text columns) for each split."""


def normalised(text: str) -> str:
    """Return lower-case letters and digits with single spaces; a text without any stays itself."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip() or text.strip()


def text_keys(texts: Iterable[str]) -> np.ndarray:
    """Return a 64-bit number per text (n,); texts that are equal when normalised have one number.

    Two different texts of a million have the same number with a chance of 3e-8.
    """
    keys = (hashlib.blake2b(normalised(t).encode(), digest_size=8).digest() for t in texts)
    return np.array([int.from_bytes(key, "big") for key in keys], dtype=np.uint64)
