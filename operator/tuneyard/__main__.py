"""`python -m tuneyard`: the same commands as the `tuneyard` script."""

from tuneyard.cli.main import main

if __name__ == "__main__":
    main()
