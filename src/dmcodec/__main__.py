"""`python -m dmcodec`: the command line."""

from dmcodec.cli import main

if __name__ == "__main__":
    main()
