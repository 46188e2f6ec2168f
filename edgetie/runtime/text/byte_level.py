"""The alphabet of byte-level vocabularies (GPT-2; Radford et al. 2019)."""

from itertools import count


def byte_alphabet() -> dict[int, str]:
    """Map each byte to the printable character for it in a byte-level vocabulary."""
    printable, others = {*range(33, 127), *range(161, 173), *range(174, 256)}, count(256)
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}
