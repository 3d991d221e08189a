"""Tools that a model may call: servers of the Model Context Protocol, started, asked, kept from doing harm.

``servers`` reads who they are, ``host`` talks to them by the official SDK, ``relay`` stands between it and a server
that is a program, and ``permissions`` knows what the user allows. Nothing here knows of models and of the screen.
"""
