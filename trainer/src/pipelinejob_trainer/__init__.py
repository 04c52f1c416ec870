"""The shell around a device: plays one rank's actions of a plan and measures each of them."""
