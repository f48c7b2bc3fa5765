"""The command line's front door: `poqueue`, and `python -m workers`. A Ctrl-C counts from the first line on."""

import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        from workers.cli import main as run_command

        return run_command()
    except KeyboardInterrupt:
        sys.stderr.write("poqueue: interrupted before anything ran\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
