"""``python -m fcnpipe`` is ``fcnpipe``."""

from fcnpipe.cli.commands import main

if __name__ == "__main__":
    main()
