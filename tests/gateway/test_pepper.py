from concurrent.futures import ThreadPoolExecutor

import pytest

from services.gateway.pepper import MIN_PEPPER_LENGTH, PepperError, load_or_create_pepper


def test_the_pepper_is_made_once_and_for_its_owner_alone(tmp_path):
    folder = tmp_path / "new" / "data"
    pepper = load_or_create_pepper(folder)
    assert len(pepper) >= MIN_PEPPER_LENGTH
    assert load_or_create_pepper(folder) == pepper
    assert (folder / "pepper").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == ["pepper"]


def test_two_folders_have_two_peppers(tmp_path):
    assert load_or_create_pepper(tmp_path / "a") != load_or_create_pepper(tmp_path / "b")


def test_all_who_start_at_once_get_the_same_pepper(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        peppers = set(pool.map(lambda _: load_or_create_pepper(tmp_path), range(64)))
    assert len(peppers) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pepper"]


def test_a_pepper_that_others_can_read_is_refused_with_the_cure(tmp_path):
    load_or_create_pepper(tmp_path)
    (tmp_path / "pepper").chmod(0o644)
    with pytest.raises(PepperError, match="chmod 600"):
        load_or_create_pepper(tmp_path)


def test_a_short_pepper_is_refused_without_showing_it(tmp_path):
    path = tmp_path / "pepper"
    path.write_text("short-secret")
    path.chmod(0o600)
    with pytest.raises(PepperError) as raised:
        load_or_create_pepper(tmp_path)
    assert "short-secret" not in str(raised.value)
