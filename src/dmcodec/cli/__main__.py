"""`python -m dmcodec.cli`, which torchrun starts."""

from dmcodec.cli import main

if __name__ == "__main__":
    main()
