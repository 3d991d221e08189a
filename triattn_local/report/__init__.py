"""Pictures and a page of what is known of a model's statistics: what ``inspect --html`` and ``--png`` write.

matplotlib is used in this package and nowhere else. Knows nothing of how anything is measured.
"""
