"""`python -m paft.chat`: see `paft.command.talk`."""

from paft.command.talk import main

if __name__ == "__main__":
    main()
