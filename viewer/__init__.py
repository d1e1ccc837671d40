"""The live viewer: an avatar in a browser, drawn by the rasterizer that trains it.

It knows nothing of training. Somebody who owns the avatar (the loop of `train.py` between two steps, or `view.py`)
calls `Viewer.turn` in the thread in which the avatar may be drawn; the web server's threads only leave notes for that
thread, so that nothing here needs a lock.
"""
