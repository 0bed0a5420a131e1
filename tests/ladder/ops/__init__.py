"""One module for each operator of the ladder; a part that outgrows it is ``<operator>_<part>.py``."""
