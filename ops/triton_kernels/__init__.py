"""Operations in Triton, for GPUs. Importing its modules needs Triton; this one imports none of them."""
