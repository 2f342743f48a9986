"""`python -m liver_dask` is the command `liver-dask`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="liver-dask")
