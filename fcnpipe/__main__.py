"""Entry point of ``python -m fcnpipe``, the same as the command ``fcnpipe``."""

from fcnpipe.cli.commands import main

if __name__ == "__main__":
    main()
