"""The chat: a terminal app over the in-process runtime.

Textual is used in this package and nowhere else. Screens and widgets know what is shown; ``engine`` owns the model in
a thread of its own; what a conversation is, and what its cache can do, stands below in ``sessions`` and
``conversation``.
"""

import os

# a key is shown at the next tick of the screen's clock, 60 a second if nobody says otherwise; read at Textual's import
os.environ.setdefault("TEXTUAL_FPS", "120")
