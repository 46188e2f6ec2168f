"""Start the command line.

Nothing is imported before :func:`main`, so that Ctrl-C ends even the imports in one line.
"""


def main() -> None:
    """Run the command line."""
    try:
        from .main import main
    except KeyboardInterrupt:
        from .interrupts import end_interrupted

        end_interrupted()
    main()
