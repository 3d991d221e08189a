"""What is known of a model and its statistics: found out, weighed, drawn, written as a page. What ``inspect`` shows.

Knows nothing of how anything is measured.
"""
