"""What an installed distribution must hold, which a checkout hides."""

from pathlib import Path

SERVICES = Path(__file__).parents[1] / "services"


def test_every_folder_with_code_is_a_package_that_a_wheel_takes_along() -> None:
    folders = {path.parent for path in SERVICES.rglob("*.py")}
    bare = [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not bare
