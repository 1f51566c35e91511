"""Digests, and the memory that a stage's record tells."""

import hashlib
import math

import psutil
import pytest

from paft.files.fingerprint import digest, text_digest
from paft.process.memory import peak_resident_bytes


def test_a_digest_is_of_json_without_spaces_whatever_the_order_of_its_keys():
    text = '{"a":[1,null,"\\u00e9"],"b":0.5}'

    assert digest({"b": 0.5, "a": [1, None, "é"]}) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert text_digest(text) == digest({"a": (1, None, "é"), "b": 0.5})


def test_a_number_that_json_does_not_know_has_no_digest():
    with pytest.raises(ValueError):
        digest({"a": math.nan})


def test_the_most_memory_held_is_in_bytes_and_stays_when_it_is_freed():
    block = bytearray(200_000_000)
    del block

    assert 200e6 < peak_resident_bytes() < psutil.virtual_memory().total
