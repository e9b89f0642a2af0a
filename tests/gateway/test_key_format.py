import re
import string

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.key_format import digest_key, is_well_formed, make_key

KEY = make_key().text
ALPHABET = string.ascii_letters + string.digits


def test_a_key_is_one_word_of_the_documented_form():
    key = make_key()
    assert re.fullmatch(r"lmn_live_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", key.text)
    assert re.fullmatch(r"\w+", key.text)
    assert key.text.split("_")[2] == key.key_id
    assert is_well_formed(key.text)


def test_no_two_keys_are_alike():
    keys = [make_key() for _ in range(200)]
    assert len({key.text for key in keys}) == len({key.key_id for key in keys}) == 200


def test_a_key_does_not_print_its_text():
    key = make_key()
    assert key.text not in repr(key)


@given(st.integers(min_value=0, max_value=len(KEY) - 1), st.sampled_from(ALPHABET + "_- é"))
def test_any_one_wrong_character_is_noticed(index, character):
    typo = KEY[:index] + character + KEY[index + 1 :]
    assert is_well_formed(typo) == (typo == KEY)


@given(st.integers(min_value=0, max_value=len(KEY) - 2))
def test_two_swapped_characters_are_noticed(index):
    typo = KEY[:index] + KEY[index + 1] + KEY[index] + KEY[index + 2 :]
    assert is_well_formed(typo) == (typo == KEY)


@given(st.text() | st.text(ALPHABET + "_").map("lmn_live_".__add__))
def test_other_text_is_no_key(text):
    assert not is_well_formed(text)


def test_a_key_with_anything_around_it_is_no_key():
    assert not any(is_well_formed(text) for text in (KEY + "\n", " " + KEY, KEY + "0", KEY[:-1]))


def test_the_digest_depends_on_key_and_pepper():
    one, other = make_key().text, make_key().text
    digests = {digest_key(key, pepper) for key in (one, other) for pepper in (b"p" * 32, b"q" * 32)}
    assert len(digests) == 4
    assert all(len(digest) == 32 for digest in digests)
    assert digest_key(one, b"p" * 32) == digest_key(one, b"p" * 32)
