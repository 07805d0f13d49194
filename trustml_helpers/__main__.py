"""``python -m trustml_helpers ...`` is the same as ``trustml ...``."""

from trustml_helpers.cli import main

if __name__ == "__main__":
    main()
