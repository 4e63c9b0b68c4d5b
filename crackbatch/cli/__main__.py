"""`python -m crackbatch.cli` runs the command `crackbatch`."""

from crackbatch.cli.commands import main

if __name__ == "__main__":
    main()
