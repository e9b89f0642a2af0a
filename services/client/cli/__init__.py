"""The `limner` command: `generate`, `models`, `whoami`, and what other packages add.

Started by the `limner` script. Needs the extra `cli`; the SDK itself does not.
"""

import sys


def main() -> None:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        import rich  # noqa: F401 - only to see that it is there
        import typer  # noqa: F401 - as above
    except ModuleNotFoundError:
        sys.exit("the limner command needs one more step: pip install 'limner[cli]'")
    from services.client.cli.app import run

    sys.exit(run())
