"""`-m saerl_lightning` is the same door as `main.py` and `saerl`."""

from saerl_lightning.door import main

main()
