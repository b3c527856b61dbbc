"""Long work in blocks: each is kept whole as it is done, and a job that was killed goes on after the last one.

`runner` goes through the blocks, `draft` is the unfinished file that they go to, `journal` the list of what is done.
May import: results, ranks, errors.
"""
