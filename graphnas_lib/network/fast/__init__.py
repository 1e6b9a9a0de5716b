"""CPU fast paths of networks that we built, put under them by `switch.accelerated` and taken away again."""
