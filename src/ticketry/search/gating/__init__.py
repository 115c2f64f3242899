"""Soft masks: gates that are trained with the weights, and the searches whose masks they become."""
