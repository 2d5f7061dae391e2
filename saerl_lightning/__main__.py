"""`-m saerl_lightning` is the same door as `main.py`, from any folder."""

from saerl_lightning.cli import main

main()
