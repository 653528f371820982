"""bloomery: from raw web pages to an aligned model, in parts that can be read, used alone and checked.

Importing this package imports nothing heavy; import the room you need (`bloomery.corpus`, `bloomery.models`, …).
"""

__version__ = "0.1.0"
