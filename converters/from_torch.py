"""The command binaryvit-from-torch, for those who have the repository: see python converters/from_torch.py --help."""

from binaryvit_commands.from_torch import main

main()
