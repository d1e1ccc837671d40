"""The kernels of the Triton backend. Importing its modules needs Triton; this one imports none of them."""
