"""The supervisor behind ``hillfire up``: a whole cluster as child processes of one.

``directory`` knows what a cluster's directory holds, ``process`` one child, ``supervisor`` all of
them together, ``control`` how other processes ask the supervisor, ``mounts`` and ``ports`` what
the host says about either, ``daemon`` how it all goes into the background.
"""
