"""Fire drills: somebody's own configuration, with every vendor played by a script that fails on purpose.

Nothing real is touched: no vendor is asked, and keys, rows and state are made for the drill alone.
"""
