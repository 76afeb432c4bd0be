"""The command binaryvit-convert, for those who have the repository: see python converters/to_lce.py --help."""

from binaryvit_commands.convert import main

main()
