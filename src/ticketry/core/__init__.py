"""Pure functions on modules and tensors, usable in anyone's loop. This room imports no other."""
