"""`python -m payloops`."""

from payloops.cli import main

if __name__ == "__main__":
    main()
