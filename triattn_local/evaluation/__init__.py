"""What forgetting costs: tasks, ways to forget, and a runner that puts one against the other.

Everything goes through the real library and its cache. How a figure comes about:

    methods   a name -> the settings of a cache that forgets (or of one that does not)
    tasks/    one module each: makes its cases, runs one case in one context, returns numbers
    runner    the grid task x case x method x kept fraction; writes a line each, goes on where it was stopped
    summary   lines -> means with intervals
    report    means -> table, Markdown, plots

Rounds, memory and quality stand on every line, so that no figure is shown for a cache that never forgot.
"""
