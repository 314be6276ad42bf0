"""python -m lib.params: print the table of parameters."""

from lib.params import markdown_table

print(markdown_table())
