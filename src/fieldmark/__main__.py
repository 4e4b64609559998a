"""``python -m fieldmark``."""

from fieldmark.cli import main

if __name__ == "__main__":
    main()
