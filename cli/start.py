"""Start the command line.

Nothing is imported before :func:`main`, so that Ctrl-C ends even the imports in one line.
"""


def main() -> None:
    """Run the command line."""
    try:
        from edgetie_cli.main import main
    except KeyboardInterrupt:
        from edgetie_cli.interrupts import end_interrupted

        end_interrupted()
    main()
