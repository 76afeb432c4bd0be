"""Lists the commands: python -m keras_binaryvit."""

from binaryvit_commands import COMMANDS

width = max(map(len, COMMANDS))
for name, purpose in COMMANDS.items():
    print(f"{name:{width}}  {purpose}")
print("Each explains its options with --help.")
