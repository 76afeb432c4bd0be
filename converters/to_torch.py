"""The command binaryvit-to-torch, for those who have the repository: see python converters/to_torch.py --help."""

from binaryvit_commands.to_torch import main

main()
