"""``python -m fcnpipe`` is ``fcnpipe``."""

from fcnpipe.cli import main

if __name__ == "__main__":
    main()
