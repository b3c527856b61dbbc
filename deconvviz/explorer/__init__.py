"""The report: one page for browsers that shows what every unit sees.

`report` makes the calls, `parts` turns results into data, `sprites` into small pictures, `page` writes the file.
May import: every folder but comparison, plotting and cli.
"""
