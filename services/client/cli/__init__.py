"""The `limner` command: `generate`, `models`, `whoami`, and what other packages add.

Started by the `limner` script. Needs the extra `cli`; the SDK itself does not.
"""

import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        sys.exit(_run())
    except KeyboardInterrupt:  # while modules are imported; later the commands tell of it
        sys.exit(_INTERRUPTED)


def _run() -> int:
    try:
        import rich  # noqa: F401 - only to see that it is there
        import typer  # noqa: F401 - as above
    except ModuleNotFoundError:
        sys.exit("the limner command needs one more step: pip install 'limner[cli]'")
    from services.client.cli.app import run
    from services.client.cli.standard_streams import fill_standard_streams

    fill_standard_streams()
    return run()
