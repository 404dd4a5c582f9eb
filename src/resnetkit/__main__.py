"""`python -m resnetkit` is `resnet`."""

from resnetkit.cli import main

main()
