"""`python -m dqmstream` is the `dqmstream` command."""

from dqmstream.cli.main import main

if __name__ == "__main__":
    main()
